// The scheduler of one block's fibers. Compiled without ThreadSanitizer: its own data are touched by all fibers, one at a
// time, and what orders a kernel's threads is said to ThreadSanitizer here, at barriers and at a block's begin and end.
#include "cuda_host.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/parallel.h"
#include "fiber.h"

#ifdef FASTNN_TSAN
#include <sanitizer/tsan_interface.h>
#define FASTNN_RELEASE(tag) __tsan_release(tag)
#define FASTNN_ACQUIRE(tag) __tsan_acquire(tag)
#else
#define FASTNN_RELEASE(tag) (void)(tag)
#define FASTNN_ACQUIRE(tag) (void)(tag)
#endif

namespace fastnn::host {
namespace {

constexpr int kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStackBytes = 256 * 1024;
#ifdef FASTNN_ASAN
constexpr size_t kCanary = 0;  // AddressSanitizer sees the access itself
#else
constexpr size_t kCanary = 64;  // bytes behind a shared array that must stay as they were
#endif

std::atomic<uint64_t> order_seed{1};

std::string at(Where where) {
  const std::string file = where.file;
  return std::string(where.function) + " (" + file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line) + ")";
}

// One launch, shared by all threads of the operating system that run its blocks.
struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  void (*body)(const void*);
  const void* context;
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::string error;  // the first, under the mutex

  void report(const std::string& what) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!failed.exchange(true)) error = what;
  }
};

enum class State { kRunnable, kAtBarrier, kInMeeting, kDone };

struct Group {
  int number;  // copies committed together, in the order of their commits
  AsyncCopy copy;
};

struct Thread {
  Lane lane;
  State state;
  Fiber* fiber;  // null before its first turn and after its last
  Where where;
  std::deque<Group> copies;
  int commits;
};

struct Warp {
  int waiting;
  void* messages[kWarp];
  unsigned meetings;
  char tags[2];
};

// Runs blocks, one at a time, on one thread of the operating system.
class Runner {
 public:
  void run(Launch& launch, int64_t block);
  Lane& lane() { return current_->lane; }
  void* shared_array(int index, size_t bytes);
  void barrier(Where where);
  void meeting(void* message, void (*work)(void* const*), bool orders_memory, Where where);
  [[noreturn]] void fail(const std::string& what);
  Thread& current() { return *current_; }

 private:
  static void entry();
  void park(State state, Where where);
  void wake(int thread) { threads_[thread].state = State::kRunnable, runnable_.push_back(thread); }
  void take_turns();
  void stuck();
  uint64_t random() {  // xorshift64* (Marsaglia 2003, Vigna 2016)
    random_ ^= random_ >> 12, random_ ^= random_ << 25, random_ ^= random_ >> 27;
    return random_ * UINT64_C(2685821657736338717) >> 32;
  }

  Fiber own_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> runnable_;
  std::vector<std::pair<std::unique_ptr<char[]>, size_t>> arrays_;
  size_t shared_used_ = 0;
  Launch* launch_ = nullptr;
  Thread* current_ = nullptr;
  int done_ = 0, at_barrier_ = 0;
  uint64_t random_ = 1;
  unsigned barriers_ = 0;
  // What ThreadSanitizer hangs an order on: of a block's begin and end, of the making of its arrays, of its barriers. Of
  // barriers two by turns: a thread that goes on late from one must not be ordered after those that are at the next.
  char begin_tag_ = 0, end_tag_ = 0, arrays_tag_ = 0, barrier_tags_[2] = {};
};

Runner& runner() {
  thread_local Runner mine;
  return mine;
}

void Runner::entry() {
  Runner& self = runner();
  Fiber::arrived(*self.current_->fiber);
  FASTNN_ACQUIRE(&self.begin_tag_);
  self.launch_->body(self.launch_->context);
  self.park(State::kDone, Where{});
}

void Runner::run(Launch& launch, int64_t block) {
  launch_ = &launch;
  const dim3 g = launch.grid, b = launch.block;
  const dim3 index(unsigned(block % g.x), unsigned(block / g.x % g.y), unsigned(block / g.x / g.y));
  const int count = int(b.x * b.y * b.z);
  threads_.assign(size_t(count), Thread{});
  warps_.assign(size_t(count + kWarp - 1) / kWarp, Warp{});
  runnable_.resize(size_t(count));
  random_ = (order_seed.load() * UINT64_C(0x9E3779B97F4A7C15) ^ (uint64_t(block) + 1) * UINT64_C(0xBF58476D1CE4E5B9)) | 1;
  for (int i = 0; i < count; ++i) {
    const dim3 thread(unsigned(i) % b.x, unsigned(i) / b.x % b.y, unsigned(i) / b.x / b.y);
    threads_[i].lane = {thread, index, b, g, i};
    threads_[i].state = State::kRunnable;
    runnable_[i] = i;
  }
  done_ = at_barrier_ = 0;
  FASTNN_RELEASE(&begin_tag_);
  take_turns();
  FASTNN_ACQUIRE(&end_tag_);
  if (done_ < count) {  // given up: their fibers begin anew
    free_.clear();
    for (const auto& fiber : fibers_) free_.push_back(fiber.get());
  }
  for (const auto& [array, bytes] : arrays_)
    if (std::any_of(array.get() + bytes, array.get() + bytes + kCanary, [](char c) { return c != char(0xFF); }))
      launch.report("a kernel wrote behind a shared array of " + std::to_string(bytes) + " bytes");
  arrays_.clear();
  shared_used_ = 0;
}

void Runner::take_turns() {
  while (done_ < int(threads_.size()) && !launch_->failed.load(std::memory_order_relaxed)) {
    if (runnable_.empty()) return stuck();
    std::swap(runnable_[random() % runnable_.size()], runnable_.back());
    current_ = &threads_[runnable_.back()];
    runnable_.pop_back();
    if (!current_->fiber) {
      if (free_.empty()) {
        fibers_.push_back(std::make_unique<Fiber>(kStackBytes));
        free_.push_back(fibers_.back().get());
      }
      current_->fiber = free_.back();
      free_.pop_back();
      current_->fiber->prepare(entry);
    }
    Fiber::change(own_, *current_->fiber);
    if (current_->state == State::kDone) {
      ++done_;
      free_.push_back(current_->fiber);
    }
  }
}

// No thread can go on, and some have not ended: says where they wait.
void Runner::stuck() {
  std::map<std::string, int> places;
  for (const Thread& t : threads_)
    if (t.state != State::kDone)
      ++places[(t.state == State::kAtBarrier ? "at the barrier of " : "for its warp in ") + at(t.where)];
  std::string what = "not all threads of a block reach the same barrier:";
  for (const auto& [place, count] : places) what += " " + std::to_string(count) + " wait " + place + ",";
  launch_->report(what + " " + std::to_string(done_) + " of " + std::to_string(threads_.size()) + " have ended");
}

void Runner::park(State state, Where where) {
  current_->state = state, current_->where = where;
  FASTNN_RELEASE(&end_tag_);
  Fiber::change(*current_->fiber, own_);
}

void Runner::fail(const std::string& what) {
  launch_->report(what);
  park(State::kInMeeting, Where{});
  __builtin_unreachable();  // the launch has failed: nobody comes back here
}

void Runner::barrier(Where where) {
  char* const tag = &barrier_tags_[barriers_ % 2];
  FASTNN_RELEASE(tag);
  if (++at_barrier_ == int(threads_.size())) {
    for (Thread& t : threads_)
      if (&t != current_ && t.where.line != where.line)
        fail("threads of a block wait at different barriers: one at " + at(where) + ", one at " + at(t.where));
    at_barrier_ = 0;
    ++barriers_;
    for (int i = 0; i < int(threads_.size()); ++i)
      if (&threads_[i] != current_) wake(i);
    runnable_.push_back(current_->lane.id);  // and this one takes its turn among them
    park(State::kRunnable, where);
  } else {
    park(State::kAtBarrier, where);
  }
  FASTNN_ACQUIRE(tag);
}

void Runner::meeting(void* message, void (*work)(void* const*), bool orders_memory, Where where) {
  const int first = current_->lane.id / kWarp * kWarp;
  if (first + kWarp > int(threads_.size())) fail("a warp of fewer than 32 threads meets in " + at(where));
  Warp& warp = warps_[first / kWarp];
  char* const tag = &warp.tags[warp.meetings % 2];
  if (orders_memory) FASTNN_RELEASE(tag);
  warp.messages[current_->lane.id - first] = message;
  current_->where = where;
  if (++warp.waiting == kWarp) {
    for (int i = first; i < first + kWarp; ++i)
      if (threads_[i].where.line != where.line)
        fail("threads of a warp meet at different lines: one at " + at(where) + ", one at " + at(threads_[i].where));
    warp.waiting = 0;
    ++warp.meetings;
    work(warp.messages);
    for (int i = first; i < first + kWarp; ++i)
      if (i != current_->lane.id) wake(i);
    runnable_.push_back(current_->lane.id);
    park(State::kRunnable, where);
  } else {
    park(State::kInMeeting, where);
  }
  if (orders_memory) FASTNN_ACQUIRE(tag);
}

void* Runner::shared_array(int index, size_t bytes) {
  if (size_t(index) == arrays_.size()) {
    shared_used_ += (bytes + 15) / 16 * 16;
    if (shared_used_ > launch_->shared_bytes)
      fail("a kernel takes " + std::to_string(shared_used_) + " bytes of shared memory, launched with " +
           std::to_string(launch_->shared_bytes));
    arrays_.emplace_back(new char[bytes + kCanary], bytes);
    std::fill_n(arrays_.back().first.get(), bytes + kCanary, char(0xFF));  // NaN as float and as double, -1 as an integer
    FASTNN_RELEASE(&arrays_tag_);
  }
  FASTNN_ACQUIRE(&arrays_tag_);
  if (arrays_[index].second != bytes) fail("the threads of a block carve its shared memory differently");
  return arrays_[index].first.get();
}

}  // namespace

Lane& lane() {
  return runner().lane();
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*), const void* context) {
  const int64_t threads = int64_t(block.x) * block.y * block.z;
  if (threads < 1 || threads > kMaxThreads || block.z > 64)
    throw std::runtime_error("a launch of " + std::to_string(threads) + " threads a block");
  if (grid.x >= 1u << 31 || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("a launch beyond CUDA's limits: grid (" + std::to_string(grid.x) + ", " +
                             std::to_string(grid.y) + ", " + std::to_string(grid.z) + ")");
  if (shared_bytes > 227 * 1024) throw std::runtime_error("a launch with " + std::to_string(shared_bytes) + " shared bytes");
  Launch launch{grid, block, shared_bytes, body, context, {}, {}, {}};
  parallel_for(int64_t(grid.x) * grid.y * grid.z, [&](int64_t index) {
    if (!launch.failed.load(std::memory_order_relaxed)) runner().run(launch, index);
  });
  if (launch.failed) throw std::runtime_error(launch.error);
}

void* shared_array(int index, size_t bytes) {
  return runner().shared_array(index, bytes);
}

void block_barrier(Where where) {
  runner().barrier(where);
}

void warp_meeting(void* message, void (*work)(void* const*), bool orders_memory, Where where) {
  runner().meeting(message, work, orders_memory, where);
}

void fail(const char* what, Where where) {
  runner().fail(std::string(what) + ": " + at(where));
}

void async_copy(AsyncCopy copy) {
  Thread& t = runner().current();
  t.copies.push_back({t.commits, copy});
}

void async_commit() {
  ++runner().current().commits;
}

bool async_landing(int pending, AsyncCopy& copy) {
  Thread& t = runner().current();
  if (t.copies.empty() || t.copies.front().number >= t.commits - pending) return false;
  copy = t.copies.front().copy;
  t.copies.pop_front();
  return true;
}

void set_order_seed(uint64_t seed) {
  order_seed = seed;
}

}  // namespace fastnn::host
