// Softmax of one row, shared by the activation and the losses.
#pragma once

#include <algorithm>
#include <cstdint>

#include "exp.h"

namespace fastnn::FASTNN_TARGET {

// How many rows of `cols` values, each an exponential, are worth a thread's while.
inline int64_t softmax_grain(int64_t cols) {
  return std::max<int64_t>(1, 2048 / std::max<int64_t>(cols, 1));
}

// log softmax(x)[c] = x[c] - top - log(sum)
template <class T>
struct Normalizer {
  T top, sum;
};

// y = softmax(x) = exp(x - top) / sum, with top = max(x), so that nothing overflows. The sum runs in kSums parts, element c
// in part c modulo kSums, which are added from left to right.
template <class T>
Normalizer<T> softmax_row(int64_t cols, const T* x, T* y) {
  using V = simd::V<T>;
  constexpr int kSums = 16;
  const T top = *std::max_element(x, x + cols);
  map_vectors(cols, x, y, [top](V v) { return Exp<T>(v - simd::broadcast(top)).value(); });
  T sums[kSums] = {};
  int64_t c = 0;
  for (; c + kSums <= cols; c += kSums)
    for (int i = 0; i < kSums; ++i) sums[i] += y[c + i];
  for (int i = 0; c < cols; ++c, ++i) sums[i] += y[c];
  for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
  for (c = 0; c < cols; ++c) y[c] /= sums[0];
  return {top, sums[0]};
}

}  // namespace fastnn::FASTNN_TARGET
