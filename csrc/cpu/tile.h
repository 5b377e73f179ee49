// The register tile on which GEMM and all three convolution passes stand: up to kRows x kCols results, held in registers
// while the sum runs.
//
//   y[i][0..n) = relu?(alpha * sum + beta * c[i][0..n) + bias),
//   sum        = over runs, over k < run.length:  a_i[run.a + k * step] * b[(run.b + k) * ldb + 0..n)
//
// Rows are gathered (a_i = rows[i], any address; k walks along memory: forward, input gradient, A B) or adjacent
// (a_i = rows[0] + i; k walks with stride `step`: weight gradient, A^T B). Runs let the sum hop: over filter taps, over
// image rows. Per k the tile costs 2 vector loads and M broadcasts for 2 M multiply-adds, which bounds it by arithmetic.
// Every element is one chain of multiply-adds in the order of k, whatever the tile's height or the element's place in it:
// so results do not depend on how work is cut into tiles.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <tuple>
#include <utility>

#include "simd.h"

namespace fastnn::FASTNN_TARGET {

struct Run {
  int64_t a;       // offset of the run's first element from each row's address, in elements
  int64_t b;       // first row of b
  int64_t length;  // terms
};

template <class T>
struct TileArgs {
  const T* const* rows;  // M addresses (gathered), or one (adjacent)
  int64_t step;          // from one k to the next; 1 where gathered
  const Run* runs;
  int64_t run_count;
  const T* b;  // columns of one panel: kCols readable in each row
  int64_t ldb;
  T* const* y;                  // M row addresses, at the panel's first column
  int64_t n;                    // real columns, at most kCols
  const T* const* c = nullptr;  // as y; null: beta is not used. May be y itself
  const T* bias = nullptr;      // n values, or null
  T alpha = 1, beta = 0;
  bool relu = false;
  const T* start = nullptr;  // sums to go on from, M rows of kCols; null: zeros
  T* stop = nullptr;         // where to leave the sums for another call to go on from; null: they are whole, write y
};

constexpr int kRows = simd::kRegisters == 32 ? 12 : 6;
template <class T>
constexpr int kCols = 2 * simd::kWidth<T>;
static_assert(2 * kRows + 3 <= simd::kRegisters, "accumulators, one row of b and one element of a stay in registers");

// The sums of M rows and both vectors of columns. Wide: all kCols columns. Otherwise only the first vector's, for panels
// with no more.
template <class T, int M, bool Gathered, bool Wide>
[[gnu::always_inline]] inline void accumulate(const TileArgs<T>& t, simd::V<T> (&sum0)[M], simd::V<T> (&sum1)[M]) {
  using V = simd::V<T>;
  constexpr int W = simd::kWidth<T>;
#pragma GCC unroll 12
  for (int i = 0; i < M; ++i) sum0[i] = sum1[i] = V{};
  if (t.start) {
#pragma GCC unroll 12
    for (int i = 0; i < M; ++i) {
      sum0[i] = simd::load(t.start + i * kCols<T>);
      if (Wide) sum1[i] = simd::load(t.start + i * kCols<T> + W);
    }
  }

  for (const Run* run = t.runs; run != t.runs + t.run_count; ++run) {
    const T* a[M];  // where gathered, the run's end, up to which k counts: one register less than with a limit of its own
    const int64_t offset = run->a + (Gathered ? run->length : 0);
#pragma GCC unroll 12
    for (int i = 0; i < M; ++i) a[i] = (Gathered ? t.rows[i] : t.rows[0]) + offset;
    const T* b = t.b + run->b * t.ldb;
    const int64_t step = t.step, ldb = t.ldb;
    for (int64_t k = Gathered ? -run->length : 0; k != (Gathered ? 0 : run->length); ++k, b += ldb) {
      const V b0 = simd::load(b), b1 = Wide ? simd::load(b + W) : V{};
#pragma GCC unroll 12
      for (int i = 0; i < M; ++i) {
        const V x = simd::broadcast(Gathered ? a[i][k] : a[0][k * step + i]);
        sum0[i] = simd::multiply_add(x, b0, sum0[i]);
        if (Wide) sum1[i] = simd::multiply_add(x, b1, sum1[i]);
      }
    }
  }
}

template <class T, int M, bool Gathered, bool Wide>
void tile(const TileArgs<T>& t) {
  using V = simd::V<T>;
  constexpr int W = simd::kWidth<T>;
  V sum0[M], sum1[M];
  accumulate<T, M, Gathered, Wide>(t, sum0, sum1);
  if (t.stop) {
#pragma GCC unroll 12
    for (int i = 0; i < M; ++i) {
      simd::store(t.stop + i * kCols<T>, sum0[i]);
      if (Wide) simd::store(t.stop + i * kCols<T> + W, sum1[i]);
    }
    return;
  }

  const int64_t n1 = Wide ? t.n - W : 0;
  const V bias0 = t.bias ? simd::load(t.bias, t.n) : V{}, bias1 = t.bias && n1 ? simd::load(t.bias + W, n1) : V{};
#pragma GCC unroll 12
  for (int i = 0; i < M; ++i) {
    V y0 = sum0[i] * t.alpha, y1 = sum1[i] * t.alpha;
    if (t.c) {
      y0 += t.beta * simd::load(t.c[i], t.n);
      if (n1) y1 += t.beta * simd::load(t.c[i] + W, n1);
    }
    if (t.bias) y0 += bias0, y1 += bias1;
    if (t.relu) y0 = simd::relu<T>(y0), y1 = simd::relu<T>(y1);
    simd::store(t.y[i], y0, t.n);
    if (n1) simd::store(t.y[i] + W, y1, n1);
  }
}

template <class T, bool Gathered, bool Wide, int... M>
constexpr auto tile_table(std::integer_sequence<int, M...>) {
  return std::array<void (*)(const TileArgs<T>&), sizeof...(M)>{&tile<T, M + 1, Gathered, Wide>...};
}

// The tile for m rows, 1 <= m <= kRows.
template <class T, bool Gathered>
inline void run_tile(int64_t m, const TileArgs<T>& t) {
  static constexpr auto wide = tile_table<T, Gathered, true>(std::make_integer_sequence<int, kRows>{});
  static constexpr auto narrow = tile_table<T, Gathered, false>(std::make_integer_sequence<int, kRows>{});
  (t.n > simd::kWidth<T> ? wide : narrow).data()[m - 1](t);
}

// Cuts `rows` into tiles of nearly the same height, so that no thin tile is left over: f(first, height).
template <class F>
inline void for_tiles(int64_t rows, F f) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t i = 0; i < tiles; ++i) f(rows * i / tiles, rows * (i + 1) / tiles - rows * i / tiles);
}

// ---- Panels of b: kCols columns each. A panel is read in place where it is whole and few tiles will read it, and from a
// packed copy otherwise: rows of kCols side by side, so that a tile reads one stream; zeros past the last column.

template <class T>
constexpr int64_t kAlign = 64 / int64_t(sizeof(T));

template <class T>
inline T* aligned(T* p) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t(63));
}

inline int64_t panel_count(int64_t n, int64_t cols) {
  return (n + cols - 1) / cols;
}

// The elements of two vectors in turn: those of their first halves, those of their second halves.
template <class V, int... I>
inline std::pair<V, V> interleave(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  return {__builtin_shufflevector(a, b, (I / 2 + I % 2 * W)...),
          __builtin_shufflevector(a, b, (I / 2 + I % 2 * W + W / 2)...)};
}

// W vectors, ld apart, become the columns of a W x W block of a panel. Each round rotates the bits of an element's place,
// row and column together, by one: after log2(W) of them the two have changed places.
template <class T>
inline void pack_transposed(const T* b, int64_t ld, T* packed) {
  constexpr int W = simd::kWidth<T>;
  simd::V<T> v[W], next[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) v[i] = simd::load(b + i * ld);
#pragma GCC unroll 4
  for (int round = 1; round < W; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i)
      std::tie(next[2 * i], next[2 * i + 1]) = interleave(v[i], v[i + W / 2], std::make_integer_sequence<int, W>{});
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) v[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) simd::store(packed + i * kCols<T>, v[i]);
}

// Packs columns [j, j + kCols) of b (rows x n, or its transpose: element (k, j) at b[j * ld + k]).
template <class T>
void pack_panel(const T* b, int64_t rows, int64_t n, int64_t ld, bool transposed, int64_t j, T* packed) {
  constexpr int W = simd::kWidth<T>;
  const int64_t cols = std::min<int64_t>(kCols<T>, n - j);
  if (transposed) {
    for (int64_t first = 0; first < kCols<T>; first += W)
      for (int64_t k = 0; k < rows; k += W) {
        T* to = packed + k * kCols<T> + first;
        if (k + W <= rows && first + W <= cols)
          pack_transposed(b + (j + first) * ld + k, ld, to);
        else
          for (int64_t r = 0; r < std::min<int64_t>(W, rows - k); ++r)
            for (int64_t i = 0; i < W; ++i) to[r * kCols<T> + i] = first + i < cols ? b[(j + first + i) * ld + k + r] : T(0);
      }
    return;
  }
  const simd::First<T> low(std::min<int64_t>(cols, W)), high(std::max<int64_t>(cols - W, 1));
  b += j;
  for (int64_t k = 0; k < rows; ++k, b += ld, packed += kCols<T>) {
    simd::store(packed, low.load(b));
    simd::store(packed + W, cols > W ? high.load(b + W) : simd::V<T>{});
  }
}

// Which panels of a (rows x n) matrix are packed, and where they lie.
template <class T>
struct Panels {
  int64_t rows, n, first_packed;
  // readers: how many rows of tiles will read each panel. Where b's own rows are short, packing pays late.
  Panels(int64_t rows, int64_t n, bool transposed, int64_t readers)
      : rows(rows), n(n), first_packed(transposed || readers >= (n <= 4 * kCols<T> ? 64 : 4) * kRows ? 0 : n / kCols<T>) {}

  int64_t count() const { return panel_count(n, kCols<T>); }
  int64_t workspace() const { return (count() - first_packed) * rows * kCols<T> + kAlign<T>; }
  T* packed(T* workspace, int64_t panel) const { return aligned(workspace) + (panel - first_packed) * rows * kCols<T>; }

  // Points t at the panel's b, ldb and n.
  void select(TileArgs<T>& t, const T* b, T* workspace, int64_t panel) const {
    const bool in_place = panel < first_packed;
    t.b = in_place ? b + panel * kCols<T> : packed(workspace, panel);
    t.ldb = in_place ? n : kCols<T>;
    t.n = std::min<int64_t>(kCols<T>, n - panel * kCols<T>);
  }
};

}  // namespace fastnn::FASTNN_TARGET
