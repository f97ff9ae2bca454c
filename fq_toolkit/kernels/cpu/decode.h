// Attention of one new token over memory slots and text, each where it lies.  torch's kernels want the slots and the
// text in one array, and to make it, or to merge two results, takes longer than the attention itself.
#pragma once

#include "panels.h"

namespace {

struct DecodeArguments {
  const float *query, *key, *value, *slot_key, *slot_value;
  float* out;              // (batch, heads, value_dim)
  int64_t strides[14];     // of query: batch, head; then of key, value, slot_key, slot_value: batch, head, position
  int64_t batch, heads, groups, length, slots, key_dim, value_dim;  // so many groups of heads share keys and values
  int64_t threads;
  double scale;
};

// Rows of keys or values of one head.
struct Rows {
  const float* first;
  int64_t stride;

  Rows(const float* start, const int64_t* strides, int64_t batch, int64_t head)
      : first(start + batch * strides[0] + head * strides[1]), stride(strides[2]) {}

  const float* operator[](int64_t position) const { return first + position * stride; }
};

float dot(const float* a, const float* b, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < count; c++) sum += a[c] * b[c];
  return sum;
}

// e^x for x <= 0, without a branch or a call, so that a loop over it becomes vector code: 2^n e^r with |r| <= ln(2) / 2
// by Taylor's series, whose next term is below 6e-9.  ln(2) is taken off in two parts, the first of few bits.
inline float exponential(float x) {
  x = std::max(x, -87.0f);
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float series = 1 / 5040.0f;
  for (const float term : {1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 1 / 2.0f, 1.0f, 1.0f}) series = series * r + term;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return series * power;
}

// Add weighted rows of values to the sum.
void add_rows(const Rows& values, const float* weights, int64_t length, int64_t dim, float* sum) {
  for (int64_t t = 0; t < length; t++) {
    const float* row = values[t];
    const float weight = weights[t];
#pragma omp simd
    for (int64_t c = 0; c < dim; c++) sum[c] += weight * row[c];
  }
}

// One head of one text; `weights` has room for the slots and the text.
void decode_head(const DecodeArguments& a, int64_t batch, int64_t head, float* weights) {
  const int64_t group = head / (a.heads / a.groups), total = a.slots + a.length;
  const float* query = a.query + batch * a.strides[0] + head * a.strides[1];
  const Rows keys(a.key, a.strides + 2, batch, group), slot_keys(a.slot_key, a.strides + 8, batch, group);
  for (int64_t s = 0; s < a.slots; s++) weights[s] = dot(query, slot_keys[s], a.key_dim);
  for (int64_t t = 0; t < a.length; t++) weights[a.slots + t] = dot(query, keys[t], a.key_dim);

  const float scale = static_cast<float>(a.scale);
  float largest = weights[0] * scale;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < total; i++) largest = std::max(largest, weights[i] * scale);
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < total; i++) {
    weights[i] = exponential(weights[i] * scale - largest);
    sum += weights[i];
  }

  float* out = a.out + (batch * a.heads + head) * a.value_dim;
  std::fill(out, out + a.value_dim, 0.0f);
  add_rows(Rows(a.slot_value, a.strides + 11, batch, group), weights, a.slots, a.value_dim, out);
  add_rows(Rows(a.value, a.strides + 5, batch, group), weights + a.slots, a.length, a.value_dim, out);
  for (int64_t c = 0; c < a.value_dim; c++) out[c] /= sum;
}

void decode(const DecodeArguments& a) {
  const int64_t total = a.slots + a.length;
  std::vector<float> weights(a.threads * total);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(a.threads)) if (a.threads > 1)
  for (int64_t row = 0; row < a.batch * a.heads; row++)
    decode_head(a, row / a.heads, row % a.heads, weights.data() + thread_index() * total);
}

}  // namespace
