// fastnn._cuda, and fastnn._cuda_host: the same kernels on the host's processor, for tests.
#include <pybind11/stl.h>

#include "../array.h"
#include "../bindings.h"

#ifdef FASTNN_CUDA_HOST
#include "../cpu/parallel.h"
#include "../cuda_host/cuda_host.h"
#include "../cuda_host/faults.h"
#endif

FASTNN_DECLARE_TARGET(FASTNN_TARGET)

namespace fastnn {

const Kernels& kernels() {
  static const Kernels all = FASTNN_TARGET::make_kernels();
  return all;
}

#ifdef FASTNN_CUDA_HOST
const Memory kMemory = Memory::kAny;

PYBIND11_MODULE(_cuda_host, m, pybind11::mod_gil_not_used()) {
  m.doc() = "The CUDA kernels of fastnn executed on the host's processor, each CUDA thread a fiber: a check of their logic.";
  m.def("set_order_seed", &host::set_order_seed, "Of the random order in which the threads of a block take turns.");
  m.def("set_num_threads", &set_num_threads);
  m.def("get_num_threads", &get_num_threads);
  m.attr("sanitizer") = FASTNN_SANITIZER;
  m.def("faults", &FASTNN_TARGET::fault_names);
  m.def("run_fault", &FASTNN_TARGET::run_fault, "Of a kernel with a planted mistake, or of its fixed twin.");
  bind_shapes(m);
  bind_ops(m);
}
#else
const Memory kMemory = Memory::kDevice;

PYBIND11_MODULE(_cuda, m, pybind11::mod_gil_not_used()) {
  m.doc() = "CUDA kernels of fastnn; use them through fastnn.ops.";
  m.attr("architectures") = FASTNN_ARCHITECTURES;
  bind_shapes(m);
  bind_ops(m);
}
#endif

}  // namespace fastnn
