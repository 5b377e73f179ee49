// Softmax of one row, shared by the activation and the losses.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

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

// y = softmax(x) = exp(x - top) / sum, with top = max(x), so that nothing overflows.
template <class T>
Normalizer<T> softmax_row(int64_t cols, const T* x, T* y) {
  const T top = *std::max_element(x, x + cols);
  T sum = 0;
  for (int64_t c = 0; c < cols; ++c) sum += y[c] = std::exp(x[c] - top);
  for (int64_t c = 0; c < cols; ++c) y[c] /= sum;
  return {top, sum};
}

}  // namespace fastnn::FASTNN_TARGET
