// Max and average pooling, NHWC. Forward, thread -> element of y; backward, thread -> element of dx, which GATHERS from the
// windows that cover it, in ascending order: no atomics, and one order of the sum even where windows overlap. Neighbouring
// threads have neighbouring channels, so all accesses are coalesced.
//
//   forward   reads kh * kw elements of x per element of y, from L1 and L2 where windows overlap
//   backward  reads at most ceil(kh / sh) * ceil(kw / sw) elements of dy (and argmax) per element of dx
// Bound by memory: x and y once each, argmax once.
#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int kThreads = 256;

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

// The count of real pixels under window (i, j): what its mean divides by.
__device__ inline int64_t covered(const Pool2dShape& s, int64_t i, int64_t j) {
  const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h), cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
  return (rows.end - rows.begin) * (cols.end - cols.begin);
}

// ---- Kernels

template <class T>
__global__ void max_forward_kernel(Pool2dShape s, Layout layout, const T* x, T* y, int32_t* argmax) {
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
    y[at] = best;
    argmax[at] = int32_t(where);
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

template <class T>
__global__ void max_backward_kernel(Pool2dShape s, Layout layout, FastDiv sh, FastDiv sw, const T* dy, const int32_t* argmax,
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

template <class T>
__global__ void avg_forward_kernel(Pool2dShape s, Layout layout, const T* x, T* y) {
  const int64_t size = s.n * s.ho * s.wo * s.c;
  for (int64_t at = first_item(); at < size; at += item_step()) {
    const auto [n, i, j, c] = layout(at);
    const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h), cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
    const T* image = x + n * s.h * s.w * s.c + c;
    T sum = 0;
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int64_t q = cols.begin; q < cols.end; ++q)
        sum += image[((i * s.sh - s.pad_top + r) * s.w + j * s.sw - s.pad_left + q) * s.c];
    y[at] = sum / T((rows.end - rows.begin) * (cols.end - cols.begin));
  }
}

template <class T>
__global__ void avg_backward_kernel(Pool2dShape s, Layout layout, FastDiv sh, FastDiv sw, const T* dy, T* dx) {
  const int64_t size = s.n * s.h * s.w * s.c;
  for (int64_t at = first_item(); at < size; at += item_step()) {
    T sum = 0;
    for_windows(s, sh, sw, layout(at),
                [&](int64_t window, int64_t i, int64_t j, int64_t) { sum += dy[window] / T(covered(s, i, j)); });
    dx[at] = sum;
  }
}

}  // namespace

// ---- Entry points

template <class T>
void max_pool2d_forward(const Pool2dShape& s, const T* x, T* y, int32_t* argmax, Stream stream) {
  launch(max_forward_kernel<T>, grid_for(s.n * s.ho * s.wo * s.c, kThreads), kThreads, 0, stream, s, Layout(s.ho, s.wo, s.c),
         x, y, argmax);
}

template <class T>
void max_pool2d_backward(const Pool2dShape& s, const T* dy, const int32_t* argmax, T* dx, Stream stream) {
  launch(max_backward_kernel<T>, grid_for(s.n * s.h * s.w * s.c, kThreads), kThreads, 0, stream, s, Layout(s.h, s.w, s.c),
         FastDiv(s.sh), FastDiv(s.sw), dy, argmax, dx);
}

template <class T>
void avg_pool2d_forward(const Pool2dShape& s, const T* x, T* y, Stream stream) {
  launch(avg_forward_kernel<T>, grid_for(s.n * s.ho * s.wo * s.c, kThreads), kThreads, 0, stream, s, Layout(s.ho, s.wo, s.c),
         x, y);
}

template <class T>
void avg_pool2d_backward(const Pool2dShape& s, const T* dy, T* dx, Stream stream) {
  launch(avg_backward_kernel<T>, grid_for(s.n * s.h * s.w * s.c, kThreads), kThreads, 0, stream, s, Layout(s.h, s.w, s.c),
         FastDiv(s.sh), FastDiv(s.sw), dy, dx);
}

#define INSTANTIATE(T)                                                                            \
  template void max_pool2d_forward<T>(const Pool2dShape&, const T*, T*, int32_t*, Stream);        \
  template void max_pool2d_backward<T>(const Pool2dShape&, const T*, const int32_t*, T*, Stream); \
  template void avg_pool2d_forward<T>(const Pool2dShape&, const T*, T*, Stream);                  \
  template void avg_pool2d_backward<T>(const Pool2dShape&, const T*, T*, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
