// Threads of the CPU backend. A kernel splits its sums by its shape alone and each item writes its own part of the output,
// so which thread takes which item, and how many threads there are, cannot change a bit of the result.
#pragma once

#include <cstdint>

namespace fastnn {

void set_num_threads(int count);
int get_num_threads();

// Calls body(context, item) once for each item in [0, items), on the caller and the pool's workers; returns when all are
// done. A second caller at the same time runs its items alone, as does a body that calls in again.
void run_items(int64_t items, void (*body)(void* context, int64_t item), void* context);

template <class F>
void parallel_for(int64_t items, F&& f) {
  run_items(items, [](void* context, int64_t item) { (*static_cast<F*>(context))(item); }, &f);
}

// parallel_for over [0, size) in chunks: f(begin, end). `grain` is the fewest elements worth a thread's while.
template <class F>
void parallel_chunks(int64_t size, int64_t grain, F&& f) {
  parallel_for((size + grain - 1) / grain, [&](int64_t item) {
    const int64_t begin = item * grain;
    f(begin, begin + grain < size ? begin + grain : size);
  });
}

}  // namespace fastnn
