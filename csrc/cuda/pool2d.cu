// Max and average pooling, NHWC. Forward, thread -> element of y; backward, thread -> element of dx, which GATHERS from the
// windows that cover it, in ascending order: no atomics, and one order of the sum even where windows overlap. Neighbouring
// threads have neighbouring channels, so all accesses are coalesced.
//
//   forward   reads kh * kw elements of x per element of y, from L1 and L2 where windows overlap
//   backward  reads at most ceil(kh / sh) * ceil(kw / sw) elements of dy (and argmax) per element of dx
// Bound by memory: x and y once each, argmax once.
#include "pool.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

// The count of real pixels under window (i, j): what its mean divides by.
__device__ inline int64_t covered(const Pool2dShape& s, int64_t i, int64_t j) {
  const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h), cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
  return (rows.end - rows.begin) * (cols.end - cols.begin);
}

// ---- Kernels

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

// ---- Entry points

template <class T>
void max_pool2d_forward(const Pool2dShape& s, const T* x, T* y, int32_t* argmax, Stream stream) {
  launch_max_forward(s, x, false, y, argmax, stream);
}

template <class T>
void max_pool2d_backward(const Pool2dShape& s, const T* dy, const int32_t* argmax, T* dx, Stream stream) {
  launch_max_backward(s, dy, argmax, dx, stream);
}

template <class T>
void avg_pool2d_forward(const Pool2dShape& s, const T* x, T* y, Stream stream) {
  launch(avg_forward_kernel<T>, grid_for(s.n * s.ho * s.wo * s.c, kPoolThreads), kPoolThreads, 0, stream, s,
         Layout(s.ho, s.wo, s.c), x, y);
}

template <class T>
void avg_pool2d_backward(const Pool2dShape& s, const T* dy, T* dx, Stream stream) {
  launch(avg_backward_kernel<T>, grid_for(s.n * s.h * s.w * s.c, kPoolThreads), kPoolThreads, 0, stream, s,
         Layout(s.h, s.w, s.c), FastDiv(s.sh), FastDiv(s.sw), dy, dx);
}

template <class T>
void add(Ops<T>& ops) {
  ops.max_pool2d_forward = max_pool2d_forward<T>;
  ops.max_pool2d_backward = max_pool2d_backward<T>;
  ops.avg_pool2d_forward = avg_pool2d_forward<T>;
  ops.avg_pool2d_backward = avg_pool2d_backward<T>;
}

}  // namespace

void add_pool2d(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
