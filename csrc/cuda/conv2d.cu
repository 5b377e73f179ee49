// Convolution as implicit GEMM over NHWC and HWIO: the tile kernels of matmul.cuh gather a convolution's patches straight
// from the image.
//
//                    rows            k               columns   a                          b
//   forward          output pixels   (tap, c)        K         patches of x               w
//   input gradient   input pixels    (tap, o)        C         patches of dy              w, transposed
//   weight gradient  (tap, c)        output pixels   K         patches of x, transposed   dy
//
// With a stride, input pixels that are a stride apart share their taps and make a job of their own; pixels that no tap
// reaches are filled with zeros first. Work: 2 N Ho Wo K KH KW C flops each.
#include <numeric>
#include <vector>

#include "matmul.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int kThreads = 256;

// Input coordinates first, first + stride, ... of one axis, `count` of them, and what reaches them: the taps tap, tap +
// tap_step, ..., `taps` of them, where the t-th reads output i + base - t * step for the i-th coordinate.
struct Phase {
  int64_t first, count, tap, tap_step, taps, base, step;
};

struct Phases {
  std::vector<Phase> list;
  int64_t rest;  // coordinates of the axis that no tap reaches by its place alone
};

// x + pad = out * stride + tap * dilation, so taps that are stride / gcd apart reach the same coordinates.
Phases phases(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad) {
  const int64_t gcd = std::gcd(stride, dilation), tap_step = stride / gcd;
  Phases all{{}, size};
  for (int64_t tap = 0; tap < std::min(tap_step, kernel); ++tap) {
    const int64_t first = ((tap * dilation - pad) % stride + stride) % stride;
    if (first >= size) continue;
    const int64_t offset = first + pad - tap * dilation;  // a multiple of stride
    all.list.push_back({first, ceil_div(size - first, stride), tap, tap_step, (kernel - 1 - tap) / tap_step + 1,
                        offset / stride, dilation / gcd});
    all.rest -= all.list.back().count;
  }
  return all;
}

template <class T>
__global__ void fill_kernel(int64_t size, T* y) {
  for (int64_t i = first_item(); i < size; i += item_step()) y[i] = T(0);
}

template <class Operand, class T>
Operand patches_of_x(const Conv2dShape& s, const T* x) {
  return {x, s.n, s.h, s.w, s.c, s.ho, s.wo, s.kh, s.kw, s.sh, s.sw, s.dh, s.dw, s.pad_top, s.pad_left};
}

// Calls f with the kind of patches that the filter allows.
template <class T, class F>
void with_patches(const Conv2dShape& s, F f) {
  if (Patches<T>::fit(s.kh, s.kw))
    f(Patches<T>());
  else
    f(LargePatches<T>());
}

// The input gradient's jobs have all its rows between them, and sums as long as the longest.
template <class T>
Cut backward_x_cut(const Conv2dShape& s) {
  const int64_t rows = s.n * s.h * s.w, step_h = s.sh / std::gcd(s.sh, s.dh), step_w = s.sw / std::gcd(s.sw, s.dw);
  return cut<T>(rows, s.c, ceil_div(s.kh, step_h) * ceil_div(s.kw, step_w) * s.k, s.precision);
}

template <class T>
int64_t conv2d_forward_workspace(const Conv2dShape& s) {
  return matmul_workspace<T>(s.n * s.ho * s.wo, s.k, s.kh * s.kw * s.c, s.precision);
}

template <class T>
void conv2d_forward(const Conv2dShape& s, const T* x, const T* w, const T* b, bool relu, T* y, T* workspace, Stream stream) {
  const int64_t k = s.kh * s.kw * s.c;
  Result<T> result = plain_result(y, s.k);
  result.bias = b, result.relu = relu;
  with_patches<T>(s, [&](auto kind) {
    matmul(patches_of_x<PatchRows<decltype(kind)>>(s, x), Dense<T, false>(w, s.k, k, s.k), s.n * s.ho * s.wo, s.k, k, result,
           s.precision, workspace, stream);
  });
}

template <class T>
int64_t conv2d_backward_x_workspace(const Conv2dShape& s) {
  const int64_t slices = backward_x_cut<T>(s).slices;
  return slices > 1 ? slices * s.n * s.h * s.w * s.c : 0;
}

template <class T>
void conv2d_backward_x(const Conv2dShape& s, const T* dy, const T* w, T* dx, T* workspace, Stream stream) {
  constexpr int kJobs = 4;  // of a launch: all there are for stride 2
  const Phases rows = phases(s.h, s.kh, s.sh, s.dh, s.pad_top), columns = phases(s.w, s.kw, s.sw, s.dw, s.pad_left);
  const int64_t size = s.n * s.h * s.w * s.c;
  if (rows.rest > 0 || columns.rest > 0) launch(fill_kernel<T>, grid_for(size, kThreads), kThreads, 0, stream, size, dx);

  const Cut c = backward_x_cut<T>(s);
  with_patches<T>(s, [&](auto kind) {
    using Dy = PatchRows<decltype(kind)>;
    Jobs<Job<T, Dy, FilterTransposed<T>>, kJobs> jobs{};
    int count = 0;
    for (const Phase& r : rows.list)
      for (const Phase& q : columns.list) {
        auto& job = jobs.job[count++];
        job.m = s.n * r.count * q.count, job.n = s.c, job.k = r.taps * q.taps * s.k;
        job.a = Dy(dy, s.n, s.ho, s.wo, s.k, r.count, q.count, r.taps, q.taps, 1, 1, -r.step, -q.step, -r.base, -q.base);
        job.b = {{}, w, s.c, job.k, FastDiv(s.k), FastDiv(q.taps), r.tap, r.tap_step, q.tap, q.tap_step, s.kw};
        job.result = plain_result(dx, s.c);
        job.result.scattered = s.sh > 1 || s.sw > 1;
        job.result.width = FastDiv(q.count), job.result.height = FastDiv(r.count);
        job.result.image_height = s.h, job.result.image_width = s.w;
        job.result.first_h = r.first, job.result.stride_h = s.sh, job.result.first_w = q.first, job.result.stride_w = s.sw;
        if (count == kJobs) {
          matmul(jobs, count, c, s.precision, workspace, stream);
          count = 0;
        }
      }
    if (count > 0) matmul(jobs, count, c, s.precision, workspace, stream);
  });
}

template <class T>
int64_t conv2d_backward_w_workspace(const Conv2dShape& s) {
  return matmul_workspace<T>(s.kh * s.kw * s.c, s.k, s.n * s.ho * s.wo, s.precision);
}

template <class T>
void conv2d_backward_w(const Conv2dShape& s, const T* dy, const T* x, T* dw, T* workspace, Stream stream) {
  const int64_t pixels = s.n * s.ho * s.wo;
  with_patches<T>(s, [&](auto kind) {
    matmul(patches_of_x<PatchColumns<decltype(kind)>>(s, x), Dense<T, false>(dy, s.k, pixels, s.k), s.kh * s.kw * s.c, s.k,
           pixels, plain_result(dw, s.k), s.precision, workspace, stream);
  });
}

template <class T>
void add(Ops<T>& ops) {
  ops.conv2d_forward_workspace = conv2d_forward_workspace<T>;
  ops.conv2d_forward = conv2d_forward<T>;
  ops.conv2d_backward_x_workspace = conv2d_backward_x_workspace<T>;
  ops.conv2d_backward_x = conv2d_backward_x<T>;
  ops.conv2d_backward_w_workspace = conv2d_backward_w_workspace<T>;
  ops.conv2d_backward_w = conv2d_backward_w<T>;
}

}  // namespace

void add_conv2d(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
