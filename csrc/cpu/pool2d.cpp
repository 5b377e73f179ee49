// Max and average pooling, NHWC: the channels of a pixel are the vector. Forward, an item is one row of output pixels, and
// the sum or maximum of a line of channels stays in registers while it passes over the window. Backward, windows that do not
// overlap are spread over their pixels, each dx written once; where they do, each dx GATHERS from the windows that cover it,
// in ascending order, so that they add up in one order and no thread shares a dx.
// Bound by memory: x and y once each (and argmax), all else from L1.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "../ops.h"
#include "parallel.h"
#include "simd.h"
#include "window.h"

namespace fastnn::FASTNN_TARGET {
namespace {

// The count of real pixels under window (i, j): what its mean divides by.
inline int64_t covered(const Pool2dShape& s, int64_t i, int64_t j) {
  const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h), cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
  return (rows.end - rows.begin) * (cols.end - cols.begin);
}

// N elements: values, positions as wide as they are (a comparison of values makes a mask of these), and as argmax has them.
template <class T, int N>
struct Lanes : simd::Some<T, N> {
  using typename simd::Some<T, N>::V;
  using Position = decltype(V{} < V{});
  using Stored = simd::Some<int32_t, N>;
  static Position position(int64_t index) { return Position{} + int32_t(index); }
  static Position load_positions(const int32_t* p) { return __builtin_convertvector(Stored::load(p), Position); }
  static void store_positions(int32_t* p, Position v) { Stored::store(p, __builtin_convertvector(v, typename Stored::V)); }
};

// f(lanes, M, channel) for M vectors of N channels: a line of the cache at a time, single vectors for what is left.
template <class T, class F>
void for_lines(int64_t channels, F f) {
  constexpr int W = simd::kWidth<T>, M = 64 / simd::kBytes;
  int64_t c = 0;
  if constexpr (M > 1)
    for (; c + M * W <= channels; c += M * W) f(Lanes<T, W>{}, std::integral_constant<int, M>{}, c);
  simd::for_pieces<T>(c, channels,
                      [&]<int N>(simd::Some<T, N>, int64_t at) { f(Lanes<T, N>{}, std::integral_constant<int, 1>{}, at); });
}

// dx where windows do not overlap: an item is a row of windows and the pixels up to the next, and writes each of them once.
// share_of(vector, channel in y, share) reads a window's gradients and gives (position) -> what the pixel there gets of
// them; `share` is the inverse of the number of the window's pixels.
template <class T, class ShareOf>
void spread_windows(const Pool2dShape& s, T* dx, ShareOf share_of) {
  parallel_for(s.n * s.ho, [&](int64_t item) {
    const int64_t n = item / s.ho, i = item % s.ho, top = i * s.sh - s.pad_top;
    const int64_t first_row = i ? top : 0, end_row = i + 1 < s.ho ? top + s.sh : s.h;
    const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h);
    for (int64_t h = first_row; h < end_row; ++h) {
      T* row = dx + (n * s.h + h) * s.w * s.c;
      const int64_t r = h - top;
      int64_t done = 0;  // columns
      for (int64_t j = 0; j < s.wo && r >= rows.begin && r < rows.end; ++j) {
        const int64_t left = j * s.sw - s.pad_left, window = (item * s.wo + j) * s.c;
        const Range cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
        const T share = T(1) / T((rows.end - rows.begin) * (cols.end - cols.begin));
        std::fill_n(row + done * s.c, (left + cols.begin - done) * s.c, T(0));
        simd::for_pieces<T>(0, s.c, [&](auto some, int64_t c) {
          const auto at_position = share_of(some, window + c, share);
          T* out = row + left * s.c + c;
          for (int64_t q = cols.begin; q < cols.end; ++q) some.store(out + q * s.c, at_position(r * s.kw + q));
        });
        done = left + cols.end;
      }
      std::fill_n(row + done * s.c, (s.w - done) * s.c, T(0));
    }
  });
}

bool overlap(const Pool2dShape& s) {
  return s.sh < s.kh || s.sw < s.kw;
}

// dx where they do: an item is a row of dx, whose pixels add up their windows in order.
// add(out, window's first channel in y, position of the pixel in it, share)
template <class T, class Add>
void gather_windows(const Pool2dShape& s, T* dx, Add add) {
  std::vector<Range> all_cols(static_cast<size_t>(s.w));
  for (int64_t w = 0; w < s.w; ++w) all_cols[size_t(w)] = windows(w, s.sw, s.pad_left, s.kw, s.wo);
  parallel_for(s.n * s.h, [&](int64_t item) {
    const int64_t n = item / s.h, h = item % s.h;
    const Range rows = windows(h, s.sh, s.pad_top, s.kh, s.ho);
    for (int64_t w = 0; w < s.w; ++w) {
      const Range cols = all_cols[size_t(w)];
      T* out = dx + (item * s.w + w) * s.c;
      std::fill_n(out, s.c, T(0));
      for (int64_t i = rows.begin; i < rows.end; ++i)
        for (int64_t j = cols.begin; j < cols.end; ++j)
          add(out, ((n * s.ho + i) * s.wo + j) * s.c, (h + s.pad_top - i * s.sh) * s.kw + (w + s.pad_left - j * s.sw),
              T(1) / T(covered(s, i, j)));
    }
  });
}

template <class T>
void max_pool2d_forward(const Pool2dShape& s, const T* x, T* y, int32_t* argmax, Stream) {
  parallel_for(s.n * s.ho, [&](int64_t item) {
    const int64_t n = item / s.ho, i = item % s.ho;
    const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h);
    const T* image = x + (n * s.h + i * s.sh - s.pad_top) * s.w * s.c;
    for (int64_t j = 0; j < s.wo; ++j) {
      const Range cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
      const T* window = image + (j * s.sw - s.pad_left) * s.c;
      const int64_t out = (item * s.wo + j) * s.c;
      for_lines<T>(s.c, [&]<int N, int M>(Lanes<T, N>, std::integral_constant<int, M>, int64_t c) {
        using L = Lanes<T, N>;
        typename L::V best[M];
        typename L::Position where[M];
        for (int m = 0; m < M; ++m) {
          best[m] = L::load(window + (rows.begin * s.w + cols.begin) * s.c + c + m * N);
          where[m] = L::position(rows.begin * s.kw + cols.begin);
        }
        for (int64_t r = rows.begin; r < rows.end; ++r)
#pragma GCC unroll 1  // windows are small: Clang's four columns at a time cost 1.2x
          for (int64_t q = cols.begin; q < cols.end; ++q)
            for (int m = 0; m < M; ++m) {
              const typename L::V v = L::load(window + (r * s.w + q) * s.c + c + m * N);
              simd::take_greater(best[m], where[m], v, L::position(r * s.kw + q));
            }
        for (int m = 0; m < M; ++m) {
          L::store(y + out + c + m * N, best[m]);
          L::store_positions(argmax + out + c + m * N, where[m]);
        }
      });
    }
  });
}

template <class T>
void max_pool2d_backward(const Pool2dShape& s, const T* dy, const int32_t* argmax, T* dx, Stream) {
  if (!overlap(s))
    return spread_windows(s, dx, [=]<int N>(simd::Some<T, N>, int64_t at, T) {
      using L = Lanes<T, N>;
      const typename L::V gradient = L::load(dy + at);
      const typename L::Position won = L::load_positions(argmax + at);
      return [=](int64_t position) { return won == L::position(position) ? gradient : typename L::V{}; };
    });
  gather_windows(s, dx, [=](T* __restrict out, int64_t window, int64_t position, T) {
    const T* __restrict g = dy + window;
    const int32_t* __restrict where = argmax + window;
    for (int64_t c = 0; c < s.c; ++c) {
      const T gradient = g[c];  // read in any case: a select, not a branch
      out[c] += where[c] == int32_t(position) ? gradient : T(0);
    }
  });
}

template <class T>
void avg_pool2d_forward(const Pool2dShape& s, const T* x, T* y, Stream) {
  parallel_for(s.n * s.ho, [&](int64_t item) {
    const int64_t n = item / s.ho, i = item % s.ho;
    const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h);
    const T* image = x + (n * s.h + i * s.sh - s.pad_top) * s.w * s.c;
    for (int64_t j = 0; j < s.wo; ++j) {
      const Range cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
      const T* window = image + (j * s.sw - s.pad_left) * s.c;
      const T count = T((rows.end - rows.begin) * (cols.end - cols.begin));
      T* mean = y + (item * s.wo + j) * s.c;
      for_lines<T>(s.c, [&]<int N, int M>(Lanes<T, N>, std::integral_constant<int, M>, int64_t c) {
        using L = Lanes<T, N>;
        typename L::V sum[M] = {};
        for (int64_t r = rows.begin; r < rows.end; ++r)
#pragma GCC unroll 1  // as above
          for (int64_t q = cols.begin; q < cols.end; ++q)
            for (int m = 0; m < M; ++m) sum[m] += L::load(window + (r * s.w + q) * s.c + c + m * N);
        for (int m = 0; m < M; ++m) L::store(mean + c + m * N, sum[m] / count);
      });
    }
  });
}

template <class T>
void avg_pool2d_backward(const Pool2dShape& s, const T* dy, T* dx, Stream) {
  if (!overlap(s))
    return spread_windows(s, dx, [=](auto some, int64_t at, T share) {
      const auto gradient = some.load(dy + at) * share;
      return [=](int64_t) { return gradient; };
    });
  gather_windows(s, dx, [=](T* __restrict out, int64_t window, int64_t, T share) {
    const T* __restrict g = dy + window;
    for (int64_t c = 0; c < s.c; ++c) out[c] += g[c] * share;
  });
}

template <class T>
void add(Ops<T>& ops) {
  ops.max_pool2d_forward = max_pool2d_forward<T>;
  ops.max_pool2d_backward = max_pool2d_backward<T>;
  ops.avg_pool2d_forward = avg_pool2d_forward<T>;
  ops.avg_pool2d_backward = avg_pool2d_backward<T>;
}

}  // namespace

void add_pool2d(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
