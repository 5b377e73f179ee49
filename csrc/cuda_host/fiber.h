// Stacks that take turns on one thread of the operating system, known to the sanitizers.
#pragma once

#include <cstddef>

#if defined(FASTNN_UCONTEXT) || !(defined(__x86_64__) || defined(__aarch64__))
#include <ucontext.h>
#define FASTNN_UCONTEXT 1
#endif

namespace fastnn::host {

class Fiber {
 public:
  Fiber();  // the thread's own stack; switch away from it first
  explicit Fiber(size_t stack_bytes);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The fiber will begin with entry(), which must never return; what was on its stack is forgotten.
  void prepare(void (*entry)());

  // Leaves `from` where it is and goes on with `to`.
  static void change(Fiber& from, Fiber& to);

  // First thing in entry(), and after every change(): tells AddressSanitizer where we are.
  static void arrived(Fiber& here);

 private:
  void* map_ = nullptr;  // a guard page, then the stack
  size_t map_bytes_ = 0, stack_bytes_ = 0;
  const void* stack_ = nullptr;  // lowest address
#ifdef FASTNN_UCONTEXT
  ucontext_t context_;
#else
  void* top_ = nullptr;  // stack pointer while the fiber sleeps
#endif
#ifdef FASTNN_ASAN
  void* fake_stack_ = nullptr;
#endif
#ifdef FASTNN_TSAN
  void* tsan_ = nullptr;
#endif
};

}  // namespace fastnn::host
