// The tiles of every height, compiled once for all kernels that stand on them.
#include "tile.h"

#include <array>
#include <utility>

namespace fastnn::FASTNN_TARGET {
namespace {

template <class T, int M, Layout L, bool Wide>
void tile(const TileArgs<T>& t) {
  using V = simd::V<T>;
  constexpr int W = simd::kWidth<T>;
  V sum0[M], sum1[M];
  if (!t.stop) {
#pragma GCC unroll 14
    for (int i = 0; i < M; ++i) {
      simd::prefetch_to_write(t.y[i] + t.column);
      if (Wide) simd::prefetch_to_write(t.y[i] + t.column + t.n - 1);
    }
  }
  accumulate<T, M, L, Wide>(t, sum0, sum1);
  if (t.stop) {
#pragma GCC unroll 14
    for (int i = 0; i < M; ++i) {
      simd::store(t.stop + i * kCols<T>, sum0[i]);
      if (Wide) simd::store(t.stop + i * kCols<T> + W, sum1[i]);
    }
    return;
  }

  const int64_t n1 = Wide ? t.n - W : 0;
  const T* const bias = t.bias + t.column;
  const V bias0 = t.bias ? simd::load(bias, t.n) : V{}, bias1 = t.bias && n1 ? simd::load(bias + W, n1) : V{};
#pragma GCC unroll 14
  for (int i = 0; i < M; ++i) {
    V y0 = sum0[i] * t.alpha, y1 = sum1[i] * t.alpha;
    if (t.c) {
      y0 += t.beta * simd::load(t.c[i] + t.column, t.n);
      if (n1) y1 += t.beta * simd::load(t.c[i] + t.column + W, n1);
    }
    if (t.bias) y0 += bias0, y1 += bias1;
    if (t.relu) y0 = simd::relu<T>(y0), y1 = simd::relu<T>(y1);
    simd::store(t.y[i] + t.column, y0, t.n);
    if (n1) simd::store(t.y[i] + t.column + W, y1, n1);
  }
}

template <class T, Layout L, bool Wide, int... M>
constexpr auto tile_table(std::integer_sequence<int, M...>) {
  return std::array<void (*)(const TileArgs<T>&), sizeof...(M)>{&tile<T, M + 1, L, Wide>...};
}

}  // namespace

template <class T, bool Gathered>
void run_tile(int64_t m, const TileArgs<T>& t) {
  using Rows = std::make_integer_sequence<int, Gathered ? kRows : kAdjacentRows>;
  constexpr Layout kPacked = Gathered ? Layout::kGatheredPacked : Layout::kAdjacent;
  static constexpr auto wide = tile_table<T, kPacked, true>(Rows{});
  static constexpr auto narrow = tile_table<T, kPacked, false>(Rows{});
  if constexpr (Gathered) {
    static constexpr auto in_place = tile_table<T, Layout::kGathered, true>(Rows{});
    if (t.ldb != kCols<T>) return in_place.data()[m - 1](t);
  }
  (t.n > simd::kWidth<T> ? wide : narrow).data()[m - 1](t);
}

#define INSTANTIATE(T)                                          \
  template void run_tile<T, true>(int64_t, const TileArgs<T>&); \
  template void run_tile<T, false>(int64_t, const TileArgs<T>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
