// One m.def per op of ops.h. Compiled once for all modules, so that no backend's op list can drift from another's.
//
// A binding receives arrays that ops.py has allocated or made contiguous, and checks all that a kernel relies on: element
// types, shapes against the call's shape struct, room in the workspace, no output over another array. Then it lets go of
// the GIL and calls the kernel. Nothing is written before the last check has passed.
#include "bindings.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <vector>

#include "call.h"

namespace fastnn {
namespace {

// That all of them, each called `what`, are in [0, limit).
void check_indices(const Call& call, const char* what, const ArrayView* indices, int64_t limit, uintptr_t stream) {
  const BadIndex bad = kernels().find_bad_index(indices->size(), limit, get<int32_t>(indices), to_stream(stream));
  if (bad.position >= 0)
    call.fail(std::string(what) + " " + std::to_string(bad.index) + " at position " + std::to_string(bad.position) +
              " is not in [0, " + std::to_string(limit) + ")");
}

using Dims4 = std::array<int64_t, 4>;

Dims4 x_dims(const Conv2dShape& s) {
  return {s.n, s.h, s.w, s.c};
}
Dims4 w_dims(const Conv2dShape& s) {
  return {s.kh, s.kw, s.c, s.k};
}
Dims4 y_dims(const Conv2dShape& s) {
  return {s.n, s.ho, s.wo, s.k};
}
Dims4 x_dims(const Pool2dShape& s) {
  return {s.n, s.h, s.w, s.c};
}
Dims4 y_dims(const Pool2dShape& s) {
  return {s.n, s.ho, s.wo, s.c};
}

using Array = const py::handle&;

void check_product(const Call& call, Precision precision) {
  if (precision == Precision::kFloat32) return;
  if (precision != Precision::kWinograd && call.itemsize() != 4)
    throw py::type_error("precisions 'tf32' and 'bfloat16' are of float32 arrays, got float64");
  kernels().check_precision(precision);
}

void bind_gemm(py::module_& m) {
  m.def("gemm_workspace", [](const GemmShape& s, int64_t itemsize) {
    return workspace_size(itemsize, [&](const auto& ops) { return ops.gemm_workspace(s); });
  });
  m.def("gemm", [](const GemmShape& s, Array a, Array b, Array c, Array bias, double alpha, double beta, bool relu, Array y,
                   Array scratch, uintptr_t stream) {
    Call call("gemm");
    const auto* va = call.in("a", a, s.transpose_a ? Pair{s.k, s.m} : Pair{s.m, s.k});
    const auto* vb = call.in("b", b, s.transpose_b ? Pair{s.n, s.k} : Pair{s.k, s.n});
    const auto* vc = call.maybe_in("c", c, {s.m, s.n});
    const auto* v_bias = call.maybe_in("bias", bias, {s.n});
    const auto* vy = call.out("out", y, {s.m, s.n});
    check_product(call, s.precision);
    const auto* space = workspace(call, scratch, [&](const auto& ops) { return ops.gemm_workspace(s); });
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.gemm(s, get<T>(va), get<T>(vb), get<T>(vc), get<T>(v_bias), T(alpha), T(beta), relu, get<T>(vy), get<T>(space),
               to_stream(stream));
    });
  });
}

void bind_conv2d(py::module_& m) {
  m.def("conv2d_forward_workspace", [](const Conv2dShape& s, int64_t itemsize) {
    return workspace_size(itemsize, [&](const auto& ops) { return ops.conv2d_forward_workspace(s); });
  });
  m.def("conv2d_forward",
        [](const Conv2dShape& s, Array x, Array w, Array b, bool relu, Array y, Array scratch, uintptr_t stream) {
          Call call("conv2d");
          const auto* vx = call.in("x", x, x_dims(s));
          const auto* vw = call.in("w", w, w_dims(s));
          const auto* vb = call.maybe_in("b", b, {s.k});
          const auto* vy = call.out("out", y, y_dims(s));
          check_product(call, s.precision);
          const auto* space = workspace(call, scratch, [&](const auto& ops) { return ops.conv2d_forward_workspace(s); });
          call.run([=]<class T>(const Ops<T>& ops) {
            ops.conv2d_forward(s, get<T>(vx), get<T>(vw), get<T>(vb), relu, get<T>(vy), get<T>(space), to_stream(stream));
          });
        });
  m.def("conv2d_backward_x_workspace", [](const Conv2dShape& s, int64_t itemsize) {
    return workspace_size(itemsize, [&](const auto& ops) { return ops.conv2d_backward_x_workspace(s); });
  });
  m.def("conv2d_backward_x", [](const Conv2dShape& s, Array dy, Array w, Array dx, Array scratch, uintptr_t stream) {
    Call call("conv2d_backward_x");
    const auto* v_dy = call.in("dy", dy, y_dims(s));
    const auto* vw = call.in("w", w, w_dims(s));
    const auto* v_dx = call.out("out", dx, x_dims(s));
    check_product(call, s.precision);
    const auto* space = workspace(call, scratch, [&](const auto& ops) { return ops.conv2d_backward_x_workspace(s); });
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.conv2d_backward_x(s, get<T>(v_dy), get<T>(vw), get<T>(v_dx), get<T>(space), to_stream(stream));
    });
  });
  m.def("conv2d_backward_w_workspace", [](const Conv2dShape& s, int64_t itemsize) {
    return workspace_size(itemsize, [&](const auto& ops) { return ops.conv2d_backward_w_workspace(s); });
  });
  m.def("conv2d_backward_w", [](const Conv2dShape& s, Array dy, Array x, Array dw, Array scratch, uintptr_t stream) {
    Call call("conv2d_backward_w");
    const auto* v_dy = call.in("dy", dy, y_dims(s));
    const auto* vx = call.in("x", x, x_dims(s));
    const auto* v_dw = call.out("out", dw, w_dims(s));
    check_product(call, s.precision);
    const auto* space = workspace(call, scratch, [&](const auto& ops) { return ops.conv2d_backward_w_workspace(s); });
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.conv2d_backward_w(s, get<T>(v_dy), get<T>(vx), get<T>(v_dw), get<T>(space), to_stream(stream));
    });
  });
}

void bind_pool2d(py::module_& m) {
  m.def("max_pool2d_forward", [](const Pool2dShape& s, Array x, Array y, Array argmax, uintptr_t stream) {
    Call call("max_pool2d");
    const auto* vx = call.in("x", x, x_dims(s));
    const auto* vy = call.out("y", y, y_dims(s));
    const auto* va = call.out_int32("argmax", argmax, y_dims(s));
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.max_pool2d_forward(s, get<T>(vx), get<T>(vy), get<int32_t>(va), to_stream(stream));
    });
  });
  m.def("max_pool2d_backward", [](const Pool2dShape& s, Array dy, Array argmax, Array dx, uintptr_t stream) {
    Call call("max_pool2d_backward");
    const auto* v_dy = call.in("dy", dy, y_dims(s));
    const auto* va = call.in_int32("argmax", argmax, y_dims(s));
    const auto* v_dx = call.out("dx", dx, x_dims(s));
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.max_pool2d_backward(s, get<T>(v_dy), get<int32_t>(va), get<T>(v_dx), to_stream(stream));
    });
  });
  m.def("avg_pool2d_forward", [](const Pool2dShape& s, Array x, Array y, uintptr_t stream) {
    Call call("avg_pool2d");
    const auto* vx = call.in("x", x, x_dims(s));
    const auto* vy = call.out("y", y, y_dims(s));
    call.run([=]<class T>(const Ops<T>& ops) { ops.avg_pool2d_forward(s, get<T>(vx), get<T>(vy), to_stream(stream)); });
  });
  m.def("avg_pool2d_backward", [](const Pool2dShape& s, Array dy, Array dx, uintptr_t stream) {
    Call call("avg_pool2d_backward");
    const auto* v_dy = call.in("dy", dy, y_dims(s));
    const auto* v_dx = call.out("dx", dx, x_dims(s));
    call.run([=]<class T>(const Ops<T>& ops) { ops.avg_pool2d_backward(s, get<T>(v_dy), get<T>(v_dx), to_stream(stream)); });
  });
}

void bind_conv_pool(py::module_& m) {
  m.def("conv2d_max_pool2d_forward_workspace", [](const ConvPoolShape& s, int64_t itemsize) {
    return workspace_size(itemsize, [&](const auto& ops) { return ops.conv2d_max_pool2d_forward_workspace(s); });
  });
  m.def("conv2d_max_pool2d_forward", [](const ConvPoolShape& s, Array x, Array w, Array b, bool relu, Array y, Array argmax,
                                        Array scratch, uintptr_t stream) {
    Call call("conv2d_max_pool2d");
    const auto* vx = call.in("x", x, x_dims(s.conv));
    const auto* vw = call.in("w", w, w_dims(s.conv));
    const auto* vb = call.maybe_in("b", b, {s.conv.k});
    const auto* vy = call.out("y", y, y_dims(s.pool));
    const auto* va = call.out_uint8("argmax", argmax, y_dims(s.pool));
    check_product(call, s.conv.precision);
    const auto* space =
        workspace(call, scratch, [&](const auto& ops) { return ops.conv2d_max_pool2d_forward_workspace(s); });
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.conv2d_max_pool2d_forward(s, get<T>(vx), get<T>(vw), get<T>(vb), relu, get<T>(vy), get<uint8_t>(va), get<T>(space),
                                    to_stream(stream));
    });
  });
  m.def("conv2d_max_pool2d_backward_x_workspace", [](const ConvPoolShape& s, int64_t itemsize) {
    return workspace_size(itemsize, [&](const auto& ops) { return ops.conv2d_max_pool2d_backward_x_workspace(s); });
  });
  m.def("conv2d_max_pool2d_backward_x",
        [](const ConvPoolShape& s, Array dy, Array argmax, Array w, Array dx, Array scratch, uintptr_t stream) {
          Call call("conv2d_max_pool2d_backward_x");
          const auto* v_dy = call.in("dy", dy, y_dims(s.pool));
          const auto* va = call.in_uint8("argmax", argmax, y_dims(s.pool));
          const auto* vw = call.in("w", w, w_dims(s.conv));
          const auto* v_dx = call.out("out", dx, x_dims(s.conv));
          check_product(call, s.conv.precision);
          const auto* space =
              workspace(call, scratch, [&](const auto& ops) { return ops.conv2d_max_pool2d_backward_x_workspace(s); });
          call.run([=]<class T>(const Ops<T>& ops) {
            ops.conv2d_max_pool2d_backward_x(s, get<T>(v_dy), get<uint8_t>(va), get<T>(vw), get<T>(v_dx), get<T>(space),
                                             to_stream(stream));
          });
        });
  m.def("conv2d_max_pool2d_backward_w_workspace", [](const ConvPoolShape& s, int64_t itemsize) {
    return workspace_size(itemsize, [&](const auto& ops) { return ops.conv2d_max_pool2d_backward_w_workspace(s); });
  });
  m.def("conv2d_max_pool2d_backward_w",
        [](const ConvPoolShape& s, Array dy, Array argmax, Array x, Array dw, Array db, Array scratch, uintptr_t stream) {
          Call call("conv2d_max_pool2d_backward_w");
          const auto* v_dy = call.in("dy", dy, y_dims(s.pool));
          const auto* va = call.in_uint8("argmax", argmax, y_dims(s.pool));
          const auto* vx = call.in("x", x, x_dims(s.conv));
          const auto* v_dw = call.out("dw", dw, w_dims(s.conv));
          const auto* v_db = call.maybe_out("db", db, {s.conv.k});
          check_product(call, s.conv.precision);
          const auto* space =
              workspace(call, scratch, [&](const auto& ops) { return ops.conv2d_max_pool2d_backward_w_workspace(s); });
          call.run([=]<class T>(const Ops<T>& ops) {
            ops.conv2d_max_pool2d_backward_w(s, get<T>(v_dy), get<uint8_t>(va), get<T>(vx), get<T>(v_dw), get<T>(v_db),
                                             get<T>(space), to_stream(stream));
          });
        });
}

// An activation and its backward, which takes the forward's y.
#define BIND_ELEMENTWISE(name)                                                                                           \
  m.def(#name "_forward", [](Array x, Array y, uintptr_t stream) {                                                       \
    Call call(#name);                                                                                                    \
    const auto* vx = call.in("x", x);                                                                                    \
    const auto* vy = call.out("out", y, vx->shape());                                                                    \
    call.run(                                                                                                            \
        [=]<class T>(const Ops<T>& ops) { ops.name##_forward(vx->size(), get<T>(vx), get<T>(vy), to_stream(stream)); }); \
  });                                                                                                                    \
  m.def(#name "_backward", [](Array dy, Array y, Array dx, uintptr_t stream) {                                           \
    Call call(#name "_backward");                                                                                        \
    const auto* vy = call.in("y", y);                                                                                    \
    const auto* v_dy = call.in("dy", dy, vy->shape());                                                                   \
    const auto* v_dx = call.out("dx", dx, vy->shape());                                                                  \
    call.run([=]<class T>(const Ops<T>& ops) {                                                                           \
      ops.name##_backward(vy->size(), get<T>(v_dy), get<T>(vy), get<T>(v_dx), to_stream(stream));                        \
    });                                                                                                                  \
  })

void bind_activation(py::module_& m) {
  BIND_ELEMENTWISE(relu);
  BIND_ELEMENTWISE(sigmoid);
  BIND_ELEMENTWISE(tanh);
  const auto bind_dropout = [&](const char* name, const char* of, const char* result) {
    m.def(name, [=](Array x, Array keep, double scale, Array y, uintptr_t stream) {
      Call call(name);
      const auto* vx = call.in(of, x);
      const auto* v_keep = call.in_uint8("keep", keep, vx->shape());
      const auto* vy = call.out(result, y, vx->shape());
      call.run([=]<class T>(const Ops<T>& ops) {
        ops.dropout(vx->size(), get<T>(vx), get<uint8_t>(v_keep), T(scale), get<T>(vy), to_stream(stream));
      });
    });
  };
  bind_dropout("dropout", "x", "y");
  bind_dropout("dropout_backward", "dy", "dx");
  m.def("softmax_forward", [](Array x, Array y, uintptr_t stream) {
    Call call("softmax");
    const auto* vx = call.in("x", x);
    const auto* vy = call.out("y", y, vx->shape());
    const Matrix d = as_matrix(call, vx);
    call.run(
        [=]<class T>(const Ops<T>& ops) { ops.softmax_forward(d.rows, d.cols, get<T>(vx), get<T>(vy), to_stream(stream)); });
  });
  m.def("softmax_backward", [](Array dy, Array y, Array dx, uintptr_t stream) {
    Call call("softmax_backward");
    const auto* vy = call.in("y", y);
    const auto* v_dy = call.in("dy", dy, vy->shape());
    const auto* v_dx = call.out("dx", dx, vy->shape());
    const Matrix d = as_matrix(call, vy);
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.softmax_backward(d.rows, d.cols, get<T>(v_dy), get<T>(vy), get<T>(v_dx), to_stream(stream));
    });
  });
}

void bind_rescale(py::module_& m) {
  m.def("rescale", [](Array x, Array rows, double scale, double offset, Array y, uintptr_t stream) {
    Call call("rescale");
    const auto* vx = call.in_number("x", x);
    const auto* vy = call.out("y", y);
    Dims shape = vx->shape().dims();
    const ArrayView* v_rows = nullptr;
    int64_t samples = 1, size = vx->size();
    if (!rows.is_none()) {
      if (vx->rank() == 0) call.fail("x has no rows: shape " + text(vx->shape()));
      samples = vy->rank() == 0 ? 0 : vy->dim(0);
      v_rows = call.in_int32("rows", rows, {samples});
      size = Sizes(shape).product(1, shape.size());
      shape[0] = samples;
      check_indices(call, "row", v_rows, vx->dim(0), stream);
    }
    if (!(vy->shape() == Sizes(shape))) call.fail("y must have shape " + text(shape) + ", got " + text(vy->shape()));
    const Element type = vx->dtype() == 'B' ? Element::kUint8 : vx->dtype() == 'f' ? Element::kFloat32 : Element::kFloat64;
    if (offset == 0) offset = -0.0;  // which changes no number
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.rescale(samples, size, v_rows ? vx->dim(0) : samples, type, vx->data(), get<int32_t>(v_rows), T(scale), T(offset),
                  get<T>(vy), to_stream(stream));
    });
  });
}

// x (N, ..., length, ...) and y (N, ..., outputs, ...), which differ along the axis alone.
ResampleShape resample_shape(const Call& call, const ArrayView* x, const ArrayView* y, int64_t axis, int64_t taps) {
  if (axis < 1 || axis >= x->rank()) call.fail("axis " + std::to_string(axis) + " is none of " + text(x->shape()));
  const auto at = size_t(axis);
  Dims shape = x->shape().dims();
  if (y->rank() == x->rank()) shape[at] = y->dim(int(axis));
  if (!(y->shape() == Sizes(shape)))
    call.fail(std::string(y->name()) + " must have shape " + text(shape) + ", got " + text(y->shape()));
  const Sizes sizes = x->shape();
  return {sizes[0], sizes.product(1, at), sizes[at], sizes.product(at + 1, sizes.size()), shape[at], taps};
}

void bind_resample(py::module_& m) {
  m.def("resample", [](Array x, int64_t axis, int64_t taps, Array index, Array weights, Array offset, Array y,
                       uintptr_t stream) {
    Call call("resample");
    const auto *vx = call.in("x", x), *vy = call.out("y", y);
    const ResampleShape s = resample_shape(call, vx, vy, axis, taps);
    const auto* v_index = call.in_int32("index", index, {taps, s.n, s.outputs});
    const auto* v_weights = call.maybe_in("weights", weights, {taps, s.n, s.outputs});
    const auto* v_offset = call.maybe_in("offset", offset, {s.n, s.outputs});
    check_indices(call, "index", v_index, s.length, stream);
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.resample(s, get<T>(vx), get<int32_t>(v_index), get<T>(v_weights), get<T>(v_offset), get<T>(vy), to_stream(stream));
    });
  });
  m.def(
      "resample_backward", [](Array dy, int64_t axis, int64_t taps, Array index, Array weights, Array dx, uintptr_t stream) {
        Call call("resample_backward");
        const auto *v_dy = call.in("dy", dy), *v_dx = call.out("dx", dx);
        const ResampleShape s = resample_shape(call, v_dx, v_dy, axis, taps);
        const auto* v_index = call.in_int32("index", index, {taps, s.n, s.outputs});
        const auto* v_weights = call.maybe_in("weights", weights, {taps, s.n, s.outputs});
        check_indices(call, "index", v_index, s.length, stream);
        call.run([=]<class T>(const Ops<T>& ops) {
          ops.resample_backward(s, get<T>(v_dy), get<int32_t>(v_index), get<T>(v_weights), get<T>(v_dx), to_stream(stream));
        });
      });
}

void bind_loss(py::module_& m) {
  m.def("sparse_cross_entropy_forward", [](Array x, Array labels, Array loss, Array y, uintptr_t stream) {
    Call call("softmax_cross_entropy");
    const auto* vx = call.in("x", x);
    const Matrix d = as_matrix(call, vx);
    const auto* v_labels = call.in_int32("labels", labels, {d.rows});
    const auto* v_loss = call.out("loss", loss, {d.rows});
    const auto* vy = call.out("y", y, vx->shape());
    check_indices(call, "label", v_labels, d.cols, stream);
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.sparse_cross_entropy_forward(d.rows, d.cols, get<T>(vx), get<int32_t>(v_labels), get<T>(v_loss), get<T>(vy),
                                       to_stream(stream));
    });
  });
  m.def("sparse_cross_entropy_backward", [](Array dloss, Array y, Array labels, Array dx, uintptr_t stream) {
    Call call("softmax_cross_entropy_backward");
    const auto* vy = call.in("y", y);
    const Matrix d = as_matrix(call, vy);
    const auto* v_dloss = call.in("dloss", dloss, {d.rows});
    const auto* v_labels = call.in_int32("labels", labels, {d.rows});
    const auto* v_dx = call.out("dx", dx, vy->shape());
    check_indices(call, "label", v_labels, d.cols, stream);
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.sparse_cross_entropy_backward(d.rows, d.cols, get<T>(v_dloss), get<T>(vy), get<int32_t>(v_labels), get<T>(v_dx),
                                        to_stream(stream));
    });
  });
  m.def("cross_entropy_forward", [](Array x, Array target, Array loss, Array y, uintptr_t stream) {
    Call call("softmax_cross_entropy");
    const auto* vx = call.in("x", x);
    const Matrix d = as_matrix(call, vx);
    const auto* vt = call.in("target", target, vx->shape());
    const auto* v_loss = call.out("loss", loss, {d.rows});
    const auto* vy = call.out("y", y, vx->shape());
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.cross_entropy_forward(d.rows, d.cols, get<T>(vx), get<T>(vt), get<T>(v_loss), get<T>(vy), to_stream(stream));
    });
  });
  m.def("cross_entropy_backward", [](Array dloss, Array y, Array target, Array dx, uintptr_t stream) {
    Call call("softmax_cross_entropy_backward");
    const auto* vy = call.in("y", y);
    const Matrix d = as_matrix(call, vy);
    const auto* v_dloss = call.in("dloss", dloss, {d.rows});
    const auto* vt = call.in("target", target, vy->shape());
    const auto* v_dx = call.out("dx", dx, vy->shape());
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.cross_entropy_backward(d.rows, d.cols, get<T>(v_dloss), get<T>(vy), get<T>(vt), get<T>(v_dx), to_stream(stream));
    });
  });
  m.def("mean_squared_error_forward", [](Array x, Array target, Array loss, uintptr_t stream) {
    Call call("mean_squared_error");
    const auto* vx = call.in("x", x);
    const Matrix d = as_batch(call, vx);
    const auto* vt = call.in("target", target, vx->shape());
    const auto* v_loss = call.out("loss", loss, {d.rows});
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.mean_squared_error_forward(d.rows, d.cols, get<T>(vx), get<T>(vt), get<T>(v_loss), to_stream(stream));
    });
  });
  m.def("mean_squared_error_backward", [](Array dloss, Array x, Array target, Array dx, uintptr_t stream) {
    Call call("mean_squared_error_backward");
    const auto* vx = call.in("x", x);
    const Matrix d = as_batch(call, vx);
    const auto* v_dloss = call.in("dloss", dloss, {d.rows});
    const auto* vt = call.in("target", target, vx->shape());
    const auto* v_dx = call.out("dx", dx, vx->shape());
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.mean_squared_error_backward(d.rows, d.cols, get<T>(v_dloss), get<T>(vx), get<T>(vt), get<T>(v_dx),
                                      to_stream(stream));
    });
  });
}

void bind_norm(py::module_& m) {
  m.def("channel_workspace", [](int64_t rows, int64_t cols, int64_t itemsize) {
    return workspace_size(itemsize, [&](const auto& ops) { return ops.channel_workspace(rows, cols); });
  });
  const auto channel_space = [](Call& call, const Matrix& d, Array scratch) -> const ArrayView* {
    return workspace(call, scratch, [&](const auto& ops) { return ops.channel_workspace(d.rows, d.cols); });
  };
  m.def("bias_backward", [=](Array dy, Array db, Array scratch, uintptr_t stream) {
    Call call("bias_backward");
    const auto* v_dy = call.in("dy", dy);
    const Matrix d = as_matrix(call, v_dy);
    const auto* v_db = call.out("db", db, {d.cols});
    const auto* space = channel_space(call, d, scratch);
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.bias_backward(d.rows, d.cols, get<T>(v_dy), get<T>(v_db), get<T>(space), to_stream(stream));
    });
  });
  m.def("batch_norm_forward", [=](Array x, Array gamma, Array beta, double epsilon, Array y, Array mean, Array var,
                                  Array scratch, uintptr_t stream) {
    Call call("batch_norm");
    const auto* vx = call.in("x", x);
    const Matrix d = as_matrix(call, vx);
    if (d.rows == 0) call.fail("x has no rows to take statistics of: shape " + text(vx->shape()));
    const auto* v_gamma = call.in("gamma", gamma, {d.cols});
    const auto* v_beta = call.in("beta", beta, {d.cols});
    const auto* vy = call.out("y", y, vx->shape());
    const auto* v_mean = call.out("mean", mean, {d.cols});
    const auto* v_var = call.out("var", var, {d.cols});
    const auto* space = channel_space(call, d, scratch);
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.batch_norm_forward(d.rows, d.cols, get<T>(vx), get<T>(v_gamma), get<T>(v_beta), epsilon, get<T>(vy),
                             get<T>(v_mean), get<T>(v_var), get<T>(space), to_stream(stream));
    });
  });
  m.def("batch_norm_backward", [=](Array dy, Array x, Array gamma, Array mean, Array var, double epsilon, Array dx,
                                   Array dgamma, Array dbeta, Array scratch, uintptr_t stream) {
    Call call("batch_norm_backward");
    const auto* vx = call.in("x", x);
    const Matrix d = as_matrix(call, vx);
    const auto* v_dy = call.in("dy", dy, vx->shape());
    const auto* v_gamma = call.in("gamma", gamma, {d.cols});
    const auto* v_mean = call.in("mean", mean, {d.cols});
    const auto* v_var = call.in("var", var, {d.cols});
    const auto* v_dx = call.out("dx", dx, vx->shape());
    const auto* v_dgamma = call.out("dgamma", dgamma, {d.cols});
    const auto* v_dbeta = call.out("dbeta", dbeta, {d.cols});
    const auto* space = channel_space(call, d, scratch);
    call.run([=]<class T>(const Ops<T>& ops) {
      ops.batch_norm_backward(d.rows, d.cols, get<T>(v_dy), get<T>(vx), get<T>(v_gamma), get<T>(v_mean), get<T>(v_var),
                              epsilon, get<T>(v_dx), get<T>(v_dgamma), get<T>(v_dbeta), get<T>(space), to_stream(stream));
    });
  });
  m.def("batch_norm_inference",
        [](Array x, Array gamma, Array beta, Array mean, Array var, double epsilon, Array y, uintptr_t stream) {
          Call call("batch_norm_inference");
          const auto* vx = call.in("x", x);
          const Matrix d = as_matrix(call, vx);
          const auto* v_gamma = call.in("gamma", gamma, {d.cols});
          const auto* v_beta = call.in("beta", beta, {d.cols});
          const auto* v_mean = call.in("mean", mean, {d.cols});
          const auto* v_var = call.in("var", var, {d.cols});
          const auto* vy = call.out("y", y, vx->shape());
          call.run([=]<class T>(const Ops<T>& ops) {
            ops.batch_norm_inference(d.rows, d.cols, get<T>(vx), get<T>(v_gamma), get<T>(v_beta), get<T>(v_mean),
                                     get<T>(v_var), epsilon, get<T>(vy), to_stream(stream));
          });
        });
}

// The lists of an optimizer step: parameters, gradients and slots, one of each per tensor, in place.
class TensorLists {
 public:
  TensorLists(Call& call, const py::list& ws, std::initializer_list<std::pair<const char*, const py::list*>> others)
      : call_(call), count_(int64_t(ws.size())) {
    for (const auto& [name, list] : others)
      if (list->size() != ws.size())
        call.fail(std::to_string(ws.size()) + " parameters but " + std::to_string(list->size()) + " " + name);
  }
  const ArrayView* w(const py::list& ws, int64_t i) { return call_.out("w", ws[i]); }
  int64_t count() const { return count_; }

 private:
  Call& call_;
  int64_t count_;
};

void bind_optimizer(py::module_& m) {
  m.def("sgd_step", [](const py::list& ws, const py::list& dws, const py::object& velocities, Array rates, double momentum,
                       bool nesterov, uintptr_t stream) {
    Call call("sgd_step");
    const auto* v_rates = call.in_float64("rates", rates, {kRates});
    const bool has_velocity = !velocities.is_none();
    const py::list slots = has_velocity ? velocities.cast<py::list>() : ws;
    TensorLists lists(call, ws, {{"gradients", &dws}, {"velocities", &slots}});
    struct Views {
      const ArrayView *w, *dw, *velocity;
    };
    std::vector<Views> views;
    for (int64_t i = 0; i < lists.count(); ++i) {
      const ArrayView* w = lists.w(ws, i);
      views.push_back(
          {w, call.in("dw", dws[i], w->shape()), has_velocity ? call.out("velocity", slots[i], w->shape()) : nullptr});
    }
    call.run([=]<class T>(const Ops<T>& ops) {
      std::vector<SgdTensor<T>> tensors;
      for (const Views& v : views) tensors.push_back({v.w->size(), get<T>(v.w), get<T>(v.dw), get<T>(v.velocity)});
      ops.sgd_step(tensors.data(), int64_t(tensors.size()), get<double>(v_rates), {momentum, nesterov}, to_stream(stream));
    });
  });
  m.def("adam_step", [](const py::list& ws, const py::list& dws, const py::list& ms, const py::list& vs, Array rates,
                        double beta_1, double beta_2, double epsilon, uintptr_t stream) {
    Call call("adam_step");
    const auto* v_rates = call.in_float64("rates", rates, {kRates});
    TensorLists lists(call, ws, {{"gradients", &dws}, {"first moments", &ms}, {"second moments", &vs}});
    struct Views {
      const ArrayView *w, *dw, *m, *v;
    };
    std::vector<Views> views;
    for (int64_t i = 0; i < lists.count(); ++i) {
      const ArrayView* w = lists.w(ws, i);
      views.push_back(
          {w, call.in("dw", dws[i], w->shape()), call.out("m", ms[i], w->shape()), call.out("v", vs[i], w->shape())});
    }
    call.run([=]<class T>(const Ops<T>& ops) {
      std::vector<AdamTensor<T>> tensors;
      for (const Views& v : views) tensors.push_back({v.w->size(), get<T>(v.w), get<T>(v.dw), get<T>(v.m), get<T>(v.v)});
      ops.adam_step(tensors.data(), int64_t(tensors.size()), get<double>(v_rates), {beta_1, beta_2, epsilon},
                    to_stream(stream));
    });
  });
}

}  // namespace

void bind_ops(py::module_& m) {
  using Entry = void (*)();
  const auto entries = std::bit_cast<std::array<Entry, sizeof(Kernels) / sizeof(Entry)>>(kernels());
  if (std::find(entries.begin(), entries.end(), nullptr) != entries.end())
    throw std::logic_error("fastnn: an op of ops.h has no kernel in this module: add it where its family enters its ops");
  py::class_<Tape>(m, "Tape", py::module_local())
      .def(py::init())
      .def("record", &Tape::record)
      .def("add_input", &Tape::add_input)
      .def("launch", &Tape::launch);
  m.def("launch_steps", launch_steps);
  bind_gemm(m);
  bind_conv2d(m);
  bind_pool2d(m);
  bind_conv_pool(m);
  bind_activation(m);
  bind_rescale(m);
  bind_resample(m);
  bind_loss(m);
  bind_norm(m);
  bind_optimizer(m);
}

}  // namespace fastnn
