// Windows over an axis of an image with implicit padding.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastnn::FASTNN_TARGET {

struct Range {
  int64_t begin, end;
};

// The positions of window `o` that lie in the image; position p is at o * stride - pad + p.
inline Range positions(int64_t o, int64_t stride, int64_t pad, int64_t window, int64_t size) {
  const int64_t start = o * stride - pad;
  return {std::max<int64_t>(-start, 0), std::min(window, size - start)};
}

// The windows that cover coordinate i of the image.
inline Range windows(int64_t i, int64_t stride, int64_t pad, int64_t window, int64_t out_size) {
  const int64_t last = (i + pad) / stride, beyond = i + pad - window;
  return {beyond < 0 ? 0 : beyond / stride + 1, std::min(out_size, last + 1)};
}

}  // namespace fastnn::FASTNN_TARGET
