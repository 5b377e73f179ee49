// THE op list. Every target (an instruction set of the CPU backend, CUDA, CUDA on the host) fills in all of it, in a
// namespace of its own, for float and double; bindings.cpp calls what its module has chosen.
//
// All arrays are C-contiguous, activations NHWC, filters HWIO; outputs never overlap inputs unless an op is said to work in
// place. Gradients are named after what they are the gradient of: dx dw db dy. A workspace is scratch memory of at least
// the number of elements that the op's *_workspace function returns for the same shape; its contents mean nothing.
#pragma once

#include <cstdint>
#include <type_traits>

#include "shapes.h"

namespace fastnn {

// One tensor of the many that an optimizer's step takes.
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

// What an array that is to become floats may hold.
enum class Element { kUint8, kFloat32, kFloat64 };

// f(x), x pointing to elements of this type.
template <class F>
void visit(Element type, const void* x, F f) {
  if (type == Element::kUint8) return f(static_cast<const uint8_t*>(x));
  if (type == Element::kFloat32) return f(static_cast<const float*>(x));
  f(static_cast<const double*>(x));
}

// Samples x (n, repeat, length, inner) and what is read of them, y (n, repeat, outputs, inner).
struct ResampleShape {
  int64_t n, repeat, length, inner, outputs, taps;
};

constexpr int kRates = 3;  // numbers that change from step to step

// The ops for arrays of T, float or double.
template <class T>
struct Ops {
  // ---- GEMM: y = relu?(alpha * op(a) op(b) + beta * c + bias). c (M, N) and bias (N) may be null; beta = 0 never reads c.
  int64_t (*gemm_workspace)(const GemmShape&);
  void (*gemm)(const GemmShape&, const T* a, const T* b, const T* c, const T* bias, T alpha, T beta, bool relu, T* y,
               T* workspace, Stream);

  // ---- Convolution: y[n, i, j, o] = relu?(b[o] + sum over r, s, c of x[n, i*sh + r*dh - top, j*sw + s*dw - left, c] * w[r,
  // s, c, o]).
  int64_t (*conv2d_forward_workspace)(const Conv2dShape&);
  void (*conv2d_forward)(const Conv2dShape&, const T* x, const T* w, const T* b, bool relu, T* y, T* workspace, Stream);
  int64_t (*conv2d_backward_x_workspace)(const Conv2dShape&);
  void (*conv2d_backward_x)(const Conv2dShape&, const T* dy, const T* w, T* dx, T* workspace, Stream);
  int64_t (*conv2d_backward_w_workspace)(const Conv2dShape&);
  void (*conv2d_backward_w)(const Conv2dShape&, const T* dy, const T* x, T* dw, T* workspace, Stream);

  // ---- Pooling. argmax: the window's first maximum in row-major order, as its index kh * KW + kw. NaN wins over any
  // number.
  void (*max_pool2d_forward)(const Pool2dShape&, const T* x, T* y, int32_t* argmax, Stream);
  void (*max_pool2d_backward)(const Pool2dShape&, const T* dy, const int32_t* argmax, T* dx, Stream);
  void (*avg_pool2d_forward)(const Pool2dShape&, const T* x, T* y, Stream);
  void (*avg_pool2d_backward)(const Pool2dShape&, const T* dy, T* dx, Stream);

  // ---- Convolution, ReLU and max pooling as one: y = max_pool2d(relu?(conv2d(x, w) + b)). argmax: as in
  // max_pool2d_forward, as a byte, and kNoGradient where relu gave 0 or NaN. Backward, only winners take part in the sums;
  // db may be null.
  int64_t (*conv2d_max_pool2d_forward_workspace)(const ConvPoolShape&);
  void (*conv2d_max_pool2d_forward)(const ConvPoolShape&, const T* x, const T* w, const T* b, bool relu, T* y,
                                    uint8_t* argmax, T* workspace, Stream);
  int64_t (*conv2d_max_pool2d_backward_x_workspace)(const ConvPoolShape&);
  void (*conv2d_max_pool2d_backward_x)(const ConvPoolShape&, const T* dy, const uint8_t* argmax, const T* w, T* dx,
                                       T* workspace, Stream);
  int64_t (*conv2d_max_pool2d_backward_w_workspace)(const ConvPoolShape&);
  void (*conv2d_max_pool2d_backward_w)(const ConvPoolShape&, const T* dy, const uint8_t* argmax, const T* x, T* dw, T* db,
                                       T* workspace, Stream);

  // ---- Activations over `size` elements; each backward takes the forward's result y. relu(NaN) is NaN.
  void (*relu_forward)(int64_t size, const T* x, T* y, Stream);
  void (*relu_backward)(int64_t size, const T* dy, const T* y, T* dx, Stream);
  void (*sigmoid_forward)(int64_t size, const T* x, T* y, Stream);
  void (*sigmoid_backward)(int64_t size, const T* dy, const T* y, T* dx, Stream);
  void (*tanh_forward)(int64_t size, const T* x, T* y, Stream);
  void (*tanh_backward)(int64_t size, const T* dy, const T* y, T* dx, Stream);
  // y = x * scale where keep is not 0, else 0, of NaN and infinities, too. Its own backward.
  void (*dropout)(int64_t size, const T* x, const uint8_t* keep, T scale, T* y, Stream);
  // Over the last axis: `rows` independent distributions of `cols` classes.
  void (*softmax_forward)(int64_t rows, int64_t cols, const T* x, T* y, Stream);
  void (*softmax_backward)(int64_t rows, int64_t cols, const T* dy, const T* y, T* dx, Stream);

  // ---- Samples as floats: y[i] = T(x[rows[i]]) * scale + offset for `samples` of `size` elements; rows may be null: y[i]
  // is of x[i] then. scale 1 and offset -0 keep every number as it is, where offset 0 would make 0 of -0. A row that x, of
  // `stored` samples, does not have gives NaN: where a call is repeated, nobody has looked at them.
  void (*rescale)(int64_t samples, int64_t size, int64_t stored, Element type, const void* x, const int32_t* rows, T scale,
                  T offset, T* y, Stream);

  // ---- Samples read anew along one axis, each at its own positions, of which each output has `taps`:
  //   y[n, r, i] = sum over t of weights[t, n, i] * x[n, r, index[t, n, i]] + offset[n, i]
  // weights null: 1 each; offset null: nothing. Backward goes over outputs in order, for each over its taps. A position that
  // x does not have, which nobody has looked for where a call is repeated, gives NaN; backward leaves it out.
  void (*resample)(const ResampleShape&, const T* x, const int32_t* index, const T* weights, const T* offset, T* y, Stream);
  void (*resample_backward)(const ResampleShape&, const T* dy, const int32_t* index, const T* weights, T* dx, Stream);

  // ---- Losses, one per row; the mean over the batch is the caller's. y is softmax(x), kept for backward.
  void (*sparse_cross_entropy_forward)(int64_t rows, int64_t cols, const T* x, const int32_t* labels, T* loss, T* y, Stream);
  void (*sparse_cross_entropy_backward)(int64_t rows, int64_t cols, const T* dloss, const T* y, const int32_t* labels, T* dx,
                                        Stream);
  void (*cross_entropy_forward)(int64_t rows, int64_t cols, const T* x, const T* target, T* loss, T* y, Stream);
  void (*cross_entropy_backward)(int64_t rows, int64_t cols, const T* dloss, const T* y, const T* target, T* dx, Stream);
  void (*mean_squared_error_forward)(int64_t rows, int64_t cols, const T* x, const T* target, T* loss, Stream);
  void (*mean_squared_error_backward)(int64_t rows, int64_t cols, const T* dloss, const T* x, const T* target, T* dx,
                                      Stream);

  // ---- Per-channel sums and normalisation over `rows` pixels of `cols` channels. Variances are biased (divided by rows).
  int64_t (*channel_workspace)(int64_t rows, int64_t cols);
  void (*bias_backward)(int64_t rows, int64_t cols, const T* dy, T* db, T* workspace, Stream);
  void (*batch_norm_forward)(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, double epsilon, T* y,
                             T* mean, T* var, T* workspace, Stream);
  void (*batch_norm_backward)(int64_t rows, int64_t cols, const T* dy, const T* x, const T* gamma, const T* mean,
                              const T* var, double epsilon, T* dx, T* dgamma, T* dbeta, T* workspace, Stream);
  void (*batch_norm_inference)(int64_t rows, int64_t cols, const T* x, const T* gamma, const T* beta, const T* mean,
                               const T* var, double epsilon, T* y, Stream);

  // ---- Optimizer steps, in place, over all parameters of a network in one call. What changes from step to step lies in
  // memory, so that a captured graph reads it anew at each launch: rates[0] is the step's size, rates[1] what w is
  // multiplied by (1 without weight decay), rates[2] the loss: where it is NaN or infinite, nothing is written.
  void (*sgd_step)(const SgdTensor<T>* tensors, int64_t count, const double* rates, const SgdOptions&, Stream);
  void (*adam_step)(const AdamTensor<T>* tensors, int64_t count, const double* rates, const AdamOptions&, Stream);
};

// What the first index outside [0, limit) is, and where; position -1 where all are in.
struct BadIndex {
  int64_t position;
  int32_t index;
};

// All that a target has.
struct Kernels {
  // Throws std::invalid_argument where products cannot be computed in this precision here.
  void (*check_precision)(Precision);
  // On a GPU it waits for the answer, except on a stream that is being captured into a graph: there indices are not looked
  // at.
  BadIndex (*find_bad_index)(int64_t count, int64_t limit, const int32_t* indices, Stream);
  Ops<float> float32;
  Ops<double> float64;

  template <class T>
  const Ops<T>& of() const {
    if constexpr (std::is_same_v<T, float>)
      return float32;
    else
      return float64;
  }
};

// Those of the target that this module has chosen; each module defines it.
const Kernels& kernels();

}  // namespace fastnn
