// One moving-average step of the dictionary, in the order of operations of the reference: float32 for what is stored,
// double for totals over codes or rows.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace {

struct CommitArguments {
  float *codebook, *ema_counts, *ema_sums, *center;
  int64_t* num_updates;
  const float *counts, *sums;
  int64_t num_codes, channels;
  double decay, eps;
  int32_t debias;
};

void commit(const CommitArguments& a) {
  double batch_rows = 0;  // float would stop counting at 2^24
  for (int64_t k = 0; k < a.num_codes; k++) batch_rows += a.counts[k];
  if (!(batch_rows > 0)) return;  // also for NaN: a batch without rows leaves no trace, not even in the count of updates
  ++*a.num_updates;
  const float keep = static_cast<float>(a.decay), take = static_cast<float>(1 - a.decay);
  const float eps = static_cast<float>(a.eps);
  // 1 - decay^t in double: with a decay near 1 float would lose most of its digits.
  const float scale = a.debias ? static_cast<float>(1 / (1 - std::pow(a.decay, *a.num_updates))) : 1.0f;
  // All counts first, as every code is divided by a share of their total.
  double sum = 0;
  for (int64_t k = 0; k < a.num_codes; k++) {
    a.ema_counts[k] = keep * a.ema_counts[k] + take * a.counts[k];
    sum += a.ema_counts[k] * scale;
  }
  const float total = static_cast<float>(sum), smoothing = static_cast<float>(a.num_codes * a.eps);
  std::vector<double> mean(a.channels);
  for (int64_t k = 0; k < a.num_codes; k++) {
    float *code = a.codebook + k * a.channels, *moving = a.ema_sums + k * a.channels;
    const float* added = a.sums + k * a.channels;
    const float seen = a.ema_counts[k] * scale;
    const float smoothed = (seen + eps) / (total + smoothing) * total;
    for (int64_t c = 0; c < a.channels; c++) {
      mean[c] += added[c];
      // A sum beyond float is left out: the moving sum would stay infinite for ever.
      if (std::isfinite(added[c])) moving[c] = keep * moving[c] + take * added[c];
      code[c] = moving[c] * scale / smoothed;
    }
  }
  for (int64_t c = 0; c < a.channels; c++) {
    const float middle = static_cast<float>(mean[c] / batch_rows);
    if (std::isfinite(middle)) a.center[c] = keep * a.center[c] + take * middle;
  }
}

}  // namespace
