// This machine's ceilings: float32 multiply-adds on registers, and memory traffic over arrays of several sizes.
//
//     c++ -O3 -march=native -std=c++17 -pthread bench/peak.cpp -o peak && ./peak THREADS
//
// Prints one JSON object: for 1 and for THREADS threads, GFLOP/s of each vector width that the processor has, and GB/s of
// a[i] = b[i] + s * c[i] (what is read and written by the program; lines read because they are written do not count), the
// best of several repetitions of some ten milliseconds each: a ceiling is what the machine can do.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

namespace {

constexpr int kRepetitions = 7;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds of work(thread) on so many threads, begun at once; the least of the repetitions.
double seconds(int threads, const std::function<void(int)>& work) {
  std::vector<double> times;
  for (int r = 0; r <= kRepetitions; ++r) {  // the first one warms up
    std::atomic<int> waiting{threads};
    std::vector<double> begin(threads), end(threads);
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t)
      pool.emplace_back([&, t] {
        for (--waiting; waiting > 0;) {
        }
        begin[t] = now();
        work(t);
        end[t] = now();
      });
    for (auto& thread : pool) thread.join();
    if (r) times.push_back(*std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end()));
  }
  return *std::min_element(times.begin(), times.end());
}

volatile float sink;

// Twelve sums: two multiply-adds a cycle, each with a latency of four or five, need ten. By name, because compilers put
// arrays of sums into memory; from values that the compiler cannot know to be the same, or it would compute one sum.
typedef float Vector16 __attribute__((vector_size(16)));
typedef float Vector32 __attribute__((vector_size(32)));
typedef float Vector64 __attribute__((vector_size(64)));

template <class Vector>
void multiply_adds(long rounds) {
  auto any = [] { return Vector{} + sink; };
  Vector a = any() + 0.5f, b = any() + 0.25f, s0 = any(), s1 = any(), s2 = any(), s3 = any(), s4 = any(), s5 = any();
  Vector s6 = any(), s7 = any(), s8 = any(), s9 = any(), s10 = any(), s11 = any();
  for (long r = 0; r < rounds; ++r) {
    s0 = s0 * a + b, s1 = s1 * a + b, s2 = s2 * a + b, s3 = s3 * a + b, s4 = s4 * a + b, s5 = s5 * a + b;
    s6 = s6 * a + b, s7 = s7 * a + b, s8 = s8 * a + b, s9 = s9 * a + b, s10 = s10 * a + b, s11 = s11 * a + b;
  }
  Vector sum = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;
  sink = sum[0] * 0.0f;
}

template <class Vector>
double gflops(int threads) {
  const long rounds = 4'000'000, flops = 2 * 12 * (sizeof(Vector) / sizeof(float)) * rounds;
  return double(flops) * threads / seconds(threads, [&](int) { multiply_adds<Vector>(rounds); }) / 1e9;
}

// All three arrays together have `bytes`; each thread has its own part.
double gbps(int threads, long bytes) {
  const long n = bytes / 12 / threads / 64 * 64, passes = std::max(1L, (64L << 20) / bytes);
  std::vector<std::vector<float>> arrays(3 * threads);
  auto part = [&](int t, int which) { return arrays[3 * t + which].data(); };
  for (int t = 0; t < threads; ++t)
    for (int which = 0; which < 3; ++which) arrays[3 * t + which].assign(n, 1.0f + which);
  double taken = seconds(threads, [&](int t) {
    float *__restrict a = part(t, 0), *__restrict b = part(t, 1), *__restrict c = part(t, 2);
    for (long p = 0; p < passes; ++p) {
      asm volatile("" ::: "memory");
      for (long i = 0; i < n; ++i) a[i] = b[i] + 0.5f * c[i];
    }
  });
  return 12.0 * n * threads * passes / taken / 1e9;
}

void report(int threads) {
  std::printf("{\"gflops\": {\"16\": %.1f", gflops<Vector16>(threads));
#ifdef __AVX__
  std::printf(", \"32\": %.1f", gflops<Vector32>(threads));
#endif
#ifdef __AVX512F__
  std::printf(", \"64\": %.1f", gflops<Vector64>(threads));
#endif
  std::printf("}, \"gbps\": [");
  for (int log2 = 17; log2 <= 28; ++log2) {  // 128 KiB to 256 MiB
    std::printf("%s[%ld, %.1f]", log2 == 17 ? "" : ", ", 1L << log2, gbps(threads, 1L << log2));
  }
  std::printf("]}");
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
  if (threads < 1) {
    std::fprintf(stderr, "usage: peak THREADS\n");
    return 2;
  }
  std::printf("{\"1\": ");
  report(1);
  if (threads > 1) {
    std::printf(", \"%d\": ", threads);
    report(threads);
  }
  std::printf("}\n");
}
