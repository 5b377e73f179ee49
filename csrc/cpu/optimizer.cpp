// Optimizer steps, in place, over all parameters of a network in one call. An item is up to kGrain elements of one tensor.
// Bound by memory: each array read once, the parameter and its slots written once. Slots of parameters that get no gradient
// decay until they are subnormal, and stay so: in training the tutorial's network, two fifths of Adam's first moments do.
#include <algorithm>
#include <cmath>

#include "../ops.h"
#include "parallel.h"
#include "simd.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int64_t kGrain = 1 << 14;

// f(tensor, begin, end) over all tensors' elements.
template <class Tensor, class F>
void for_elements(const Tensor* tensors, int64_t count, F f) {
  int64_t items = 0;
  for (int64_t i = 0; i < count; ++i) items += (tensors[i].size + kGrain - 1) / kGrain;
  parallel_for(items, [&](int64_t item) {
    const Tensor* t = tensors;
    for (int64_t chunks; item >= (chunks = (t->size + kGrain - 1) / kGrain); ++t) item -= chunks;
    const simd::SubnormalsAreZero mode;
    f(*t, item * kGrain, std::min((item + 1) * kGrain, t->size));
  });
}

// Keras's SGD: v = momentum * v - lr * dw; w += v, or with Nesterov w += momentum * v - lr * dw. Weight decay is decoupled:
// w loses lr * decay * w first (Loshchilov and Hutter 2019).
template <class T>
void sgd_step(const SgdTensor<T>* tensors, int64_t count, const double* rates, const SgdOptions& o, Stream) {
  if (!std::isfinite(rates[2])) return;
  const T rate = T(rates[0]), keep = T(rates[1]), momentum = T(o.momentum);
  for_elements(tensors, count, [=, nesterov = o.nesterov](const SgdTensor<T>& t, int64_t begin, int64_t end) {
    T* __restrict w = t.w, * __restrict velocity = t.velocity;
    const T* __restrict dw = t.dw;
    if (!velocity)
      for (int64_t i = begin; i < end; ++i) w[i] = w[i] * keep - rate * dw[i];
    else
      for (int64_t i = begin; i < end; ++i) {
        const T v = velocity[i] = momentum * velocity[i] - rate * dw[i];
        w[i] = w[i] * keep + (nesterov ? momentum * v - rate * dw[i] : v);
      }
  });
}

// Kingma and Ba 2015, algorithm 1 in the order of the end of section 2 (epsilon outside the bias correction), as Keras.
template <class T>
void adam_step(const AdamTensor<T>* tensors, int64_t count, const double* rates, const AdamOptions& o, Stream) {
  if (!std::isfinite(rates[2])) return;
  const T rate = T(rates[0]), keep = T(rates[1]);
  const T share_1 = T(1 - o.beta_1), share_2 = T(1 - o.beta_2), epsilon = T(o.epsilon);
  // Of parameters Clang believes that they are apart, of variables it does not.
  const auto step = [=](T* __restrict w, T* __restrict m, T* __restrict v, const T* __restrict dw, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      m[i] += (dw[i] - m[i]) * share_1;
      v[i] += (dw[i] * dw[i] - v[i]) * share_2;
      w[i] = w[i] * keep - rate * m[i] / (std::sqrt(v[i]) + epsilon);
    }
  };
  for_elements(tensors, count, [=](const AdamTensor<T>& t, int64_t begin, int64_t end) {
    step(t.w + begin, t.m + begin, t.v + begin, t.dw + begin, end - begin);
  });
}

template <class T>
void add(Ops<T>& ops) {
  ops.sgd_step = sgd_step<T>;
  ops.adam_step = adam_step<T>;
}

}  // namespace

void add_optimizer(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
