// What the layer needs of a row whose code is known: the output and the squared error.
#pragma once

#include "panels.h"

namespace {

// The codes of a block of rows, channel by channel.  Rows that have none get the first code, to be ignored.
void gather(const float* codebook, int64_t channels, const int32_t* indices, int count, float* codes) {
  const float* rows[ROWS];
  for (int r = 0; r < ROWS; r++) rows[r] = codebook + (r < count ? std::max(indices[r], 0) : 0) * channels;
  lay_rows(channels, codes, [&](int r, int64_t c) { return rows[r][c]; });
}

// Which lanes of a block hold a row that has a code, in the width of the arithmetic so that the compiler can blend.
template <class W>
struct Valid {
  std::conditional_t<sizeof(W) == 8, int64_t, int32_t> lane[ROWS];
  Valid(const int32_t* indices, int count) {
    for (int r = 0; r < ROWS; r++) lane[r] = r < count && indices[r] >= 0;
  }
};

template <class T>
void load(const T* from, const RowOffsets& rows, int64_t shift, Wide<T>* lanes) {
  if (rows.adjacent)
    for (int r = 0; r < ROWS; r++) lanes[r] = wide(from[rows.at[0] + shift + r]);
  else
    for (int r = 0; r < ROWS; r++) lanes[r] = wide(from[rows.at[r] + shift]);
}

template <class T>
void store(T* to, const RowOffsets& rows, int64_t shift, int count, const Wide<T>* lanes) {
  if (rows.adjacent)
    for (int r = 0; r < ROWS; r++) narrow(lanes[r], to[rows.at[0] + shift + r]);
  else
    for (int r = 0; r < count; r++) narrow(lanes[r], to[rows.at[r] + shift]);
}

// Output and squared error.  Errors are summed in groups of sixteen, then in double, always in the same order.
template <class T>
struct Finish {
  const T* x;
  Shape shape;
  Strides strides, out_strides;
  const float* codebook;
  const int32_t* indices;
  Wide<T> strength;
  T* out;  // null: no output wanted
  double* row_error;

  void along_rows(int64_t first, int count) const {
    using W = Wide<T>;
    RowOffsets from(shape, strides, first, count), to(shape, out_strides, first, count);
    for (int r = 0; r < count; r++) {
      const T* row = x + from.at[r];
      T* target = out ? out + to.at[r] : nullptr;
      const int32_t index = indices[first + r];
      row_error[first + r] = 0;
      if (index < 0) {
        if (target) std::copy(row, row + shape.channels, target);
        continue;
      }
      const float* code = codebook + index * shape.channels;
      // Sixteen sums side by side: the compiler vectorizes them without changing the order of any.
      W lanes[16] = {};
      const int64_t whole = shape.channels / 16 * 16;
      for (int64_t c = 0; c < whole; c += 16)
        for (int j = 0; j < 16; j++) {
          W difference = wide(row[c + j]) - static_cast<W>(code[c + j]);
          lanes[j] += difference * difference;
        }
      for (int64_t c = whole; c < shape.channels; c++) {
        W difference = wide(row[c]) - static_cast<W>(code[c]);
        lanes[c - whole] += difference * difference;
      }
      double total = 0;
      for (int j = 0; j < 16; j++) total += lanes[j];
      row_error[first + r] = total;
      if (!target) continue;
      // Full strength is the code itself: x + (q - x) would round twice.
      if (strength == 1)
        for (int64_t c = 0; c < shape.channels; c++) narrow(static_cast<W>(code[c]), target[c]);
      else
        for (int64_t c = 0; c < shape.channels; c++) {
          W value = wide(row[c]);
          narrow(value + strength * (static_cast<W>(code[c]) - value), target[c]);
        }
    }
  }

  void across_rows(int64_t first, int count, float* codes) const {
    using W = Wide<T>;
    RowOffsets from(shape, strides, first, count), to(shape, out_strides, first, count);
    gather(codebook, shape.channels, indices + first, count, codes);
    const Valid<W> valid(indices + first, count);
    double total[ROWS] = {};
    W error[ROWS] = {}, value[ROWS], result[ROWS];
    for (int64_t c = 0; c < shape.channels; c++) {
      prefetch(x + from.at[0] + c * strides.channel, strides.channel);
      load(x, from, c * strides.channel, value);
      const float* code = codes + c * ROWS;
      for (int r = 0; r < ROWS; r++) {
        W difference = value[r] - static_cast<W>(code[r]);
        error[r] += difference * difference;
      }
      // Sixteen channels in the width of the features, then double: rounding does not grow with their number.
      if (c % 16 == 15 || c == shape.channels - 1)
        for (int r = 0; r < ROWS; r++) total[r] += error[r], error[r] = 0;
      if (!out) continue;
      if (strength == 1)
        for (int r = 0; r < ROWS; r++) result[r] = valid.lane[r] ? static_cast<W>(code[r]) : value[r];
      else
        for (int r = 0; r < ROWS; r++) {
          W blend = value[r] + strength * (static_cast<W>(code[r]) - value[r]);
          result[r] = valid.lane[r] ? blend : value[r];
        }
      store(out, to, c * out_strides.channel, count, result);
    }
    // Chosen and not multiplied: the error of a row with a NaN is one.
    for (int r = 0; r < count; r++) row_error[first + r] = valid.lane[r] ? total[r] : 0;
  }

  // `scratch` holds a panel.  What is computed for a row does not depend on the other rows of the block.
  void rows(int64_t first, int count, float* scratch) const {
    if (strides.channel == 1 && (!out || out_strides.channel == 1))
      along_rows(first, count);
    else
      across_rows(first, count, scratch);
  }
};

}  // namespace
