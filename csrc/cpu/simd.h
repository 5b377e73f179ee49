// One vector of floats or doubles as wide as the instruction set that this file is compiled for, as a GCC/Clang vector
// extension: + - * / and comparisons work element by element. Only what the compiler cannot say by itself is wrapped.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fastnn::FASTNN_TARGET::simd {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kBytes = 16, kRegisters = 32;  // NEON
#else
constexpr int kBytes = 16, kRegisters = 16;  // SSE2, or whatever the compiler makes of 16 bytes
#endif

template <class T>
struct Type {
  typedef T V __attribute__((vector_size(kBytes)));
};
template <class T>
using V = typename Type<T>::V;

template <class T>
constexpr int kWidth = kBytes / int(sizeof(T));

template <class T>
inline V<T> load(const T* p) {
  V<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(T* p, V<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// Brings the line at p, which need not be memory, into the L1 cache. Inlined early: GCC takes a function that does nothing
// else for one without effects, and may drop calls of it.
template <class T>
[[gnu::always_inline]] inline void prefetch(const T* p) {
  __builtin_prefetch(p);
}

// Into the L2 cache, for what comes later.
template <class T>
[[gnu::always_inline]] inline void prefetch_l2(const T* p) {
  __builtin_prefetch(p, 0, 2);
}

template <class T>
[[gnu::always_inline]] inline void prefetch_to_write(T* p) {
  __builtin_prefetch(p, 1);
}

// The first n of a vector's elements, 0 <= n <= kWidth; the others are read as zero and not written. Of short vectors one by
// one: a call in a loop would cost it all vectors that it holds in registers.
template <class T>
inline V<T> load(const T* p, int64_t n) {
  if (n >= kWidth<T>) return load(p);
  V<T> v{};
  if constexpr (kWidth<T> <= 4)
    for (int i = 0; i < kWidth<T> - 1; ++i) v[i] = i < n ? p[i] : T(0);
  else
    std::memcpy(&v, p, size_t(n) * sizeof(T));
  return v;
}

template <class T>
inline void store(T* p, V<T> v, int64_t n) {
  if (n >= kWidth<T>) {
    store(p, v);
  } else if constexpr (kWidth<T> <= 4) {
    for (int i = 0; i < kWidth<T> - 1; ++i)
      if (i < n) p[i] = v[i];
  } else {
    std::memcpy(p, &v, size_t(n) * sizeof(T));
  }
}

// What comparing vectors of T gives: integers as wide as T.
template <class T>
using Integers = decltype(V<T>{} < V<T>{});

// An integer as wide as T.
template <class T>
using Element = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T>
inline V<T> broadcast(T x) {
  return x - V<T>{};  // minus, because 0 + -0.0 would lose the sign
}

// Broadcasts the number that is left of x's bits.
template <class T>
inline V<T> broadcast_bits(T x, Element<T> keep) {
  Element<T> bits;
  std::memcpy(&bits, &x, sizeof bits);
  return V<T>(Integers<T>{} + (bits & keep));
}

// v, loaded once: GCC would load it anew for each use.
template <class T>
inline V<T> in_register(V<T> v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#else
  asm("" : "+w"(v));
#endif
  return v;
}

// a * b + c, with one rounding where the machine can. Never left to the compiler: -ffp-contract is off.
inline V<float> multiply_add(V<float> a, V<float> b, V<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return V<float>(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
#else
  return a * b + c;
#endif
}

inline V<double> multiply_add(V<double> a, V<double> b, V<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
  return V<double>(vfmaq_f64(float64x2_t(c), float64x2_t(a), float64x2_t(b)));
#else
  return a * b + c;
#endif
}

// The same with the result in c's register, and a and b in others. GCC would take a or b's for it where those are free
// afterwards, until it has to move sums to memory, and read b from memory twice.
template <class T>
inline V<T> multiply_add_to(V<T> c, V<T> a, V<T> b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    asm("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
  else
    asm("vfmadd231pd %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
  return c;
#else
  return multiply_add(a, b, c);
#endif
}

// The same with a number from memory. Where the machine has it, the instruction itself loads and broadcasts it, without a
// register in between; the compiler would load once for two uses.
template <class T>
inline V<T> multiply_add(const T* a, V<T> b, V<T> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(b), "m"(*a));
  else
    asm("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(c) : "v"(b), "m"(*a));
  return c;
#else
  return multiply_add(broadcast(*a), b, c);
#endif
}

// Whether a comparison holds anywhere.
template <class T>
inline bool any(Integers<T> v) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask(__m512i(v), __m512i(v)) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256(__m256i(v), __m256i(v));
#elif defined(__aarch64__)
  return vmaxvq_u32(uint32x4_t(v)) != 0;
#else
  bool found = false;
  for (int i = 0; i < kWidth<T>; ++i) found |= v[i] != 0;
  return found;
#endif
}

// The first min(n, kWidth) of a vector of integers as bytes, which they must fit.
template <class T>
inline void store_bytes(uint8_t* p, Integers<T> v, int64_t n) {
  typedef uint8_t Bytes __attribute__((vector_size(kWidth<T>)));
  Bytes bytes;
#if defined(__AVX512F__)  // the compiler would take them out one by one
  // With a mask because GCC 12 warns of its own header else.
  const __m128i low =
      sizeof(T) == 4 ? _mm512_maskz_cvtepi32_epi8(0xffff, __m512i(v)) : _mm512_maskz_cvtepi64_epi8(0xff, __m512i(v));
  std::memcpy(&bytes, &low, sizeof bytes);
#elif defined(__AVX2__)  // again
  const __m128i half = _mm256_castsi256_si128(__m256i(v)), other = _mm256_extracti128_si256(__m256i(v), 1);
  const __m128i words = __m128i(_mm_shuffle_ps(__m128(half), __m128(other), 0x88));  // the lower ones of 64-bit integers
  const __m128i shorts = sizeof(T) == 4 ? _mm_packus_epi32(half, other) : _mm_packus_epi32(words, words);
  const __m128i low = _mm_packus_epi16(shorts, shorts);
  std::memcpy(&bytes, &low, sizeof bytes);
#else
  bytes = __builtin_convertvector(v, Bytes);
#endif
  if (n >= kWidth<T>)
    std::memcpy(p, &bytes, sizeof bytes);
  else
    std::memcpy(p, &bytes, size_t(n));
}

// The first min(n, kWidth) bytes as integers, the others as zero.
template <class T>
inline Integers<T> load_bytes(const uint8_t* p, int64_t n) {
#if defined(__AVX512F__)  // again
  const __m128i bytes = _mm_maskz_loadu_epi8(__mmask16((1u << std::min(n, int64_t(kWidth<T>))) - 1), p);
  return Integers<T>(sizeof(T) == 4 ? _mm512_maskz_cvtepu8_epi32(0xffff, bytes) : _mm512_maskz_cvtepu8_epi64(0xff, bytes));
#else
  typedef uint8_t Bytes __attribute__((vector_size(kWidth<T>)));
  Bytes bytes{};
  if (n >= kWidth<T>)
    std::memcpy(&bytes, p, sizeof bytes);
  else
    std::memcpy(&bytes, p, size_t(n));
#if defined(__AVX2__)
  __m128i low{};
  std::memcpy(&low, &bytes, sizeof bytes);
  return Integers<T>(sizeof(T) == 4 ? _mm256_cvtepu8_epi32(low) : _mm256_cvtepu8_epi64(low));
#else
  return __builtin_convertvector(bytes, Integers<T>);
#endif
#endif
}

// A bit for each of the first min(n, 64) bytes that equals `value`, the first byte's lowest.
inline uint64_t equal_bytes(const uint8_t* p, int64_t n, uint8_t value) {
#if defined(__AVX512BW__)
  const __mmask64 first = n >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1;
  return _mm512_mask_cmpeq_epi8_mask(first, _mm512_maskz_loadu_epi8(first, p), _mm512_set1_epi8(char(value)));
#else
  uint64_t bits = 0;
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + 32 <= n && i < 64; i += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i));
    bits |= uint64_t(uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(char(value)))))) << i;
  }
#endif
  for (; i < n && i < 64; ++i) bits |= uint64_t(p[i] == value) << i;
  return bits;
#endif
}

// A bit for each element that is negative, as what a comparison gives is where it holds; the first one's lowest.
template <class T>
inline uint32_t negative(Integers<T> v) {
#if defined(__AVX512F__)
  return sizeof(T) == 4 ? _mm512_movepi32_mask(__m512i(v)) : _mm512_movepi64_mask(__m512i(v));
#elif defined(__AVX2__)
  return uint32_t(sizeof(T) == 4 ? _mm256_movemask_ps(__m256(v)) : _mm256_movemask_pd(__m256d(v)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWidth<T>; ++i) bits |= uint32_t(v[i] < 0) << i;
  return bits;
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each choice of eight elements, their places, the first one's in the lowest byte.
constexpr std::array<uint64_t, 256> kChosen = [] {
  std::array<uint64_t, 256> chosen{};
  for (int choice = 0; choice < 256; ++choice)
    for (int i = 0, count = 0; i < 8; ++i)
      if (choice >> i & 1) chosen[size_t(choice)] |= uint64_t(i) << 8 * count++;
  return chosen;
}();
#endif

// The elements of v and of w that have a bit, side by side; a whole vector of each is written. Gives their number.
template <class T>
inline int64_t store_chosen(uint32_t bits, V<T> v, Integers<T> w, T* to_v, Element<T>* to_w) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    store(to_v, V<T>(_mm512_maskz_compress_ps(__mmask16(bits), __m512(v))));
    w = Integers<T>(_mm512_maskz_compress_epi32(__mmask16(bits), __m512i(w)));
  } else {
    store(to_v, V<T>(_mm512_maskz_compress_pd(__mmask8(bits), __m512d(v))));
    w = Integers<T>(_mm512_maskz_compress_epi64(__mmask8(bits), __m512i(w)));
  }
  std::memcpy(to_w, &w, sizeof w);
  return __builtin_popcount(bits);
#else
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const __m256i places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(kChosen[bits])));
    store(to_v, V<T>(_mm256_permutevar8x32_ps(__m256(v), places)));
    w = Integers<T>(_mm256_permutevar8x32_epi32(__m256i(w), places));
    std::memcpy(to_w, &w, sizeof w);
    return __builtin_popcount(bits);
  }
#endif
  int64_t count = 0;
  for (int i = 0; i < kWidth<T>; ++i) {
    to_v[count] = v[i], to_w[count] = w[i];
    count += bits >> i & 1;
  }
  return count;
#endif
}

// The first n elements of a vector, 1 <= n <= kWidth, worked out once for many loads and stores; memory beyond them is not
// touched, the others are read as zero.
template <class T>
class First {
 public:
  First() = default;
#if defined(__AVX512F__)
  explicit First(int64_t n) : mask_(__mmask16((1u << n) - 1)) {}
  V<float> load(const float* p) const { return _mm512_maskz_loadu_ps(mask_, p); }
  V<double> load(const double* p) const { return _mm512_maskz_loadu_pd(__mmask8(mask_), p); }
  void store(float* p, V<float> v) const { _mm512_mask_storeu_ps(p, mask_, v); }
  void store(double* p, V<double> v) const { _mm512_mask_storeu_pd(p, __mmask8(mask_), v); }

 private:
  __mmask16 mask_ = 0;
#elif defined(__AVX2__)
  explicit First(int64_t n) {
    for (int i = 0; i < kWidth<T>; ++i) mask_[i] = i < n ? -1 : 0;
  }
  V<float> load(const float* p) const { return _mm256_maskload_ps(p, __m256i(mask_)); }
  V<double> load(const double* p) const { return _mm256_maskload_pd(p, __m256i(mask_)); }
  void store(float* p, V<float> v) const { _mm256_maskstore_ps(p, __m256i(mask_), v); }
  void store(double* p, V<double> v) const { _mm256_maskstore_pd(p, __m256i(mask_), v); }

 private:
  Integers<T> mask_{};
#else
  explicit First(int64_t n) : n_(n) {}
  V<T> load(const T* p) const { return simd::load(p, n_); }
  void store(T* p, V<T> v) const { simd::store(p, v, n_); }

 private:
  int64_t n_ = 0;
#endif
};

// While one lives, its thread reads and computes 0 where a number would be subnormal: arithmetic on those is microcode, many
// times slower. The clobbered memory keeps loads, and so what is computed from them, inside.
class SubnormalsAreZero {
#if defined(__x86_64__)
  typedef uint32_t Word;
  static constexpr Word kFlush = 1u << 15 | 1u << 6;  // results and operands
  static Word get() {
    Word word;
    asm volatile("stmxcsr %0" : "=m"(word));
    return word;
  }
  static void set(Word word) { asm volatile("ldmxcsr %0" : : "m"(word) : "memory"); }
#elif defined(__aarch64__)
  typedef uint64_t Word;
  static constexpr Word kFlush = 1u << 24;
  static Word get() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set(Word word) { asm volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#else
  typedef int Word;
  static constexpr Word kFlush = 0;
  static Word get() { return 0; }
  static void set(Word) {}
#endif

 public:
  SubnormalsAreZero() : before_(get()) { set(before_ | kFlush); }
  ~SubnormalsAreZero() { set(before_); }
  SubnormalsAreZero(const SubnormalsAreZero&) = delete;
  SubnormalsAreZero& operator=(const SubnormalsAreZero&) = delete;

 private:
  Word before_;
};

// NaN stays NaN, and -0.0 becomes +0.0.
template <class T>
inline V<T> relu(V<T> v) {
  return v <= V<T>{} ? V<T>{} : v;
}

// Takes v and its position where it is greater than the best so far, or the first NaN; nothing once a NaN stands. Vectors of
// any width, positions of integers as wide as the values.
template <class Values, class Positions>
inline void take_greater(Values& best, Positions& where, Values v, Positions position) {
  const Positions take = ~(v <= best) & (best == best);
  best = take ? v : best;
  where = take ? position : where;
}

// N elements as a vector, N a power of two: narrower than the machine's for what is left at a row's end.
template <class T, int N>
struct Some {
  typedef T V __attribute__((vector_size(N * sizeof(T))));
  static V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, V v) { std::memcpy(p, &v, sizeof v); }
};

// f(Some<T, N>, offset) for pieces that make up [begin, end): vectors of the machine's width, then each half of it once at
// the most.
template <class T, int N = kWidth<T>, class F>
inline void for_pieces(int64_t begin, int64_t end, F f) {
  if constexpr (N == kWidth<T>) {
    for (; begin + N <= end; begin += N) f(Some<T, N>{}, begin);
  } else if (begin + N <= end) {
    f(Some<T, N>{}, begin);
    begin += N;
  }
  if constexpr (N > 1)
    if (begin < end) for_pieces<T, N / 2>(begin, end, f);
}

}  // namespace fastnn::FASTNN_TARGET::simd
