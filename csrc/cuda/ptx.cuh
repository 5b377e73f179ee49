// All PTX of the library, each instruction with its host twin: a few lines that do what the PTX ISA says it does.
#pragma once

#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {

// x, such that the compiler keeps it in a register: it would work out an address of a few operations anew in every turn of a
// loop, but not what it cannot see through.
__device__ __forceinline__ int hold(int x) {
  return __shfl_sync(~0u, x, int(threadIdx.x) % kWarp);
}

// ---- Asynchronous copies from global to shared memory (sm_80 and newer). `bytes` of the kBytes = 4, 8 or 16 are copied,
// the rest filled with zeros; both addresses are aligned to kBytes. A copy has landed, for its own thread, after
// cp_async_wait has let at most `kPending` later groups be under way; for others after a barrier as well.

template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid) {
#if !defined(__CUDACC__)
  host::async_copy({shared, global, valid ? kBytes : 0, kBytes});
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  const unsigned to = unsigned(__cvta_generic_to_shared(shared));
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(kBytes), "r"(bytes) : "memory");
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if !defined(__CUDACC__)
  host::async_commit();
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if !defined(__CUDACC__)
  for (host::AsyncCopy copy; host::async_landing(kPending, copy);) {
    std::memset(copy.to, 0, size_t(copy.size));
    std::memcpy(copy.to, copy.from, size_t(copy.bytes));
  }
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// ---- Lower precisions. tf32 is a float with 10 bits of mantissa, in the upper 19 bits of a register; bf16 the upper half
// of a float, two of them to a register, the lower index in the lower half.

FASTNN_UNTRACED __device__ __forceinline__ float as_float(uint32_t bits) {
#if !defined(__CUDACC__)
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
#else
  return __uint_as_float(bits);
#endif
}

// Round to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if !defined(__CUDACC__)
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFFFFFu;  // NaN
  if ((bits & 0x7FFFFFFFu) < 0x7F800000u) bits += 0x1000u;
  return bits & ~0x1FFFu;
#else
  uint32_t bits = 0;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
  return bits;
#endif
}

// Round to nearest, ties to even.
__device__ __forceinline__ uint32_t to_bf16x2(float low, float high) {
#if !defined(__CUDACC__)
  const auto round = [](float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;  // NaN
    return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  };
  return round(high) << 16 | round(low);
#else
  uint32_t bits = 0;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
#endif
  return bits;
#endif
}

// The lower half of a bf16 register, and a tf32 register, as floats.
__device__ __forceinline__ float from_bf16(uint32_t bits) {
  return as_float(bits << 16);
}
__device__ __forceinline__ float from_tf32(uint32_t bits) {
  return as_float(bits & ~0x1FFFu);
}

// ---- ldmatrix: four 8 x 8 matrices of 16-bit elements from shared memory; lane l has the address of row l % 8 of matrix l
// / 8, a multiple of 16 bytes. to[i] is of matrix i: row lane / 4, elements 2 (lane % 4) and the next; or, transposed, rows
// 2 (lane % 4) and the next, element lane / 4.

#if !defined(__CUDACC__)
struct MatrixRow {
  uint16_t row[8];
  uint32_t to[4];
};

template <bool kTransposed>
FASTNN_UNTRACED void ldmatrix_work(void* const* messages) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      uint32_t bits = 0;
      for (int half = 0; half < 2; ++half) {
        const int pair = 2 * (lane % 4) + half, other = lane / 4;
        const auto& from = *static_cast<const MatrixRow*>(messages[8 * i + (kTransposed ? pair : other)]);
        bits |= uint32_t(from.row[kTransposed ? other : pair]) << 16 * half;
      }
      static_cast<MatrixRow*>(messages[lane])->to[i] = bits;
    }
}
#endif

template <bool kTransposed>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
#if !defined(__CUDACC__)
  const auto where = host::Where::current();
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) host::fail("ldmatrix: a row that is not aligned to 16 bytes", where);
  MatrixRow message;
  std::memcpy(message.row, row, 16);
  host::warp_meeting(&message, ldmatrix_work<kTransposed>, false, where);
  std::memcpy(to, message.to, 16);
#else
  const unsigned from = unsigned(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
#endif
}

// ---- mma.sync: d (16, 8) += a (16, K) b (K, 8), float accumulation, by the 32 threads of a warp. With group = lane / 4 and
// member = lane % 4 a thread holds (PTX ISA, "Matrix Fragments for mma.m16n8k8 / m16n8k16"):
//   d[i]           row group + 8 (i / 2), column 2 member + i % 2
//   tf32, K = 8:   a[i]  row group + 8 (i % 2), column member + 4 (i / 2)           b[i]  row member + 4 i, column group
//   bf16, K = 16:  a[i]  row group + 8 (i % 2), columns 2 member + 8 (i / 2), + 1   b[i]  rows 2 member + 8 i, + 1, column
//                  group

#if !defined(__CUDACC__)
struct Mma {
  float* d;
  const uint32_t *a, *b;
};

// element(register, which half) as a float; kPack elements a register.
template <int kPack>
FASTNN_UNTRACED inline float fragment(uint32_t bits, int half) {
  if constexpr (kPack == 1) return as_float(bits & ~0x1FFFu);  // the unit reads 19 bits
  return as_float(half ? bits & 0xFFFF0000u : bits << 16);
}

template <int kPack>
FASTNN_UNTRACED void mma_work(void* const* messages) {
  constexpr int kK = 8 * kPack;
  float a[16][kK], b[kK][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& m = *static_cast<const Mma*>(messages[lane]);
    const int group = lane / 4, member = lane % 4;
    for (int half = 0; half < kPack; ++half) {
      for (int i = 0; i < 4; ++i)
        a[group + 8 * (i % 2)][kPack * member + 4 * kPack * (i / 2) + half] = fragment<kPack>(m.a[i], half);
      for (int i = 0; i < 2; ++i) b[kPack * member + 4 * kPack * i + half][group] = fragment<kPack>(m.b[i], half);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& m = *static_cast<const Mma*>(messages[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      float sum = 0;
      for (int k = 0; k < kK; ++k) sum += a[row][k] * b[k][column];
      m.d[i] += sum;
    }
  }
}
#endif

__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
  Mma message{d, a, b};
  host::warp_meeting(&message, mma_work<1>, false, host::Where::current());
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
  Mma message{d, a, b};
  host::warp_meeting(&message, mma_work<2>, false, host::Where::current());
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace fastnn::FASTNN_TARGET
