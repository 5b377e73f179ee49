// The call of a kernel: its arrays, and what is checked of them.
#pragma once

#include <deque>
#include <string>
#include <utility>

#include "array.h"
#include "bindings.h"
#include "tape.h"

namespace fastnn {

// The arrays of one call. All float arrays share a type, which decides the kernel's.
class Call {
 public:
  explicit Call(const char* op) : op_(op) {}

  const ArrayView* in(const char* name, py::handle array, const Sizes& shape) {
    return checked(name, array, Access::kRead, &shape);
  }
  const ArrayView* out(const char* name, py::handle array, const Sizes& shape) {
    return checked(name, array, Access::kWrite, &shape);
  }
  const ArrayView* in(const char* name, py::handle array) { return checked(name, array, Access::kRead, nullptr); }
  const ArrayView* out(const char* name, py::handle array) { return checked(name, array, Access::kWrite, nullptr); }
  const ArrayView* maybe_in(const char* name, py::handle array, const Sizes& shape) {
    return array.is_none() ? nullptr : in(name, array, shape);
  }

  const ArrayView* maybe_out(const char* name, py::handle array, const Sizes& shape) {
    return array.is_none() ? nullptr : out(name, array, shape);
  }

  const ArrayView* in_int32(const char* name, py::handle array, const Sizes& shape) {
    return integers('i', name, array, shape, Access::kRead);
  }
  const ArrayView* out_int32(const char* name, py::handle array, const Sizes& shape) {
    return integers('i', name, array, shape, Access::kWrite);
  }
  const ArrayView* in_uint8(const char* name, py::handle array, const Sizes& shape) {
    return integers('B', name, array, shape, Access::kRead);
  }
  const ArrayView* out_uint8(const char* name, py::handle array, const Sizes& shape) {
    return integers('B', name, array, shape, Access::kWrite);
  }

  // uint8, float32 or float64, whatever the kernel's type.
  const ArrayView* in_number(const char* name, py::handle array) {
    const ArrayView* v = view(name, array, Access::kRead, nullptr);
    if (v->dtype() == 'i')
      throw py::type_error(std::string(op_) + ": " + name + " must be uint8, float32 or float64, got int32");
    return v;
  }

  // Always float64, apart from the type that decides the kernel's.
  const ArrayView* in_float64(const char* name, py::handle array, const Sizes& shape) {
    const ArrayView* v = view(name, array, Access::kRead, &shape);
    if (v->dtype() != 'd')
      throw py::type_error(std::string(op_) + ": " + name + " must be float64, got " + type_name(v->dtype()));
    return v;
  }

  int64_t itemsize() const { return dtype_ == 'd' ? 8 : 4; }

  [[noreturn]] void fail(const std::string& what) const { throw py::value_error(std::string(op_) + ": " + what); }

  // Calls kernel(ops) with the ops of the arrays' type, without the GIL. The kernel holds what it needs by value: a tape may
  // keep it.
  template <class F>
  void run(F kernel) {
    for (const ArrayView& a : views_)
      for (const ArrayView& b : views_)
        if (&a != &b && a.written() && a.overlaps(b)) fail(std::string(a.name()) + " shares memory with " + b.name());
    const auto call = [kernel, dtype = dtype_] {
      if (dtype == 'f')
        kernel(kernels().float32);
      else
        kernel(kernels().float64);
    };
    if (Tape* tape = Tape::recording()) tape->add(call, std::move(views_));
    const py::gil_scoped_release release;
    call();
  }

 private:
  const ArrayView* view(const char* name, py::handle array, Access access, const Sizes* shape) {
    const ArrayView* v = &views_.emplace_back(op_, name, array, access);
    if (shape && !(v->shape() == *shape))
      fail(std::string(name) + " must have shape " + text(*shape) + ", got " + text(v->shape()));
    return v;
  }

  const ArrayView* checked(const char* name, py::handle array, Access access, const Sizes* shape) {
    const ArrayView* v = view(name, array, access, shape);
    const char dtype = v->dtype();
    if (dtype == 'i' || dtype == 'B')
      throw py::type_error(std::string(op_) + ": " + name + " must be float32 or float64, got " + type_name(dtype));
    if (!dtype_) dtype_ = dtype, first_ = name;
    if (dtype != dtype_)
      throw py::type_error(std::string(op_) + ": " + name + " is " + type_name(dtype) + " but " + first_ + " is " +
                           type_name(dtype_));
    return v;
  }

  const ArrayView* integers(char dtype, const char* name, py::handle array, const Sizes& shape, Access access) {
    const ArrayView* v = view(name, array, access, &shape);
    if (v->dtype() != dtype)
      throw py::type_error(std::string(op_) + ": " + name + " must be " + type_name(dtype) + ", got " +
                           type_name(v->dtype()));
    return v;
  }

  const char* op_;
  const char* first_ = nullptr;
  char dtype_ = 0;
  std::deque<ArrayView> views_;  // a deque never moves its elements
};

template <class T>
T* get(const ArrayView* v) {
  return v ? reinterpret_cast<T*>(v->data()) : nullptr;
}

inline Stream to_stream(uintptr_t stream) {
  return reinterpret_cast<Stream>(stream);
}

// sizes(ops) by the ops for elements of `itemsize` bytes: how many elements of workspace an op wants.
template <class F>
int64_t workspace_size(int64_t itemsize, F&& sizes) {
  return itemsize == 4 ? sizes(kernels().float32) : sizes(kernels().float64);
}

template <class F>
const ArrayView* workspace(Call& call, py::handle array, F&& sizes) {
  const ArrayView* v = call.out("workspace", array);
  const int64_t needed = workspace_size(call.itemsize(), sizes);
  if (v->size() < needed)
    call.fail("workspace has " + std::to_string(v->size()) + " elements, needs " + std::to_string(needed));
  return v;
}

// Rows and columns of an array whose last axis is its columns.
struct Matrix {
  int64_t rows, cols;
};

inline Matrix as_matrix(const Call& call, const ArrayView* v) {
  if (v->rank() == 0 || v->dim(-1) == 0)
    call.fail(std::string(v->name()) + " has no last axis or an empty one: shape " + text(v->shape()));
  return {v->size() / v->dim(-1), v->dim(-1)};
}

// As (batch, everything else).
inline Matrix as_batch(const Call& call, const ArrayView* v) {
  const Sizes shape = v->shape();
  if (shape.size() == 0 || (v->size() == 0 && shape[0] != 0))
    call.fail(std::string(v->name()) + " has nothing to average: shape " + text(shape));
  return {shape[0], shape.product(1, shape.size())};
}

}  // namespace fastnn
