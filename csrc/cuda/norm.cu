// Sums per channel over all pixels, and batch normalisation on top of them.
//
// The rows (pixels) are cut into slices by their number alone. A block sums one slice of 32 neighbouring channels: thread ->
// (row modulo 8, channel), coalesced over the channels, then the eight partials are added in order; a second kernel adds up
// the slices, if there are several. Sums run in double whatever T is: a float sum of a million pixels would lose digits.
// Bound by memory: x once per pass (forward: mean, variance, y; backward: the two sums, dx).
#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int kThreads = 256, kLanes = 32, kRowsAtOnce = kThreads / kLanes;

int64_t slice_count(int64_t rows) {
  return std::clamp<int64_t>(rows / 256, 1, 256);
}

// Doubles in a workspace of T: two sums a channel for each slice.
template <class T>
double* as_doubles(T* workspace) {
  return reinterpret_cast<double*>((reinterpret_cast<uintptr_t>(workspace) + 7) & ~uintptr_t(7));
}

// ---- Kernels

// partial[slice, s, c] = sum over the slice's rows of the s-th value that term(row, c, values) gives; of a single slice,
// finish(c, sums).
template <int kSums, class Term, class Finish>
__global__ void slice_sums_kernel(int64_t rows, int64_t cols, int64_t slices, Term term, Finish finish, double* partial) {
  double* shared = Shared().alloc<double>(kSums * kThreads);
  const int64_t column_blocks = ceil_div(cols, kLanes), slice = blockIdx.x / column_blocks;
  const int64_t c = blockIdx.x % column_blocks * kLanes + threadIdx.x % kLanes;
  const int first = threadIdx.x / kLanes;
  double sums[kSums] = {};
  if (c < cols)
    for (int64_t row = rows * slice / slices + first; row < rows * (slice + 1) / slices; row += kRowsAtOnce) {
      double values[kSums];
      term(row, c, values);
      for (int s = 0; s < kSums; ++s) sums[s] += values[s];
    }
  for (int s = 0; s < kSums; ++s) shared[s * kThreads + threadIdx.x] = sums[s];
  __syncthreads();
  if (first != 0 || c >= cols) return;
  for (int s = 0; s < kSums; ++s) {
    sums[s] = 0;
    for (int r = 0; r < kRowsAtOnce; ++r) sums[s] += shared[s * kThreads + r * kLanes + threadIdx.x];
    if (slices > 1) partial[(slice * kSums + s) * cols + c] = sums[s];
  }
  if (slices == 1) finish(c, sums);
}

// Adds up the slices' partials and hands the sums to finish(c, sums).
template <int kSums, class Finish>
__global__ void finish_kernel(int64_t cols, int slices, const double* partial, Finish finish) {
  double* shared = Shared().alloc<double>(kSliceThreads);
  const int64_t c = int64_t(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  double sums[kSums];
  for (int s = 0; s < kSums; ++s)
    sums[s] =
        sum_slices(slices, shared, [&](int64_t slice) { return c < cols ? partial[(slice * kSums + s) * cols + c] : 0; });
  if (threadIdx.x < kWarp && c < cols) finish(c, sums);
}

template <class T>
struct Value {
  const T* x;
  int64_t cols;
  __device__ void operator()(int64_t row, int64_t c, double* v) const { v[0] = double(x[row * cols + c]); }
};
template <class T>
struct SquaredDeviation {
  const T *x, *mean;
  int64_t cols;
  __device__ void operator()(int64_t row, int64_t c, double* v) const {
    const double d = double(x[row * cols + c]) - double(mean[c]);
    v[0] = d * d;
  }
};
template <class T>
struct GradientSums {
  const T *dy, *x, *mean;
  int64_t cols;
  __device__ void operator()(int64_t row, int64_t c, double* v) const {
    v[0] = double(dy[row * cols + c]);
    v[1] = v[0] * (double(x[row * cols + c]) - double(mean[c]));
  }
};

template <class T>
struct StoreMean {  // of `count` values; of 1, their sum
  T* out;
  double count;
  __device__ void operator()(int64_t c, const double* sums) const { out[c] = T(sums[0] / count); }
};
template <class T>
struct StoreGradients {
  T *dgamma, *dbeta;
  const T* var;
  double epsilon;
  __device__ void operator()(int64_t c, const double* sums) const {
    dbeta[c] = T(sums[0]);
    dgamma[c] = T(sums[1] / std::sqrt(double(var[c]) + epsilon));
  }
};

template <class T>
__global__ void normalize_kernel(int64_t size, FastDiv cols, const T* x, const T* gamma, const T* beta, const T* mean,
                                 const T* var, T epsilon, T* y) {
  for (int64_t i = first_item(); i < size; i += item_step()) {
    const int64_t c = i - cols(i) * cols.divisor;
    y[i] = gamma[c] * ((x[i] - mean[c]) / std::sqrt(var[c] + epsilon)) + beta[c];
  }
}

// With n = rows, d = x - mean, s = 1 / sqrt(var + epsilon):
//   dbeta = sum dy,  dgamma = s * sum dy d,  dx = gamma s (dy - dbeta / n - d s dgamma / n)
// (Ioffe and Szegedy 2015, section 3, their chain rule collected.)
template <class T>
__global__ void backward_kernel(int64_t size, FastDiv cols, T n, const T* dy, const T* x, const T* gamma, const T* mean,
                                const T* var, T epsilon, const T* dgamma, const T* dbeta, T* dx) {
  for (int64_t i = first_item(); i < size; i += item_step()) {
    const int64_t c = i - cols(i) * cols.divisor;
    const T scale = T(1) / std::sqrt(var[c] + epsilon);
    dx[i] = gamma[c] * scale * (dy[i] - dbeta[c] / n - (x[i] - mean[c]) * scale * (dgamma[c] / n));
  }
}

// ---- Launchers

template <int kSums, class Term, class Finish>
void channel_sums(int64_t rows, int64_t cols, double* partial, Term term, Finish finish, Stream stream) {
  const int64_t slices = slice_count(rows);
  launch(slice_sums_kernel<kSums, Term, Finish>, dim3(unsigned(slices * ceil_div(cols, kLanes))), kThreads,
         SharedSize().add<double>(kSums * kThreads).bytes(), stream, rows, cols, slices, term, finish, partial);
  if (slices == 1) return;
  launch(finish_kernel<kSums, Finish>, dim3(unsigned(ceil_div(cols, kWarp))), kSliceThreads,
         SharedSize().add<double>(kSliceThreads).bytes(), stream, cols, int(slices), partial, finish);
}

template <class T>
void normalize(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, const T* mean, const T* var,
               double epsilon, T* y, Stream stream) {
  launch(normalize_kernel<T>, grid_for(rows * cols, kThreads), kThreads, 0, stream, rows * cols, FastDiv(cols), x, gamma,
         beta, mean, var, T(epsilon), y);
}

// ---- Entry points

template <class T>
int64_t channel_workspace(int64_t rows, int64_t cols) {
  return (slice_count(rows) * 2 * cols + 1) * int64_t(sizeof(double) / sizeof(T));
}

template <class T>
void bias_backward(int64_t rows, int64_t cols, const T* dy, T* db, T* workspace, Stream stream) {
  channel_sums<1>(rows, cols, as_doubles(workspace), Value<T>{dy, cols}, StoreMean<T>{db, 1}, stream);
}

template <class T>
void batch_norm_forward(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, double epsilon, T* y, T* mean,
                        T* var, T* workspace, Stream stream) {
  double* partial = as_doubles(workspace);
  channel_sums<1>(rows, cols, partial, Value<T>{x, cols}, StoreMean<T>{mean, double(rows)}, stream);
  channel_sums<1>(rows, cols, partial, SquaredDeviation<T>{x, mean, cols}, StoreMean<T>{var, double(rows)}, stream);
  normalize(rows, cols, x, gamma, beta, mean, var, epsilon, y, stream);
}

template <class T>
void batch_norm_backward(int64_t rows, int64_t cols, const T* dy, const T* x, const T* gamma, const T* mean, const T* var,
                         double epsilon, T* dx, T* dgamma, T* dbeta, T* workspace, Stream stream) {
  channel_sums<2>(rows, cols, as_doubles(workspace), GradientSums<T>{dy, x, mean, cols},
                  StoreGradients<T>{dgamma, dbeta, var, epsilon}, stream);
  launch(backward_kernel<T>, grid_for(rows * cols, kThreads), kThreads, 0, stream, rows * cols, FastDiv(cols), T(rows), dy,
         x, gamma, mean, var, T(epsilon), dgamma, dbeta, dx);
}

template <class T>
void batch_norm_inference(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, const T* mean, const T* var,
                          double epsilon, T* y, Stream stream) {
  normalize(rows, cols, x, gamma, beta, mean, var, epsilon, y, stream);
}

template <class T>
void add(Ops<T>& ops) {
  ops.channel_workspace = channel_workspace<T>;
  ops.bias_backward = bias_backward<T>;
  ops.batch_norm_forward = batch_norm_forward<T>;
  ops.batch_norm_backward = batch_norm_backward<T>;
  ops.batch_norm_inference = batch_norm_inference<T>;
}

}  // namespace

void add_norm(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
