#include "shapes.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fastnn {

std::string text(const Dims& dims) {
  std::string out = "(";
  for (size_t i = 0; i < dims.size(); ++i) out += (i ? ", " : "") + std::to_string(dims[i]);
  return out + (dims.size() == 1 ? ",)" : ")");
}

namespace {

using fastnn::text;
std::string text(int64_t value) {
  return std::to_string(value);
}

constexpr int64_t kLimit = INT64_C(1) << 31;  // window, stride, dilation and padding stay below this

[[noreturn]] void fail(const char* op, const std::string& what) {
  throw std::invalid_argument(std::string(op) + ": " + what);
}

// Every array of a call must be addressable: its number of bytes, at 8 an element, fits in 63 bits.
void check_size(const char* op, const char* name, const Dims& dims) {
  int64_t bytes = 8;
  for (int64_t d : dims) {
    if (d < 0) fail(op, std::string(name) + " has a negative dimension: " + text(dims));
    if (d != 0 && __builtin_mul_overflow(bytes, d, &bytes))
      fail(op, std::string(name) + " of shape " + text(dims) + " is too large to address");
  }
}

void check_rank(const char* op, const char* name, const Dims& dims, size_t rank, const char* layout) {
  if (dims.size() != rank)
    fail(op,
         std::string(name) + " must have " + text(int64_t(rank)) + " dimensions " + layout + ", got shape " + text(dims));
  check_size(op, name, dims);
}

void check_range(const char* op, const char* name, Pair value, int64_t lowest) {
  for (int64_t v : value)
    if (v < lowest || v >= kLimit)
      fail(op, std::string(name) + " must be from " + text(lowest) + " to " + text(kLimit - 1) + ", got (" + text(value[0]) +
                   ", " + text(value[1]) + ")");
}

// An NHWC image batch: only the batch may be empty.
void check_images(const char* op, const Dims& x) {
  check_rank(op, "x", x, 4, "(N, H, W, C)");
  if (x[1] == 0 || x[2] == 0 || x[3] == 0) fail(op, "x has no pixels or no channels: shape " + text(x));
}

struct Axis {
  int64_t out, before, after;
};

// Output length and padding along one axis. `extent` is the dilated kernel: (kernel - 1) * dilation + 1.
Axis resolve_axis(const char* op, const char* axis, int64_t size, int64_t extent, int64_t stride, bool same, int64_t before,
                  int64_t after, int64_t kernel) {
  if (same) {
    const int64_t out = (size + stride - 1) / stride;
    const int64_t total = std::max<int64_t>((out - 1) * stride + extent - size, 0);
    return {out, total / 2, total - total / 2};
  }
  const int64_t padded = size + before + after;
  if (extent > padded)
    fail(op, "kernel " + std::string(axis) + " " + text(kernel) + " (dilated: " + text(extent) + ") exceeds padded input " +
                 axis + " " + text(padded));
  return {(padded - extent) / stride + 1, before, after};
}

void check_padding(const char* op, const Padding& p) {
  for (int64_t v : {p.top, p.bottom, p.left, p.right})
    if (v < 0 || v >= kLimit)
      fail(op, "padding must be from 0 to " + text(kLimit - 1) + ", got ((" + text(p.top) + ", " + text(p.bottom) + "), (" +
                   text(p.left) + ", " + text(p.right) + "))");
}

}  // namespace

Precision make_precision(const std::string& name) {
  if (name == "float32") return Precision::kFloat32;
  if (name == "tf32") return Precision::kTf32;
  if (name == "bfloat16") return Precision::kBfloat16;
  if (name == "winograd") return Precision::kWinograd;
  throw std::invalid_argument("precision must be 'float32', 'tf32', 'bfloat16' or 'winograd', got '" + name + "'");
}

GemmShape make_gemm_shape(const Dims& a, const Dims& b, bool transpose_a, bool transpose_b, Precision precision) {
  check_rank("gemm", "a", a, 2, "(rows, columns)");
  check_rank("gemm", "b", b, 2, "(rows, columns)");
  const int64_t m = a[transpose_a], ka = a[!transpose_a], kb = b[transpose_b], n = b[!transpose_b];
  if (ka != kb)
    fail("gemm", "inner dimensions differ: a " + text(a) + (transpose_a ? " transposed" : "") + " has " + text(ka) +
                     " columns, b " + text(b) + (transpose_b ? " transposed" : "") + " has " + text(kb) + " rows");
  check_size("gemm", "y", {m, n});
  return {m, n, ka, transpose_a, transpose_b, precision};
}

Conv2dShape make_conv2d_shape(const Dims& x, const Dims& w, Pair stride, Pair dilation, Padding padding,
                              Precision precision) {
  const char* op = "conv2d";
  check_images(op, x);
  check_rank(op, "w", w, 4, "(KH, KW, C, K)");
  if (*std::min_element(w.begin(), w.end()) == 0) fail(op, "w has an empty dimension: shape " + text(w));
  if (w[2] != x[3])
    fail(op, "x has " + text(x[3]) + " channels but w takes " + text(w[2]) + " (x " + text(x) + ", w " + text(w) + ")");
  check_range(op, "stride", stride, 1);
  check_range(op, "dilation", dilation, 1);
  check_range(op, "kernel size", {w[0], w[1]}, 1);
  check_padding(op, padding);
  const Axis h = resolve_axis(op, "height", x[1], (w[0] - 1) * dilation[0] + 1, stride[0], padding.same, padding.top,
                              padding.bottom, w[0]);
  const Axis v = resolve_axis(op, "width", x[2], (w[1] - 1) * dilation[1] + 1, stride[1], padding.same, padding.left,
                              padding.right, w[1]);
  check_size(op, "y", {x[0], h.out, v.out, w[3]});
  return {x[0],  x[1],      x[2],      x[3],        w[0],        w[1],     w[3],     h.out,
          v.out, stride[0], stride[1], dilation[0], dilation[1], h.before, v.before, precision};
}

Pool2dShape make_pool2d_shape(const Dims& x, Pair window, Pair stride, Padding padding) {
  const char* op = "pool2d";
  check_images(op, x);
  check_range(op, "window", window, 1);
  check_range(op, "stride", stride, 1);
  if (window[0] * window[1] >= kLimit)
    fail(op, "a window of " + text(window[0]) + " x " + text(window[1]) + " has positions beyond int32");
  check_padding(op, padding);
  // With at most half a window of padding, no window lies wholly in it.
  if (std::max(padding.top, padding.bottom) > window[0] / 2 || std::max(padding.left, padding.right) > window[1] / 2)
    fail(op, "padding ((" + text(padding.top) + ", " + text(padding.bottom) + "), (" + text(padding.left) + ", " +
                 text(padding.right) + ")) exceeds half of the window (" + text(window[0]) + ", " + text(window[1]) + ")");
  const Axis h =
      resolve_axis(op, "height", x[1], window[0], stride[0], padding.same, padding.top, padding.bottom, window[0]);
  const Axis v = resolve_axis(op, "width", x[2], window[1], stride[1], padding.same, padding.left, padding.right, window[1]);
  check_size(op, "y", {x[0], h.out, v.out, x[3]});
  return {x[0], x[1], x[2], x[3], window[0], window[1], h.out, v.out, stride[0], stride[1], h.before, v.before};
}

ConvPoolShape make_conv_pool_shape(const Conv2dShape& conv, Pair window, Pair stride, Padding padding) {
  const Pool2dShape pool = make_pool2d_shape({conv.n, conv.ho, conv.wo, conv.k}, window, stride, padding);
  if (pool.kh * pool.kw > kMaxPositions)
    fail("conv2d_max_pool2d", "a window of " + text(pool.kh) + " x " + text(pool.kw) + " has more than the " +
                                  text(kMaxPositions) + " positions that argmax can name");
  return {conv, pool};
}

}  // namespace fastnn
