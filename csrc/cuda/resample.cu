// Samples read anew along one axis, each at its own positions.
//
//   resample           thread -> an element of y
//   resample_backward  thread -> one element of each position of a line of dx, so that what comes together is added in order
#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int kThreads = 256;

// ---- Kernels

template <class T>
__global__ void resample_kernel(int64_t size, FastDiv inner, FastDiv outputs, FastDiv repeat, ResampleShape s, const T* x,
                                const int32_t* index, const T* weights, const T* offset, T* y) {
  for (int64_t i = first_item(); i < size; i += item_step()) {
    const int64_t position = inner(i), line = outputs(position), n = repeat(line);
    const int64_t c = i - position * s.inner, at = n * s.outputs + position - line * s.outputs;
    T total = 0;
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      const int64_t of_tap = at + tap * s.n * s.outputs, row = index[of_tap];
      T value = row >= 0 && row < s.length ? x[(line * s.length + row) * s.inner + c] : T(NAN);
      if (weights) value *= weights[of_tap];
      total = tap ? total + value : value;
    }
    y[i] = offset ? total + offset[at] : total;
  }
}

template <class T>
__global__ void resample_backward_kernel(int64_t columns, FastDiv inner, FastDiv repeat, ResampleShape s, const T* dy,
                                         const int32_t* index, const T* weights, T* dx) {
  for (int64_t i = first_item(); i < columns; i += item_step()) {
    const int64_t line = inner(i), c = i - line * s.inner, n = repeat(line);
    T* const to = dx + line * s.length * s.inner + c;
    const T* const from = dy + line * s.outputs * s.inner + c;
    for (int64_t row = 0; row < s.length; ++row) to[row * s.inner] = 0;
    for (int64_t output = 0; output < s.outputs; ++output)
      for (int64_t tap = 0; tap < s.taps; ++tap) {
        const int64_t of_tap = (tap * s.n + n) * s.outputs + output, row = index[of_tap];
        if (row < 0 || row >= s.length) continue;
        to[row * s.inner] += (weights ? weights[of_tap] : T(1)) * from[output * s.inner];
      }
  }
}

// ---- Entry points

template <class T>
void resample(const ResampleShape& s, const T* x, const int32_t* index, const T* weights, const T* offset, T* y,
              Stream stream) {
  const int64_t size = s.n * s.repeat * s.outputs * s.inner;
  if (size == 0) return;
  launch(resample_kernel<T>, grid_for(size, kThreads), kThreads, 0, stream, size, FastDiv(s.inner), FastDiv(s.outputs),
         FastDiv(s.repeat), s, x, index, weights, offset, y);
}

template <class T>
void resample_backward(const ResampleShape& s, const T* dy, const int32_t* index, const T* weights, T* dx, Stream stream) {
  const int64_t columns = s.n * s.repeat * s.inner;
  if (columns == 0) return;
  launch(resample_backward_kernel<T>, grid_for(columns, kThreads), kThreads, 0, stream, columns, FastDiv(s.inner),
         FastDiv(s.repeat), s, dy, index, weights, dx);
}

template <class T>
void add(Ops<T>& ops) {
  ops.resample = resample<T>;
  ops.resample_backward = resample_backward<T>;
}

}  // namespace

void add_resample(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
