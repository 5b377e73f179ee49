// The two factors of a matrix product as the tile kernels read them: straight from where they lie, a convolution's patches
// included, so that no im2col matrix is ever written.
//
// An operand is a matrix of `lines` by k: the lines are the rows of a or the columns of b. kAlongK says whether memory runs
// along k (or along the lines). An address is made of two halves, each worked out once for many uses:
//   line(i)      what line i is          step(k)      what k is          at(line, step)      the element, or null for a zero
// Beyond the ends there are zeros; with kGaps also inside, for padding. Vectors of kVec elements from an address on are all
// there or all zero where vectors() is true.
#pragma once

#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {

// A matrix in memory: element (i, k) at i * stride + k, or with kAlongLines at k * stride + i.
template <class T, bool kAlongK_>
struct Dense {
  static constexpr bool kAlongK = kAlongK_, kGaps = false;
  struct Line {
    const T* start;  // null beyond the end
  };
  struct Step {
    int64_t offset;  // negative beyond the end
  };

  const T* base;
  int64_t lines, k, stride;

  bool vectors() const { return aligned_for<Vec<T, kVec<T>>>(base) && stride % kVec<T> == 0; }
  __device__ Line line(int64_t i) const { return {i < lines ? base + (kAlongK ? i * stride : i) : nullptr}; }
  __device__ Step step(int64_t at) const { return {at < k ? (kAlongK ? at : at * stride) : -1}; }
  __device__ const T* at(const Line& line, const Step& step) const {
    return line.start && step.offset >= 0 ? line.start + step.offset : nullptr;
  }
};

// Patches of an NHWC image batch: pixel (n, i, j) by tap element (r, q), being
//   x[n, i * sh + r * dh - top, column j * sw + s * dw - left, channel c].
// Where the taps of a row lie side by side (dw = 1), q runs over the whole stretch of kw * C elements; else over C.
template <class T>
struct Patches {
  struct Pixel {
    const T* image;        // null beyond the end
    int64_t row, element;  // of the first tap; may lie outside
  };
  struct Tap {
    int64_t row, element;  // offsets from the pixel's; row is INT64_MIN / 2 beyond the end
  };

  const T* x;
  int64_t height, row_elements;       // of x; a row is W * C elements
  int64_t pixels, elements;           // N * Ho * Wo, KH * KW * C
  FastDiv out_width, out_height;      // Wo, Ho
  FastDiv stretch, stretches_in_row;  // elements side by side; stretches in a row of taps
  int64_t stride_row, stride_element, dilation_row, dilation_element, top, left_element;
  bool aligned_channels;

  Patches() = default;
  // kh x kw taps, dh and dw apart (pixels; they may be negative), over an image of C channels.
  Patches(const T* x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t ho, int64_t wo, int64_t kh, int64_t kw, int64_t sh,
          int64_t sw, int64_t dh, int64_t dw, int64_t top, int64_t left)
      : x(x),
        height(h),
        row_elements(w * c),
        pixels(n * ho * wo),
        elements(kh * kw * c),
        out_width(wo),
        out_height(ho),
        stretch(dw == 1 ? std::max<int64_t>(kw * c, 1) : c),
        stretches_in_row(dw == 1 ? 1 : std::max<int64_t>(kw, 1)),
        stride_row(sh),
        stride_element(sw * c),
        dilation_row(dh),
        dilation_element(dw * c),
        top(top),
        left_element(left * c),
        aligned_channels(c % kVec<T> == 0) {}

  bool vectors() const { return aligned_for<Vec<T, kVec<T>>>(x) && aligned_channels; }

  __device__ Pixel pixel(int64_t at) const {
    if (at >= pixels) return {nullptr, 0, 0};
    const int64_t row = out_width(at), n = out_height(row);
    const int64_t i = row - n * out_height.divisor, j = at - row * out_width.divisor;
    return {x + n * height * row_elements, i * stride_row - top, j * stride_element - left_element};
  }
  __device__ Tap tap(int64_t at) const {
    if (at >= elements) return {INT64_MIN / 2, 0};
    const int64_t part = stretch(at), r = stretches_in_row(part), s = part - r * stretches_in_row.divisor;
    return {r * dilation_row, s * dilation_element + at - part * stretch.divisor};
  }
  __device__ const T* element(const Pixel& p, const Tap& t) const {
    const int64_t row = p.row + t.row, element = p.element + t.element;
    const bool inside = p.image && uint64_t(row) < uint64_t(height) && uint64_t(element) < uint64_t(row_elements);
    return inside ? p.image + row * row_elements + element : nullptr;
  }
};

// Patches as the left factor of a convolution: a line per pixel.
template <class T>
struct PatchRows : Patches<T> {
  static constexpr bool kAlongK = true, kGaps = true;
  using Line = typename Patches<T>::Pixel;
  using Step = typename Patches<T>::Tap;
  __device__ Line line(int64_t i) const { return this->pixel(i); }
  __device__ Step step(int64_t k) const { return this->tap(k); }
  __device__ const T* at(const Line& line, const Step& step) const { return this->element(line, step); }
};

// ... and transposed, as the left factor of the weight gradient: a line per tap element, a sum over pixels.
template <class T>
struct PatchColumns : Patches<T> {
  static constexpr bool kAlongK = false, kGaps = true;
  using Line = typename Patches<T>::Tap;
  using Step = typename Patches<T>::Pixel;
  __device__ Line line(int64_t i) const { return this->tap(i); }
  __device__ Step step(int64_t k) const { return this->pixel(k); }
  __device__ const T* at(const Line& line, const Step& step) const { return this->element(step, line); }
};

// Some taps of a filter (KH, KW, C, K) transposed, as the right factor of the input gradient: a line per channel c, a sum
// over (tap, o). The taps are rows first_row, first_row + row_step, ... by columns likewise, `columns` of them.
template <class T>
struct FilterTransposed {
  static constexpr bool kAlongK = true, kGaps = false;
  using Line = typename Dense<T, true>::Line;
  using Step = typename Dense<T, true>::Step;

  const T* w;
  int64_t lines, k;  // C, taps * K
  FastDiv outputs;   // K
  FastDiv columns;
  int64_t first_row, row_step, first_column, column_step, width;  // width: KW

  bool vectors() const { return aligned_for<Vec<T, kVec<T>>>(w) && outputs.divisor % kVec<T> == 0; }
  __device__ Line line(int64_t c) const { return {c < lines ? w + c * outputs.divisor : nullptr}; }
  __device__ Step step(int64_t at) const {
    if (at >= k) return {-1};
    const int64_t tap = outputs(at), r = columns(tap), s = tap - r * columns.divisor;
    const int64_t place = (first_row + r * row_step) * width + first_column + s * column_step;
    return {(place * lines - tap) * outputs.divisor + at};
  }
  __device__ const T* at(const Line& line, const Step& step) const {
    return line.start && step.offset >= 0 ? line.start + step.offset : nullptr;
  }
};

}  // namespace fastnn::FASTNN_TARGET
