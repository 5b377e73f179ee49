// Convolution: the simplest kernels, one thread per element of the result.
#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

template <class T>
__global__ void forward_kernel(Conv2dShape s, const T* x, const T* w, const T* b, bool relu, T* y) {
  for (int64_t at = first_item(); at < s.n * s.ho * s.wo * s.k; at += item_step()) {
    const int64_t o = at % s.k, j = at / s.k % s.wo, i = at / s.k / s.wo % s.ho, n = at / s.k / s.wo / s.ho;
    T sum = 0;
    for (int64_t r = 0; r < s.kh; ++r)
      for (int64_t q = 0; q < s.kw; ++q) {
        const int64_t h = i * s.sh + r * s.dh - s.pad_top, v = j * s.sw + q * s.dw - s.pad_left;
        if (h < 0 || h >= s.h || v < 0 || v >= s.w) continue;
        for (int64_t c = 0; c < s.c; ++c)
          sum += x[((n * s.h + h) * s.w + v) * s.c + c] * w[((r * s.kw + q) * s.c + c) * s.k + o];
      }
    if (b) sum += b[o];
    y[at] = relu && sum <= T(0) ? T(0) : sum;
  }
}

template <class T>
__global__ void backward_x_kernel(Conv2dShape s, const T* dy, const T* w, T* dx) {
  for (int64_t at = first_item(); at < s.n * s.h * s.w * s.c; at += item_step()) {
    const int64_t c = at % s.c, v = at / s.c % s.w, h = at / s.c / s.w % s.h, n = at / s.c / s.w / s.h;
    T sum = 0;
    for (int64_t r = 0; r < s.kh; ++r)
      for (int64_t q = 0; q < s.kw; ++q) {
        const int64_t i = h + s.pad_top - r * s.dh, j = v + s.pad_left - q * s.dw;
        if (i < 0 || i % s.sh || i / s.sh >= s.ho || j < 0 || j % s.sw || j / s.sw >= s.wo) continue;
        for (int64_t o = 0; o < s.k; ++o)
          sum += dy[((n * s.ho + i / s.sh) * s.wo + j / s.sw) * s.k + o] * w[((r * s.kw + q) * s.c + c) * s.k + o];
      }
    dx[at] = sum;
  }
}

template <class T>
__global__ void backward_w_kernel(Conv2dShape s, const T* dy, const T* x, T* dw) {
  for (int64_t at = first_item(); at < s.kh * s.kw * s.c * s.k; at += item_step()) {
    const int64_t o = at % s.k, c = at / s.k % s.c, q = at / s.k / s.c % s.kw, r = at / s.k / s.c / s.kw;
    T sum = 0;
    for (int64_t n = 0; n < s.n; ++n)
      for (int64_t i = 0; i < s.ho; ++i)
        for (int64_t j = 0; j < s.wo; ++j) {
          const int64_t h = i * s.sh + r * s.dh - s.pad_top, v = j * s.sw + q * s.dw - s.pad_left;
          if (h < 0 || h >= s.h || v < 0 || v >= s.w) continue;
          sum += x[((n * s.h + h) * s.w + v) * s.c + c] * dy[((n * s.ho + i) * s.wo + j) * s.k + o];
        }
    dw[at] = sum;
  }
}

}  // namespace

template <class T>
int64_t conv2d_forward_workspace(const Conv2dShape&) {
  return 0;
}
template <class T>
int64_t conv2d_backward_x_workspace(const Conv2dShape&) {
  return 0;
}
template <class T>
int64_t conv2d_backward_w_workspace(const Conv2dShape&) {
  return 0;
}

template <class T>
void conv2d_forward(const Conv2dShape& s, const T* x, const T* w, const T* b, bool relu, T* y, T*, Stream stream) {
  launch(forward_kernel<T>, grid_for(s.n * s.ho * s.wo * s.k, 256), 256, 0, stream, s, x, w, b, relu, y);
}

template <class T>
void conv2d_backward_x(const Conv2dShape& s, const T* dy, const T* w, T* dx, T*, Stream stream) {
  launch(backward_x_kernel<T>, grid_for(s.n * s.h * s.w * s.c, 256), 256, 0, stream, s, dy, w, dx);
}

template <class T>
void conv2d_backward_w(const Conv2dShape& s, const T* dy, const T* x, T* dw, T*, Stream stream) {
  launch(backward_w_kernel<T>, grid_for(s.kh * s.kw * s.c * s.k, 256), 256, 0, stream, s, dy, x, dw);
}

#define INSTANTIATE(T)                                                                                     \
  template int64_t conv2d_forward_workspace<T>(const Conv2dShape&);                                        \
  template void conv2d_forward<T>(const Conv2dShape&, const T*, const T*, const T*, bool, T*, T*, Stream); \
  template int64_t conv2d_backward_x_workspace<T>(const Conv2dShape&);                                     \
  template void conv2d_backward_x<T>(const Conv2dShape&, const T*, const T*, T*, T*, Stream);              \
  template int64_t conv2d_backward_w_workspace<T>(const Conv2dShape&);                                     \
  template void conv2d_backward_w<T>(const Conv2dShape&, const T*, const T*, T*, T*, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
