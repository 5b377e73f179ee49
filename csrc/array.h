// What a binding sees of a Python array: address, shape, element type. Nothing is owned but the view itself, which keeps
// the memory from being freed or resized while a kernel runs without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "shapes.h"

namespace fastnn {

namespace py = pybind11;

enum class Access { kRead, kWrite };

// A C-contiguous host array of float32 ('f'), float64 ('d') or int32 ('i'), through the buffer protocol.
class ArrayView {
 public:
  ArrayView(const char* op, const char* name, py::handle object, Access access) : op_(op), name_(name), access_(access) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_FORMAT | PyBUF_STRIDES) != 0) throw py::error_already_set();
    const char* problem = nullptr;
    if (PyBuffer_IsContiguous(&view_, 'C') == 0) problem = " is not C-contiguous";
    if (reinterpret_cast<uintptr_t>(view_.buf) % uintptr_t(view_.itemsize)) problem = " is not aligned to its elements";
    if (access == Access::kWrite && view_.readonly) problem = " is read-only";
    if (problem) {
      PyBuffer_Release(&view_);
      throw py::value_error(std::string(op) + ": " + name + problem);
    }
  }
  ArrayView(const ArrayView&) = delete;
  ArrayView& operator=(const ArrayView&) = delete;
  ~ArrayView() { PyBuffer_Release(&view_); }

  const char* name() const { return name_; }
  bool written() const { return access_ == Access::kWrite; }
  char* data() const { return static_cast<char*>(view_.buf); }
  int64_t bytes() const { return view_.len; }
  int64_t size() const { return view_.len / view_.itemsize; }
  Dims shape() const { return Dims(view_.shape, view_.shape + view_.ndim); }
  int64_t dim(int i) const { return view_.shape[i < 0 ? view_.ndim + i : i]; }
  int rank() const { return view_.ndim; }

  // 'f', 'd' or 'i'; anything else, byte-swapped arrays included, is a TypeError.
  char dtype() const {
    std::string format = view_.format ? view_.format : "B";
    if (format.size() == 2 && (format[0] == '=' || format[0] == '@')) format.erase(0, 1);  // native in so many words
    if (format == "f" || format == "d") return format[0];
    if ((format == "i" || format == "l") && view_.itemsize == 4) return 'i';
    throw py::type_error(std::string(op_) + ": " + name_ + " has elements of an unsupported type (buffer format '" + format +
                         "')");
  }

  bool overlaps(const ArrayView& other) const {
    return data() < other.data() + other.bytes() && other.data() < data() + bytes();
  }

 private:
  const char* op_;
  const char* name_;
  Access access_;
  Py_buffer view_;
};

}  // namespace fastnn
