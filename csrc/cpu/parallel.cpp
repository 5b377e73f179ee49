#include "parallel.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace fastnn {

struct alignas(64) Items::Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

// Its own share first, the same part of the work in every kernel: what a thread wrote it finds in its cache. Then what is
// left of the others'.
int64_t Items::next() {
  for (; tried_ < count_; ++tried_) {
    Share& share = shares_[(own_ + tried_) % count_];
    if (const int64_t item = share.next.fetch_add(1, std::memory_order_relaxed); item < share.end) return item;
  }
  return -1;
}

namespace {

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__linux__)
inline int this_cpu() {
  return sched_getcpu();
}
// Leaves processor `cpu` where another one is allowed. The scheduler may wake a worker on its caller's own processor, where
// it gets a turn only after milliseconds, and keep doing so for as long as the regions are short.
void leave_cpu(int cpu) {
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof all, &all) != 0 || cpu < 0 || cpu >= CPU_SETSIZE || CPU_COUNT(&all) < 2) return;
  cpu_set_t others = all;
  CPU_CLR(cpu, &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof all, &all);
}
#else
inline int this_cpu() {
  return -1;
}
inline void leave_cpu(int) {}
#endif

// How long a thread looks before it sleeps: longer than Python takes from one step of training to the next, as to wake up
// takes some ten microseconds more. After a few tens, about the time from one kernel to the next, whoever else has work may
// have its processor.
constexpr std::chrono::microseconds kPatience(500), kAlone(25);

// Looks until done(), or until it has lost patience; whether done.
template <class F>
bool spin_until(F done) {
  constexpr int kLooks = 16;  // between two looks at the clock
  for (const auto begin = std::chrono::steady_clock::now();;) {
    for (int look = 0; look < kLooks; ++look, pause_cpu())
      if (done()) return true;
    const auto spent = std::chrono::steady_clock::now() - begin;
    if (spent > kPatience) return false;
    if (spent > kAlone) std::this_thread::yield();
  }
}

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads), shares_(new Items::Share[size_t(threads)]) {}

  int threads() const { return threads_; }

  void run(int64_t count, void (*body)(void*, Items&), void* context) {
    std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
    if (threads_ == 1 || count <= 1 || !lock.try_lock() || stopping_.load(std::memory_order_relaxed)) {
      Items::Share all{0, count};
      Items items(&all, 1, 0);
      body(context, items);
      return;
    }
    start_workers();
    body_ = body, context_ = context;
    caller_cpu_.store(this_cpu(), std::memory_order_relaxed);
    for (int64_t i = 0; i < threads_; ++i) {
      shares_[i].next.store(count * i / threads_, std::memory_order_relaxed);
      shares_[i].end = count * (i + 1) / threads_;
    }
    members_.fetch_sub(kClosed, std::memory_order_release);  // open: workers may join
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    take_items(0);
    // Closed, so that a worker that wakes up late stays out: the caller waits for members only, never for a sleeper.
    members_.fetch_add(kClosed, std::memory_order_acq_rel);
    int seen = 0;
    const auto closed = [&] { return (seen = members_.load(std::memory_order_acquire)) == kClosed; };
    if (!spin_until(closed))
      while (!closed()) members_.wait(seen, std::memory_order_acquire);
  }

  // Ends the workers; the caller holds no region open.
  void stop() {
    std::lock_guard<std::mutex> lock(busy_);
    stopping_.store(true, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    for (int i = 0; i < started_; ++i) workers_[i].join();
    delete[] workers_;
    workers_ = nullptr, started_ = 0;
  }

 private:
  void start_workers() {
    if (workers_) return;
    workers_ = new std::thread[threads_ - 1];
    for (; started_ < threads_ - 1; ++started_) {
      try {
        workers_[started_] = std::thread([this, index = started_ + 1] { work(index); });
      } catch (const std::system_error&) {
        break;  // the system gives no more threads: fewer do the same work, with the same bits
      }
    }
  }

  void take_items(int index) {
    Items items(shares_.get(), threads_, index);
    body_(context_, items);
  }

  void work(int index) {
    uint32_t seen = 0;
    for (;;) {
      if (!spin_until([&] { return epoch_.load(std::memory_order_acquire) != seen; }))
        epoch_.wait(seen, std::memory_order_acquire);
      seen = epoch_.load(std::memory_order_acquire);
      if (stopping_.load(std::memory_order_relaxed)) return;
      // Even where the region is over: a worker that never gets its turn in time must move, too.
      if (const int cpu = caller_cpu_.load(std::memory_order_relaxed); cpu >= 0 && cpu == this_cpu()) leave_cpu(cpu);
      if (!(members_.fetch_add(1, std::memory_order_acquire) & kClosed)) take_items(index);
      if (members_.fetch_sub(1, std::memory_order_acq_rel) == kClosed + 1) members_.notify_all();
    }
  }

  static constexpr int kClosed = 1 << 30;
  const int threads_;
  const std::unique_ptr<Items::Share[]> shares_;  // items that a thread takes first
  std::mutex busy_;                               // held by the caller whose items the workers take
  std::thread* workers_ = nullptr;
  int started_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<uint32_t> epoch_{0};     // counts regions; what workers sleep on
  std::atomic<int> members_{kClosed};  // workers inside the open region, plus kClosed while none is open
  void (*body_)(void*, Items&) = nullptr;
  void* context_ = nullptr;
  std::atomic<int> caller_cpu_{-1};
};

int available_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count ? int(count) : 1;
}

// The pool is never destroyed: its threads sleep until the process ends. A fork leaves the child without them (and maybe
// with a held lock), so the child starts over with a pool of its own.
std::atomic<Pool*> current{nullptr};
std::mutex resize;

Pool* pool() {
  Pool* p = current.load(std::memory_order_acquire);
  if (p) return p;
  Pool* fresh = new Pool(available_cpus());
  if (!current.compare_exchange_strong(p, fresh)) {
    delete fresh;
    return p;
  }
  pthread_atfork([] { resize.lock(); }, [] { resize.unlock(); },
                 [] {
                   resize.unlock();
                   current.store(new Pool(current.load()->threads()));
                 });
  return fresh;
}

}  // namespace

int get_num_threads() {
  return pool()->threads();
}

void set_num_threads(int count) {
  std::lock_guard<std::mutex> lock(resize);
  Pool* old = pool();
  if (old->threads() == count) return;
  current.store(new Pool(count), std::memory_order_release);
  old->stop();  // not deleted: another thread may still be on its way into run()
}

void run_items(int64_t count, void (*body)(void*, Items&), void* context) {
  pool()->run(count, body, context);
}

}  // namespace fastnn
