// Windows of pooling, and the kernels of max pooling, shared by pool2d.cu and conv_pool.cu. Index is what names a position
// in a window: int32_t, or uint8_t with kNoGradient where `relu` let nothing through.
#pragma once

#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {

constexpr int kPoolThreads = 256;

// An element of an (N, H, W, C) array by its position in it.
struct Element {
  int64_t n, h, w, c;
};

struct Layout {
  FastDiv h, w, c;
  Layout(int64_t height, int64_t width, int64_t channels) : h(height), w(width), c(channels) {}
  __device__ Element operator()(int64_t i) const {
    const int64_t pixel = c(i), row = w(pixel), image = h(row);
    return {image, row - image * h.divisor, pixel - row * w.divisor, i - pixel * c.divisor};
  }
};

struct Range {
  int64_t begin, end;
};

// The window positions of output `o` that lie in the image.
__device__ inline Range positions(int64_t o, int64_t stride, int64_t pad, int64_t window, int64_t size) {
  const int64_t start = o * stride - pad;
  return {start < 0 ? -start : 0, window < size - start ? window : size - start};
}

// The windows that cover input coordinate i. After the first, the divisions are of numbers below 2^31 as a rule.
__device__ inline Range windows(int64_t i, const FastDiv& stride, int64_t pad, int64_t window, int64_t out_size) {
  const int64_t beyond = i + pad - window, end = stride(i + pad) + 1;
  return {beyond < 0 ? 0 : stride(beyond) + 1, end < out_size ? end : out_size};
}

template <class T, class Index>
__global__ void max_forward_kernel(Pool2dShape s, Layout layout, const T* x, bool relu, T* y, Index* argmax) {
  const int64_t size = s.n * s.ho * s.wo * s.c;
  for (int64_t at = first_item(); at < size; at += item_step()) {
    const auto [n, i, j, c] = layout(at);
    const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h), cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
    const T* image = x + n * s.h * s.w * s.c + c;
    T best = 0;
    int64_t where = -1;
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t q = cols.begin; q < cols.end; ++q) {
        const T value = image[((i * s.sh - s.pad_top + r) * s.w + j * s.sw - s.pad_left + q) * s.c];
        // The first, a greater one, or the first NaN; not once a NaN stands.
        if (where < 0 || (!(value <= best) && best == best)) best = value, where = r * s.kw + q;
      }
    const bool stopped = relu && !(best > T(0));
    y[at] = stopped && best == best ? T(0) : best;
    argmax[at] = Index(stopped ? kNoGradient : where);
  }
}

// Calls f(index of the window's element in y, i, j, position of the pixel in the window) for all windows over pixel (h, w).
template <class F>
__device__ void for_windows(const Pool2dShape& s, const FastDiv& sh, const FastDiv& sw, const Element& e, F f) {
  const Range rows = windows(e.h, sh, s.pad_top, s.kh, s.ho), cols = windows(e.w, sw, s.pad_left, s.kw, s.wo);
  for (int64_t i = rows.begin; i < rows.end; ++i)
    for (int64_t j = cols.begin; j < cols.end; ++j)
      f(((e.n * s.ho + i) * s.wo + j) * s.c + e.c, i, j, (e.h + s.pad_top - i * s.sh) * s.kw + e.w + s.pad_left - j * s.sw);
}

template <class T, class Index>
__global__ void max_backward_kernel(Pool2dShape s, Layout layout, FastDiv sh, FastDiv sw, const T* dy, const Index* argmax,
                                    T* dx) {
  const int64_t size = s.n * s.h * s.w * s.c;
  for (int64_t at = first_item(); at < size; at += item_step()) {
    T sum = 0;
    for_windows(s, sh, sw, layout(at), [&](int64_t window, int64_t, int64_t, int64_t position) {
      if (argmax[window] == position) sum += dy[window];
    });
    dx[at] = sum;
  }
}

// ---- Launchers

template <class T, class Index>
void launch_max_forward(const Pool2dShape& s, const T* x, bool relu, T* y, Index* argmax, Stream stream) {
  launch(max_forward_kernel<T, Index>, grid_for(s.n * s.ho * s.wo * s.c, kPoolThreads), kPoolThreads, 0, stream, s,
         Layout(s.ho, s.wo, s.c), x, relu, y, argmax);
}

template <class T, class Index>
void launch_max_backward(const Pool2dShape& s, const T* dy, const Index* argmax, T* dx, Stream stream) {
  launch(max_backward_kernel<T, Index>, grid_for(s.n * s.h * s.w * s.c, kPoolThreads), kPoolThreads, 0, stream, s,
         Layout(s.h, s.w, s.c), FastDiv(s.sh), FastDiv(s.sw), dy, argmax, dx);
}

}  // namespace fastnn::FASTNN_TARGET
