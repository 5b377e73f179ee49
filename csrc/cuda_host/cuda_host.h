// The part of CUDA C++ that the kernels use, for the host compiler: each CUDA thread of a block is a fiber.
//
// Between two barriers the fibers of a block run one after another in a random order, drawn from a seed; a barrier parks a
// fiber until all of its block have come. Blocks are spread over the threads of parallel.h. What a GPU would let pass in
// silence is an error that names the kernel and the line: a barrier or a meeting of a warp that not all threads reach, or
// reach at different lines; more shared memory than the launch asked for. This shows whether a kernel's logic is right;
// it says nothing about speed.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// For host twins that touch other fibers' variables, which is this file's business and no race.
#define FASTNN_UNTRACED __attribute__((no_sanitize("thread")))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace fastnn::host {

// As std::source_location, which Clang has from 16 on only.
struct Where {
  const char *file = "", *function = "";
  int line = 0;
  static Where current(const char* file = __builtin_FILE(), const char* function = __builtin_FUNCTION(),
                       int line = __builtin_LINE()) {
    return {file, function, line};
  }
};

// What a fiber knows of itself; cuda_host.cpp has the rest.
struct Lane {
  dim3 thread_index, block_index, block_size, grid_size;
  int id;  // of the thread in its block
};
Lane& lane();

// Calls body(context) once for every thread of every block. Throws std::runtime_error where the kernel did wrong.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* context);

// The block's index-th array of shared memory.
void* shared_array(int index, size_t bytes);

void block_barrier(Where where);

// A meeting of the warp's 32 threads, each with a message; the last to come calls work(messages), then all go on. Only a
// meeting that `orders_memory` makes what was written before it visible after it (to ThreadSanitizer).
void warp_meeting(void* message, void (*work)(void* const* messages), bool orders_memory, Where where);

// Reports a mistake of the kernel's, and does not come back.
[[noreturn]] void fail(const char* what, Where where);

// cp.async: a copy lands only when its group is waited for. `bytes` of `size` are copied, the rest is filled with zeros.
struct AsyncCopy {
  void* to;
  const void* from;
  int bytes, size;
};
void async_copy(AsyncCopy copy);
void async_commit();
// Takes the next copy out of those that must land before at most `pending` groups are left; false when there is none.
bool async_landing(int pending, AsyncCopy& copy);

void set_order_seed(uint64_t seed);  // of the order in which fibers run

}  // namespace fastnn::host

#define threadIdx (::fastnn::host::lane().thread_index)
#define blockIdx (::fastnn::host::lane().block_index)
#define blockDim (::fastnn::host::lane().block_size)
#define gridDim (::fastnn::host::lane().grid_size)

inline void __syncthreads(fastnn::host::Where where = fastnn::host::Where::current()) {
  fastnn::host::block_barrier(where);
}

inline void __syncwarp(unsigned = ~0u, fastnn::host::Where where = fastnn::host::Where::current()) {
  fastnn::host::warp_meeting(nullptr, [](void* const*) {}, true, where);
}

namespace fastnn::host {

template <class T>
struct Shuffle {
  T value, result;
  int from;
};

template <class T>
FASTNN_UNTRACED void shuffle_work(void* const* messages) {
  for (int i = 0; i < 32; ++i) {
    auto* mine = static_cast<Shuffle<T>*>(messages[i]);
    mine->result = static_cast<Shuffle<T>*>(messages[mine->from])->value;
  }
}

template <class T>
FASTNN_UNTRACED T shuffle(T value, int from, Where where) {
  Shuffle<T> message{value, value, from};
  warp_meeting(&message, shuffle_work<T>, false, where);
  return message.result;
}

}  // namespace fastnn::host

template <class T>
T __shfl_sync(unsigned, T value, int from, fastnn::host::Where where = fastnn::host::Where::current()) {
  return fastnn::host::shuffle(value, from & 31, where);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, fastnn::host::Where where = fastnn::host::Where::current()) {
  return fastnn::host::shuffle(value, (fastnn::host::lane().id & 31) ^ mask, where);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int by, fastnn::host::Where where = fastnn::host::Where::current()) {
  const int lane = fastnn::host::lane().id & 31;
  return fastnn::host::shuffle(value, lane + by < 32 ? lane + by : lane, where);
}

inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return uint64_t(static_cast<unsigned __int128>(a) * b >> 64);
}

// Blocks of one launch may run at the same time.
template <class T>
T atomicMin(T* at, T value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
