// Gradients of a convolution under ReLU and a max pool. Of each window and channel one output at most has a gradient, so the
// sums run over winners: a quarter of the dense work with 2 x 2 windows, less what ReLU stops.
//
//   dw[:, :, :, k]           += over windows   dy * patch of x under the winner of channel k
//   dx's patch of a winner   += over channels  dy * w[:, :, :, k]
//
// Both are sums of weighted rows of memory, kept in registers. A row of taps is one stretch of kw * C elements where they
// lie side by side (dilation 1). One multiply-add per load: bound by loads and arithmetic alike. Order of the sums: of dx,
// over channels within a position, over positions within a window, over windows; of dw, over windows within a unit (a run of
// windows of one image, or a few whole images), over units within a slice; all of them by the shape alone.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>

#include "conv_pool.h"

namespace fastnn::FASTNN_TARGET {

// Weighted rows of memory: each by its number in a table of where they begin.
template <class T>
struct Terms {
  const simd::Element<T>* row;
  const T* weight;
  int64_t count;
};

// Memory for so many terms, and for what whole vectors write beyond the last of them.
template <class T>
class TermMemory {
 public:
  explicit TermMemory(int64_t size)
      : row_(new simd::Element<T>[size_t(size + kWidth<T>)]), weight_(new T[size_t(size + kWidth<T>)]) {}

  // Those of a vector that have a bit, from `at` on; what lies after them may be written over. Gives their number.
  int64_t store(int64_t at, uint32_t bits, simd::Integers<T> rows, simd::V<T> weights) {
    return simd::store_chosen<T>(bits, weights, rows, &weight_[size_t(at)], &row_[size_t(at)]);
  }
  void store(int64_t at, simd::Element<T> row, T weight) { row_[size_t(at)] = row, weight_[size_t(at)] = weight; }

  Terms<T> terms(int64_t begin, int64_t count) const { return {&row_[size_t(begin)], &weight_[size_t(begin)], count}; }

 private:
  const std::unique_ptr<simd::Element<T>[]> row_;
  const std::unique_ptr<T[]> weight_;
};

constexpr int kMaxVectors = simd::kRegisters == 32 ? 18 : 12, kMaxSegments = 3;

// out[s * out_step + 0..n) += sum over terms of weight * rows[row][s * row_step + 0..n), for segments s < S; n is V vectors,
// the last one as far as `last` says.
template <class T, int S, int V>
void add_segments(const T* const* rows, Terms<T> terms, int64_t shift, int64_t row_step, simd::First<T> last, T* out,
                  int64_t out_step) {
  constexpr int W = kWidth<T>;
  simd::V<T> sum[S][V];
#pragma GCC unroll 3
  for (int s = 0; s < S; ++s)
#pragma GCC unroll 18
    for (int v = 0; v < V; ++v) sum[s][v] = simd::V<T>{};
  for (int64_t term = 0; term < terms.count; ++term) {
    const simd::V<T> weight = simd::broadcast(terms.weight[term]);
    const T* const first = rows[terms.row[term]] + shift;
#pragma GCC unroll 3
    for (int s = 0; s < S; ++s) {
      const T* row = first + s * row_step;
#pragma GCC unroll 18
      for (int v = 0; v < V - 1; ++v) sum[s][v] = simd::multiply_add(weight, simd::load(row + v * W), sum[s][v]);
      sum[s][V - 1] = simd::multiply_add(weight, last.load(row + (V - 1) * W), sum[s][V - 1]);
    }
  }
#pragma GCC unroll 3
  for (int s = 0; s < S; ++s) {
    T* to = out + s * out_step;
#pragma GCC unroll 18
    for (int v = 0; v < V - 1; ++v) simd::store(to + v * W, simd::load(to + v * W) + sum[s][v]);
    last.store(to + (V - 1) * W, last.load(to + (V - 1) * W) + sum[s][V - 1]);
  }
}

template <class T, int S, int... V>
constexpr auto segments_table(std::integer_sequence<int, V...>) {
  return std::array<decltype(&add_segments<T, 1, 1>), sizeof...(V)>{&add_segments<T, S, V + 1>...};
}

// Segments of a length that add_rows takes at once.
template <class T>
int64_t rows_together(int64_t length) {
  return length <= kMaxVectors / kMaxSegments * kWidth<T> ? kMaxSegments : 1;
}

// The same for any number of segments of any length.
template <class T>
void add_rows(const T* const* rows, Terms<T> terms, int64_t segments, int64_t length, int64_t shift, int64_t row_step,
              T* out, int64_t out_step) {
  constexpr int W = kWidth<T>;
  constexpr int kShort = kMaxVectors / kMaxSegments;  // vectors of which all segments fit
  static constexpr auto one = segments_table<T, 1>(std::make_integer_sequence<int, kMaxVectors>{});
  static constexpr auto two = segments_table<T, 2>(std::make_integer_sequence<int, kShort>{});
  static constexpr auto three = segments_table<T, 3>(std::make_integer_sequence<int, kShort>{});
  if (terms.count == 0) return;
  for (int64_t begin = 0; begin < length; begin += kMaxVectors * W) {
    const int64_t n = std::min<int64_t>(length - begin, kMaxVectors * W), vectors = ceil_div(n, W);
    const simd::First<T> last(n - (vectors - 1) * W);
    for (int64_t s = 0; s < segments;) {
      const int64_t together = std::min(segments - s, rows_together<T>(n));
      const auto add = (together == 1 ? one.data() : together == 2 ? two.data() : three.data())[vectors - 1];
      add(rows, terms, shift + begin + s * row_step, row_step, last, out + begin + s * out_step, out_step);
      s += together;
    }
  }
}

}  // namespace fastnn::FASTNN_TARGET
