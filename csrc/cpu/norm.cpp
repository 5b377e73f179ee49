// Sums per channel over all pixels, and batch normalisation on top of them.
//
// The rows (pixels) are cut into slices by their number alone; each slice sums its rows from top to bottom into a partial,
// and the partials are added up in order. Sums run in double whatever T is: a float sum of a million pixels would lose
// digits. A block of channels at a time, whose sums stay in registers. Bound by memory: x once per pass (forward: mean,
// variance, y; backward: the two sums, dx).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../ops.h"
#include "parallel.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int kBlock = 32;  // channels: whole lines of a row, and all their sums in registers or L1
constexpr int kPart = 8;    // of what is left of them

// How kernels go over rows of few channels: several rows side by side as one, so that there are whole blocks of channels.
struct Layout {
  int64_t channels, together;  // of which each is there so often in a wide row
  int64_t cols, rows, rest;    // elements of a wide row, how many of those there are, and elements after the last of them
  int64_t line;                // elements of as many wide rows as are worth a loop where each element is on its own
  int64_t slices;

  Layout(int64_t all_rows, int64_t c)
      : channels(c),
        together(rows_together(c)),
        cols(together * c),
        rows(all_rows / together),
        rest(all_rows % together * c),
        line(std::max<int64_t>(512 / cols, 1) * cols),
        slices(std::clamp<int64_t>(all_rows / 256, 1, 32)) {}
  int64_t size() const { return rows * cols + rest; }

 private:
  // Until blocks are whole, unless that takes many: then until parts are.
  static int64_t rows_together(int64_t c) {
    constexpr int64_t kMost = 256;
    if (c >= kBlock) return 1;
    const int64_t whole = kBlock / std::gcd<int64_t>(kBlock, c);
    return whole * c <= kMost ? whole : kPart / std::gcd<int64_t>(kPart, c);
  }
};

// A number for each channel as one for each element of a line.
template <class T, class F>
std::vector<T> widened(const Layout& l, F of_channel) {
  std::vector<T> all(static_cast<size_t>(l.line));
  for (int64_t c = 0; c < l.channels; ++c) all[size_t(c)] = of_channel(c);
  for (int64_t i = l.channels; i < l.line; ++i) all[size_t(i)] = all[size_t(i - l.channels)];
  return all;
}

// Doubles in a workspace of T: two sums an element of a wide row for each slice.
template <class T>
double* as_doubles(T* workspace) {
  return reinterpret_cast<double*>((reinterpret_cast<uintptr_t>(workspace) + 7) & ~uintptr_t(7));
}

// sums[s * channels + c] = sum over rows of the s-th value that term(element, its place in a wide row, values) gives; the
// result lies at the workspace's start.
template <int kSums, class Term>
void channel_sums(const Layout& l, double* sums, Term term) {
  const int64_t cols = l.cols, width = kSums * cols;
  parallel_for(l.slices, [&](int64_t slice) {
    const int64_t begin = l.rows * slice / l.slices, end = l.rows * (slice + 1) / l.slices;
    const auto sum_block = [&]<int N>(std::integral_constant<int, N>, int64_t first) {
      double block[kSums][N] = {};
      for (int64_t row = begin; row < end; ++row)
        for (int c = 0; c < N; ++c) {
          double values[kSums];
          term(row * cols + first + c, first + c, values);
          for (int s = 0; s < kSums; ++s) block[s][c] += values[s];
        }
      for (int s = 0; s < kSums; ++s) std::copy_n(block[s], N, sums + slice * width + s * cols + first);
    };
    int64_t c = 0;
    for (; c + kBlock <= cols; c += kBlock) sum_block(std::integral_constant<int, kBlock>{}, c);
    for (; c + kPart <= cols; c += kPart) sum_block(std::integral_constant<int, kPart>{}, c);
    for (; c < cols; ++c) sum_block(std::integral_constant<int, 1>{}, c);
  });
  for (int64_t slice = 1; slice < l.slices; ++slice)
    for (int64_t i = 0; i < width; ++i) sums[i] += sums[slice * width + i];
  for (int64_t i = 0; i < l.rest; ++i) {
    double values[kSums];
    term(l.rows * cols + i, i, values);
    for (int s = 0; s < kSums; ++s) sums[s * cols + i] += values[s];
  }
  for (int s = 0; s < kSums; ++s)
    for (int64_t c = 0; c < l.channels; ++c) {
      double sum = sums[s * cols + c];
      for (int64_t i = 1; i < l.together; ++i) sum += sums[s * cols + i * l.channels + c];
      sums[s * l.channels + c] = sum;  // where nothing is that is still to be read
    }
}

// f(element, how many from there on) for each line, in chunks.
template <class F>
void each_line(const Layout& l, F f) {
  const int64_t chunk = std::max<int64_t>(1, 16384 / l.line) * l.line;
  parallel_chunks(l.size(), chunk, [&](int64_t begin, int64_t end) {
    for (; begin < end; begin += l.line) f(begin, std::min(l.line, end - begin));
  });
}

template <class T>
void normalize(const Layout& l, const T* x, const T* gamma, const T* beta, const T* mean, const T* var, double epsilon,
               T* y) {
  const auto scales = widened<T>(l, [=](int64_t c) { return T(double(gamma[c]) / std::sqrt(double(var[c]) + epsilon)); });
  const auto means = widened<T>(l, [=](int64_t c) { return mean[c]; });
  const auto betas = widened<T>(l, [=](int64_t c) { return beta[c]; });
  each_line(l, [&](int64_t begin, int64_t count) {
    const T* __restrict scale = scales.data(), * __restrict m = means.data(), * __restrict b = betas.data();
    const T* __restrict from = x + begin;
    T* __restrict to = y + begin;
    for (int64_t c = 0; c < count; ++c) to[c] = (from[c] - m[c]) * scale[c] + b[c];
  });
}

template <class T>
int64_t channel_workspace(int64_t rows, int64_t cols) {
  const Layout l(rows, cols);
  return (l.slices * 2 * l.cols + 1) * int64_t(sizeof(double) / sizeof(T));
}

template <class T>
void bias_backward(int64_t rows, int64_t cols, const T* dy, T* db, T* workspace, Stream) {
  double* sums = as_doubles(workspace);
  channel_sums<1>({rows, cols}, sums, [=](int64_t i, int64_t, double* v) { v[0] = double(dy[i]); });
  for (int64_t c = 0; c < cols; ++c) db[c] = T(sums[c]);
}

template <class T>
void batch_norm_forward(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, double epsilon, T* y, T* mean,
                        T* var, T* workspace, Stream) {
  const Layout l(rows, cols);
  double* sums = as_doubles(workspace);
  channel_sums<1>(l, sums, [=](int64_t i, int64_t, double* v) { v[0] = double(x[i]); });
  for (int64_t c = 0; c < cols; ++c) mean[c] = T(sums[c] / double(rows));
  const auto means = widened<T>(l, [=](int64_t c) { return mean[c]; });
  channel_sums<1>(l, sums, [=, m = means.data()](int64_t i, int64_t c, double* v) {
    const double d = double(x[i]) - double(m[c]);
    v[0] = d * d;
  });
  for (int64_t c = 0; c < cols; ++c) var[c] = T(sums[c] / double(rows));
  normalize(l, x, gamma, beta, mean, var, epsilon, y);
}

// With n = rows, d = x - mean, s = 1 / sqrt(var + epsilon):
//   dbeta = sum dy,  dgamma = s * sum dy d,  dx = gamma s (dy - dbeta / n - d s dgamma / n)
// (Ioffe and Szegedy 2015, section 3, their chain rule collected.)
template <class T>
void batch_norm_backward(int64_t rows, int64_t cols, const T* dy, const T* x, const T* gamma, const T* mean, const T* var,
                         double epsilon, T* dx, T* dgamma, T* dbeta, T* workspace, Stream) {
  const Layout l(rows, cols);
  double* sums = as_doubles(workspace);
  const auto means = widened<T>(l, [=](int64_t c) { return mean[c]; });
  channel_sums<2>(l, sums, [=, m = means.data()](int64_t i, int64_t c, double* v) {
    v[0] = double(dy[i]);
    v[1] = v[0] * (double(x[i]) - double(m[c]));
  });
  const auto inverse = [=](int64_t c) { return 1 / std::sqrt(double(var[c]) + epsilon); };
  for (int64_t c = 0; c < cols; ++c) {
    dbeta[c] = T(sums[c]);
    dgamma[c] = T(sums[cols + c] / std::sqrt(double(var[c]) + epsilon));
  }
  // dx = scale * (dy - mean_dy - (x - mean) * slope)
  const auto scales = widened<T>(l, [=](int64_t c) { return T(double(gamma[c]) * inverse(c)); });
  const auto means_dy = widened<T>(l, [=](int64_t c) { return T(double(dbeta[c]) / double(rows)); });
  const auto slopes = widened<T>(l, [=](int64_t c) { return T(inverse(c) * double(dgamma[c]) / double(rows)); });
  each_line(l, [&](int64_t begin, int64_t count) {
    const T* __restrict scale = scales.data(), * __restrict mean_dy = means_dy.data(), * __restrict slope = slopes.data();
    const T* __restrict from_x = x + begin, * __restrict from_dy = dy + begin, * __restrict m = means.data();
    T* __restrict to = dx + begin;
    for (int64_t c = 0; c < count; ++c) to[c] = scale[c] * (from_dy[c] - mean_dy[c] - (from_x[c] - m[c]) * slope[c]);
  });
}

template <class T>
void batch_norm_inference(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, const T* mean, const T* var,
                          double epsilon, T* y, Stream) {
  normalize({rows, cols}, x, gamma, beta, mean, var, epsilon, y);
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
