// Softmax of one row and sums along it, shared by the activation and the losses.
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

// The sum of n values, of which f(piece, i) gives those from i on as a vector of simd::Some's. It runs in kSums parts,
// value i in part i modulo kSums, which are added from left to right: the same bits for vectors of any width.
template <class T, class F>
T sum_of(int64_t n, F f) {
  constexpr int kSums = 16, W = simd::kWidth<T>;
  simd::V<T> vectors[kSums / W] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int v = 0; v < kSums / W; ++v) vectors[v] += f(simd::Some<T, W>{}, i + v * W);
  T sums[kSums];
  std::memcpy(sums, vectors, sizeof sums);
  for (int part = 0; i < n; ++i, ++part) sums[part] += f(simd::Some<T, 1>{}, i)[0];
  for (int part = 1; part < kSums; ++part) sums[0] += sums[part];
  return sums[0];
}

// The greatest of n >= 1 values. Where there is a NaN among them, one of the others or a NaN.
template <class T>
T greatest_of(int64_t n, const T* x) {
  constexpr int W = simd::kWidth<T>;
  T greatest = x[0];
  int64_t i = 0;
  if (n >= W) {
    simd::V<T> best = simd::load(x);
    for (i = W; i + W <= n; i += W) {
      const simd::V<T> v = simd::load(x + i);
      best = v > best ? v : best;
    }
    greatest = best[0];
    for (int lane = 1; lane < W; ++lane) greatest = best[lane] > greatest ? best[lane] : greatest;
  }
  for (; i < n; ++i) greatest = x[i] > greatest ? x[i] : greatest;
  return greatest;
}

// y = softmax(x) = exp(x - top) / sum, with top = max(x), so that nothing overflows.
template <class T>
Normalizer<T> softmax_row(int64_t cols, const T* x, T* y) {
  using V = simd::V<T>;
  const T top = greatest_of(cols, x);
  map_vectors(cols, x, y, [top](V v) { return Exp<T>(v - simd::broadcast(top)).value(); });
  const T sum = sum_of<T>(cols, [y](auto piece, int64_t c) { return piece.load(y + c); });
  for (int64_t c = 0; c < cols; ++c) y[c] /= sum;
  return {top, sum};
}

}  // namespace fastnn::FASTNN_TARGET
