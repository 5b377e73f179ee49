// GEMM: the simplest kernel, one thread per element of y.
#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

template <class T>
__global__ void gemm_kernel(GemmShape s, const T* a, const T* b, const T* c, const T* bias, T alpha, T beta, bool relu,
                            T* y) {
  for (int64_t i = first_item(); i < s.m * s.n; i += item_step()) {
    const int64_t row = i / s.n, column = i % s.n;
    T sum = 0;
    for (int64_t k = 0; k < s.k; ++k)
      sum += a[s.transpose_a ? k * s.m + row : row * s.k + k] * b[s.transpose_b ? column * s.k + k : k * s.n + column];
    sum *= alpha;
    if (c) sum += beta * c[i];
    if (bias) sum += bias[column];
    y[i] = relu && sum <= T(0) ? T(0) : sum;
  }
}

}  // namespace

template <class T>
int64_t gemm_workspace(const GemmShape&) {
  return 0;
}

template <class T>
void gemm(const GemmShape& s, const T* a, const T* b, const T* c, const T* bias, T alpha, T beta, bool relu, T* y, T*,
          Stream stream) {
  launch(gemm_kernel<T>, grid_for(s.m * s.n, 256), 256, 0, stream, s, a, b, beta == T(0) ? nullptr : c, bias, alpha, beta,
         relu, y);
}

#define INSTANTIATE(T)                                  \
  template int64_t gemm_workspace<T>(const GemmShape&); \
  template void gemm<T>(const GemmShape&, const T*, const T*, const T*, const T*, T, T, bool, T*, T*, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
