// Samples read anew along one axis, each at its own positions. Bound by what is read and written. A position's elements are
// one stretch of memory: an image's row, or a pixel.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "../ops.h"
#include "parallel.h"
#include "simd.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int64_t kGrain = 1 << 13;  // elements an item takes

// f(line of x, sample, its output) for outputs [begin, end), counted over all lines.
template <class F>
void each_output(const ResampleShape& s, int64_t begin, int64_t end, F f) {
  if (begin == end) return;
  int64_t line = begin / s.outputs, output = begin % s.outputs;
  for (; begin < end; ++line, output = 0) {
    const int64_t last = std::min(s.outputs, output + end - begin), n = line / s.repeat;
    begin += last - output;
    for (; output < last; ++output) f(line, n, output);
  }
}

// N elements, as short as a pixel of an image.
template <class T, int N>
struct Few {
  T v[N];
  static Few load(const T* p) {
    Few few;
    for (int i = 0; i < N; ++i) few.v[i] = p[i];
    return few;
  }
  void store(T* p) const {
    for (int i = 0; i < N; ++i) p[i] = v[i];
  }
  static Few broadcast(T x) {
    Few few;
    for (T& element : few.v) element = x;
    return few;
  }
  friend Few operator*(Few a, Few b) {
    for (int i = 0; i < N; ++i) a.v[i] *= b.v[i];
    return a;
  }
  friend Few operator+(Few a, Few b) {
    for (int i = 0; i < N; ++i) a.v[i] += b.v[i];
    return a;
  }
};

// y's elements of one output: of kind V, which load(position of x) reads and broadcast makes of one number.
template <class V, bool Weighted, class T, class Load, class Broadcast>
[[gnu::always_inline]] inline V read(const ResampleShape& s, const T* x, const int32_t* index, const T* weights,
                                     const T* offset, int64_t at, Load load, Broadcast broadcast) {
  V total{};
  for (int64_t tap = 0; tap < s.taps; ++tap) {
    const int64_t i = at + tap * s.n * s.outputs, row = index[i];
    V value = row >= 0 && row < s.length ? load(x + row * s.inner) : broadcast(std::numeric_limits<T>::quiet_NaN());
    if constexpr (Weighted) value = value * broadcast(weights[i]);
    total = tap ? total + value : value;
  }
  return offset ? total + broadcast(offset[at]) : total;
}

// N: inner, where it is that short; else 0.
template <class T, bool Weighted, int N>
void read_all(const ResampleShape& s, const T* x, const int32_t* index, const T* weights, const T* offset, T* y) {
  constexpr int W = simd::kWidth<T>;
  const int64_t inner = N ? N : s.inner, whole = (inner - 1) / W * W, grain = std::max<int64_t>(kGrain / inner, 1);
  const simd::First<T> last(inner - whole);
  parallel_chunks(s.n * s.repeat * s.outputs, grain, [=](int64_t begin, int64_t end) {
    T* to = y + begin * inner;
    each_output(s, begin, end, [&](int64_t line, int64_t n, int64_t output) {
      const T* const from = x + line * s.length * inner;
      const auto sum = [&]<class V>(auto load, V (*broadcast)(T)) {
        return read<V, Weighted>(s, from, index, weights, offset, n * s.outputs + output, load, broadcast);
      };
      if constexpr (N > 0) {
        sum(Few<T, N>::load, Few<T, N>::broadcast).store(to);
      } else {
        const auto vector = [&](auto load) { return sum(load, +[](T v) { return simd::broadcast(v); }); };
        for (int64_t c = 0; c < whole; c += W) simd::store(to + c, vector([=](const T* p) { return simd::load(p + c); }));
        last.store(to + whole, vector([=](const T* p) { return last.load(p + whole); }));
      }
      to += inner;
    });
  });
}

template <class T>
void resample(const ResampleShape& s, const T* x, const int32_t* index, const T* weights, const T* offset, T* y, Stream) {
  if (s.n * s.repeat * s.outputs * s.inner == 0) return;
  const auto run = [&]<int N>(std::integral_constant<int, N>) {
    (weights ? read_all<T, true, N> : read_all<T, false, N>)(s, x, index, weights, offset, y);
  };
  if (s.inner == 1) return run(std::integral_constant<int, 1>());
  if (s.inner == 3) return run(std::integral_constant<int, 3>());
  run(std::integral_constant<int, 0>());
}

// A line is one thread's, so that what comes together is added in order.
template <class T>
void resample_backward(const ResampleShape& s, const T* dy, const int32_t* index, const T* weights, T* dx, Stream) {
  const int64_t of_dx = s.length * s.inner, of_dy = s.outputs * s.inner, per_tap = s.n * s.outputs;
  const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(of_dx + of_dy, 1), 1);
  parallel_chunks(s.n * s.repeat, grain, [=](int64_t begin, int64_t end) {
    std::fill(dx + begin * of_dx, dx + end * of_dx, T(0));
    each_output(s, begin * s.outputs, end * s.outputs, [&](int64_t line, int64_t n, int64_t output) {
      const T* __restrict from = dy + line * of_dy + output * s.inner;
      for (int64_t tap = 0; tap < s.taps; ++tap) {
        const int64_t i = n * s.outputs + output + tap * per_tap, row = index[i];
        if (row < 0 || row >= s.length) continue;
        T* __restrict to = dx + line * of_dx + row * s.inner;
        const T weight = weights ? weights[i] : T(1);
        for (int64_t c = 0; c < s.inner; ++c) to[c] += weight * from[c];
      }
    });
  });
}

template <class T>
void add(Ops<T>& ops) {
  ops.resample = resample<T>;
  ops.resample_backward = resample_backward<T>;
}

}  // namespace

void add_resample(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
