// GEMM: y (M, N) = relu?(alpha * op(a) op(b) + beta * c + bias), by the tile kernels of matmul.cuh over two matrices as they
// lie, transposed or not.
#include "matmul.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

template <class T, bool kTransposeA, bool kTransposeB>
void run(const GemmShape& s, const T* a, const T* b, const Result<T>& result, T* workspace, Stream stream) {
  using A = Dense<T, !kTransposeA>;
  using B = Dense<T, kTransposeB>;
  matmul(A(a, s.m, s.k, kTransposeA ? s.m : s.k), B(b, s.n, s.k, kTransposeB ? s.k : s.n), s.m, s.n, s.k, result,
         s.precision, workspace, stream);
}

void check_precision(Precision precision) {
  if (precision == Precision::kWinograd)
    throw std::invalid_argument("precision 'winograd' is the CPU's; on a GPU there are 'float32', 'tf32' and 'bfloat16'");
#ifdef __CUDACC__
  int device = 0, major = 0;
  if (precision == Precision::kFloat32) return;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
  if (major < 8)
    throw std::invalid_argument(
        "precisions 'tf32' and 'bfloat16' need a GPU of compute capability 8.0 or newer, this one has " +
        std::to_string(major) + ".x");
#endif
}

template <class T>
int64_t gemm_workspace(const GemmShape& s) {
  return matmul_workspace<T>(s.m, s.n, s.k, s.precision);
}

template <class T>
void gemm(const GemmShape& s, const T* a, const T* b, const T* c, const T* bias, T alpha, T beta, bool relu, T* y,
          T* workspace, Stream stream) {
  Result<T> result = plain_result(y, s.n);
  result.c = beta == T(0) ? nullptr : c, result.bias = bias, result.alpha = alpha, result.beta = beta, result.relu = relu;
  if (s.transpose_a)
    s.transpose_b ? run<T, true, true>(s, a, b, result, workspace, stream)
                  : run<T, true, false>(s, a, b, result, workspace, stream);
  else
    s.transpose_b ? run<T, false, true>(s, a, b, result, workspace, stream)
                  : run<T, false, false>(s, a, b, result, workspace, stream);
}

template <class T>
void add(Ops<T>& ops) {
  ops.gemm_workspace = gemm_workspace<T>;
  ops.gemm = gemm<T>;
}

}  // namespace

void add_gemm(Kernels& kernels) {
  kernels.check_precision = check_precision;
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
