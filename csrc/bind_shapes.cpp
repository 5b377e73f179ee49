// The shape structs as Python sees them: immutable, built by their checking constructor, with the output's shape on them.
#include "bindings.h"

namespace py = pybind11;

namespace fastnn {
namespace {

Dims to_dims(const py::sequence& s) {
  Dims dims;
  for (const py::handle item : s) dims.push_back(item.cast<int64_t>());
  return dims;
}

py::tuple dims_tuple(std::initializer_list<int64_t> dims) {
  py::tuple out(dims.size());
  size_t i = 0;
  for (int64_t d : dims) out[i++] = d;
  return out;
}

Pair to_pair(const py::sequence& s) {
  return {s[0].cast<int64_t>(), s[1].cast<int64_t>()};
}

// "same", or the four sides (top, bottom, left, right).
Padding to_padding(const py::handle& padding) {
  if (padding.is_none()) return {true, 0, 0, 0, 0};
  const py::sequence p = py::reinterpret_borrow<py::sequence>(padding);
  return {false, p[0].cast<int64_t>(), p[1].cast<int64_t>(), p[2].cast<int64_t>(), p[3].cast<int64_t>()};
}

}  // namespace

void bind_shapes(py::module_& m) {
  py::class_<GemmShape>(m, "GemmShape", py::module_local())
      .def(py::init([](const py::sequence& a, const py::sequence& b, bool transpose_a, bool transpose_b,
                       const std::string& precision) {
        return make_gemm_shape(to_dims(a), to_dims(b), transpose_a, transpose_b, make_precision(precision));
      }))
      .def_property_readonly("y", [](const GemmShape& s) { return dims_tuple({s.m, s.n}); });
  py::class_<Conv2dShape>(m, "Conv2dShape", py::module_local())
      .def(py::init([](const py::sequence& x, const py::sequence& w, const py::sequence& stride,
                       const py::sequence& dilation, const py::object& padding, const std::string& precision) {
        return make_conv2d_shape(to_dims(x), to_dims(w), to_pair(stride), to_pair(dilation), to_padding(padding),
                                 make_precision(precision));
      }))
      .def_property_readonly("y", [](const Conv2dShape& s) { return dims_tuple({s.n, s.ho, s.wo, s.k}); });
  py::class_<Pool2dShape>(m, "Pool2dShape", py::module_local())
      .def(py::init(
          [](const py::sequence& x, const py::sequence& window, const py::sequence& stride, const py::object& padding) {
            return make_pool2d_shape(to_dims(x), to_pair(window), to_pair(stride), to_padding(padding));
          }))
      .def_property_readonly("y", [](const Pool2dShape& s) { return dims_tuple({s.n, s.ho, s.wo, s.c}); });
  py::class_<ConvPoolShape>(m, "ConvPoolShape", py::module_local())
      .def(py::init(
          [](const Conv2dShape& conv, const py::sequence& window, const py::sequence& stride, const py::object& padding) {
            return make_conv_pool_shape(conv, to_pair(window), to_pair(stride), to_padding(padding));
          }))
      .def_property_readonly("y",
                             [](const ConvPoolShape& s) { return dims_tuple({s.pool.n, s.pool.ho, s.pool.wo, s.pool.c}); });
}

}  // namespace fastnn
