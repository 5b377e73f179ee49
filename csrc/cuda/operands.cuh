// The two factors of a matrix product as the tile kernels read them: straight from where they lie, a convolution's patches
// included, so that no im2col matrix is ever written.
//
// An operand is a matrix of `lines` by k: the lines are the rows of a or the columns of b. kAlongK says whether memory runs
// along k (or along the lines). An element is found in two halves, each worked out once for many uses, with all divisions:
//   line(i)    where line i starts, and what of it is missing       a block makes a table of its lines when it begins
//   step(k)    how far from there k is, and what it asks for        a block makes a table of these as it goes along
// Line and step together are at(line, step), which is there where present(line.has, step.has). So an access in the main loop
// is a test and an addition, and the addition is 64 bits wide: arrays of more than 2^31 elements need no kernels of their
// own. Beyond the ends there are zeros; with kGaps also inside, for padding. Vectors of kVec elements from an address on are
// all there or all zero where vectors() is true; kScalar operands have none.
#pragma once

#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {

template <class T, class Has>
struct alignas(16) OperandLine {
  const T* start;
  Has has;
};
template <class Has>
struct alignas(16) OperandStep {
  int64_t offset;
  Has has;
};
template <class T, class Has>
__device__ __forceinline__ const T* at(const OperandLine<T, Has>& line, const OperandStep<Has>& step) {
  return line.start + step.offset;
}

// Sets of what a line lacks and a step needs, or the other way round: an element is there where they have nothing in common.
// All lines lack kEnd, which steps beyond the end need; lines beyond the end lack all, and no step needs nothing.
constexpr uint32_t kEnd = UINT32_C(1) << 31, kAll = ~UINT32_C(0);

template <class T>
struct MaskedOperand {
  static constexpr bool kScalar = false;
  using Has = uint32_t;
  using Line = OperandLine<T, Has>;
  using Step = OperandStep<Has>;
  __device__ static bool present(Has line, Has step) { return (line & step) == 0; }
};

// A matrix in memory: element (i, k) at i * stride + k, or along the lines at k * stride + i.
template <class T, bool kAlongK_>
struct Dense : MaskedOperand<T> {
  static constexpr bool kAlongK = kAlongK_, kGaps = false;
  using typename MaskedOperand<T>::Line, typename MaskedOperand<T>::Step;

  const T* base;
  int64_t lines, k, stride;

  Dense() = default;
  Dense(const T* base, int64_t lines, int64_t k, int64_t stride) : base(base), lines(lines), k(k), stride(stride) {}

  bool vectors() const { return aligned_for<Vec<T, kVec<T>>>(base) && stride % kVec<T> == 0; }
  __device__ Line line(int64_t i) const { return {base + (kAlongK ? i * stride : i), i < lines ? kEnd : kAll}; }
  __device__ Step step(int64_t at) const { return {kAlongK ? at : at * stride, at < k ? 1 : kEnd}; }
};

// Patches of an NHWC image batch: pixel (n, i, j) by tap element (r, s, c), being
//   x[n, i * sh + r * dh - top, j * sw + s * dw - left, c].
template <class T>
struct PatchShape {
  const T* x;
  int64_t height, width;                             // of x
  int64_t pixels, elements;                          // N * Ho * Wo, KH * KW * C
  FastDiv out_width, out_height, channels, columns;  // Wo, Ho, C, KW
  int64_t rows;                                      // KH
  int64_t stride_h, stride_w, dilation_h, dilation_w, top, left;

  PatchShape() = default;
  // kh x kw taps, dh and dw apart (pixels; they may be negative), over an image of C channels.
  PatchShape(const T* x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t ho, int64_t wo, int64_t kh, int64_t kw,
             int64_t sh, int64_t sw, int64_t dh, int64_t dw, int64_t top, int64_t left)
      : x(x),
        height(h),
        width(w),
        pixels(n * ho * wo),
        elements(kh * kw * c),
        out_width(wo),
        out_height(ho),
        channels(c),
        columns(kw),
        rows(kh),
        stride_h(sh),
        stride_w(sw),
        dilation_h(dh),
        dilation_w(dw),
        top(top),
        left(left) {}

  bool vectors() const { return aligned_for<Vec<T, kVec<T>>>(x) && channels.divisor % kVec<T> == 0; }

  struct Place {
    int64_t row, column;  // of the image for a pixel's first tap, which may lie outside; of the filter for a tap
    int64_t offset;       // elements
  };
  __device__ Place pixel(int64_t at) const {
    const int64_t line = out_width(at), n = out_height(line);
    const int64_t row = (line - n * out_height.divisor) * stride_h - top;
    const int64_t column = (at - line * out_width.divisor) * stride_w - left;
    return {row, column, ((n * height + row) * width + column) * channels.divisor};
  }
  __device__ Place tap(int64_t at) const {
    const int64_t tap = channels(at), r = columns(tap), s = tap - r * columns.divisor;
    return {r, s, (r * dilation_h * width + s * dilation_w) * channels.divisor + at - tap * channels.divisor};
  }
  __device__ bool row_inside(int64_t row) const { return uint64_t(row) < uint64_t(height); }
  __device__ bool column_inside(int64_t column) const { return uint64_t(column) < uint64_t(width); }
};

// ... where each row and each column of the filter has a bit: a pixel lacks those over padding, a tap needs its two.
template <class T>
struct Patches : PatchShape<T>, MaskedOperand<T> {
  using PatchShape<T>::PatchShape;

  static bool fit(int64_t rows, int64_t columns) { return rows + columns < 32; }  // the last bit is kEnd

  __device__ uint32_t has_pixel(const typename PatchShape<T>::Place& p, bool exists) const {
    if (!exists) return kAll;
    uint32_t lacks = kEnd, bit = 1;
#pragma unroll 1
    for (int64_t r = 0, row = p.row; r < this->rows; ++r, row += this->dilation_h, bit <<= 1)
      lacks |= this->row_inside(row) ? 0 : bit;
#pragma unroll 1
    for (int64_t s = 0, column = p.column; s < this->columns.divisor; ++s, column += this->dilation_w, bit <<= 1)
      lacks |= this->column_inside(column) ? 0 : bit;
    return lacks;
  }
  __device__ uint32_t has_tap(const typename PatchShape<T>::Place& p, bool exists) const {
    return exists ? UINT32_C(1) << p.row | UINT32_C(1) << (this->rows + p.column) : kEnd;
  }
};

// ... and for larger filters: every access compares coordinates.
template <class T>
struct LargePatches : PatchShape<T> {
  using PatchShape<T>::PatchShape;
  static constexpr bool kScalar = true;  // rare: few kernels
  struct Has {
    int64_t row, column;
  };
  using Line = OperandLine<T, Has>;
  using Step = OperandStep<Has>;

  __device__ bool present(const Has& line, const Has& step) const {
    return this->row_inside(line.row + step.row) && this->column_inside(line.column + step.column);
  }
  __device__ Has has_pixel(const typename PatchShape<T>::Place& p, bool exists) const {
    return {exists ? p.row : INT64_MIN / 2, p.column};
  }
  __device__ Has has_tap(const typename PatchShape<T>::Place& p, bool exists) const {
    return {exists ? p.row * this->dilation_h : INT64_MIN / 2, p.column * this->dilation_w};
  }
};

// Patches as the left factor of a convolution: a line per pixel.
template <class P>
struct PatchRows : P {
  using P::P;
  static constexpr bool kAlongK = true, kGaps = true;
  __device__ typename P::Line line(int64_t i) const {
    const auto p = this->pixel(i);
    return {this->x + p.offset, this->has_pixel(p, i < this->pixels)};
  }
  __device__ typename P::Step step(int64_t k) const {
    const auto t = this->tap(k);
    return {t.offset, this->has_tap(t, k < this->elements)};
  }
};

// ... and transposed, as the left factor of the weight gradient: a line per tap element, a sum over pixels.
template <class P>
struct PatchColumns : P {
  using P::P;
  static constexpr bool kAlongK = false, kGaps = true;
  __device__ typename P::Line line(int64_t i) const {
    const auto t = this->tap(i);
    return {this->x + t.offset, this->has_tap(t, i < this->elements)};
  }
  __device__ typename P::Step step(int64_t k) const {
    const auto p = this->pixel(k);
    return {p.offset, this->has_pixel(p, k < this->pixels)};
  }
};

// Some taps of a filter (KH, KW, C, K) transposed, as the right factor of the input gradient: a line per channel c, a sum
// over (tap, o). The taps are rows first_row, first_row + row_step, ... by columns likewise, `columns` of them.
template <class T>
struct FilterTransposed : MaskedOperand<T> {
  static constexpr bool kAlongK = true, kGaps = false;
  using typename MaskedOperand<T>::Line, typename MaskedOperand<T>::Step;

  const T* w;
  int64_t lines, k;  // C, taps * K
  FastDiv outputs;   // K
  FastDiv columns;
  int64_t first_row, row_step, first_column, column_step, width;  // width: KW

  bool vectors() const { return aligned_for<Vec<T, kVec<T>>>(w) && outputs.divisor % kVec<T> == 0; }
  __device__ Line line(int64_t c) const { return {w + c * outputs.divisor, c < lines ? kEnd : kAll}; }
  __device__ Step step(int64_t at) const {
    const int64_t tap = outputs(at), r = columns(tap), s = tap - r * columns.divisor;
    const int64_t place = (first_row + r * row_step) * width + first_column + s * column_step;
    return {(place * lines - tap) * outputs.divisor + at, at < k ? 1 : kEnd};
  }
};

}  // namespace fastnn::FASTNN_TARGET
