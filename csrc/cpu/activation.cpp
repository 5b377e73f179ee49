// Activations and dropout, element by element, and softmax row by row. relu and dropout are bound by memory, the others by
// the arithmetic of exp.h. Every backward of an activation takes y, the forward's result, so that x need not be kept.
#include "../ops.h"
#include "parallel.h"
#include "softmax.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements an item takes

template <class T>
void relu_forward(int64_t size, const T* x, T* y, Stream) {
  parallel_chunks(size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = x[i] <= T(0) ? T(0) : x[i];  // a NaN is not <= 0: it stays
  });
}

template <class T>
void relu_backward(int64_t size, const T* dy, const T* y, T* dx, Stream) {
  parallel_chunks(size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T gradient = dy[i];  // read in any case: a select, not a branch that half the elements mispredict
      dx[i] = y[i] > T(0) ? gradient : T(0);
    }
  });
}

template <class T>
void sigmoid_forward(int64_t size, const T* x, T* y, Stream) {
  using V = simd::V<T>;
  parallel_chunks(size, kGrain / 4, [&](int64_t begin, int64_t end) {
    map_vectors(end - begin, x + begin, y + begin, [](V v) {
      const V one = simd::broadcast(T(1)), e = Exp<T>(v < V{} ? v : -v).value();
      return (v < V{} ? e : one) / (one + e);
    });
  });
}

template <class T>
void sigmoid_backward(int64_t size, const T* dy, const T* y, T* dx, Stream) {
  parallel_chunks(size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dx[i] = dy[i] * y[i] * (T(1) - y[i]);
  });
}

template <class T>
void tanh_forward(int64_t size, const T* x, T* y, Stream) {
  using V = simd::V<T>;
  parallel_chunks(size, kGrain / 4, [&](int64_t begin, int64_t end) {
    map_vectors(end - begin, x + begin, y + begin, [](V v) {
      const V e = Exp<T>(simd::broadcast(T(2)) * (v < V{} ? v : -v)).minus_one();  // tanh |v| = -e / (2 + e)
      const V t = e / (simd::broadcast(T(2)) + e);
      const V signed_t = v < V{} ? t : -t;
      return v == V{} ? v : signed_t;  // zeros keep their sign
    });
  });
}

template <class T>
void tanh_backward(int64_t size, const T* dy, const T* y, T* dx, Stream) {
  parallel_chunks(size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dx[i] = dy[i] * (T(1) - y[i] * y[i]);
  });
}

template <class T>
void dropout(int64_t size, const T* x, const uint8_t* keep, T scale, T* y, Stream) {
  parallel_chunks(size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T scaled = x[i] * scale;  // in any case: a select, not a branch
      y[i] = keep[i] ? scaled : T(0);
    }
  });
}

template <class T>
void softmax_forward(int64_t rows, int64_t cols, const T* x, T* y, Stream) {
  parallel_chunks(rows, softmax_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) softmax_row(cols, x + row * cols, y + row * cols);
  });
}

template <class T>
void softmax_backward(int64_t rows, int64_t cols, const T* dy, const T* y, T* dx, Stream) {
  parallel_chunks(rows, softmax_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * cols; at < end * cols; at += cols) {
      const T dot = sum_of<T>(cols, [=](auto piece, int64_t c) { return piece.load(dy + at + c) * piece.load(y + at + c); });
      for (int64_t c = 0; c < cols; ++c) dx[at + c] = y[at + c] * (dy[at + c] - dot);
    }
  });
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
