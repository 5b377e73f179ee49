// What a native module is put together from.
#pragma once

#include <pybind11/pybind11.h>

#include "ops.h"

namespace fastnn {

void bind_shapes(pybind11::module_& m);  // bind_shapes.cpp
void bind_ops(pybind11::module_& m);     // bindings.cpp

}  // namespace fastnn

// target.cpp: once per target.
#define FASTNN_DECLARE_TARGET(target) \
  namespace fastnn::target {          \
  Kernels make_kernels();             \
  }
