// The gradient and the per-code sums.
#pragma once

#include "finish.h"
#include "panels.h"

namespace {

// Visit the rows of every sample in blocks of at most ROWS that never cross a sample.
template <class Visit>
void for_each_block(const Shape& shape, int threads, Visit visit) {
  const int64_t positions = shape.positions(), blocks = (positions + ROWS - 1) / ROWS;
  const int64_t each = shape.channels * ROWS;  // a multiple of a cache line
  std::vector<float> storage;
  float* scratch = aligned(storage, threads * each);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t block = 0; block < shape.batch * blocks; block++) {
    int64_t sample = block / blocks, start = block % blocks * ROWS;
    visit(sample, sample * positions + start, static_cast<int>(std::min<int64_t>(ROWS, positions - start)),
          scratch + thread_index() * each);
  }
}

template <class T>
struct Backward {
  const T* x;
  Shape shape;
  Strides strides, grad_strides, out_strides;
  const float* codebook;
  const int32_t* indices;
  const float* grad_error;
  const T* grad;  // null: zero
  T* out;

  // One row whose channels are adjacent.  The pointers never overlap: the target is a tensor of its own.
  void pass(const T* __restrict row, const float* __restrict code, Wide<T> pull, const T* __restrict passed,
            T* __restrict target) const {
    const int64_t channels = shape.channels;
    // Copied, not multiplied by zero: a row without a code may hold NaN.
    if (pull == 0 && passed)
      std::copy(passed, passed + channels, target);
    else if (pull == 0)
      std::fill(target, target + channels, T());
    else if (passed)
      for (int64_t c = 0; c < channels; c++)
        narrow(pull * (wide(row[c]) - static_cast<Wide<T>>(code[c])) + wide(passed[c]), target[c]);
    else
      for (int64_t c = 0; c < channels; c++)
        narrow(pull * (wide(row[c]) - static_cast<Wide<T>>(code[c])), target[c]);
  }

  void along_rows(int64_t sample, int64_t first, int count) const {
    using W = Wide<T>;
    RowOffsets from(shape, strides, first, count), through(shape, grad_strides, first, count),
        to(shape, out_strides, first, count);
    const W factor = 2 * static_cast<W>(grad_error[sample]);  // one for the sample: blocks never cross a border
    for (int r = 0; r < count; r++) {
      const T* row = x + from.at[r];
      T* target = out + to.at[r];
      const T* passed = grad ? grad + through.at[r] : nullptr;
      const int32_t index = indices[first + r];
      const W pull = index < 0 ? 0 : factor;
      pass(row, codebook + std::max(index, 0) * shape.channels, pull, passed, target);
    }
  }

  void across_rows(int64_t sample, int64_t first, int count, float* codes) const {
    using W = Wide<T>;
    RowOffsets from(shape, strides, first, count), through(shape, grad_strides, first, count),
        to(shape, out_strides, first, count);
    gather(codebook, shape.channels, indices + first, count, codes);
    const W factor = 2 * static_cast<W>(grad_error[sample]);
    W value[ROWS], passed[ROWS] = {}, result[ROWS];
    const Valid<W> valid(indices + first, count);
    for (int64_t c = 0; c < shape.channels; c++) {
      prefetch(x + from.at[0] + c * strides.channel, strides.channel);
      load(x, from, c * strides.channel, value);
      if (grad) load(grad, through, c * grad_strides.channel, passed);
      for (int r = 0; r < ROWS; r++) {
        W pull = factor * (value[r] - static_cast<W>(codes[c * ROWS + r]));
        result[r] = (valid.lane[r] ? pull : 0) + passed[r];
      }
      store(out, to, c * out_strides.channel, count, result);
    }
  }

  void run(int threads) const {
    const bool channels_adjacent =
        strides.channel == 1 && out_strides.channel == 1 && (!grad || grad_strides.channel == 1);
    for_each_block(shape, threads, [&](int64_t sample, int64_t first, int count, float* codes) {
      if (channels_adjacent)
        along_rows(sample, first, count);
      else
        across_rows(sample, first, count, codes);
    });
  }
};

// Per-code sums.  A thread owns some channels and adds the rows in order, in double: no atomics, and the result does
// not depend on the number of threads.
template <class T, int WIDTH>
void sum_channels(const T* x, const Shape& shape, const Strides& strides, const int32_t* indices, int64_t num_codes,
                  int64_t first, int count, double* totals, float* sums) {
  // WIDTH channels of all codes stay in the cache, while the rows pass once for each such block.
  std::fill(totals, totals + num_codes * WIDTH, 0.0);
  int64_t n = 0;
  for (int64_t b = 0; b < shape.batch; b++)
    for (int64_t p = 0; p < shape.height; p++) {
      const T* line = x + b * strides.batch + p * strides.height + first * strides.channel;
      for (int64_t q = 0; q < shape.width; q++, n++) {
        if (indices[n] < 0) continue;
        double* total = totals + static_cast<int64_t>(indices[n]) * WIDTH;
        const T* from = line + q * strides.width;
        if (count < WIDTH)
          for (int j = 0; j < count; j++) total[j] += wide(from[j * strides.channel]);
        else if (strides.channel == 1)
          for (int j = 0; j < WIDTH; j++) total[j] += wide(from[j]);
        else
          for (int j = 0; j < WIDTH; j++) total[j] += wide(from[j * strides.channel]);
      }
    }
  for (int64_t k = 0; k < num_codes; k++)
    for (int j = 0; j < count; j++) sums[k * shape.channels + first + j] = static_cast<float>(totals[k * WIDTH + j]);
}

template <class T>
void sum_rows(const T* x, const Shape& shape, const Strides& strides, const int32_t* indices, int64_t num_codes,
              float* sums, int threads) {
  constexpr int WIDTH = 16;
  const int64_t blocks = (shape.channels + WIDTH - 1) / WIDTH;
  // More threads than blocks would only hold more totals.
  threads = static_cast<int>(std::min<int64_t>(threads, blocks));
  std::vector<double> totals(threads * num_codes * WIDTH);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t block = 0; block < blocks; block++)
    sum_channels<T, WIDTH>(x, shape, strides, indices, num_codes, block * WIDTH,
                           static_cast<int>(std::min<int64_t>(WIDTH, shape.channels - block * WIDTH)),
                           totals.data() + thread_index() * num_codes * WIDTH, sums);
}

}  // namespace
