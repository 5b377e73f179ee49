// What the kernels of a product (matmul.cuh) share: where it goes, what a block knows of its operands, what a thread brings
// of a tile.
#pragma once

#include "operands.cuh"
#include "ptx.cuh"

namespace fastnn::FASTNN_TARGET {

// ---- Where a product goes

// y[row, column] = relu?(alpha * sum + beta * c + bias). Rows may be pixels of an image of which a job computes every
// stride-th: row (n, i, j) of (N, height, width) is then pixel (n, first_h + i * stride_h, first_w + j * stride_w).
template <class T>
struct Result {
  T* y;
  const T *c, *bias;  // may be null
  T alpha, beta;
  bool relu;
  int64_t columns;
  bool scattered;
  FastDiv width, height;
  int64_t image_height, image_width, first_h, first_w, stride_h, stride_w;

  __device__ int64_t row_start(int64_t row) const {
    if (!scattered) return row * columns;
    const int64_t line = width(row), n = height(line), i = line - n * height.divisor, j = row - line * width.divisor;
    return ((n * image_height + first_h + i * stride_h) * image_width + first_w + j * stride_w) * columns;
  }
  __device__ T finish(T sum, int64_t at, int64_t column) const {
    sum *= alpha;
    if (c) sum += beta * c[at];
    if (bias) sum += bias[column];
    return relu && sum <= T(0) ? T(0) : sum;  // a NaN stays
  }
};

template <class T>
Result<T> plain_result(T* y, int64_t columns) {
  Result<T> r{};
  r.y = y, r.alpha = T(1), r.columns = columns;
  return r;
}

// One product; a launch has up to kJobs of them, block (., ., z) working on job z.
template <class T_, class A_, class B_>
struct Job {
  using T = T_;
  using A = A_;
  using B = B_;
  A a;
  B b;
  Result<T> result;
  int64_t m, n, k;
  int64_t slice;  // of k, for each y coordinate of the grid
  T* partial;     // (slices, m, n), or null where there is one slice
  bool vectors;   // whole vectors can be written
};

template <class J, int kJobs>
struct Jobs {
  J job[kJobs];
};

template <Precision kPrecision, class T>
__device__ __forceinline__ T rounded(T x) {
  if constexpr (kPrecision == Precision::kTf32) return from_tf32(to_tf32(x));
  if constexpr (kPrecision == Precision::kBfloat16) return from_bf16(to_bf16x2(x, 0));
  return x;
}

// The slice's sum for one element, padding left out.
template <Precision kPrecision, class J>
__device__ typename J::T sum_without_gaps(const J& job, int64_t row, int64_t column, int64_t first_k, int64_t end_k) {
  const auto line_a = job.a.line(row);
  const auto line_b = job.b.line(column);
  typename J::T sum = 0;
#pragma unroll 1
  for (int64_t k = first_k; k < end_k; ++k) {
    const auto step_a = job.a.step(k);
    const auto step_b = job.b.step(k);
    if (job.a.present(line_a.has, step_a.has) && job.b.present(line_b.has, step_b.has))
      sum += rounded<kPrecision>(*at(line_a, step_a)) * rounded<kPrecision>(*at(line_b, step_b));
  }
  return sum;
}

// Writes kRows x kColumns sums from shared memory: to the slice's partial, or finished to y. Local row i is row_of(i) of y.
// Padding takes no part in a sum, but so far it has been a zero, and 0 * inf is NaN: a NaN is added up again without it.
template <Precision kPrecision, int kRows, int kColumns, int kLd, int kThreads, class J, class RowOf>
__device__ __forceinline__ void store(const J& job, typename J::T* sums, int64_t first_column, int64_t first_k,
                                      int64_t end_k, RowOf row_of) {
  using T = typename J::T;
  constexpr int kCount = kVec<T>;
  using V = Vec<T, kCount>;
  const Result<T>& r = job.result;
#pragma unroll 1
  for (int at = threadIdx.x * kCount; at < kRows * kColumns; at += kThreads * kCount) {
    const int64_t row = row_of(at / kColumns), column = first_column + at % kColumns;
    if (row >= job.m || column >= job.n) continue;
    const int count = job.n - column < kCount ? int(job.n - column) : kCount;
    T* const mine = sums + at / kColumns * kLd + at % kColumns;
    if constexpr (J::A::kGaps)
#pragma unroll 1
      for (int i = 0; i < count; ++i)
        if (mine[i] != mine[i]) mine[i] = sum_without_gaps<kPrecision>(job, row, column + i, first_k, end_k);
    V v = *reinterpret_cast<const V*>(mine);
    T* to;
    if (job.partial) {
      to = job.partial + (blockIdx.y * job.m + row) * job.n + column;
    } else {
      const int64_t start = r.row_start(row) + column;
      to = r.y + start;
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (i < count) v.v[i] = r.finish(v.v[i], start + i, column + i);
    }
    if (job.vectors) {
      *reinterpret_cast<V*>(to) = v;
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (i < count) to[i] = v.v[i];
    }
  }
}

// ---- What a block knows of its lines and of the steps ahead: tables in shared memory.

// Half of the threads look after a, half after b: a chunk of steps has a step for each. Chunk c is in half c % 2 of the
// tables, and is made after the barrier that follows the last use of chunk c - 2.
template <class J, int kM, int kN, int kThreads>
class Tables {
  using A = typename J::A;
  using B = typename J::B;

 public:
  static constexpr int kChunk = kThreads / 2;

  static constexpr SharedSize& add_to(SharedSize& size) {
    return size.add<typename A::Line>(kM)
        .template add<typename B::Line>(kN)
        .template add<typename A::Step>(2 * kChunk)
        .template add<typename B::Step>(2 * kChunk);
  }

  __device__ Tables(Shared& shared, const J& job, int64_t first_k)
      : job_(job),
        first_k_(first_k),
        lines_a(shared.alloc<typename A::Line>(kM)),
        lines_b(shared.alloc<typename B::Line>(kN)),
        steps_a(shared.alloc<typename A::Step>(2 * kChunk)),
        steps_b(shared.alloc<typename B::Step>(2 * kChunk)) {}

  __device__ __forceinline__ void make_lines(int64_t first_row, int64_t first_column) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < kM + kN; i += kThreads)
      if (i < kM)
        lines_a[i] = job_.a.line(first_row + i);
      else
        lines_b[i - kM] = job_.b.line(first_column + i - kM);
  }
  __device__ __forceinline__ void make_steps(int64_t chunk) const {
    const int i = int(threadIdx.x) % kChunk, place = int(chunk & 1) * kChunk + i;
    const int64_t k = first_k_ + chunk * kChunk + i;
    if (threadIdx.x < kChunk)
      steps_a[place] = job_.a.step(k);
    else
      steps_b[place] = job_.b.step(k);
  }

 private:
  const J& job_;
  int64_t first_k_;

 public:
  typename A::Line* const lines_a;
  typename B::Line* const lines_b;
  typename A::Step* const steps_a;
  typename B::Step* const steps_b;
};

// ---- What a thread brings of an operand's tile: kLines x kK elements, in vectors of kV, by kThreads threads.
template <class Op, int kLines, int kK, int kThreads, int kV>
class Share {
  static constexpr int kAcross = (Op::kAlongK ? kK : kLines) / kV;  // vectors side by side in memory
  static constexpr int kOther = Op::kAlongK ? kLines : kK;

 public:
  static constexpr int kApart = kThreads / kAcross;  // from one of a thread's vectors to its next
  static constexpr int kCount = kOther / kApart;
  static constexpr int kHeld = Op::kAlongK ? kCount : 1, kSteps = Op::kAlongK ? 1 : kCount;
  static_assert(kThreads % kAcross == 0 && kOther % kApart == 0, "the tile must be whole rounds of all threads");

  __device__ Share(const Op& op, const typename Op::Line* lines)
      : op_(op), side_(hold(threadIdx.x % kAcross * kV)), other_(hold(threadIdx.x / kAcross)) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) line_[i] = lines[Op::kAlongK ? other_ + i * kApart : side_];
  }

  // What is known of the thread's vectors in the tile whose steps are given.
  struct Steps {
    typename Op::Step step[kSteps];
  };
  __device__ __forceinline__ Steps look_up(const typename Op::Step* steps) const {
    Steps found;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) found.step[i] = whole(steps + (Op::kAlongK ? side_ : other_ + i * kApart));
    return found;
  }
  // f(i, whether it is there, its address) for each of the thread's vectors.
  template <class F>
  __device__ __forceinline__ void each(const Steps& steps, F f) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const auto& line = line_[Op::kAlongK ? i : 0];
      const auto& step = steps.step[Op::kAlongK ? 0 : i];
      f(i, op_.present(line.has, step.has), at(line, step));
    }
  }

  // Of the first vector: where it begins in the tile. The i-th is i * kApart further along the axis that is not memory's.
  __device__ int side() const { return side_; }
  __device__ int other() const { return other_; }

 private:
  const Op& op_;
  int side_, other_;
  typename Op::Line line_[kHeld];
};

}  // namespace fastnn::FASTNN_TARGET
