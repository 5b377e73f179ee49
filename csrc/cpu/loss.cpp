// Losses, one value per row. Cross-entropy is taken from logits by log-sum-exp over what remains after the row's maximum is
// taken off, so that it is finite wherever the mathematics is. A row is one thread's.
#include <cmath>

#include "../ops.h"
#include "parallel.h"
#include "softmax.h"

namespace fastnn::FASTNN_TARGET {
namespace {

template <class T>
void sparse_cross_entropy_forward(int64_t rows, int64_t cols, const T* x, const int32_t* labels, T* loss, T* y, Stream) {
  parallel_chunks(rows, softmax_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Normalizer<T> s = softmax_row(cols, x + row * cols, y + row * cols);
      loss[row] = std::log(s.sum) - (x[row * cols + labels[row]] - s.top);
    }
  });
}

template <class T>
void sparse_cross_entropy_backward(int64_t rows, int64_t cols, const T* dloss, const T* y, const int32_t* labels, T* dx,
                                   Stream) {
  parallel_chunks(rows, softmax_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t c = 0; c < cols; ++c)
        dx[row * cols + c] = (y[row * cols + c] - (c == labels[row] ? T(1) : T(0))) * dloss[row];
  });
}

template <class T>
void cross_entropy_forward(int64_t rows, int64_t cols, const T* x, const T* target, T* loss, T* y, Stream) {
  parallel_chunks(rows, softmax_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T *in = x + row * cols, *t = target + row * cols;
      const Normalizer<T> s = softmax_row(cols, in, y + row * cols);
      T sum = 0;
      for (int64_t c = 0; c < cols; ++c)
        if (t[c] != T(0)) sum += t[c] * (std::log(s.sum) - (in[c] - s.top));  // 0 * log 0 is 0
      loss[row] = sum;
    }
  });
}

template <class T>
void cross_entropy_backward(int64_t rows, int64_t cols, const T* dloss, const T* y, const T* target, T* dx, Stream) {
  parallel_chunks(rows, softmax_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* t = target + row * cols;
      const T total = sum_of<T>(cols, [t](auto piece, int64_t c) { return piece.load(t + c); });
      for (int64_t c = 0; c < cols; ++c) dx[row * cols + c] = (y[row * cols + c] * total - t[c]) * dloss[row];
    }
  });
}

template <class T>
void mean_squared_error_forward(int64_t rows, int64_t cols, const T* x, const T* target, T* loss, Stream) {
  parallel_chunks(rows, softmax_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T *in = x + row * cols, *t = target + row * cols;
      const T sum = sum_of<T>(cols, [=](auto piece, int64_t c) {
        const auto difference = piece.load(in + c) - piece.load(t + c);
        return difference * difference;
      });
      loss[row] = sum / T(cols);
    }
  });
}

template <class T>
void mean_squared_error_backward(int64_t rows, int64_t cols, const T* dloss, const T* x, const T* target, T* dx, Stream) {
  parallel_chunks(rows, softmax_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T scale = T(2) * dloss[row] / T(cols);
      for (int64_t i = row * cols; i < (row + 1) * cols; ++i) dx[i] = (x[i] - target[i]) * scale;
    }
  });
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
