// Sums per channel over all pixels, and batch normalisation on top of them.
//
// The rows (pixels) are cut into slices by their number alone; each slice sums its rows from top to bottom into a partial,
// and the partials are added up in order. Sums run in double whatever T is: a float sum of a million pixels would lose
// digits. A block of channels at a time, whose sums stay in registers. Bound by memory: x once per pass (forward: mean,
// variance, y; backward: the two sums, dx).
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "../ops.h"
#include "parallel.h"

namespace fastnn::FASTNN_TARGET {
namespace {

int64_t slice_count(int64_t rows) {
  return std::clamp<int64_t>(rows / 256, 1, 32);
}

// Doubles in a workspace of T: two sums a channel for each slice.
template <class T>
double* as_doubles(T* workspace) {
  return reinterpret_cast<double*>((reinterpret_cast<uintptr_t>(workspace) + 7) & ~uintptr_t(7));
}

// sums[s * cols + c] = sum over rows of the s-th value that term(row, c, values) gives; the result lies at the workspace's
// start.
template <int kSums, class Term>
void channel_sums(int64_t rows, int64_t cols, double* sums, Term term) {
  constexpr int kBlock = 32;  // channels: whole lines of a row, and all their sums in registers or L1
  const int64_t slices = slice_count(rows), width = kSums * cols;
  parallel_for(slices, [&](int64_t slice) {
    const int64_t begin = rows * slice / slices, end = rows * (slice + 1) / slices;
    const auto sum_block = [&]<int N>(std::integral_constant<int, N>, int64_t first) {
      double block[kSums][N] = {};
      for (int64_t row = begin; row < end; ++row)
        for (int c = 0; c < N; ++c) {
          double values[kSums];
          term(row, first + c, values);
          for (int s = 0; s < kSums; ++s) block[s][c] += values[s];
        }
      for (int s = 0; s < kSums; ++s) std::copy_n(block[s], N, sums + slice * width + s * cols + first);
    };
    int64_t c = 0;
    for (; c + kBlock <= cols; c += kBlock) sum_block(std::integral_constant<int, kBlock>{}, c);
    for (; c + 8 <= cols; c += 8) sum_block(std::integral_constant<int, 8>{}, c);
    for (; c < cols; ++c) sum_block(std::integral_constant<int, 1>{}, c);
  });
  for (int64_t slice = 1; slice < slices; ++slice)
    for (int64_t i = 0; i < width; ++i) sums[i] += sums[slice * width + i];
}

// f(begin, end) over rows in chunks.
template <class F>
void row_chunks(int64_t rows, int64_t cols, F f) {
  parallel_chunks(rows, std::max<int64_t>(1, 16384 / cols), f);
}

template <class T>
void normalize(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, const T* mean, const T* var,
               double epsilon, T* y) {
  std::vector<T> scales(static_cast<size_t>(cols));
  for (int64_t c = 0; c < cols; ++c) scales[size_t(c)] = T(double(gamma[c]) / std::sqrt(double(var[c]) + epsilon));
  row_chunks(rows, cols, [&](int64_t begin, int64_t end) {
    const T* __restrict scale = scales.data();
    for (int64_t row = begin; row < end; ++row) {
      const T* __restrict from = x + row * cols;
      T* __restrict to = y + row * cols;
      for (int64_t c = 0; c < cols; ++c) to[c] = (from[c] - mean[c]) * scale[c] + beta[c];
    }
  });
}

template <class T>
int64_t channel_workspace(int64_t rows, int64_t cols) {
  return (slice_count(rows) * 2 * cols + 1) * int64_t(sizeof(double) / sizeof(T));
}

template <class T>
void bias_backward(int64_t rows, int64_t cols, const T* dy, T* db, T* workspace, Stream) {
  double* sums = as_doubles(workspace);
  channel_sums<1>(rows, cols, sums, [=](int64_t row, int64_t c, double* v) { v[0] = double(dy[row * cols + c]); });
  for (int64_t c = 0; c < cols; ++c) db[c] = T(sums[c]);
}

template <class T>
void batch_norm_forward(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, double epsilon, T* y, T* mean,
                        T* var, T* workspace, Stream) {
  double* sums = as_doubles(workspace);
  channel_sums<1>(rows, cols, sums, [=](int64_t row, int64_t c, double* v) { v[0] = double(x[row * cols + c]); });
  for (int64_t c = 0; c < cols; ++c) mean[c] = T(sums[c] / double(rows));
  channel_sums<1>(rows, cols, sums, [=](int64_t row, int64_t c, double* v) {
    const double d = double(x[row * cols + c]) - double(mean[c]);
    v[0] = d * d;
  });
  for (int64_t c = 0; c < cols; ++c) var[c] = T(sums[c] / double(rows));
  normalize(rows, cols, x, gamma, beta, mean, var, epsilon, y);
}

// With n = rows, d = x - mean, s = 1 / sqrt(var + epsilon):
//   dbeta = sum dy,  dgamma = s * sum dy d,  dx = gamma s (dy - dbeta / n - d s dgamma / n)
// (Ioffe and Szegedy 2015, section 3, their chain rule collected.)
template <class T>
void batch_norm_backward(int64_t rows, int64_t cols, const T* dy, const T* x, const T* gamma, const T* mean, const T* var,
                         double epsilon, T* dx, T* dgamma, T* dbeta, T* workspace, Stream) {
  double* sums = as_doubles(workspace);
  channel_sums<2>(rows, cols, sums, [=](int64_t row, int64_t c, double* v) {
    v[0] = double(dy[row * cols + c]);
    v[1] = v[0] * (double(x[row * cols + c]) - double(mean[c]));
  });
  for (int64_t c = 0; c < cols; ++c) {
    dbeta[c] = T(sums[c]);
    dgamma[c] = T(sums[cols + c] / std::sqrt(double(var[c]) + epsilon));
  }
  // dx = scale * (dy - mean_dy - (x - mean) * slope)
  std::vector<T> factors(static_cast<size_t>(3 * cols));
  T *const scales = factors.data(), *const means = scales + cols, *const slopes = means + cols;
  for (int64_t c = 0; c < cols; ++c) {
    const double inverse = 1 / std::sqrt(double(var[c]) + epsilon);
    scales[c] = T(double(gamma[c]) * inverse);
    means[c] = T(double(dbeta[c]) / double(rows));
    slopes[c] = T(inverse * double(dgamma[c]) / double(rows));
  }
  row_chunks(rows, cols, [&](int64_t begin, int64_t end) {
    const T* __restrict scale = scales, * __restrict mean_dy = means, * __restrict slope = slopes;
    for (int64_t row = begin; row < end; ++row) {
      const T* __restrict from_x = x + row * cols, * __restrict from_dy = dy + row * cols;
      T* __restrict to = dx + row * cols;
      for (int64_t c = 0; c < cols; ++c) to[c] = scale[c] * (from_dy[c] - mean_dy[c] - (from_x[c] - mean[c]) * slope[c]);
    }
  });
}

template <class T>
void batch_norm_inference(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, const T* mean, const T* var,
                          double epsilon, T* y, Stream) {
  normalize(rows, cols, x, gamma, beta, mean, var, epsilon, y);
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
