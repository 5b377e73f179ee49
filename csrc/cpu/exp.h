// exp and exp - 1 of numbers not above 0, a vector at a time: what sigmoid, tanh and softmax are made of.
//
// x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite 1980: ln 2 in two parts, so that r keeps its digits), and exp(r) - 1
// by its Taylor series, cut off where a term is below rounding. An element's bits do not depend on its place in a vector.
#pragma once

#include "simd.h"

namespace fastnn::FASTNN_TARGET {

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  using Integer = int32_t;
  static constexpr int kTerms = 7, kMantissa = 23, kBias = 127;
  static constexpr float kLowest = -110, kRound = 0x1.8p23f, kLog2e = 0x1.715476p0f, kLn2High = 0x1.62ep-1f,
                         kLn2Low = 0x1.0bfbe8p-15f;
};
template <>
struct ExpConstants<double> {
  using Integer = int64_t;
  static constexpr int kTerms = 13, kMantissa = 52, kBias = 1023;
  static constexpr double kLowest = -750, kRound = 0x1.8p52, kLog2e = 0x1.71547652b82fep0, kLn2High = 0x1.62e42fee00000p-1,
                          kLn2Low = 0x1.a39ef35793c76p-33;
};

// exp(x) = (1 + rest) * half * other_half; the power of two in halves, because it may lie below the normal numbers.
template <class T>
struct Exp {
  using V = simd::V<T>;
  V rest, half, other_half;

  explicit Exp(V x) {
    using C = ExpConstants<T>;
    typedef typename C::Integer Integers __attribute__((vector_size(simd::kBytes)));
    const V lowest = simd::broadcast(C::kLowest), round = simd::broadcast(C::kRound);
    x = x < lowest ? lowest : x;  // a NaN stays
    const V n = simd::multiply_add(x, simd::broadcast(C::kLog2e), round) - round;
    const V r = simd::multiply_add(n, simd::broadcast(-C::kLn2Low), simd::multiply_add(n, simd::broadcast(-C::kLn2High), x));
    T inverse[C::kTerms + 1];  // 1 / k!
    T factorial = inverse[0] = 1;
    for (int k = 1; k <= C::kTerms; ++k) inverse[k] = 1 / (factorial *= T(k));
    V sum = simd::broadcast(inverse[C::kTerms]);
#pragma GCC unroll 13
    for (int k = C::kTerms - 1; k >= 1; --k) sum = simd::multiply_add(sum, r, simd::broadcast(inverse[k]));
    rest = sum * r;
    const Integers power = __builtin_convertvector(n, Integers), first = power >> 1;
    half = reinterpret_cast<V>((first + C::kBias) << C::kMantissa);
    other_half = reinterpret_cast<V>((power - first + C::kBias) << C::kMantissa);
  }

  V value() const { return (rest + simd::broadcast(T(1))) * half * other_half; }
  // exp(x) - 1, with all its digits where x is small.
  V minus_one() const {
    const V power = half * other_half;
    return simd::multiply_add(power, rest, power - simd::broadcast(T(1)));
  }
};

// y[i] = f(x[i]) for n elements, f taking and giving vectors.
template <class T, class F>
inline void map_vectors(int64_t n, const T* x, T* y, F f) {
  constexpr int W = simd::kWidth<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) simd::store(y + i, f(simd::load(x + i)));
  if (i == n) return;
  const simd::First<T> last(n - i);
  last.store(y + i, f(last.load(x + i)));
}

}  // namespace fastnn::FASTNN_TARGET
