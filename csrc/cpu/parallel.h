// Threads of the CPU backend. A kernel splits its sums by its shape alone and each item writes its own part of the output,
// so which thread takes which item, and how many threads there are, cannot change a bit of the result.
#pragma once

#include <cstdint>

namespace fastnn {

void set_num_threads(int count);
int get_num_threads();

// What a thread takes items from, each item once in all.
class Items {
 public:
  struct Share;  // parallel.cpp
  Items(Share* shares, int count, int own) : shares_(shares), count_(count), own_(own) {}
  int64_t next();  // -1: none is left

 private:
  Share* const shares_;
  const int count_, own_;
  int tried_ = 0;  // shares in which there is nothing left
};

// Calls body(context, items) on the caller and on those of the pool's workers that come in time, for all items in [0,
// count); returns when all are done. A second caller at the same time takes its items alone, as does a body that calls in
// again.
void run_items(int64_t count, void (*body)(void* context, Items& items), void* context);

// The same for a body(items) of any type.
template <class Body>
void run_items(int64_t count, Body body) {
  run_items(count, [](void* context, Items& items) { (*static_cast<Body*>(context))(items); }, &body);
}

// Each thread that has an item keeps what make() gives while it does f(kept, item) for one after the other.
template <class Make, class F>
void parallel_for(int64_t count, Make make, F f) {
  run_items(count, [&](Items& items) {
    int64_t item = items.next();
    if (item < 0) return;
    auto kept = make();
    for (; item >= 0; item = items.next()) f(kept, item);
  });
}

// f(item) for each item in [0, count).
template <class F>
void parallel_for(int64_t count, F&& f) {
  run_items(count, [&](Items& items) {
    for (int64_t item; (item = items.next()) >= 0;) f(item);
  });
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
