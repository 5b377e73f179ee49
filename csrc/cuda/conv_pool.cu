// Convolution, ReLU and max pooling as one op, by the kernels of the three: forward through the map before the pool,
// backward through its gradient, both in the workspace.
//
// The winners' positions are bytes, a quarter of what max_pool2d keeps, and the map before the pool need not be kept for
// backward; otherwise the traffic is that of the separate ops.
#include "pool.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

// Elements of the map before the pool, in whole vectors, so that the workspace behind it is aligned as it was.
template <class T>
int64_t map_size(const Conv2dShape& s) {
  return ceil_div(s.n * s.ho * s.wo * s.k, kVec<T>) * kVec<T>;
}

template <class T>
int64_t conv2d_max_pool2d_forward_workspace(const ConvPoolShape& s) {
  return map_size<T>(s.conv) + kernels().of<T>().conv2d_forward_workspace(s.conv);
}

template <class T>
void conv2d_max_pool2d_forward(const ConvPoolShape& s, const T* x, const T* w, const T* b, bool relu, T* y, uint8_t* argmax,
                               T* workspace, Stream stream) {
  kernels().of<T>().conv2d_forward(s.conv, x, w, b, false, workspace, workspace + map_size<T>(s.conv), stream);
  launch_max_forward(s.pool, workspace, relu, y, argmax, stream);
}

template <class T>
int64_t conv2d_max_pool2d_backward_x_workspace(const ConvPoolShape& s) {
  return map_size<T>(s.conv) + kernels().of<T>().conv2d_backward_x_workspace(s.conv);
}

template <class T>
void conv2d_max_pool2d_backward_x(const ConvPoolShape& s, const T* dy, const uint8_t* argmax, const T* w, T* dx,
                                  T* workspace, Stream stream) {
  launch_max_backward(s.pool, dy, argmax, workspace, stream);
  kernels().of<T>().conv2d_backward_x(s.conv, workspace, w, dx, workspace + map_size<T>(s.conv), stream);
}

template <class T>
int64_t conv2d_max_pool2d_backward_w_workspace(const ConvPoolShape& s) {
  const int64_t pixels = s.conv.n * s.conv.ho * s.conv.wo;
  return map_size<T>(s.conv) + std::max(kernels().of<T>().conv2d_backward_w_workspace(s.conv),
                                        kernels().of<T>().channel_workspace(pixels, s.conv.k));
}

template <class T>
void conv2d_max_pool2d_backward_w(const ConvPoolShape& s, const T* dy, const uint8_t* argmax, const T* x, T* dw, T* db,
                                  T* workspace, Stream stream) {
  T* const rest = workspace + map_size<T>(s.conv);
  launch_max_backward(s.pool, dy, argmax, workspace, stream);
  kernels().of<T>().conv2d_backward_w(s.conv, workspace, x, dw, rest, stream);
  if (db) kernels().of<T>().bias_backward(s.conv.n * s.conv.ho * s.conv.wo, s.conv.k, workspace, db, rest, stream);
}

template <class T>
void add(Ops<T>& ops) {
  ops.conv2d_max_pool2d_forward_workspace = conv2d_max_pool2d_forward_workspace<T>;
  ops.conv2d_max_pool2d_forward = conv2d_max_pool2d_forward<T>;
  ops.conv2d_max_pool2d_backward_x_workspace = conv2d_max_pool2d_backward_x_workspace<T>;
  ops.conv2d_max_pool2d_backward_x = conv2d_max_pool2d_backward_x<T>;
  ops.conv2d_max_pool2d_backward_w_workspace = conv2d_max_pool2d_backward_w_workspace<T>;
  ops.conv2d_max_pool2d_backward_w = conv2d_max_pool2d_backward_w<T>;
}

}  // namespace

void add_conv_pool(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
