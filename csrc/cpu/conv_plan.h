// Which filter taps reach which source pixel, worked out once per call and axis.
//
// All three passes of a convolution gather: the result at coordinate `out` is a sum over taps of a source pixel.
//   forward, weight gradient:  source = out * stride + tap * dilation - pad
//   input gradient:            source = (out + pad - tap * dilation) / stride, where that is whole
// Coordinates with the same valid taps form a class. Inside a class no tap falls into the padding, so kernels need no
// test per pixel, and padding is never multiplied by anything (an infinite weight over it makes no NaN).
#pragma once

#include <cstdint>
#include <vector>

#include "../shapes.h"

namespace fastnn {

struct AxisClass {
  int64_t taps;  // how many are valid; they are tap, tap + tap_step, ...
  int64_t tap, tap_step;
  int64_t source_step;          // from one tap's source pixel to the next's; never negative
  std::vector<int64_t> out;     // the class's coordinates, ascending
  std::vector<int64_t> source;  // each one's source pixel under the first tap
};

struct ConvPlan {
  std::vector<AxisClass> rows, cols;
  ~ConvPlan();  // out of line: code shared by all targets must not be compiled inside one of them
};

ConvPlan plan_forward(const Conv2dShape&);
// Taps are numbered backwards here (kh - 1 - r), so that sources ascend with them as they do forward.
ConvPlan plan_backward_x(const Conv2dShape&);

}  // namespace fastnn
