// What every kernel file is written against: launching, shared memory, 16-byte vectors, index arithmetic.
//
// The .cu files are compiled twice: by nvcc for _cuda, and by the host compiler for _cuda_host, where each CUDA thread is
// a fiber (cuda_host/cuda_host.h). So kernels are launched through launch() only, never <<<>>>; shared memory comes from
// Shared; PTX stands in ptx.cuh.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../ops.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define FASTNN_UNTRACED
#else
#include "../cuda_host/cuda_host.h"
#endif

namespace fastnn::FASTNN_TARGET {

constexpr int kWarp = 32;

constexpr __host__ __device__ int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// ---- Vectors: N elements that are loaded and stored at once. Aligned to their size, so that nvcc makes one access of it.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};
template <class T>
constexpr int kVec = 16 / int(sizeof(T));  // elements of a 16-byte access

template <class V>
bool aligned_for(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(V) == 0;
}

// What no one writes while the kernel runs.
template <class T, int N>
__device__ __forceinline__ Vec<T, N> load(const Vec<T, N>* from) {
#ifdef __CUDA_ARCH__
  using Word = std::conditional_t<sizeof(*from) == 16, uint4, std::conditional_t<sizeof(*from) == 8, uint2, unsigned>>;
  static_assert(sizeof(Word) == sizeof(*from));
  const Word word = __ldg(reinterpret_cast<const Word*>(from));
  Vec<T, N> value;
  std::memcpy(&value, &word, sizeof(word));
  return value;
#else
  return *from;
#endif
}

// A structure of 16 bytes by one access, whatever of it is used.
template <class S>
__device__ __forceinline__ S whole(const S* from) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(S) == 16) {
    const uint4 words = *reinterpret_cast<const uint4*>(from);
    S value;
    std::memcpy(&value, &words, sizeof(S));
    return value;
  }
#endif
  return *from;
}

// ---- Division of 0 <= n < 2^62 by a number known at launch, as one multiplication (Granlund and Montgomery 1994).
struct FastDiv {
  int64_t divisor;
  uint64_t multiplier;  // 2^(62 + shift) / divisor, rounded up
  int shift;            // log2 of the divisor, rounded up

  FastDiv() = default;
  explicit FastDiv(int64_t d) : divisor(d), multiplier(0), shift(0) {
    while ((INT64_C(1) << shift) < d) ++shift;
    const auto wide = (static_cast<unsigned __int128>(1) << (62 + shift)) + static_cast<unsigned __int128>(d) - 1;
    multiplier = uint64_t(wide / static_cast<unsigned __int128>(d));
  }
  __device__ int64_t operator()(int64_t n) const { return int64_t(__umul64hi(uint64_t(n) << 2, multiplier) >> shift); }
};

// ---- Shared memory: one dynamic arena a block, carved by every thread in the same order. On the host each array is a heap
// block of exactly its size, full of NaN when the block starts.
class SharedSize {
 public:
  template <class T>
  constexpr SharedSize& add(int64_t count) {
    bytes_ += (size_t(count) * sizeof(T) + 15) / 16 * 16;
    return *this;
  }
  constexpr size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

class Shared {
 public:
  template <class T>
  __device__ T* alloc(int count) {
#ifdef __CUDACC__
    extern __shared__ __align__(16) unsigned char fastnn_arena[];
    T* array = reinterpret_cast<T*>(fastnn_arena + used_);
    used_ += (count * int(sizeof(T)) + 15) / 16 * 16;
    return array;
#else
    return static_cast<T*>(host::shared_array(used_++, size_t(count) * sizeof(T)));
#endif
  }

 private:
  int used_ = 0;  // bytes, or arrays on the host
};

// ---- Launching.
#ifdef __CUDACC__

[[noreturn]] void fail(cudaError_t error, const char* what);  // runtime.cu: the error in words

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(error, what);
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, A&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)), "shared memory");
  std::tuple<P...> values(std::forward<A>(args)...);
  std::apply(
      [&](P&... value) {
        void* pointers[] = {&value...};
        check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared_bytes,
                               static_cast<cudaStream_t>(stream)),
              "launch");
      },
      values);
}

#else

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream, A&&... args) {
  std::tuple<P...> values(std::forward<A>(args)...);
  const auto body = [&] { std::apply(kernel, values); };
  host::run_grid(grid, block, shared_bytes, [](const void* context) { (*static_cast<decltype(&body)>(context))(); }, &body);
}

#endif

// ---- Small values that travel between host and device on a stream.

// Whether the stream is being captured into a CUDA graph, where nothing can be waited for.
inline bool capturing([[maybe_unused]] Stream stream) {
#ifdef __CUDACC__
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "stream");
  return status != cudaStreamCaptureStatusNone;
#else
  return false;
#endif
}

template <class T>
T read_back(const T* device, [[maybe_unused]] Stream stream) {
#ifdef __CUDACC__
  T value;
  check(cudaMemcpyAsync(&value, device, sizeof(T), cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)), "copy");
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "kernel");
  return value;
#else
  return *device;
#endif
}

// A value that kernels change and the host then waits for.
template <class T>
class ReadBack {
 public:
  ReadBack(T value, Stream stream) : stream_(stream) {
#ifdef __CUDACC__
    const auto s = static_cast<cudaStream_t>(stream);
    check(cudaMallocAsync(&device_, sizeof(T), s), "allocation");
    check(cudaMemcpyAsync(device_, &value, sizeof(T), cudaMemcpyHostToDevice, s), "copy");
#else
    device_ = new T(value);
#endif
  }
  ~ReadBack() {
#ifdef __CUDACC__
    cudaFreeAsync(device_, static_cast<cudaStream_t>(stream_));
#else
    delete device_;
#endif
  }
  ReadBack(const ReadBack&) = delete;
  ReadBack& operator=(const ReadBack&) = delete;

  T* device() { return device_; }
  T get() const { return read_back(device_, stream_); }

 private:
  T* device_ = nullptr;
  Stream stream_;
};

// A grid of `threads` threads a block over `items`, no larger than fills any GPU; kernels stride over what is left.
constexpr int64_t kMaxBlocks = 4096;

inline dim3 grid_for(int64_t items, int threads) {
  return dim3(unsigned(std::min(ceil_div(items, threads), kMaxBlocks)));
}

// A kernel over any number of items opens with: for (int64_t i = first_item(); i < size; i += item_step())
__device__ inline int64_t first_item() {
  return int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t item_step() {
  return int64_t(gridDim.x) * blockDim.x;
}

// ---- Sums over slices, in an order that depends on their number alone. Threads of a block are kWarp items by kSliceGroups:
// group g adds up every kSliceGroups-th slice from g on, then the first group the groups' sums. In it the result is whole.
constexpr int kSliceGroups = 8, kSliceThreads = kSliceGroups * kWarp;

template <class T, class Term>
__device__ __forceinline__ T sum_slices(int slices, T* shared, Term term) {
  const int group = int(threadIdx.x) / kWarp;
  T sum = 0;
#pragma unroll 4
  for (int slice = group; slice < slices; slice += kSliceGroups) sum += term(slice);
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (group == 0)
    for (int g = 1; g < kSliceGroups; ++g) sum += shared[g * kWarp + threadIdx.x];
  __syncthreads();
  return sum;
}

}  // namespace fastnn::FASTNN_TARGET
