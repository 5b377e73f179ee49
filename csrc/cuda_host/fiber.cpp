#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <new>

#ifdef FASTNN_ASAN
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef FASTNN_TSAN  // this file itself is compiled without it
#include <sanitizer/tsan_interface.h>
#endif

#ifndef FASTNN_UCONTEXT
// The registers that a called function must keep go onto the stack, the stack pointer to *from, and all comes back from
// `to`. ucontext's swap would make two system calls.
extern "C" void fastnn_fiber_change(void** from, void* to) asm("fastnn_fiber_change");
#if defined(__x86_64__)  // System V ABI: at a function's first instruction the stack is 8 bytes off a multiple of 16
constexpr int kFrame = 8, kReturnAddress = 6;  // in pointers
asm(R"(
.text
fastnn_fiber_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else  // AArch64 (AAPCS64): x19 to x30 and the lower halves of v8 to v15
constexpr int kFrame = 20, kReturnAddress = 11;
asm(R"(
.text
.p2align 2
fastnn_fiber_change:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#endif
#endif

namespace fastnn::host {

Fiber::Fiber() {
#ifdef FASTNN_ASAN
  pthread_attr_t attributes;
  void* stack = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &stack_bytes_);
  pthread_attr_destroy(&attributes);
  stack_ = stack;
#endif
#ifdef FASTNN_TSAN
  tsan_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(size_t stack_bytes) : stack_bytes_(stack_bytes) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  map_bytes_ = stack_bytes + page;
  map_ = mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(map_, page, PROT_NONE);
  stack_ = static_cast<char*>(map_) + page;
#ifdef FASTNN_TSAN
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (!map_) return;
#ifdef FASTNN_TSAN
  __tsan_destroy_fiber(tsan_);
#endif
#ifdef FASTNN_ASAN
  __asan_unpoison_memory_region(stack_, stack_bytes_);  // whoever maps this address next knows nothing of the frames
#endif
  munmap(map_, map_bytes_);
}

void Fiber::prepare(void (*entry)()) {
#ifdef FASTNN_ASAN
  __asan_unpoison_memory_region(stack_, stack_bytes_);  // an abandoned fiber's frames
  fake_stack_ = nullptr;
#endif
#ifdef FASTNN_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = const_cast<void*>(stack_);
  context_.uc_stack.ss_size = stack_bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#else
  // As if fastnn_fiber_change had been called from a function that returns to entry.
  void** const end = reinterpret_cast<void**>(const_cast<char*>(static_cast<const char*>(stack_)) + stack_bytes_);
  void** const frame = end - kFrame;
  std::fill(frame, end, nullptr);
  frame[kReturnAddress] = reinterpret_cast<void*>(entry);
  top_ = frame;
#endif
}

void Fiber::change(Fiber& from, Fiber& to) {
#ifdef FASTNN_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_, to.stack_bytes_);
#endif
#ifdef FASTNN_TSAN
  __tsan_switch_to_fiber(to.tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef FASTNN_UCONTEXT
  swapcontext(&from.context_, &to.context_);
#else
  fastnn_fiber_change(&from.top_, to.top_);
#endif
  arrived(from);
}

void Fiber::arrived([[maybe_unused]] Fiber& here) {
#ifdef FASTNN_ASAN
  __sanitizer_finish_switch_fiber(here.fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace fastnn::host
