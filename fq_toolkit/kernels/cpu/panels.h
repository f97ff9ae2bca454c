// What the CPU kernels share: element types, strided views, and panels, which hold ROWS rows side by side.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

#if defined(__AVX512F__)
constexpr int LANES = 16, CODES = 12;  // 24 accumulators, 2 features and a broadcast fill the 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8, CODES = 6;  // likewise 12 + 2 + 1 of 16
#elif defined(__aarch64__)
constexpr int LANES = 4, CODES = 12;  // 24 + 2 + 1 of 32
#else
constexpr int LANES = 4, CODES = 6;  // 12 + 2 + 1 of 16
#endif
constexpr int ROWS = 2 * LANES;  // rows of a panel

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

constexpr int32_t NONFINITE_ROW = -1, MASKED_ROW = -2;
constexpr float INF = std::numeric_limits<float>::infinity();

struct BFloat16 {
  uint16_t bits;
};

inline float wide(float v) { return v; }
inline double wide(double v) { return v; }
inline float wide(_Float16 v) { return static_cast<float>(v); }
inline float wide(BFloat16 v) {
  uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline void narrow(float v, float& out) { out = v; }
inline void narrow(double v, double& out) { out = v; }
inline void narrow(float v, _Float16& out) { out = static_cast<_Float16>(v); }
inline void narrow(float v, BFloat16& out) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  bool nan = v != v;
  bits += 0x7FFFu + ((bits >> 16) & 1u);  // to nearest, ties to even
  // Rounded like a number, some NaN would become an infinity or a zero.
  out.bits = nan ? 0x7FC0 : static_cast<uint16_t>(bits >> 16);
}
template <class T>
using Wide = decltype(wide(T{}));

// A strided (B, C, P, Q) view; row n is (b, p, q) in that order.
struct Shape {
  int64_t batch, channels, height, width;
  int64_t positions() const { return height * width; }
  int64_t rows() const { return batch * positions(); }
};
struct Strides {
  int64_t batch, channel, height, width;
};

// Where the rows [first, first + count) start in a view, and whether they are neighbours in memory.
struct RowOffsets {
  int64_t at[ROWS];
  bool adjacent;

  RowOffsets(const Shape& shape, const Strides& strides, int64_t first, int count) : adjacent(count == ROWS) {
    int64_t q = first % shape.width, p = first / shape.width % shape.height, b = first / shape.positions();
    for (int r = 0; r < count; r++) {
      at[r] = b * strides.batch + p * strides.height + q * strides.width;
      adjacent = adjacent && at[r] == at[0] + r;
      if (++q == shape.width) {
        q = 0;
        if (++p == shape.height) p = 0, b++;
      }
    }
    for (int r = count; r < ROWS; r++) at[r] = at[0];  // loads of missing rows read something legal, to be ignored
  }
};

// Neighbouring rows of one channel are one or two cache lines, and the next channel is far away: ask for it early.
template <class T>
inline void prefetch(const T* from, int64_t stride) {
  constexpr int AHEAD = 16;
  const char* ahead = reinterpret_cast<const char*>(from + AHEAD * stride);
  for (size_t byte = 0; byte < ROWS * sizeof(T); byte += 64) __builtin_prefetch(ahead + byte);
}

// Room for `count` values from the start of a cache line: a vector that crosses a border costs two loads.
template <class T>
T* aligned(std::vector<T>& storage, size_t count) {
  storage.resize(count + 64 / sizeof(T));
  auto address = reinterpret_cast<uintptr_t>(storage.data());
  return storage.data() + ((64 - address % 64) % 64) / sizeof(T);
}

// Exchange the blocks of STEP x STEP off the diagonal; all steps together transpose a square of LANES vectors.
template <int STEP>
inline void exchange(Floats* square) {
  Ints upper, lower;
  for (int j = 0; j < LANES; j++) {
    upper[j] = j & STEP ? LANES + j - STEP : j;
    lower[j] = j & STEP ? LANES + j : j + STEP;
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++)
    if (!(i & STEP)) {
      Floats first = square[i], second = square[i + STEP];
#if defined(__clang__)
      for (int j = 0; j < LANES; j++) {
        square[i][j] = j & STEP ? second[j - STEP] : first[j];
        square[i + STEP][j] = j & STEP ? second[j] : first[j + STEP];
      }
#else
      square[i] = __builtin_shuffle(first, second, upper);
      square[i + STEP] = __builtin_shuffle(first, second, lower);
#endif
    }
  if constexpr (STEP > 1) exchange<STEP / 2>(square);
}

// Lay ROWS rows side by side: panel[c * ROWS + r] = element(r, c).
template <class Element>
inline void lay_rows(int64_t channels, float* panel, Element element) {
  const int64_t whole = channels / LANES * LANES;
  for (int half = 0; half < 2; half++)
    for (int64_t c = 0; c < whole; c += LANES) {
      Floats square[LANES];
      for (int r = 0; r < LANES; r++) {
        float values[LANES];
        for (int j = 0; j < LANES; j++) values[j] = element(half * LANES + r, c + j);
        std::memcpy(&square[r], values, sizeof values);
      }
      exchange<LANES / 2>(square);
      for (int j = 0; j < LANES; j++) std::memcpy(panel + (c + j) * ROWS + half * LANES, &square[j], sizeof square[j]);
    }
  for (int64_t c = whole; c < channels; c++)
    for (int r = 0; r < ROWS; r++) panel[c * ROWS + r] = element(r, c);
}

}  // namespace
