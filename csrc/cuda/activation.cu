// Activations and dropout, element by element, and softmax row by row. Every backward of an activation takes y, the
// forward's result, so that x need not be kept. All are bound by memory: one or two arrays read, one written.
//
//   element-wise  thread -> 16 bytes of the arrays where they are aligned, one element of what is left
//   softmax       warp -> row
#include "launch.cuh"
#include "softmax.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int kThreads = 256;

// ---- Kernels

template <class T, class F>
__global__ void map_kernel(int64_t vectors, int64_t size, F f, const T* x, T* y) {
  using V = Vec<T, kVec<T>>;
  for (int64_t i = first_item(); i < vectors; i += item_step()) {
    V v = reinterpret_cast<const V*>(x)[i];
    for (T& element : v.v) element = f(element);
    reinterpret_cast<V*>(y)[i] = v;
  }
  for (int64_t i = vectors * kVec<T> + first_item(); i < size; i += item_step()) y[i] = f(x[i]);
}

template <class T, class F>
__global__ void map2_kernel(int64_t vectors, int64_t size, F f, const T* dy, const T* y, T* dx) {
  using V = Vec<T, kVec<T>>;
  for (int64_t i = first_item(); i < vectors; i += item_step()) {
    const V g = reinterpret_cast<const V*>(dy)[i];
    V v = reinterpret_cast<const V*>(y)[i];
    for (int e = 0; e < kVec<T>; ++e) v.v[e] = f(g.v[e], v.v[e]);
    reinterpret_cast<V*>(dx)[i] = v;
  }
  for (int64_t i = vectors * kVec<T> + first_item(); i < size; i += item_step()) dx[i] = f(dy[i], y[i]);
}

template <class T>
__global__ void dropout_kernel(int64_t vectors, int64_t size, T scale, const T* x, const uint8_t* keep, T* y) {
  using V = Vec<T, kVec<T>>;
  for (int64_t i = first_item(); i < vectors; i += item_step()) {
    V v = reinterpret_cast<const V*>(x)[i];
    const auto kept = reinterpret_cast<const Vec<uint8_t, kVec<T>>*>(keep)[i];
    for (int e = 0; e < kVec<T>; ++e) v.v[e] = kept.v[e] ? v.v[e] * scale : T(0);
    reinterpret_cast<V*>(y)[i] = v;
  }
  for (int64_t i = vectors * kVec<T> + first_item(); i < size; i += item_step()) y[i] = keep[i] ? x[i] * scale : T(0);
}

template <class T>
__global__ void softmax_kernel(int64_t rows, int64_t cols, const T* x, T* y) {
  for (int64_t row = first_row(); row < rows; row += row_step()) softmax_row(cols, x + row * cols, y + row * cols);
}

template <class T>
__global__ void softmax_backward_kernel(int64_t rows, int64_t cols, const T* dy, const T* y, T* dx) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    const int64_t begin = row * cols + lane, end = (row + 1) * cols;
    T dot = 0;
    for (int64_t i = begin; i < end; i += kWarp) dot += dy[i] * y[i];
    dot = warp_sum(dot);
    for (int64_t i = begin; i < end; i += kWarp) dx[i] = y[i] * (dy[i] - dot);
  }
}

// The functions.

template <class T>
struct Relu {
  __device__ T operator()(T x) const { return x <= T(0) ? T(0) : x; }  // a NaN is not <= 0: it stays
};
template <class T>
struct ReluBackward {
  __device__ T operator()(T dy, T y) const { return y > T(0) ? dy : T(0); }
};
template <class T>
struct Sigmoid {  // of -|x|, whose exponential cannot overflow
  __device__ T operator()(T x) const {
    const T e = std::exp(-std::abs(x));
    return (x < T(0) ? e : T(1)) / (T(1) + e);
  }
};
template <class T>
struct SigmoidBackward {
  __device__ T operator()(T dy, T y) const { return dy * y * (T(1) - y); }
};
template <class T>
struct Tanh {
  __device__ T operator()(T x) const { return std::tanh(x); }
};
template <class T>
struct TanhBackward {
  __device__ T operator()(T dy, T y) const { return dy * (T(1) - y * y); }
};

// ---- Launchers

template <class T, class F>
void map(int64_t size, F f, const T* x, T* y, Stream stream) {
  using V = Vec<T, kVec<T>>;
  const int64_t vectors = aligned_for<V>(x) && aligned_for<V>(y) ? size / kVec<T> : 0;
  launch(map_kernel<T, F>, grid_for(vectors ? vectors : size, kThreads), kThreads, 0, stream, vectors, size, f, x, y);
}

template <class T, class F>
void map2(int64_t size, F f, const T* dy, const T* y, T* dx, Stream stream) {
  using V = Vec<T, kVec<T>>;
  const int64_t vectors = aligned_for<V>(dy) && aligned_for<V>(y) && aligned_for<V>(dx) ? size / kVec<T> : 0;
  launch(map2_kernel<T, F>, grid_for(vectors ? vectors : size, kThreads), kThreads, 0, stream, vectors, size, f, dy, y, dx);
}

// ---- Entry points

#define ELEMENTWISE(name, Function)                                                   \
  template <class T>                                                                  \
  void name##_forward(int64_t size, const T* x, T* y, Stream stream) {                \
    map(size, Function<T>(), x, y, stream);                                           \
  }                                                                                   \
  template <class T>                                                                  \
  void name##_backward(int64_t size, const T* dy, const T* y, T* dx, Stream stream) { \
    map2(size, Function##Backward<T>(), dy, y, dx, stream);                           \
  }
ELEMENTWISE(relu, Relu)
ELEMENTWISE(sigmoid, Sigmoid)
ELEMENTWISE(tanh, Tanh)

template <class T>
void dropout(int64_t size, const T* x, const uint8_t* keep, T scale, T* y, Stream stream) {
  using V = Vec<T, kVec<T>>;
  const bool aligned = aligned_for<V>(x) && aligned_for<V>(y) && aligned_for<Vec<uint8_t, kVec<T>>>(keep);
  const int64_t vectors = aligned ? size / kVec<T> : 0;
  launch(dropout_kernel<T>, grid_for(vectors ? vectors : size, kThreads), kThreads, 0, stream, vectors, size, scale, x, keep,
         y);
}

template <class T>
void softmax_forward(int64_t rows, int64_t cols, const T* x, T* y, Stream stream) {
  launch(softmax_kernel<T>, grid_for_rows(rows), kRowsPerBlock * kWarp, 0, stream, rows, cols, x, y);
}

template <class T>
void softmax_backward(int64_t rows, int64_t cols, const T* dy, const T* y, T* dx, Stream stream) {
  launch(softmax_backward_kernel<T>, grid_for_rows(rows), kRowsPerBlock * kWarp, 0, stream, rows, cols, dy, y, dx);
}

template <class T>
void add(Ops<T>& ops) {
  ops.relu_forward = relu_forward<T>;
  ops.relu_backward = relu_backward<T>;
  ops.sigmoid_forward = sigmoid_forward<T>;
  ops.sigmoid_backward = sigmoid_backward<T>;
  ops.tanh_forward = tanh_forward<T>;
  ops.tanh_backward = tanh_backward<T>;
  ops.dropout = dropout<T>;
  ops.softmax_forward = softmax_forward<T>;
  ops.softmax_backward = softmax_backward<T>;
}

}  // namespace

void add_activation(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
