// What a binding sees of a Python array: address, shape, element type. Nothing is owned but the view itself, which keeps
// the memory from being freed or resized while a kernel runs without the GIL.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>

#include "shapes.h"

namespace fastnn {

namespace py = pybind11;

enum class Access { kRead, kWrite };

// Where the arrays of a module lie. The host execution of the CUDA kernels takes both kinds.
enum class Memory { kHost, kDevice, kAny };
extern const Memory kMemory;  // defined by each module

inline const char* type_name(char dtype) {
  return dtype == 'f' ? "float32" : dtype == 'd' ? "float64" : dtype == 'i' ? "int32" : "uint8";
}

// Lengths of axes that lie elsewhere: of an array, or of what it is compared with for the length of a call.
class Sizes {
 public:
  Sizes(std::initializer_list<int64_t> sizes) { begin_ = std::data(sizes), rank_ = sizes.size(); }
  template <size_t N>
  Sizes(const std::array<int64_t, N>& sizes) : begin_(sizes.data()), rank_(N) {}
  Sizes(const Dims& sizes) : begin_(sizes.data()), rank_(sizes.size()) {}
  Sizes(const int64_t* begin, size_t rank) : begin_(begin), rank_(rank) {}

  size_t size() const { return rank_; }
  Dims dims() const { return Dims(begin_, begin_ + rank_); }
  Sizes without_first() const { return {begin_ + 1, rank_ - 1}; }
  int64_t product(size_t begin, size_t end) const {  // of the lengths of axes [begin, end)
    return std::accumulate(begin_ + begin, begin_ + end, int64_t(1), std::multiplies<>());
  }
  int64_t operator[](size_t i) const { return begin_[i]; }
  bool operator==(const Sizes& other) const {
    return rank_ == other.rank_ && std::equal(begin_, begin_ + rank_, other.begin_);
  }
  friend std::string text(const Sizes& s) { return text(s.dims()); }

 private:
  const int64_t* begin_;
  size_t rank_;
};

// A C-contiguous array of float32 ('f'), float64 ('d'), int32 ('i') or uint8 ('B'): of the host through the buffer protocol,
// of a GPU through the CUDA Array Interface (https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html).
class ArrayView {
 public:
  ArrayView(const char* op, const char* name, py::handle object, Access access) : op_(op), name_(name), access_(access) {
    // A NumPy array is known by its type. Of others the interface decides: a CuPy array has the buffer protocol, too, which
    // refuses unless the host can read its memory.
    const py::object interface =
        py::isinstance<py::array>(object) ? py::none() : py::getattr(object, "__cuda_array_interface__", py::none());
    const bool device = !interface.is_none();
    if (device && kMemory == Memory::kHost) fail<py::type_error>("is on a GPU, where other arrays of the call are not");
    if (!device && kMemory == Memory::kDevice) fail<py::type_error>("is in host memory, where other arrays are on a GPU");
    if (device)
      read_interface(object, interface);
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
  Sizes shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[size_t(i < 0 ? rank() + i : i)]; }
  int rank() const { return int(shape_.size()); }

  // 'f', 'd', 'i' or 'B'; anything else, byte-swapped arrays included, is a TypeError.
  char dtype() const {
    if (!dtype_) fail<py::type_error>("has elements of an unsupported type (" + type() + ")");
    return dtype_;
  }

  bool overlaps(const ArrayView& other) const {
    return data() < other.data() + other.bytes() && other.data() < data() + bytes();
  }

  // Keeps the memory no longer, only what it was like.
  void let_go() {
    sizes_ = shape_.dims(), shape_ = sizes_;
    buffer_.release(), owner_ = py::object();
  }
  // From now on other memory, of an array of this one's size and type, which must outlive its use.
  void move_to(char* data) { data_ = data; }

 private:
  struct Buffer {
    Py_buffer view{};
    bool held = false;
    ~Buffer() { release(); }
    void release() {
      if (std::exchange(held, false)) PyBuffer_Release(&view);
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
    static_assert(sizeof(Py_ssize_t) == sizeof(int64_t));
    shape_ = Sizes(reinterpret_cast<const int64_t*>(view.shape), size_t(view.ndim));
    itemsize_ = view.itemsize;
    size_ = view.len / view.itemsize;
    std::string_view format = view.format ? view.format : "B";
    if (format.size() == 2 && (format[0] == '=' || format[0] == '@')) format.remove_prefix(1);  // native in so many words
    if (format == "f" || format == "d" || format == "B") dtype_ = format[0];
    if ((format == "i" || format == "l") && view.itemsize == 4) dtype_ = 'i';
  }

  std::string type() const {
    if (!buffer_.held) return "'" + type_ + "'";
    return std::string("buffer format '") + (buffer_.view.format ? buffer_.view.format : "B") + "'";
  }

  void read_interface(py::handle object, const py::dict& interface) {
    owner_ = py::reinterpret_borrow<py::object>(object);
    const auto data = interface["data"].cast<std::pair<uintptr_t, bool>>();
    if (written() && data.second) fail<py::value_error>("is read-only");
    data_ = reinterpret_cast<char*>(data.first);
    size_ = 1;
    for (const py::handle n : interface["shape"]) sizes_.push_back(n.cast<int64_t>()), size_ *= sizes_.back();
    shape_ = sizes_;
    const std::string& type = type_ = interface["typestr"].cast<std::string>();
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
  Dims sizes_;  // of a GPU's array; a buffer has its own
  Sizes shape_{sizes_};
  int64_t itemsize_ = 1, size_ = 0;
  std::string type_;  // of a GPU's array
  char dtype_ = 0;
};

}  // namespace fastnn
