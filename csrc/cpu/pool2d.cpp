// Max and average pooling, NHWC: the channels of a pixel are the vector. Forward, an item is one row of output pixels and
// each window position passes over the channels; backward, an item is one row of input pixels, and each dx GATHERS from the
// windows that cover it, in ascending order, so that overlapping windows add up in one order and no thread shares a dx.
// Bound by memory: x and y once each (and argmax), all else from L1.
#include <algorithm>

#include "../ops.h"
#include "parallel.h"

namespace fastnn::FASTNN_TARGET {
namespace {

struct Range {
  int64_t begin, end;
};

// The window positions of output `o` that lie in the image.
inline Range positions(int64_t o, int64_t stride, int64_t pad, int64_t window, int64_t size) {
  const int64_t start = o * stride - pad;
  return {std::max<int64_t>(-start, 0), std::min(window, size - start)};
}

// The windows that cover input coordinate i.
inline Range windows(int64_t i, int64_t stride, int64_t pad, int64_t window, int64_t out_size) {
  const int64_t last = (i + pad) / stride, beyond = i + pad - window;
  return {beyond < 0 ? 0 : beyond / stride + 1, std::min(out_size, last + 1)};
}

// Calls f(window (n, ho, wo) as an index into y's pixels, position of the pixel in it) for all windows over pixel (h, w).
template <class F>
void for_windows(const Pool2dShape& s, int64_t n, int64_t h, int64_t w, F f) {
  const Range rows = windows(h, s.sh, s.pad_top, s.kh, s.ho), cols = windows(w, s.sw, s.pad_left, s.kw, s.wo);
  for (int64_t i = rows.begin; i < rows.end; ++i)
    for (int64_t j = cols.begin; j < cols.end; ++j)
      f((n * s.ho + i) * s.wo + j, (h + s.pad_top - i * s.sh) * s.kw + (w + s.pad_left - j * s.sw));
}

// The count of real pixels under window (i, j): what its mean divides by.
inline int64_t covered(const Pool2dShape& s, int64_t i, int64_t j) {
  const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h), cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
  return (rows.end - rows.begin) * (cols.end - cols.begin);
}

}  // namespace

template <class T>
void max_pool2d_forward(const Pool2dShape& s, const T* x, T* y, int32_t* argmax, Stream) {
  parallel_for(s.n * s.ho, [&](int64_t item) {
    const int64_t n = item / s.ho, i = item % s.ho;
    const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h);
    for (int64_t j = 0; j < s.wo; ++j) {
      const Range cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
      T* __restrict best = y + (item * s.wo + j) * s.c;
      int32_t* __restrict where = argmax + (item * s.wo + j) * s.c;
      bool first = true;
      for (int64_t r = rows.begin; r < rows.end; ++r)
        for (int64_t q = cols.begin; q < cols.end; ++q, first = false) {
          const T* __restrict v = x + ((n * s.h + i * s.sh - s.pad_top + r) * s.w + j * s.sw - s.pad_left + q) * s.c;
          const int32_t position = int32_t(r * s.kw + q);
          if (first) {
            std::copy(v, v + s.c, best);
            std::fill(where, where + s.c, position);
            continue;
          }
          for (int64_t c = 0; c < s.c; ++c) {
            // Greater, or the first NaN; not once a NaN stands.
            const bool take = !(v[c] <= best[c]) & (best[c] == best[c]);
            best[c] = take ? v[c] : best[c];
            where[c] = take ? position : where[c];
          }
        }
    }
  });
}

template <class T>
void max_pool2d_backward(const Pool2dShape& s, const T* dy, const int32_t* argmax, T* dx, Stream) {
  parallel_for(s.n * s.h, [&](int64_t item) {
    for (int64_t w = 0; w < s.w; ++w) {
      T* __restrict out = dx + (item * s.w + w) * s.c;
      std::fill(out, out + s.c, T(0));
      for_windows(s, item / s.h, item % s.h, w, [&](int64_t window, int64_t position) {
        const T* __restrict g = dy + window * s.c;
        const int32_t* __restrict where = argmax + window * s.c;
        for (int64_t c = 0; c < s.c; ++c) {
          const T gradient = g[c];  // read in any case: a select, not a branch
          out[c] += where[c] == int32_t(position) ? gradient : T(0);
        }
      });
    }
  });
}

template <class T>
void avg_pool2d_forward(const Pool2dShape& s, const T* x, T* y, Stream) {
  parallel_for(s.n * s.ho, [&](int64_t item) {
    const int64_t n = item / s.ho, i = item % s.ho;
    const Range rows = positions(i, s.sh, s.pad_top, s.kh, s.h);
    for (int64_t j = 0; j < s.wo; ++j) {
      const Range cols = positions(j, s.sw, s.pad_left, s.kw, s.w);
      T* __restrict mean = y + (item * s.wo + j) * s.c;
      std::fill(mean, mean + s.c, T(0));
      for (int64_t r = rows.begin; r < rows.end; ++r)
        for (int64_t q = cols.begin; q < cols.end; ++q) {
          const T* __restrict v = x + ((n * s.h + i * s.sh - s.pad_top + r) * s.w + j * s.sw - s.pad_left + q) * s.c;
          for (int64_t c = 0; c < s.c; ++c) mean[c] += v[c];
        }
      const T count = T(covered(s, i, j));
      for (int64_t c = 0; c < s.c; ++c) mean[c] /= count;
    }
  });
}

template <class T>
void avg_pool2d_backward(const Pool2dShape& s, const T* dy, T* dx, Stream) {
  parallel_for(s.n * s.h, [&](int64_t item) {
    for (int64_t w = 0; w < s.w; ++w) {
      T* __restrict out = dx + (item * s.w + w) * s.c;
      std::fill(out, out + s.c, T(0));
      for_windows(s, item / s.h, item % s.h, w, [&](int64_t window, int64_t) {
        const T* __restrict g = dy + window * s.c;
        const T count = T(covered(s, window / s.wo % s.ho, window % s.wo));
        for (int64_t c = 0; c < s.c; ++c) out[c] += g[c] / count;
      });
    }
  });
}

#define INSTANTIATE(T)                                                                            \
  template void max_pool2d_forward<T>(const Pool2dShape&, const T*, T*, int32_t*, Stream);        \
  template void max_pool2d_backward<T>(const Pool2dShape&, const T*, const int32_t*, T*, Stream); \
  template void avg_pool2d_forward<T>(const Pool2dShape&, const T*, T*, Stream);                  \
  template void avg_pool2d_backward<T>(const Pool2dShape&, const T*, T*, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
