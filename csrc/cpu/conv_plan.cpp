#include "conv_plan.h"

#include <numeric>

namespace fastnn {
namespace {

// a / b, of which b is mostly 1: some processors take a hundred cycles to divide.
int64_t divided(int64_t a, int64_t b) {
  return b == 1 ? a : a / b;
}

// Sorts the coordinates of one axis into classes. first_tap(out) is the first valid tap, last_tap(out) the last, in steps
// of tap_step; source_of(out, tap) the pixel.
template <class First, class Last, class Source>
std::vector<AxisClass> classify(int64_t size, int64_t tap_step, int64_t source_step, First first_tap, Last last_tap,
                                Source source_of) {
  std::vector<AxisClass> classes;
  for (int64_t out = 0; out < size; ++out) {
    const int64_t first = first_tap(out), last = last_tap(out);
    const int64_t taps = first > last ? 0 : divided(last - first, tap_step) + 1;
    AxisClass* found = nullptr;
    for (auto it = classes.rbegin(); it != classes.rend() && !found; ++it)
      if (it->taps == taps && (taps == 0 || it->tap == first)) found = &*it;
    if (!found) {
      found = &classes.emplace_back(AxisClass{taps, first, tap_step, source_step, {}, {}});
      found->out.reserve(size_t(size - out)), found->source.reserve(size_t(size - out));
    }
    found->out.push_back(out);
    found->source.push_back(taps ? source_of(out, first) : 0);
  }
  return classes;
}

int64_t ceil_div(int64_t a, int64_t b) {
  return a > 0 ? divided(a + b - 1, b) : 0;
}  // for a lowest tap: 0 where a <= 0

std::vector<AxisClass> forward_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t dilation,
                                    int64_t pad) {
  return classify(
      out_size, 1, dilation, [=](int64_t out) { return ceil_div(pad - out * stride, dilation); },
      [=](int64_t out) {
        const int64_t room = size - 1 + pad - out * stride;  // the last tap's offset at most
        return room < 0 ? -1 : std::min(kernel - 1, divided(room, dilation));
      },
      [=](int64_t out, int64_t tap) { return out * stride + tap * dilation - pad; });
}

std::vector<AxisClass> backward_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t dilation,
                                     int64_t pad) {
  // Valid taps r solve r * dilation = out + pad (mod stride) and 0 <= (out + pad - r * dilation) / stride < out_size.
  const int64_t gcd = std::gcd(stride, dilation), tap_step = stride / gcd;
  const auto valid = [=](int64_t x, int64_t r) {
    const int64_t offset = x + pad - r * dilation;
    return r >= 0 && r < kernel && offset >= 0 && offset % stride == 0 && offset / stride < out_size;
  };
  const auto highest = [=](int64_t x) {  // of the valid r, or -1
    const int64_t start = std::min(kernel - 1, (x + pad) / dilation);
    for (int64_t r = start; r >= 0 && r > start - tap_step; --r) {
      const int64_t offset = x + pad - r * dilation;
      if (offset % stride) continue;
      // The source only grows as r falls: where it is already too large, no tap is valid.
      return offset / stride < out_size ? r : int64_t(-1);
    }
    return int64_t(-1);
  };
  return classify(
      size, tap_step, dilation / gcd,
      [=](int64_t x) {
        const int64_t r = highest(x);
        return r < 0 ? kernel : kernel - 1 - r;
      },
      [=](int64_t x) {
        int64_t r = highest(x);
        if (r < 0) return int64_t(-1);
        while (valid(x, r - tap_step)) r -= tap_step;
        return kernel - 1 - r;
      },
      [=](int64_t x, int64_t tap) { return (x + pad - (kernel - 1 - tap) * dilation) / stride; });
}

}  // namespace

ConvPlan::~ConvPlan() = default;

ConvPlan plan_forward(const Conv2dShape& s) {
  return {forward_axis(s.h, s.ho, s.kh, s.sh, s.dh, s.pad_top), forward_axis(s.w, s.wo, s.kw, s.sw, s.dw, s.pad_left)};
}

ConvPlan plan_backward_x(const Conv2dShape& s) {
  return {backward_axis(s.h, s.ho, s.kh, s.sh, s.dh, s.pad_top), backward_axis(s.w, s.wo, s.kw, s.sw, s.dw, s.pad_left)};
}

}  // namespace fastnn
