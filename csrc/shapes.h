// One struct per family of ops: what a kernel needs to know of its arrays, in elements and pixels.
// A struct is built by its make function below, which checks everything and is the one place where the messages about
// shapes, strides and padding are written. A struct that exists is valid: kernels do not check again.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace fastnn {

using Stream = void*;  // cudaStream_t of the call; the CPU kernels ignore it
using Dims = std::vector<int64_t>;
using Pair = std::array<int64_t, 2>;

std::string text(const Dims& dims);  // "(1, 2)", as Python writes a shape

// Implicit padding in pixels. `same` as Keras has it: ceil(size / stride) outputs, the odd pixel at the bottom or right.
struct Padding {
  bool same = false;
  int64_t top = 0, bottom = 0, left = 0, right = 0;
};

// How the products of GEMM and convolution are computed.
enum class Precision {
  kFloat32,   // in the arrays' own type, each product by itself
  kTf32,      // factors, float32 in memory, rounded to 10 bits of mantissa, added in float32; a GPU's
  kBfloat16,  // the same with 7 bits
  kWinograd,  // in the arrays' own type; convolutions of 3 x 3 taps from fewer products of sums; the CPU's
};

Precision make_precision(const std::string& name);  // "float32", "tf32", "bfloat16" or "winograd"

// y (M, N) = op(a) (M, K) * op(b) (K, N), op being the transpose where asked for. Row-major.
struct GemmShape {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  Precision precision;
};

struct Conv2dShape {
  int64_t n, h, w, c;         // x: (N, H, W, C)
  int64_t kh, kw, k;          // w: (KH, KW, C, K)
  int64_t ho, wo;             // y: (N, Ho, Wo, K)
  int64_t sh, sw;             // stride, pixels
  int64_t dh, dw;             // dilation, pixels
  int64_t pad_top, pad_left;  // implicit padding, pixels; takes no part in any sum
  Precision precision;
};

struct Pool2dShape {
  int64_t n, h, w, c;         // x: (N, H, W, C)
  int64_t kh, kw;             // window, pixels
  int64_t ho, wo;             // y: (N, Ho, Wo, C)
  int64_t sh, sw;             // stride, pixels
  int64_t pad_top, pad_left;  // implicit padding, pixels; never wins a maximum, does not count in a mean
};

// A convolution and the pooling of its output as one op: the pool's x is the convolution's y. A winner's position in its
// window is a byte; kNoGradient stands where ReLU lets no gradient through.
constexpr uint8_t kNoGradient = 255;
constexpr int64_t kMaxPositions = 255;  // kh * kw of the pool
struct ConvPoolShape {
  Conv2dShape conv;
  Pool2dShape pool;
};

GemmShape make_gemm_shape(const Dims& a, const Dims& b, bool transpose_a, bool transpose_b, Precision precision);
Conv2dShape make_conv2d_shape(const Dims& x, const Dims& w, Pair stride, Pair dilation, Padding padding,
                              Precision precision);
Pool2dShape make_pool2d_shape(const Dims& x, Pair window, Pair stride, Padding padding);
ConvPoolShape make_conv_pool_shape(const Conv2dShape& conv, Pair window, Pair stride, Padding padding);

}  // namespace fastnn
