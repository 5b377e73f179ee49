// Softmax of one row by one warp, shared by the activation and the losses: lane l takes columns l, l + 32, ..., and the
// lanes' sums are added as a butterfly, so that every lane holds the same bits.
#pragma once

#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(~0u, value, mask);
  return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const T other = __shfl_xor_sync(~0u, value, mask);
    value = other > value ? other : value;
  }
  return value;
}

// Kernels that give each row to a warp: kRowsPerBlock rows a block, striding over the rest.
constexpr int kRowsPerBlock = 4;

inline dim3 grid_for_rows(int64_t rows) {
  return dim3(unsigned(std::min(ceil_div(rows, kRowsPerBlock), kMaxBlocks)));
}
__device__ inline int64_t first_row() {
  return int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
}
__device__ inline int64_t row_step() {
  return int64_t(gridDim.x) * kRowsPerBlock;
}

// log softmax(x)[c] = x[c] - top - log(sum)
template <class T>
struct Normalizer {
  T top, sum;
};

// y = softmax(x) = exp(x - top) / sum, with top = max(x), so that nothing overflows. Each lane reads back only what it
// wrote.
template <class T>
__device__ Normalizer<T> softmax_row(int64_t cols, const T* x, T* y) {
  const int lane = threadIdx.x % kWarp;
  T top = x[0];
  for (int64_t c = lane; c < cols; c += kWarp) top = x[c] > top ? x[c] : top;
  top = warp_max(top);
  T sum = 0;
  for (int64_t c = lane; c < cols; c += kWarp) sum += y[c] = std::exp(x[c] - top);
  sum = warp_sum(sum);
  for (int64_t c = lane; c < cols; c += kWarp) y[c] /= sum;
  return {top, sum};
}

}  // namespace fastnn::FASTNN_TARGET
