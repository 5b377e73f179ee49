// Few rows by b as it lies in memory: its rows come one after the other, a few at a time by many columns, and the sums wait
// in between. Tiles that hold their sums would hop down b's columns, row by row, each in a page of its own.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "tile.h"

namespace fastnn::FASTNN_TARGET {

// Adds `depth` terms of M rows, packed side by side, by P panels that lie side by side in b, to sums of M rows of kCols,
// `step` apart from one panel to the next. In the order of a tile's sums, so with the same bits.
template <class T, int M, int P>
[[gnu::always_inline]] inline void sweep_panels(const T* a, int64_t depth, const T* b, int64_t ldb, T* sums, int64_t step) {
  constexpr int W = simd::kWidth<T>, V = 2 * P;
  const auto sums_at = [&](int i, int v) { return sums + v / 2 * step + i * kCols<T> + v % 2 * W; };
  simd::V<T> sum[M][V];
#pragma GCC unroll 14
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[i][v] = simd::load(sums_at(i, v));
  for (int64_t k = 0; k < depth; ++k, b += ldb, a += M) {
    simd::V<T> row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) row[v] = simd::load(b + v * W);
#pragma GCC unroll 14
    for (int i = 0; i < M; ++i) {
      const simd::V<T> x = simd::broadcast(a[i]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[i][v] = simd::multiply_add(x, row[v], sum[i][v]);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) simd::store(sums_at(i, v), sum[i][v]);
}

// The same for any number of panels. A single row takes several at a time: its sums must not wait for each other.
template <class T, int M>
void sweep(const T* a, int64_t depth, const T* b, int64_t ldb, int64_t panels, T* sums, int64_t step) {
  constexpr int P = std::max(4 / M, 1);
  for (; panels >= P; panels -= P, b += P * kCols<T>, sums += P * step) sweep_panels<T, M, P>(a, depth, b, ldb, sums, step);
  if constexpr (P > 1)
    for (; panels > 0; --panels, b += kCols<T>, sums += step) sweep_panels<T, M, 1>(a, depth, b, ldb, sums, step);
}

template <class T>
using Sweep = void (*)(const T*, int64_t, const T*, int64_t, int64_t, T*, int64_t);

// The sweep of m rows, 1 <= m <= kAdjacentRows.
template <class T>
inline Sweep<T> sweep_of(int64_t m) {
  static constexpr auto table = []<int... M>(std::integer_sequence<int, M...>) {
    return std::array<Sweep<T>, sizeof...(M)>{&sweep<T, M + 1>...};
  }(std::make_integer_sequence<int, kAdjacentRows>{});
  return table.data()[m - 1];
}

}  // namespace fastnn::FASTNN_TARGET
