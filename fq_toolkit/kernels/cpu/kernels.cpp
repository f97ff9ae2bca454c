// The quantizer's ops for CPU tensors.  fq_toolkit/kernels/native.py compiles this file at first use and calls the
// extern "C" functions at its end; fq_toolkit/kernels/reference.py defines what they compute.  The macro FEATURE names
// the element type of the features: one library for each type that is used keeps the first use short.

#include <new>

#include "commit.h"
#include "decode.h"
#include "lookup.h"
#include "rows.h"

namespace {

struct ForwardArguments {
  const void* x;
  const int64_t *shape, *strides, *out_strides;
  const float *codebook, *center;
  int64_t num_codes;
  const uint8_t* mask;
  double strength;
  void* out;
  int32_t* indices;
  float* sq_error;
  int64_t* counts;
  float* sums;
  int32_t exact, threads;
};

Shape shape_of(const int64_t* s) { return {s[0], s[1], s[2], s[3]}; }
Strides strides_of(const int64_t* s) { return {s[0], s[1], s[2], s[3]}; }

template <class T>
void forward(const ForwardArguments& a) {
  const Shape shape = shape_of(a.shape);
  const Strides strides = strides_of(a.strides);
  const T* x = static_cast<const T*>(a.x);
  std::vector<double> row_error(shape.rows());
  const Finish<T> finish{x,
                         shape,
                         strides,
                         strides_of(a.out_strides),
                         a.codebook,
                         a.indices,
                         static_cast<Wide<T>>(a.strength),
                         static_cast<T*>(a.out),
                         row_error.data()};
  look_up(x, shape, strides, a.codebook, a.num_codes, a.center, a.mask, a.exact != 0, a.indices, finish, a.threads);
  // Here and not in the threads: errors and counts are then the same for any number of them.
  for (int64_t b = 0; b < shape.batch; b++) {
    double total = 0;
    for (int64_t i = 0; i < shape.positions(); i++) total += row_error[b * shape.positions() + i];
    a.sq_error[b] = static_cast<float>(total);
  }
  std::fill(a.counts, a.counts + a.num_codes, 0);
  for (int64_t n = 0; n < shape.rows(); n++)
    if (a.indices[n] >= 0) a.counts[a.indices[n]]++;
  if (a.sums) sum_rows(x, shape, strides, a.indices, a.num_codes, a.sums, a.threads);
}

struct BackwardArguments {
  const void* x;
  const int64_t *shape, *strides, *grad_strides, *out_strides;
  const float* codebook;
  const int32_t* indices;
  const float* grad_error;
  const void* grad;
  void* out;
  int64_t num_codes;
  int32_t threads;
};

// Asked before the first read: such indices come with another codebook, and would read past its end.
bool beyond_the_codes(const BackwardArguments& a) {
  int32_t largest = -1;
  const int64_t rows = shape_of(a.shape).rows();
  for (int64_t n = 0; n < rows; n++) largest = std::max(largest, a.indices[n]);
  return largest >= a.num_codes;
}

template <class T>
void backward(const BackwardArguments& a) {
  Backward<T>{static_cast<const T*>(a.x),
              shape_of(a.shape),
              strides_of(a.strides),
              strides_of(a.grad_strides),
              strides_of(a.out_strides),
              a.codebook,
              a.indices,
              a.grad_error,
              static_cast<const T*>(a.grad),
              static_cast<T*>(a.out)}
      .run(a.threads);
}

}  // namespace

// Each returns 0, 1 when memory ran out, or 2 when an index belongs to no code.  No exception may pass into ctypes.
extern "C" int fq_quantize_forward(const ForwardArguments* arguments) {
  try {
    forward<FEATURE>(*arguments);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

extern "C" int fq_quantize_backward(const BackwardArguments* arguments) {
  try {
    if (beyond_the_codes(*arguments)) return 2;
    backward<FEATURE>(*arguments);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

extern "C" int fq_ema_commit(const CommitArguments* arguments) {
  try {
    commit(*arguments);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

extern "C" int fq_decode(const DecodeArguments* arguments) {
  try {
    decode(*arguments);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// 1 when compiled with OpenMP.
extern "C" int fq_parallel() {
#ifdef _OPENMP
  return 1;
#else
  return 0;
#endif
}
