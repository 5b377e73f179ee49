// What forward and backward of a convolution under a max pool share: where windows, their positions and the taps of the
// convolution's outputs lie.
#pragma once

#include "../ops.h"
#include "conv.h"

namespace fastnn::FASTNN_TARGET {

// Of conv_pool_backward_x.cpp and conv_pool_backward_w.cpp.
void add_conv_pool_backward_x(Kernels&);
void add_conv_pool_backward_w(Kernels&);

using simd::kWidth;

// One coordinate of the convolution's output: its valid taps tap, tap + 1, ..., `taps` of them, and the source under the
// first.
struct Point {
  int64_t tap, taps, source;
  int class_index;
};

inline std::vector<Point> points_of(const std::vector<AxisClass>& classes, int64_t size) {
  std::vector<Point> points(static_cast<size_t>(size));
  for (size_t c = 0; c < classes.size(); ++c)
    for (size_t i = 0; i < classes[c].out.size(); ++i)
      points[size_t(classes[c].out[i])] = {classes[c].tap, classes[c].taps, classes[c].source[i], int(c)};
  return points;
}

// The filter with its channels side by side, as backward wants it: (KH, pieces, K, length). A piece is a row of taps
// where they lie side by side in x, and one tap elsewhere.
struct Pieces {
  bool joined;
  int64_t count, length, k;  // pieces in a row of taps, elements of each

  explicit Pieces(const Conv2dShape& s)
      : joined(s.dw == 1), count(joined ? 1 : s.kw), length((joined ? s.kw : 1) * s.c), k(s.k) {}
  int64_t row_step() const { return count * k * length; }  // from one row of taps to the next
  int64_t size(const Conv2dShape& s) const { return s.kh * row_step(); }

  // f(offset of channel 0 in the filter, offset in x from the patch's first element, length) for the valid pieces of a
  // row of taps.
  template <class F>
  void each(const Conv2dShape& s, const Point& column, F f) const {
    if (joined)
      f(column.tap * s.c, int64_t(0), column.taps * s.c);
    else
      for (int64_t q = 0; q < column.taps; ++q) f((column.tap + q) * k * length, q * s.dw * s.c, length);
  }
};

struct Geometry {
  const Conv2dShape& conv;
  const Pool2dShape& pool;
  ConvPlan plan;
  std::vector<Point> rows, cols;
  Image x;
  Pieces pieces;
  int64_t positions, windows;  // of a window; of an image

  explicit Geometry(const ConvPoolShape& s)
      : conv(s.conv),
        pool(s.pool),
        plan(plan_forward(s.conv)),
        rows(points_of(plan.rows, s.conv.ho)),
        cols(points_of(plan.cols, s.conv.wo)),
        x{s.conv.h, s.conv.w, s.conv.c},
        pieces(s.conv),
        positions(s.pool.kh * s.pool.kw),
        windows(s.pool.ho * s.pool.wo) {}

  // The convolution's output at a window's position: row and column, or null where it lies in the pool's padding.
  struct Output {
    const Point *row, *col;
  };
  Output output_at(int64_t i, int64_t j) const {
    if (i < 0 || i >= pool.h || j < 0 || j >= pool.w) return {nullptr, nullptr};
    return {&rows[size_t(i)], &cols[size_t(j)]};
  }
  // f(output) for each position of windows [begin, end), and once more after each window, with nulls: for what is no
  // position.
  template <class F>
  void each_output(int64_t begin, int64_t end, F f) const {
    int64_t i = begin / pool.wo, j = begin % pool.wo;
    for (int64_t window = begin; window < end; ++window) {
      const int64_t top = i * pool.sh - pool.pad_top, left = j * pool.sw - pool.pad_left;
      for (int64_t r = top; r < top + pool.kh; ++r)
        for (int64_t q = left; q < left + pool.kw; ++q) f(output_at(r, q));
      f(Output{nullptr, nullptr});
      if (++j == pool.wo) j = 0, ++i;
    }
  }
};

}  // namespace fastnn::FASTNN_TARGET
