// Optimizer steps, in place, over all parameters of a network in one launch: the tensors' table travels as the kernel's
// argument, kTensors at a time. A block takes chunks of kGrain elements, numbered through all tensors. Bound by memory: each
// array read once, the parameter and its slots written once.
#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int kThreads = 256, kGrain = 1024;
constexpr int kTensors = 64;  // a kernel's arguments are at most 4 KB

template <class Tensor>
struct Table {
  Tensor tensors[kTensors];
  int64_t first_chunk[kTensors + 1];
  int count;
};

// ---- Kernels

template <class Tensor, class F>
__global__ void step_kernel(Table<Tensor> table, const double* rates, F f) {
  if (!std::isfinite(rates[2])) return;
  f.set(rates[0], rates[1]);
  for (int64_t chunk = blockIdx.x; chunk < table.first_chunk[table.count]; chunk += gridDim.x) {
    int t = 0;
    while (chunk >= table.first_chunk[t + 1]) ++t;
    const Tensor& tensor = table.tensors[t];
    const int64_t begin = (chunk - table.first_chunk[t]) * kGrain;
    const int64_t end = begin + kGrain < tensor.size ? begin + kGrain : tensor.size;
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) f(tensor, i);
  }
}

// Keras's SGD: v = momentum * v - lr * dw; w += v, or with Nesterov w += momentum * v - lr * dw. Weight decay is decoupled:
// w loses lr * decay * w first (Loshchilov and Hutter 2019).
template <class T>
struct Sgd {
  T momentum;
  bool nesterov;
  T rate{}, keep{};
  __device__ void set(double step_rate, double step_keep) { rate = T(step_rate), keep = T(step_keep); }
  __device__ void operator()(const SgdTensor<T>& t, int64_t i) const {
    if (!t.velocity) {
      t.w[i] = t.w[i] * keep - rate * t.dw[i];
      return;
    }
    const T v = t.velocity[i] = momentum * t.velocity[i] - rate * t.dw[i];
    t.w[i] = t.w[i] * keep + (nesterov ? momentum * v - rate * t.dw[i] : v);
  }
};

// Kingma and Ba 2015, algorithm 1 in the order of the end of section 2 (epsilon outside the bias correction), as Keras.
template <class T>
struct Adam {
  T share_1, share_2, epsilon;
  T rate{}, keep{};
  __device__ void set(double step_rate, double step_keep) { rate = T(step_rate), keep = T(step_keep); }
  __device__ void operator()(const AdamTensor<T>& t, int64_t i) const {
    const T dw = t.dw[i], m = t.m[i] + (dw - t.m[i]) * share_1, v = t.v[i] + (dw * dw - t.v[i]) * share_2;
    t.m[i] = m, t.v[i] = v;
    t.w[i] = t.w[i] * keep - rate * m / (std::sqrt(v) + epsilon);
  }
};

// ---- Launcher

template <class Tensor, class F>
void step(const Tensor* tensors, int64_t count, const double* rates, F f, Stream stream) {
  for (int64_t first = 0; first < count; first += kTensors) {
    Table<Tensor> table{};
    table.count = int(std::min<int64_t>(kTensors, count - first));
    for (int t = 0; t < table.count; ++t) {
      table.tensors[t] = tensors[first + t];
      table.first_chunk[t + 1] = table.first_chunk[t] + ceil_div(tensors[first + t].size, kGrain);
    }
    launch(step_kernel<Tensor, F>, grid_for(table.first_chunk[table.count], 1), kThreads, 0, stream, table, rates, f);
  }
}

// ---- Entry points

template <class T>
void sgd_step(const SgdTensor<T>* tensors, int64_t count, const double* rates, const SgdOptions& o, Stream stream) {
  step(tensors, count, rates, Sgd<T>{T(o.momentum), o.nesterov}, stream);
}

template <class T>
void adam_step(const AdamTensor<T>* tensors, int64_t count, const double* rates, const AdamOptions& o, Stream stream) {
  step(tensors, count, rates, Adam<T>{T(1 - o.beta_1), T(1 - o.beta_2), T(o.epsilon)}, stream);
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
