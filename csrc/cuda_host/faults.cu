// Kernels with one planted mistake each, and the same kernels without it: tests of the host execution itself. Whatever the
// mistake, the right answer is 1 from every thread.
#include <map>
#include <stdexcept>

#include "../cuda/ptx.cuh"
#include "faults.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int kThreads = 64, kRounds = 4;

// Each round every thread leaves a value and takes its opposite's; without the second barrier a fast thread overwrites what
// a slow one has not read.
__global__ void missing_barrier(bool fixed, const float* in, float* out) {
  Shared shared;
  float* const s = shared.alloc<float>(kThreads);
  const int t = int(threadIdx.x), opposite = kThreads - 1 - t;
  out[t] = 1;
  for (int round = 0; round < kRounds; ++round) {
    s[t] = in[round * kThreads + t];
    __syncthreads();
    if (s[opposite] != in[round * kThreads + opposite]) out[t] = 0;
    if (fixed) __syncthreads();
  }
}

__global__ void shared_overflow(bool fixed, const float*, float* out) {
  Shared shared;
  float* const s = shared.alloc<float>(kThreads);
  s[threadIdx.x + (fixed ? 0 : 1)] = 1;
  out[threadIdx.x] = 1;
}

__global__ void global_overflow(bool fixed, const float*, float* out) {
  out[threadIdx.x + (fixed ? 0 : 1)] = 1;
}

__global__ void unwritten_read(bool fixed, const float*, float* out) {
  Shared shared;
  float* const s = shared.alloc<float>(kThreads);
  if (fixed || threadIdx.x != 5) s[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void divergent_barrier(bool fixed, const float*, float* out) {
  out[threadIdx.x] = 1;
  if (fixed || threadIdx.x < 40) __syncthreads();
}

__global__ void two_barriers(bool fixed, const float*, float* out) {
  out[threadIdx.x] = 1;
  if (fixed || threadIdx.x < 40)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void partial_shuffle(bool fixed, const float*, float* out) {
  float value = 1;
  if (fixed || threadIdx.x % 32 < 16) value = __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  out[threadIdx.x] = value;
}

__global__ void too_much_shared(bool fixed, const float*, float* out) {
  Shared shared;
  float* const s = shared.alloc<float>(fixed ? kThreads : kThreads + 4);
  s[threadIdx.x] = 1;
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void early_read(bool fixed, const float* in, float* out) {
  Shared shared;
  float* const s = shared.alloc<float>(kThreads);
  const int t = int(threadIdx.x);
  cp_async<4>(s + t, in + t, true);
  cp_async_commit();
  if (fixed) cp_async_wait<0>();
  __syncthreads();
  out[t] = s[t] == in[t] ? 1 : 0;
}

// a[row][k] = 8 row + k, b[k][column] = k - 3 column: the wrong kernel swaps the two registers of b.
__global__ void fragment_layout(bool fixed, const float*, float* out) {
  const int group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
  uint32_t a[4], b[2];
  float d[4] = {};
  for (int i = 0; i < 4; ++i) a[i] = to_tf32(float(8 * (group + 8 * (i % 2)) + member + 4 * (i / 2)));
  for (int i = 0; i < 2; ++i) b[fixed ? i : 1 - i] = to_tf32(float(member + 4 * i - 3 * group));
  mma_tf32(d, a, b);
  out[threadIdx.x] = 1;
  for (int i = 0; i < 4; ++i) {
    const int row = group + 8 * (i / 2), column = 2 * member + i % 2;
    int sum = 0;
    for (int k = 0; k < 8; ++k) sum += (8 * row + k) * (k - 3 * column);
    if (d[i] != float(sum)) out[threadIdx.x] = 0;
  }
}

// Two 8 x 8 matrices of 0, 1, 2 ...: the wrong kernel transposes them.
__global__ void matrix_layout(bool fixed, const float*, float* out) {
  Shared shared;
  uint16_t* const s = shared.alloc<uint16_t>(2 * kThreads);
  const int t = int(threadIdx.x), row = t % 32 / 4, pair = 2 * (t % 4);
  s[2 * t] = uint16_t(2 * t), s[2 * t + 1] = uint16_t(2 * t + 1);
  __syncthreads();
  uint32_t found[4];
  if (fixed)
    ldmatrix_x4<false>(found, s + t % 16 * 8);
  else
    ldmatrix_x4<true>(found, s + t % 16 * 8);
  out[t] = 1;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t low = i % 2 * 64 + uint32_t(row) * 8 + uint32_t(pair);
    if (found[i] != (low | (low + 1) << 16)) out[t] = 0;
  }
}

__global__ void misaligned_matrix(bool fixed, const float*, float* out) {
  Shared shared;
  uint16_t* const s = shared.alloc<uint16_t>(2 * kThreads);
  const int t = int(threadIdx.x);
  s[2 * t] = s[2 * t + 1] = 1;
  __syncthreads();
  uint32_t found[4];
  ldmatrix_x4<false>(found, s + t % 8 * (fixed ? 8 : 4));
  out[t] = found[0] == 0x10001 ? 1 : 0;
}

// All blocks write the same element; fixed, one does.
__global__ void block_race(bool fixed, const float*, float* out) {
  if (!fixed || blockIdx.x == 0) out[threadIdx.x] = 1;
}

using Kernel = void (*)(bool, const float*, float*);
const std::map<std::string, Kernel> kFaults = {
    {"missing_barrier", missing_barrier}, {"shared_overflow", shared_overflow},     {"global_overflow", global_overflow},
    {"unwritten_read", unwritten_read},   {"divergent_barrier", divergent_barrier}, {"two_barriers", two_barriers},
    {"partial_shuffle", partial_shuffle}, {"too_much_shared", too_much_shared},     {"early_read", early_read},
    {"fragment_layout", fragment_layout}, {"matrix_layout", matrix_layout},         {"misaligned_matrix", misaligned_matrix},
    {"block_race", block_race},
};

}  // namespace

std::vector<float> run_fault(const std::string& name, bool fixed) {
  const auto fault = kFaults.find(name);
  if (fault == kFaults.end()) throw std::invalid_argument("there is no planted fault named '" + name + "'");
  std::vector<float> in(kThreads * kRounds), out(kThreads);
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i + 1);
  launch(fault->second, dim3(name == "block_race" ? 64 : 1), kThreads, SharedSize().add<float>(kThreads).bytes(), nullptr,
         fixed, in.data(), out.data());
  return out;
}

std::vector<std::string> fault_names() {
  std::vector<std::string> names;
  for (const auto& [name, kernel] : kFaults) names.push_back(name);
  return names;
}

}  // namespace fastnn::FASTNN_TARGET
