// THE op list. Every target (an instruction set of the CPU backend, CUDA, CUDA on the host) defines everything declared
// here, in a namespace of its own, for float and double; bindings.cpp is compiled once per target against it.
//
// All arrays are C-contiguous, activations NHWC, filters HWIO; outputs never overlap inputs unless an op is said to work in
// place. Gradients are named after what they are the gradient of: dx dw db dy. A workspace is scratch memory of at least
// the number of elements that the op's *_workspace function returns for the same shape; its contents mean nothing.
#pragma once

#include <cstdint>

#include "shapes.h"

namespace fastnn::FASTNN_TARGET {

// Throws std::invalid_argument where products cannot be computed in this precision here.
void check_precision(Precision);

// ---- GEMM: y = relu?(alpha * op(a) op(b) + beta * c + bias). c (M, N) and bias (N) may be null; beta = 0 never reads c.
template <class T>
int64_t gemm_workspace(const GemmShape&);
template <class T>
void gemm(const GemmShape&, const T* a, const T* b, const T* c, const T* bias, T alpha, T beta, bool relu, T* y,
          T* workspace, Stream);

// ---- Convolution: y[n, i, j, o] = relu?(b[o] + sum over r, s, c of x[n, i*sh + r*dh - top, j*sw + s*dw - left, c] * w[r,
// s, c, o]).
template <class T>
int64_t conv2d_forward_workspace(const Conv2dShape&);
template <class T>
void conv2d_forward(const Conv2dShape&, const T* x, const T* w, const T* b, bool relu, T* y, T* workspace, Stream);
template <class T>
int64_t conv2d_backward_x_workspace(const Conv2dShape&);
template <class T>
void conv2d_backward_x(const Conv2dShape&, const T* dy, const T* w, T* dx, T* workspace, Stream);
template <class T>
int64_t conv2d_backward_w_workspace(const Conv2dShape&);
template <class T>
void conv2d_backward_w(const Conv2dShape&, const T* dy, const T* x, T* dw, T* workspace, Stream);

// ---- Pooling. argmax: the window's first maximum in row-major order, as its index kh * KW + kw. NaN wins over any number.
template <class T>
void max_pool2d_forward(const Pool2dShape&, const T* x, T* y, int32_t* argmax, Stream);
template <class T>
void max_pool2d_backward(const Pool2dShape&, const T* dy, const int32_t* argmax, T* dx, Stream);
template <class T>
void avg_pool2d_forward(const Pool2dShape&, const T* x, T* y, Stream);
template <class T>
void avg_pool2d_backward(const Pool2dShape&, const T* dy, T* dx, Stream);

// ---- Convolution, ReLU and max pooling as one: y = max_pool2d(relu?(conv2d(x, w) + b)). argmax: as in max_pool2d_forward,
// as a byte, and kNoGradient where relu gave 0 or NaN. Backward, only winners take part in the sums; db may be null.
template <class T>
int64_t conv2d_max_pool2d_forward_workspace(const ConvPoolShape&);
template <class T>
void conv2d_max_pool2d_forward(const ConvPoolShape&, const T* x, const T* w, const T* b, bool relu, T* y, uint8_t* argmax,
                               T* workspace, Stream);
template <class T>
int64_t conv2d_max_pool2d_backward_x_workspace(const ConvPoolShape&);
template <class T>
void conv2d_max_pool2d_backward_x(const ConvPoolShape&, const T* dy, const uint8_t* argmax, const T* w, T* dx, T* workspace,
                                  Stream);
template <class T>
int64_t conv2d_max_pool2d_backward_w_workspace(const ConvPoolShape&);
template <class T>
void conv2d_max_pool2d_backward_w(const ConvPoolShape&, const T* dy, const uint8_t* argmax, const T* x, T* dw, T* db,
                                  T* workspace, Stream);

// ---- Activations over `size` elements; each backward takes the forward's result y. relu(NaN) is NaN.
template <class T>
void relu_forward(int64_t size, const T* x, T* y, Stream);
template <class T>
void relu_backward(int64_t size, const T* dy, const T* y, T* dx, Stream);
template <class T>
void sigmoid_forward(int64_t size, const T* x, T* y, Stream);
template <class T>
void sigmoid_backward(int64_t size, const T* dy, const T* y, T* dx, Stream);
template <class T>
void tanh_forward(int64_t size, const T* x, T* y, Stream);
template <class T>
void tanh_backward(int64_t size, const T* dy, const T* y, T* dx, Stream);
// Over the last axis: `rows` independent distributions of `cols` classes.
template <class T>
void softmax_forward(int64_t rows, int64_t cols, const T* x, T* y, Stream);
template <class T>
void softmax_backward(int64_t rows, int64_t cols, const T* dy, const T* y, T* dx, Stream);

// ---- Losses, one per row; the mean over the batch is the caller's. y is softmax(x), kept for backward.
// The first label outside [0, cols); position -1 where all are in. On a GPU it waits for the answer, except on a stream that
// is being captured into a graph: there labels are not looked at.
struct BadLabel {
  int64_t position;
  int32_t label;
};
BadLabel find_bad_label(int64_t rows, int64_t cols, const int32_t* labels, Stream);
template <class T>
void sparse_cross_entropy_forward(int64_t rows, int64_t cols, const T* x, const int32_t* labels, T* loss, T* y, Stream);
template <class T>
void sparse_cross_entropy_backward(int64_t rows, int64_t cols, const T* dloss, const T* y, const int32_t* labels, T* dx,
                                   Stream);
template <class T>
void cross_entropy_forward(int64_t rows, int64_t cols, const T* x, const T* target, T* loss, T* y, Stream);
template <class T>
void cross_entropy_backward(int64_t rows, int64_t cols, const T* dloss, const T* y, const T* target, T* dx, Stream);
template <class T>
void mean_squared_error_forward(int64_t rows, int64_t cols, const T* x, const T* target, T* loss, Stream);
template <class T>
void mean_squared_error_backward(int64_t rows, int64_t cols, const T* dloss, const T* x, const T* target, T* dx, Stream);

// ---- Per-channel sums and normalisation over `rows` pixels of `cols` channels. Variances are biased (divided by rows).
template <class T>
int64_t channel_workspace(int64_t rows, int64_t cols);
template <class T>
void bias_backward(int64_t rows, int64_t cols, const T* dy, T* db, T* workspace, Stream);
template <class T>
void batch_norm_forward(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, double epsilon, T* y, T* mean,
                        T* var, T* workspace, Stream);
template <class T>
void batch_norm_backward(int64_t rows, int64_t cols, const T* dy, const T* x, const T* gamma, const T* mean, const T* var,
                         double epsilon, T* dx, T* dgamma, T* dbeta, T* workspace, Stream);
template <class T>
void batch_norm_inference(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, const T* mean, const T* var,
                          double epsilon, T* y, Stream);

// ---- Optimizer steps, in place, over all parameters of a network in one call. What changes from step to step lies in
// memory, so that a captured graph reads it anew at each launch: rates[0] is the step's size, rates[1] what w is multiplied
// by (1 without weight decay), rates[2] the loss: where it is NaN or infinite, nothing is written.
constexpr int kRates = 3;
template <class T>
struct SgdTensor {
  int64_t size;
  T* w;
  const T* dw;
  T* velocity;  // null without momentum
};
template <class T>
struct AdamTensor {
  int64_t size;
  T* w;
  const T* dw;
  T *m, *v;
};
struct SgdOptions {
  double momentum;
  bool nesterov;
};
struct AdamOptions {
  double beta_1, beta_2, epsilon;
};
template <class T>
void sgd_step(const SgdTensor<T>* tensors, int64_t count, const double* rates, const SgdOptions&, Stream);
template <class T>
void adam_step(const AdamTensor<T>* tensors, int64_t count, const double* rates, const AdamOptions&, Stream);

}  // namespace fastnn::FASTNN_TARGET
