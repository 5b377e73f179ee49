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
  if (!t.stop && !fetches_late<M, L>(t)) {
#pragma GCC unroll 14
    for (int i = 0; i < M; ++i) fetch_y<T, Wide>(t, i);
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

  const TileArgs<T> u = t;  // by value: what y's stores might write to would be read again after each
  const int64_t n1 = Wide ? u.n - W : 0;
  const auto each_row = [&](auto f) {
#pragma GCC unroll 14
    for (int i = 0; i < M; ++i) f(i);
  };
  if (u.alpha != T(1)) each_row([&](int i) { sum0[i] *= u.alpha, sum1[i] *= u.alpha; });
  if (u.c)
    each_row([&](int i) {
      const T* const c = u.c[i] + u.column;
      sum0[i] += u.beta * simd::load(c, u.n);
      if (n1) sum1[i] += u.beta * simd::load(c + W, n1);
    });
  if (u.bias) {
    const T* const bias = u.bias + u.column;
    const V bias0 = simd::load(bias, u.n), bias1 = n1 ? simd::load(bias + W, n1) : V{};
    each_row([&](int i) { sum0[i] += bias0, sum1[i] += bias1; });
  }
  if (u.relu) each_row([&](int i) { sum0[i] = simd::relu<T>(sum0[i]), sum1[i] = simd::relu<T>(sum1[i]); });
  if (u.n == (Wide ? kCols<T> : W))
    each_row([&](int i) {
      T* const y = u.y[i] + u.column;
      simd::store(y, sum0[i]);
      if (Wide) simd::store(y + W, sum1[i]);
    });
  else
    each_row([&](int i) {
      T* const y = u.y[i] + u.column;
      simd::store(y, sum0[i], u.n);
      if (n1) simd::store(y + W, sum1[i], n1);
    });
}

template <class T, Layout L, bool Wide, int... M>
constexpr auto tile_table(std::integer_sequence<int, M...>) {
  return std::array<void (*)(const TileArgs<T>&), sizeof...(M)>{&tile<T, M + 1, L, Wide>...};
}

}  // namespace

template <class T, bool Gathered>
void run_tile(int64_t m, const TileArgs<T>& t) {
  using Rows = std::make_integer_sequence<int, Gathered ? kRows : kAdjacentRows>;
  constexpr Layout kLayout = Gathered ? Layout::kGatheredPacked : Layout::kAdjacent;
  static constexpr auto wide = tile_table<T, kLayout, true>(Rows{});
  static constexpr auto narrow = tile_table<T, kLayout, false>(Rows{});
  if constexpr (Gathered) {
    static constexpr auto in_place = tile_table<T, Layout::kGathered, true>(Rows{});
    if (t.ldb != kCols<T>) return in_place.data()[m - 1](t);
  } else {
    static constexpr auto ahead = tile_table<T, Layout::kAdjacentAhead, true>(Rows{});
    if (t.next) return ahead.data()[m - 1](t);
    if constexpr (kUnroll > 1) {
      static constexpr auto packed = tile_table<T, Layout::kAdjacentPacked, true>(Rows{});
      if (t.step == m && t.ldb == kCols<T> && t.n > simd::kWidth<T>) return packed.data()[m - 1](t);
    }
  }
  (t.n > simd::kWidth<T> ? wide : narrow).data()[m - 1](t);
}

#define INSTANTIATE(T)                                          \
  template void run_tile<T, true>(int64_t, const TileArgs<T>&); \
  template void run_tile<T, false>(int64_t, const TileArgs<T>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
