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

// Where the arrays of a module lie. The host execution of the CUDA kernels takes both kinds.
enum class Memory { kHost, kDevice, kAny };
#ifndef FASTNN_MEMORY
#define FASTNN_MEMORY kHost
#endif

// A C-contiguous array of float32 ('f'), float64 ('d'), int32 ('i') or uint8 ('B'): of the host through the buffer protocol,
// of a GPU through the CUDA Array Interface (https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html).
class ArrayView {
 public:
  ArrayView(const char* op, const char* name, py::handle object, Access access) : op_(op), name_(name), access_(access) {
    constexpr Memory kMemory = Memory::FASTNN_MEMORY;
    const bool device = py::hasattr(object, "__cuda_array_interface__");
    if (device && kMemory == Memory::kHost) fail<py::type_error>("is on a GPU, where other arrays of the call are not");
    if (!device && kMemory == Memory::kDevice) fail<py::type_error>("is in host memory, where other arrays are on a GPU");
    if (device)
      read_interface(object);
    else
      read_buffer(object);
    if (reinterpret_cast<uintptr_t>(data_) % uintptr_t(itemsize_)) fail<py::value_error>("is not aligned to its elements");
  }
  ArrayView(const ArrayView&) = delete;
  ArrayView& operator=(const ArrayView&) = delete;

  const char* name() const { return name_; }
  bool written() const { return access_ == Access::kWrite; }
  char* data() const { return data_; }
  int64_t bytes() const { return size_ * itemsize_; }
  int64_t size() const { return size_; }
  const Dims& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[size_t(i < 0 ? rank() + i : i)]; }
  int rank() const { return int(shape_.size()); }

  // 'f', 'd', 'i' or 'B'; anything else, byte-swapped arrays included, is a TypeError.
  char dtype() const {
    if (!dtype_) fail<py::type_error>("has elements of an unsupported type (" + type_ + ")");
    return dtype_;
  }

  bool overlaps(const ArrayView& other) const {
    return data() < other.data() + other.bytes() && other.data() < data() + bytes();
  }

 private:
  struct Buffer {
    Py_buffer view{};
    bool held = false;
    ~Buffer() {
      if (held) PyBuffer_Release(&view);
    }
  };

  template <class E>
  [[noreturn]] void fail(const std::string& problem) const {
    throw E(std::string(op_) + ": " + name_ + " " + problem);
  }

  void read_buffer(py::handle object) {
    Py_buffer& view = buffer_.view;
    if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_FORMAT | PyBUF_STRIDES) != 0) throw py::error_already_set();
    buffer_.held = true;
    if (PyBuffer_IsContiguous(&view, 'C') == 0) fail<py::value_error>("is not C-contiguous");
    if (written() && view.readonly) fail<py::value_error>("is read-only");
    data_ = static_cast<char*>(view.buf);
    shape_.assign(view.shape, view.shape + view.ndim);
    itemsize_ = view.itemsize;
    size_ = view.len / view.itemsize;
    std::string format = view.format ? view.format : "B";
    type_ = "buffer format '" + format + "'";
    if (format.size() == 2 && (format[0] == '=' || format[0] == '@')) format.erase(0, 1);  // native in so many words
    if (format == "f" || format == "d" || format == "B") dtype_ = format[0];
    if ((format == "i" || format == "l") && view.itemsize == 4) dtype_ = 'i';
  }

  void read_interface(py::handle object) {
    owner_ = py::reinterpret_borrow<py::object>(object);
    const py::dict interface = object.attr("__cuda_array_interface__");
    const auto data = interface["data"].cast<std::pair<uintptr_t, bool>>();
    if (written() && data.second) fail<py::value_error>("is read-only");
    data_ = reinterpret_cast<char*>(data.first);
    size_ = 1;
    for (const py::handle n : interface["shape"]) shape_.push_back(n.cast<int64_t>()), size_ *= shape_.back();
    const std::string type = interface["typestr"].cast<std::string>();
    type_ = "'" + type + "'";
    itemsize_ = type == "<f8" ? 8 : type == "|u1" ? 1 : 4;
    dtype_ = type == "<f4" ? 'f' : type == "<f8" ? 'd' : type == "<i4" ? 'i' : type == "|u1" ? 'B' : char(0);
    if (interface.contains("strides") && !interface["strides"].is_none() && size_ > 0) {
      const py::tuple strides = interface["strides"];
      int64_t step = itemsize_;
      for (size_t i = shape_.size(); i-- > 0; step *= shape_[i])
        if (shape_[i] != 1 && strides[i].cast<int64_t>() != step) fail<py::value_error>("is not C-contiguous");
    }
  }

  const char* op_;
  const char* name_;
  Access access_;
  Buffer buffer_;  // one of the two keeps the memory
  py::object owner_;
  char* data_ = nullptr;
  Dims shape_;
  int64_t itemsize_ = 1, size_ = 0;
  std::string type_;
  char dtype_ = 0;
};

}  // namespace fastnn
