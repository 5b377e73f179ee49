// Losses, one value per row, one warp each. Cross-entropy is taken from logits by log-sum-exp over what remains after the
// row's maximum is taken off, so that it is finite wherever the mathematics is. Softmax and loss are one kernel: bound by
// memory, x read and y written once.
#include "launch.cuh"
#include "softmax.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int kThreads = 256;

// ---- Kernels

template <class T>
__global__ void sparse_forward_kernel(int64_t rows, int64_t cols, const T* x, const int32_t* labels, T* loss, T* y) {
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    const Normalizer<T> s = softmax_row(cols, x + row * cols, y + row * cols);
    // In a captured graph nobody has looked at the labels: one out of range makes its loss NaN and reads nothing.
    const int64_t label = labels[row];
    if (threadIdx.x % kWarp == 0)
      loss[row] = label < 0 || label >= cols ? T(NAN) : std::log(s.sum) - (x[row * cols + label] - s.top);
  }
}

// Thread -> element of dx.
template <class T>
__global__ void sparse_backward_kernel(int64_t size, FastDiv cols, const T* dloss, const T* y, const int32_t* labels,
                                       T* dx) {
  for (int64_t i = first_item(); i < size; i += item_step()) {
    const int64_t row = cols(i), c = i - row * cols.divisor;
    dx[i] = (y[i] - (c == labels[row] ? T(1) : T(0))) * dloss[row];
  }
}

template <class T>
__global__ void dense_forward_kernel(int64_t rows, int64_t cols, const T* x, const T* target, T* loss, T* y) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    const T *in = x + row * cols, *t = target + row * cols;
    const Normalizer<T> s = softmax_row(cols, in, y + row * cols);
    T sum = 0;
    for (int64_t c = lane; c < cols; c += kWarp)
      if (t[c] != T(0)) sum += t[c] * (std::log(s.sum) - (in[c] - s.top));  // 0 * log 0 is 0
    sum = warp_sum(sum);
    if (lane == 0) loss[row] = sum;
  }
}

template <class T>
__global__ void dense_backward_kernel(int64_t rows, int64_t cols, const T* dloss, const T* y, const T* target, T* dx) {
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    const int64_t begin = row * cols + threadIdx.x % kWarp, end = (row + 1) * cols;
    T total = 0;
    for (int64_t i = begin; i < end; i += kWarp) total += target[i];
    total = warp_sum(total);
    for (int64_t i = begin; i < end; i += kWarp) dx[i] = (y[i] * total - target[i]) * dloss[row];
  }
}

template <class T>
__global__ void squared_forward_kernel(int64_t rows, int64_t cols, const T* x, const T* target, T* loss) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    T sum = 0;
    for (int64_t i = row * cols + lane; i < (row + 1) * cols; i += kWarp) sum += (x[i] - target[i]) * (x[i] - target[i]);
    sum = warp_sum(sum);
    if (lane == 0) loss[row] = sum / T(cols);
  }
}

// Thread -> element of dx.
template <class T>
__global__ void squared_backward_kernel(int64_t size, FastDiv cols, const T* dloss, const T* x, const T* target, T* dx) {
  for (int64_t i = first_item(); i < size; i += item_step())
    dx[i] = (x[i] - target[i]) * (T(2) * dloss[cols(i)] / T(cols.divisor));
}

// ---- Entry points

template <class T>
void sparse_cross_entropy_forward(int64_t rows, int64_t cols, const T* x, const int32_t* labels, T* loss, T* y,
                                  Stream stream) {
  launch(sparse_forward_kernel<T>, grid_for_rows(rows), kRowsPerBlock * kWarp, 0, stream, rows, cols, x, labels, loss, y);
}

template <class T>
void sparse_cross_entropy_backward(int64_t rows, int64_t cols, const T* dloss, const T* y, const int32_t* labels, T* dx,
                                   Stream stream) {
  launch(sparse_backward_kernel<T>, grid_for(rows * cols, kThreads), kThreads, 0, stream, rows * cols, FastDiv(cols), dloss,
         y, labels, dx);
}

template <class T>
void cross_entropy_forward(int64_t rows, int64_t cols, const T* x, const T* target, T* loss, T* y, Stream stream) {
  launch(dense_forward_kernel<T>, grid_for_rows(rows), kRowsPerBlock * kWarp, 0, stream, rows, cols, x, target, loss, y);
}

template <class T>
void cross_entropy_backward(int64_t rows, int64_t cols, const T* dloss, const T* y, const T* target, T* dx, Stream stream) {
  launch(dense_backward_kernel<T>, grid_for_rows(rows), kRowsPerBlock * kWarp, 0, stream, rows, cols, dloss, y, target, dx);
}

template <class T>
void mean_squared_error_forward(int64_t rows, int64_t cols, const T* x, const T* target, T* loss, Stream stream) {
  launch(squared_forward_kernel<T>, grid_for_rows(rows), kRowsPerBlock * kWarp, 0, stream, rows, cols, x, target, loss);
}

template <class T>
void mean_squared_error_backward(int64_t rows, int64_t cols, const T* dloss, const T* x, const T* target, T* dx,
                                 Stream stream) {
  launch(squared_backward_kernel<T>, grid_for(rows * cols, kThreads), kThreads, 0, stream, rows * cols, FastDiv(cols), dloss,
         x, target, dx);
}

template <class T>
void add(Ops<T>& ops) {
  ops.sparse_cross_entropy_forward = sparse_cross_entropy_forward<T>;
  ops.sparse_cross_entropy_backward = sparse_cross_entropy_backward<T>;
  ops.cross_entropy_forward = cross_entropy_forward<T>;
  ops.cross_entropy_backward = cross_entropy_backward<T>;
  ops.mean_squared_error_forward = mean_squared_error_forward<T>;
  ops.mean_squared_error_backward = mean_squared_error_backward<T>;
}

}  // namespace

void add_loss(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
