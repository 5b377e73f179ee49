// The two halves that a native module is put together from.
#pragma once

#include <pybind11/pybind11.h>

namespace fastnn {
void bind_shapes(pybind11::module_& m);  // bind_shapes.cpp: once per module
}

// bindings.cpp: once per target.
#define FASTNN_DECLARE_TARGET(target)  \
  namespace fastnn::target {           \
  void bind_ops(pybind11::module_& m); \
  }
