// Products of few columns as dot products: vectors run along the terms, where those of the tile, which run along the
// columns, would be nearly empty. A few rows by all columns at a time, their sums in registers. Every element is the sum of
// its lanes, halved again and again, whatever the rows that it is computed with.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "../ops.h"
#include "panels.h"

namespace fastnn::FASTNN_TARGET {

template <class T>
class Narrow {
 public:
  // Rows of op(a) must lie side by side, and be long enough to pay for adding up the lanes.
  static bool fits(const GemmShape& s) { return s.n >= 1 && s.n <= kMost && !s.transpose_a && s.k >= kTerms * s.n; }
  // Room for b's columns side by side; a single one lies so.
  static int64_t workspace(const GemmShape& s) { return s.n == 1 ? 0 : s.n * padded(s.k) + kAlign<T>; }

  static void multiply(const GemmShape& s, const T* a, const T* b, const T* c, const T* bias, T alpha, T beta, bool relu,
                       T* y, T* workspace) {
    if (s.n > 1) {
      T* const columns = aligned(workspace);
      for (int64_t j = 0; j < s.n; ++j)
        for (int64_t k = 0; k < s.k; ++k) columns[j * padded(s.k) + k] = s.transpose_b ? b[j * s.k + k] : b[k * s.n + j];
      b = columns;
    }
    static constexpr auto table = table_of(std::make_integer_sequence<int, kMost>{});
    const Dots dots = table.data()[s.n - 1];
    parallel_chunks(s.m, std::max<int64_t>(kWork / (s.k * s.n), 1) * dots.rows, [&](int64_t begin, int64_t end) {
      T sums[(kMostRows * kMost + W - 1) / W * W];
      for (int64_t row = begin, rows; row < end; row += rows) {
        rows = row + dots.rows <= end ? dots.rows : 1;
        (rows > 1 ? dots.of_rows : dots.of_one)(a + row * s.k, b, s.k, sums);
        for (int64_t i = 0; i < rows * s.n; ++i) {
          const int64_t at = row * s.n + i;
          T value = alpha * sums[i];
          if (c) value += beta * c[at];
          if (bias) value += bias[i % s.n];
          y[at] = relu && value <= T(0) ? T(0) : value;  // a NaN stays
        }
      }
    });
  }

 private:
  static constexpr int W = simd::kWidth<T>, kMost = W / 2, kMostRows = 8;
  static constexpr int64_t kTerms = 16;      // of each column, at the least
  static constexpr int64_t kWork = 1 << 13;  // multiply-adds that are worth a thread's while, by the rows of a dot

  static int64_t padded(int64_t k) { return ceil_div(k, kAlign<T>) * kAlign<T>; }

  // Of R rows of a and N columns of b, each k elements.
  template <int R, int N>
  static void dot(const T* a, const T* b, int64_t k, T* sums) {
    constexpr int kSums = (R * N + W - 1) / W * W;
    simd::V<T> sum[kSums] = {};
    const int64_t step = padded(k), whole = k / W * W;
    const auto add = [&](int64_t at, auto load) __attribute__((always_inline)) {
      simd::V<T> x[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) x[r] = load(a + r * k + at);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        const simd::V<T> column = simd::in_register<T>(load(b + j * step + at));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          simd::V<T>& of = sum[r * N + j];
          of = simd::multiply_add(x[r], column, of);
        }
      }
    };
    for (int64_t at = 0; at < whole; at += W) add(at, [](const T* p) { return simd::load(p); });
    if (whole < k) add(whole, [rest = simd::First<T>(k - whole)](const T* p) { return rest.load(p); });

    // W sums at once, transposed, so that their lanes lie under each other.
    for (int first = 0; first < kSums; first += W) {
      alignas(64) T lanes[W * W];
      for (int i = 0; i < W; ++i) simd::store(lanes + i * W, sum[first + i]);
      pack_transposed(lanes, W, W, lanes, W);
      simd::V<T> lane[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) lane[i] = simd::load(lanes + i * W);
#pragma GCC unroll 4
      for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
      simd::store(sums + first, lane[0]);
    }
  }

  struct Dots {
    int64_t rows;
    void (*of_rows)(const T*, const T*, int64_t, T*);
    void (*of_one)(const T*, const T*, int64_t, T*);
  };
  // As many rows as leave registers for themselves and a column.
  template <int N>
  static constexpr int kRowsOf = std::min((simd::kRegisters - 1) / (N + 1), kMostRows);
  template <int... I>
  static constexpr auto table_of(std::integer_sequence<int, I...>) {
    return std::array{Dots{kRowsOf<I + 1>, &dot<kRowsOf<I + 1>, I + 1>, &dot<1, I + 1>}...};
  }
};

}  // namespace fastnn::FASTNN_TARGET
