// fastnn._cpu: the kernels compiled for several instruction sets, one of which is bound when the module loads: the best
// that this processor has, or the one that FASTNN_ISA names.
#include <cstdlib>
#include <string>
#include <vector>

#include "../array.h"
#include "../bindings.h"
#include "parallel.h"

FASTNN_DECLARE_TARGET(cpu_baseline)
#ifdef FASTNN_AVX2
FASTNN_DECLARE_TARGET(cpu_avx2)
#endif
#ifdef FASTNN_AVX512
FASTNN_DECLARE_TARGET(cpu_avx512)
#endif

namespace fastnn {

const Memory kMemory = Memory::kHost;

namespace {

struct Isa {
  const char* name;
  bool supported;
  Kernels (*make_kernels)();
};

Kernels chosen_kernels;  // written once, by the module's initialization

// Those of this build, best last.
std::vector<Isa> instruction_sets() {
#if defined(FASTNN_AVX2) || defined(FASTNN_AVX512)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  std::vector<Isa> sets{{"baseline", true, cpu_baseline::make_kernels}};
#ifdef FASTNN_AVX2
  sets.push_back({"avx2", avx2, cpu_avx2::make_kernels});
#endif
#ifdef FASTNN_AVX512
  sets.push_back({"avx512",
                  avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"),
                  cpu_avx512::make_kernels});
#endif
  return sets;
}

}  // namespace

const Kernels& kernels() {
  return chosen_kernels;
}

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
  m.doc() = "CPU kernels of fastnn; use them through fastnn.ops.";
  const char* wanted = std::getenv("FASTNN_ISA");
  py::list names;
  const std::vector<Isa> sets = instruction_sets();
  const Isa* chosen = nullptr;
  for (const Isa& isa : sets) {
    if (!isa.supported) continue;
    names.append(isa.name);
    if (!wanted || !*wanted || isa.name == std::string(wanted)) chosen = &isa;
  }
  if (!chosen)
    throw py::import_error("FASTNN_ISA=" + std::string(wanted) +
                           " is not among the instruction sets of this build and processor: " +
                           py::str(", ").attr("join")(names).cast<std::string>());
  m.attr("isa") = chosen->name;
  m.attr("isas") = names;
  chosen_kernels = chosen->make_kernels();
  bind_shapes(m);
  bind_ops(m);
  m.def("set_num_threads", &set_num_threads);
  m.def("get_num_threads", &get_num_threads);
}

}  // namespace fastnn
