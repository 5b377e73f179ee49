// The register tile on which GEMM and all three convolution passes stand: up to kRows or kAdjacentRows by kCols results,
// held in registers while the sum runs.
//
//   y[i][0..n) = relu?(alpha * sum + beta * c[i][0..n) + bias[0..n)),   all three from `column` on
//   sum        = over runs, over k < run.length:  a_i[run.a + k * step] * b[(run.b + k) * ldb + 0..n)
//
// Rows are gathered (a_i = rows[i], any address; k walks along memory: forward, input gradient, A B) or adjacent
// (a_i = rows[0] + i; k walks with stride `step`: weight gradient, A^T B, rows that were packed side by side). Runs let the
// sum hop: over filter taps, over image rows. Per k the tile costs 2 vector loads and M broadcasts for 2 M multiply-adds,
// which bounds it by arithmetic. Every element is one chain of multiply-adds in the order of k, whatever the tile's height
// or the element's place in it: so results do not depend on how work is cut into tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "simd.h"

namespace fastnn::FASTNN_TARGET {

struct Run {
  int64_t a;       // offset of the run's first element from each row's address, in elements
  int64_t b;       // first row of b
  int64_t length;  // terms
};

template <class T>
struct TileArgs {
  const T* const* rows;  // M addresses (gathered), or one (adjacent)
  int64_t step;          // from one k to the next; 1 where gathered
  const Run* runs;
  int64_t run_count;
  const T* b;  // columns of one panel: kCols readable in each row
  int64_t ldb;
  T* const* y;                  // M row addresses; null where the caller takes the sums themselves
  int64_t column = 0;           // of y, c and bias, where the panel's begin
  int64_t n;                    // real columns, at most kCols
  const T* const* c = nullptr;  // as y; null: beta is not used. May be y itself
  const T* bias = nullptr;      // a value for each column, or null
  T alpha = 1, beta = 0;
  bool relu = false;
  const T* start = nullptr;  // sums to go on from, M rows of kCols; null: zeros
  T* stop = nullptr;         // where to leave the sums for another call to go on from; null: they are whole, write y
  // Rows that are adjacent and packed, against a packed b: what a tile after this one will read, fetched into L2 meanwhile,
  // next_step elements with each k. Null: nothing.
  const T* next = nullptr;
  int64_t next_step = 0;
};

constexpr int kRows = simd::kRegisters == 32 ? 12 : 6;          // gathered: as many addresses as can be kept, too
constexpr int kAdjacentRows = simd::kRegisters == 32 ? 14 : 6;  // adjacent
template <class T>
constexpr int kCols = 2 * simd::kWidth<T>;
// Terms of one round of the loop. AVX2's tile is small, so that counting would cost it most: beside the multiply-adds a
// processor has to take in as few instructions as possible, all the more where two threads share it.
constexpr int kUnroll = simd::kBytes == 32 ? 4 : 1;
constexpr int kAhead = 8;     // rows of b
constexpr int kBetween = 16;  // terms from one row of y that is fetched to the next
static_assert(2 * kAdjacentRows + 3 <= simd::kRegisters,
              "accumulators, one row of b and one element of a stay in registers");

// Where the tile reads a and b from. Addresses are registers, and 12 of them leave two: rows gathered against a packed b
// (ldb is kCols) stay where they are, and a run has a limit of its own; against another b, they are moved to each run's
// end, up to which k counts. Adjacent rows that were packed have nothing between them (step is M), and meet a packed b in
// kAdjacentPacked; kAdjacentAhead is that with a `next`.
enum class Layout { kGatheredPacked, kGathered, kAdjacent, kAdjacentPacked, kAdjacentAhead };

// Brings the lines of row i of y, which the tile will write, into L1.
template <class T, bool Wide>
[[gnu::always_inline]] inline void fetch_y(const TileArgs<T>& t, int i) {
  simd::prefetch_to_write(t.y[i] + t.column);
  if (Wide) simd::prefetch_to_write(t.y[i] + t.column + t.n - 1);
}

// Whether rows of y are fetched one now and then while the sum runs: all at once, they would hold up a long one. In the
// layouts that most of the time goes into.
template <Layout L>
constexpr bool kMayFetchLate = simd::kBytes == 64 && (L == Layout::kAdjacentAhead || L == Layout::kGatheredPacked);
template <int M, Layout L, class T>
[[gnu::always_inline]] inline bool fetches_late(const TileArgs<T>& t) {
  return kMayFetchLate<L> && t.y && !t.stop && t.runs->length >= M * kBetween;
}

// The sums of M rows and both vectors of columns. Wide: all kCols columns. Otherwise only the first vector's, for panels
// with no more.
template <class T, int M, Layout L, bool Wide>
[[gnu::always_inline]] inline void accumulate(const TileArgs<T>& t, simd::V<T> (&sum0)[M], simd::V<T> (&sum1)[M]) {
  using V = simd::V<T>;
  constexpr int W = simd::kWidth<T>;
  constexpr bool kFetches = L == Layout::kAdjacentAhead, kToEnd = L == Layout::kGathered,
                 kPacked = L == Layout::kAdjacentPacked || kFetches, kAdjacent = L == Layout::kAdjacent || kPacked;
#pragma GCC unroll 14
  for (int i = 0; i < M; ++i) sum0[i] = sum1[i] = V{};
  if (t.start) {
#pragma GCC unroll 14
    for (int i = 0; i < M; ++i) {
      sum0[i] = simd::load(t.start + i * kCols<T>);
      if (Wide) sum1[i] = simd::load(t.start + i * kCols<T> + W);
    }
  }

  const int64_t step = kPacked ? M : t.step, ldb = kPacked || L == Layout::kGatheredPacked ? kCols<T> : t.ldb;
  int fetched = fetches_late<M, L>(t) ? 0 : M;  // rows of y
  const T* next = t.next;
  const int64_t next_step = t.next_step;
  const bool several_lines = kUnroll * next_step * int64_t(sizeof(T)) > 64;  // in a round
  for (const Run* run = t.runs; run != t.runs + t.run_count; ++run) {
    const int64_t from = kToEnd ? run->a + run->length : kAdjacent ? run->a : 0, end = run->a + run->length - from;
    const T* a[M];
#pragma GCC unroll 14
    for (int i = 0; i < M; ++i) a[i] = t.rows[kAdjacent ? 0 : i] + from;
    const T* b = t.b + run->b * ldb;
    int64_t k = run->a - from;
    const auto sum_until = [&](int64_t stop) __attribute__((always_inline)) {
      const auto term = [&](int64_t k, const T* b) __attribute__((always_inline)) {
        if (kUnroll > 1) asm volatile("" ::: "memory");  // or all loads would come first, in registers that there are not
        // Sums over many rows of b come from far away, and the processor's own prefetching stops at each page.
        if (kUnroll == 1 || L == Layout::kAdjacent) simd::prefetch(b + kAhead * ldb);
        if (Wide && simd::kBytes == 64) simd::prefetch(b + kAhead * ldb + W);
        const V b0 = simd::load(b), b1 = Wide ? simd::load(b + W) : V{};
#pragma GCC unroll 14
        for (int i = 0; i < M; ++i) {
          const T* const element = kAdjacent ? &a[0][k * step + i] : &a[i][k];
          if (kAdjacent && simd::kBytes == 64 && i % 3 == 2) {  // as many as there are loads to spare: micro-ops are scarcer
            sum0[i] = simd::multiply_add(element, b0, sum0[i]);
            if (Wide) sum1[i] = simd::multiply_add(element, b1, sum1[i]);
          } else {
            const V x = simd::broadcast(*element);
            sum0[i] = simd::multiply_add_to<T>(sum0[i], x, b0);
            if (Wide) sum1[i] = simd::multiply_add_to<T>(sum1[i], x, b1);
          }
        }
      };
      for (; stop - k >= kUnroll; k += kUnroll, b += kUnroll * ldb) {
        if constexpr (kFetches) {
          simd::prefetch_l2(next);
          if (several_lines)
            for (int u = 1; u < kUnroll; ++u) simd::prefetch_l2(next + u * next_step);
          next += kUnroll * next_step;
        }
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u) term(k + u, b + u * ldb);
      }
      if (kUnroll > 1)
        for (; k != stop; ++k, b += ldb) term(k, b);
    };
    if constexpr (kMayFetchLate<L>)
      for (; fetched < M; ++fetched) {
        fetch_y<T, Wide>(t, fetched);
        sum_until(k + kBetween);
      }
    sum_until(end);
  }
}

// The tile for m rows, 1 <= m <= kRows or kAdjacentRows.
template <class T, bool Gathered>
void run_tile(int64_t m, const TileArgs<T>& t);

// a / b, rounded up.
constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Cuts `rows` into tiles of nearly the same height, so that no thin tile is left over: f(first, height).
template <int Height = kRows, class F>
inline void for_tiles(int64_t rows, F f) {
  if (rows <= 0) return;
  const int64_t tiles = ceil_div(rows, Height), height = rows / tiles, higher = rows % tiles;
  for (int64_t i = 0, first = 0; i < tiles; ++i) {
    const int64_t m = height + (i < higher);
    f(first, m);
    first += m;
  }
}

// The same tiles in groups of N, the last of fewer: f(first, heights, how many).
template <int Height, int N, class F>
inline void for_tile_groups(int64_t rows, F f) {
  int64_t heights[N], count = 0, begin = 0;
  for_tiles<Height>(rows, [&](int64_t first, int64_t m) {
    if (count == 0) begin = first;
    heights[count++] = m;
    if (count == N || first + m == rows) f(begin, heights, std::exchange(count, 0));
  });
}

// Rows in so many parts of nearly the same size. Of whole tiles, where a part has several: but for the last one's end.
class Parts {
 public:
  Parts() = default;
  Parts(int64_t rows, int64_t count, int64_t height)
      : rows_(rows), count_(count), unit_(ceil_div(rows, height) >= 4 * count ? height : 1) {}
  int64_t begin(int64_t part) const { return std::min(ceil_div(rows_, unit_) * part / count_ * unit_, rows_); }
  int64_t end(int64_t part) const { return begin(part + 1); }
  int64_t most() const { return ceil_div(ceil_div(rows_, unit_), count_) * unit_; }
  int64_t count() const { return count_; }

 private:
  int64_t rows_ = 0, count_ = 1, unit_ = 1;
};

}  // namespace fastnn::FASTNN_TARGET
