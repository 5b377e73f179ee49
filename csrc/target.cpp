// The kernels of a target, from all its sources: each enters its own.
#include "ops.h"

namespace fastnn::FASTNN_TARGET {

void add_gemm(Kernels&);
void add_conv2d(Kernels&);
void add_pool2d(Kernels&);
void add_conv_pool(Kernels&);
void add_activation(Kernels&);
void add_rescale(Kernels&);
void add_resample(Kernels&);
void add_loss(Kernels&);
void add_norm(Kernels&);
void add_optimizer(Kernels&);

Kernels make_kernels() {
  Kernels all{};
  add_gemm(all);
  add_conv2d(all);
  add_pool2d(all);
  add_conv_pool(all);
  add_activation(all);
  add_rescale(all);
  add_resample(all);
  add_loss(all);
  add_norm(all);
  add_optimizer(all);
  return all;
}

}  // namespace fastnn::FASTNN_TARGET
