// y = epilogue(a b) for any two operands (operands.cuh): GEMM and all three passes of a convolution are this kernel.
//
//   matmul_kernel  fused multiply-adds in the operands' own type: the default, for float and double
//   mma_kernel     tensor cores, float operands rounded to tf32 or bfloat16, float sums; asked for by precision
//   reduce_kernel  adds up the partial products of a split sum, in order, and applies the epilogue
//
// A block computes one tile of y over one slice of k. It works out its lines when it begins and the steps of k some tiles
// ahead, each once, into tables in shared memory: what is left for the main loop is a test and an addition for each access.
// For double and where there are no vectors, as for the three channels of an image, one tile is enough: accesses of single
// elements lie side by side along k, over the ends of taps, and cost the float32 loop about a tenth more instructions. Where
// y has too few tiles to fill a GPU, k is cut into slices, by the shape alone: results do not depend on the number of
// multiprocessors, and there are no atomics. Work: 2 m n k flops. Bound by arithmetic where m, n and k are large; by reading
// b or writing y where one is small.
#pragma once

#include <type_traits>

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

// ---- Fused multiply-adds

// Tile of kM x kN, kK at a time. A thread has kThreadM x kThreadN sums, in pieces of one vector: the warps of the block lie
// kWarpsM x kWarpsN, the lanes of a warp 4 x 8.
template <int kM_, int kN_, int kThreadM_, int kThreadN_>
struct FmaTile {
  static constexpr int kM = kM_, kN = kN_, kK = 16, kThreadM = kThreadM_, kThreadN = kThreadN_;
  static constexpr int kLanesM = 4, kLanesN = 8;
  static constexpr int kWarpsM = kM / (kLanesM * kThreadM), kWarpsN = kN / (kLanesN * kThreadN);
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  static_assert(kWarpsM * kLanesM * kThreadM == kM && kWarpsN * kLanesN * kThreadN == kN);
  static constexpr int kPad = 4;  // a column of either tile begins 4 banks after the last one's: fewer conflicts in stores

  template <class J>
  static constexpr SharedSize shared() {
    SharedSize size;
    return Tables<J, kM, kN, kThreads>::add_to(size).template add<typename J::T>(2 * kK * (kM + kN + 2 * kPad));
  }
};
using LargeTile = FmaTile<128, 128, 8, 8>;  // 256 threads
using TallTile = FmaTile<128, 32, 8, 4>;    // 128 threads, for few columns, and where there are no vectors
using MediumTile = FmaTile<64, 64, 8, 4>;   // 128 threads
using SmallTile = FmaTile<32, 32, 4, 4>;    // 64 threads, for the weight gradient of few channels

// Shared memory holds both tiles as [k][line], twice: while one copy is multiplied, the next is on its way through
// registers.
template <class Tile, int kV, class J, int kJobs>
__global__ __launch_bounds__(Tile::kThreads, 1) void matmul_kernel(Jobs<J, kJobs> jobs) {
  using T = typename J::T;
  constexpr int kM = Tile::kM, kN = Tile::kN, kK = Tile::kK, kPiece = kVec<T>;
  constexpr int kLdM = kM + Tile::kPad, kLdN = kN + Tile::kPad;
  const J& job = jobs.job[kJobs == 1 ? 0 : blockIdx.z];
  const int64_t tiles_n = ceil_div(job.n, kN), tile_m = blockIdx.x / tiles_n, tile_n = blockIdx.x - tile_m * tiles_n;
  if (tile_m * kM >= job.m) return;  // a job smaller than the launch's largest
  const int64_t first_k = blockIdx.y * job.slice, end_k = first_k + job.slice < job.k ? first_k + job.slice : job.k;
  const int steps = int(ceil_div(end_k - first_k, kK));  // a slice of 2^31 of them would not fit any memory

  Shared shared;
  const Tables<J, kM, kN, Tile::kThreads> tables(shared, job, first_k);
  constexpr int kChunk = tables.kChunk, kChunkSteps = kChunk / kK;
  constexpr int kCopy = kK * (kLdM + kLdN);
  T* const tile_a = shared.alloc<T>(2 * kCopy);
  T* const tile_b = tile_a + kK * kLdM;
  tables.make_lines(tile_m * kM, tile_n * kN);
  tables.make_steps(0);
  tables.make_steps(1);
  __syncthreads();

  using ShareA = Share<typename J::A, kM, kK, Tile::kThreads, kV>;
  using ShareB = Share<typename J::B, kN, kK, Tile::kThreads, kV>;
  using V = Vec<T, kV>;
  const ShareA share_a(job.a, tables.lines_a);
  const ShareB share_b(job.b, tables.lines_b);
  V fresh_a[ShareA::kCount], fresh_b[ShareB::kCount];

  const auto fetch = [&](int place) {
    const auto into = [](V* fresh) {
      return [fresh](int i, bool there, const T* from) { fresh[i] = there ? load(reinterpret_cast<const V*>(from)) : V{}; };
    };
    share_a.each(share_a.look_up(tables.steps_a + place), into(fresh_a));
    share_b.each(share_b.look_up(tables.steps_b + place), into(fresh_b));
  };
  const auto put_one = [](const auto& share, const V* fresh, T* tile, int ld, auto along_k) {
#pragma unroll
    for (int i = 0; i < share.kCount; ++i) {
      const int other = share.other() + i * share.kApart;
      if constexpr (along_k)
#pragma unroll
        for (int e = 0; e < kV; ++e) tile[(share.side() + e) * ld + other] = fresh[i].v[e];
      else
        *reinterpret_cast<V*>(tile + other * ld + share.side()) = fresh[i];
    }
  };
  const auto put = [&](int copy) {  // copy: 0, or kCopy for the second
    put_one(share_a, fresh_a, tile_a + copy, kLdM, std::bool_constant<J::A::kAlongK>());
    put_one(share_b, fresh_b, tile_b + copy, kLdN, std::bool_constant<J::B::kAlongK>());
  };

  // This thread's pieces of the tile: rows row + p * 4 pieces, columns likewise over 8.
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = warp / Tile::kWarpsN * Tile::kLanesM * Tile::kThreadM + lane / Tile::kLanesN * kPiece;
  const int column = warp % Tile::kWarpsN * Tile::kLanesN * Tile::kThreadN + lane % Tile::kLanesN * kPiece;
  constexpr int kRowStep = Tile::kLanesM * kPiece, kColumnStep = Tile::kLanesN * kPiece;
  constexpr int kPiecesM = Tile::kThreadM / kPiece, kPiecesN = Tile::kThreadN / kPiece;
  using Piece = Vec<T, kPiece>;
  T sums[Tile::kThreadM][Tile::kThreadN] = {};

  if (steps > 0) {
    fetch(0);
    put(0);
  }
  __syncthreads();
  int copy = 0, t = 0;
  for (int chunk = 0; t < steps; ++chunk) {  // of the steps that are fetched, one ahead of those that are multiplied
    const int end = std::min((chunk + 1) * kChunkSteps - 1, steps);
    int place = (chunk & 1) * kChunk + (t + 1 - chunk * kChunkSteps) * kK;
#pragma unroll 1
    for (; t < end; ++t, copy = kCopy - copy, place += kK) {
      const bool more = t + 1 < steps;
      if (more) fetch(place);
      const T *from_a = tile_a + copy + row, *from_b = tile_b + copy + column;
#pragma unroll
      for (int kk = 0; kk < kK; ++kk) {
        Piece a[kPiecesM], b[kPiecesN];
#pragma unroll
        for (int p = 0; p < kPiecesM; ++p) a[p] = *reinterpret_cast<const Piece*>(from_a + kk * kLdM + p * kRowStep);
#pragma unroll
        for (int p = 0; p < kPiecesN; ++p) b[p] = *reinterpret_cast<const Piece*>(from_b + kk * kLdN + p * kColumnStep);
#pragma unroll
        for (int i = 0; i < Tile::kThreadM; ++i)
#pragma unroll
          for (int j = 0; j < Tile::kThreadN; ++j) sums[i][j] += a[i / kPiece].v[i % kPiece] * b[j / kPiece].v[j % kPiece];
      }
      if (more) put(kCopy - copy);
      __syncthreads();
    }
    if (t < steps) tables.make_steps(chunk + 2);
  }

  // Through shared memory, a piece of every thread's rows at a time, so that neighbouring threads write neighbouring
  // elements.
  constexpr int kBandM = kM / kPiecesM;
  static_assert(kBandM * kLdN <= 2 * kK * (kLdM + kLdN));
  T* const band = tile_a;
  const int band_row = row / (Tile::kLanesM * Tile::kThreadM) * kRowStep + lane / Tile::kLanesN * kPiece;
#pragma unroll 1
  for (int p = 0; p < kPiecesM; ++p) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i)
#pragma unroll
      for (int q = 0; q < kPiecesN; ++q) {
        Piece piece;
#pragma unroll
        for (int j = 0; j < kPiece; ++j) piece.v[j] = sums[i][q * kPiece + j];
        *reinterpret_cast<Piece*>(band + (band_row + i) * kLdN + column + q * kColumnStep) = piece;
      }
#pragma unroll
    for (int i = kPiece; i < Tile::kThreadM; ++i)  // the next piece, because registers have no index at run time
#pragma unroll
      for (int j = 0; j < Tile::kThreadN; ++j) sums[i - kPiece][j] = sums[i][j];
    __syncthreads();
    const auto row_of = [&](int i) {
      return tile_m * kM + i / kRowStep * (Tile::kLanesM * Tile::kThreadM) + p * kRowStep + i % kRowStep;
    };
    store<Precision::kFloat32, kBandM, kN, kLdN, Tile::kThreads>(job, band, tile_n * kN, first_k, end_k, row_of);
    __syncthreads();
  }
}

// ---- Tensor cores

// A tile of an operand as the tensor cores want it, rounded once: rows of what lies side by side in memory, in pieces of 16
// bytes that trade places within a row, so that neither the stores of whole rows nor the loads of a piece from each of 8
// rows meet in a bank. ldmatrix transposes 16-bit elements only: tf32 along the lines is loaded word by word, from padded
// rows.
template <Precision kPrecision, bool kAlongK, int kLines, int kK>
struct Rounded {
  using Element = std::conditional_t<kPrecision == Precision::kTf32, uint32_t, uint16_t>;
  static constexpr bool kMatrices = kAlongK || sizeof(Element) == 2;
  static constexpr int kPiece = 16 / int(sizeof(Element)), kRow = kAlongK ? kK : kLines, kPieces = kRow / kPiece;
  static constexpr int kLd = kMatrices ? kRow : kRow + 8, kSize = (kAlongK ? kLines : kK) * kLd;

  static constexpr int kPeriod = 8;  // rows after which places repeat
  __device__ static int place(int row, int column) {
    if constexpr (!kMatrices) return row * kLd + column;
    const int turn = kPieces >= 8 ? row % 8 : row % 8 / (8 / (kPieces < 8 ? kPieces : 8));
    return row * kLd + ((column / kPiece) ^ turn) * kPiece + column % kPiece;
  }
};

// A warp has kWarpM x kWarpN of the tile, as 16 x 8 fragments. An element is copied to its thread's own place in one of
// kStages stages by cp.async, some steps ahead; rounded by the same thread, once, into one of two tiles; and read from there
// by all warps that need it.
template <int kM_, int kN_, int kK_, int kWarpM_, int kWarpN_, int kStages_>
struct MmaTile {
  static constexpr int kM = kM_, kN = kN_, kK = kK_, kWarpM = kWarpM_, kWarpN = kWarpN_, kStages = kStages_;
  static constexpr int kThreads = (kM / kWarpM) * (kN / kWarpN) * kWarp;
  static constexpr int kLdSums = kN + 8;  // two columns of four rows by half a warp: no conflicts

  template <Precision kPrecision, class J>
  struct Memory {
    using RoundedA = Rounded<kPrecision, J::A::kAlongK, kM, kK>;
    using RoundedB = Rounded<kPrecision, J::B::kAlongK, kN, kK>;
    using Element = typename RoundedA::Element;
    static constexpr int kStaged = kStages * (kM + kN) * kK;  // floats
    static constexpr int kTiles = 2 * (RoundedA::kSize + RoundedB::kSize) * int(sizeof(Element)) / int(sizeof(float));
    static constexpr int kSums = kM * kLdSums;  // afterwards
    static constexpr int kFloats = kStaged + kTiles > kSums ? kStaged + kTiles : kSums;

    static constexpr SharedSize shared() {
      SharedSize size;
      return Tables<J, kM, kN, kThreads>::add_to(size).template add<float>(kFloats);
    }
  };
};
using LargeMmaTile = MmaTile<128, 128, 16, 64, 32, 3>;  // 256 threads
using MediumMmaTile = MmaTile<64, 64, 32, 32, 32, 2>;   // 128 threads

// Stores a thread's vectors rounded.
template <Precision kPrecision, class Layout, class Share>
class Rounding {
  static constexpr int kPlaces = Share::kApart < Layout::kPeriod ? Layout::kPeriod / Share::kApart : 1;
  static_assert(kPlaces * Share::kApart % Layout::kPeriod == 0 && Share::kCount % kPlaces == 0);

 public:
  __device__ explicit Rounding(const Share& share) {
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) place_[i] = hold(Layout::place(share.other() + i * Share::kApart, share.side()));
  }

  template <int kV>
  __device__ __forceinline__ void store(const Vec<float, kV>* from, typename Layout::Element* tile) const {
#pragma unroll
    for (int i = 0; i < Share::kCount; ++i) {
      const Vec<float, kV>& v = from[i];
      auto* const to = tile + place_[i % kPlaces] + i / kPlaces * kPlaces * Share::kApart * Layout::kLd;
      if constexpr (kPrecision == Precision::kTf32) {
        Vec<uint32_t, kV> r;
#pragma unroll
        for (int e = 0; e < kV; ++e) r.v[e] = to_tf32(v.v[e]);
        *reinterpret_cast<Vec<uint32_t, kV>*>(to) = r;
      } else if constexpr (kV == 1) {
        *to = uint16_t(to_bf16x2(v.v[0], 0));
      } else {
        *reinterpret_cast<Vec<uint32_t, 2>*>(to) = {to_bf16x2(v.v[0], v.v[1]), to_bf16x2(v.v[2], v.v[3])};
      }
    }
  }

 private:
  int place_[kPlaces];
};

// Loads the registers of a fragment, or of two narrow ones: four 8 x 8 blocks (8 x 4 for tf32) of a tile, the first and the
// last 8 of 16 lines by the first and second half of a step. kLinesFirst: the blocks' order.
template <Precision kPrecision, class Layout, bool kAlongK, bool kLinesFirst, int kLines, int kK>
class Blocks {
  static constexpr int kStep = kPrecision == Precision::kTf32 ? 8 : 16;
  // Places trade within a row only, so that the others of a thread's places are a constant away.
  static constexpr int kPlaces = !Layout::kMatrices ? 1 : kAlongK ? kK / kStep : kLines / 16;

 public:
  __device__ explicit Blocks(int line) {
    const int lane = threadIdx.x % kWarp, block = lane / 8;  // of ldmatrix: lane -> a row of block lane / 8
    line += Layout::kMatrices ? 8 * (kLinesFirst ? block % 2 : block / 2) : lane / 4;
    const int k = Layout::kMatrices ? kStep / 2 * (kLinesFirst ? block / 2 : block % 2) : lane % 4;
#pragma unroll
    for (int i = 0; i < kPlaces; ++i)
      place_[i] = hold(!Layout::kMatrices ? Layout::place(k, line)
                       : kAlongK          ? Layout::place(line + lane % 8, k + i * kStep)
                                          : Layout::place(k + lane % 8, line + i * 16));
  }

  // Lines 16 f and following by step q.
  __device__ __forceinline__ void load(uint32_t (&to)[4], const typename Layout::Element* tile, int f, int q) const {
    if constexpr (Layout::kMatrices) {
      ldmatrix_x4<!kAlongK>(to, tile + place_[kAlongK ? q : f] + (kAlongK ? f * 16 : q * kStep) * Layout::kLd);
    } else {
#pragma unroll
      for (int block = 0; block < 4; ++block)
        to[block] = tile[place_[0] + (q * kStep + kStep / 2 * (kLinesFirst ? block / 2 : block % 2)) * Layout::kLd + f * 16 +
                         8 * (kLinesFirst ? block % 2 : block / 2)];
    }
  }

 private:
  int place_[kPlaces];
};

// Blocks that must find room in a multiprocessor's registers: 512 threads, where they do so without spills.
template <class Tile, Precision kPrecision, int kV>
constexpr int kBlocksAtOnce = kPrecision == Precision::kBfloat16 && kV > 1 ? 512 / Tile::kThreads : 1;

template <class Tile, Precision kPrecision, int kV, class J, int kJobs>
__global__ __launch_bounds__(Tile::kThreads, (kBlocksAtOnce<Tile, kPrecision, kV>)) void mma_kernel(Jobs<J, kJobs> jobs) {
  using A = typename J::A;
  using B = typename J::B;
  using Memory = typename Tile::template Memory<kPrecision, J>;
  using RoundedA = typename Memory::RoundedA;
  using RoundedB = typename Memory::RoundedB;
  using Element = typename Memory::Element;
  constexpr int kM = Tile::kM, kN = Tile::kN, kK = Tile::kK, kThreads = Tile::kThreads, kStages = Tile::kStages;
  constexpr int kMmaK = kPrecision == Precision::kTf32 ? 8 : 16;
  const J& job = jobs.job[kJobs == 1 ? 0 : blockIdx.z];
  const int64_t tiles_n = ceil_div(job.n, kN), tile_m = blockIdx.x / tiles_n, tile_n = blockIdx.x - tile_m * tiles_n;
  if (tile_m * kM >= job.m) return;
  const int64_t first_k = blockIdx.y * job.slice, end_k = first_k + job.slice < job.k ? first_k + job.slice : job.k;
  const int steps = int(ceil_div(end_k - first_k, kK));  // a slice of 2^31 of them would not fit any memory

  Shared shared;
  const Tables<J, kM, kN, kThreads> tables(shared, job, first_k);
  constexpr int kChunk = tables.kChunk, kChunkSteps = kChunk / kK;
  float* const memory = shared.alloc<float>(Memory::kFloats);
  Element* const tiles_a = reinterpret_cast<Element*>(memory + Memory::kStaged);
  Element* const tiles_b = tiles_a + RoundedA::kSize;
  tables.make_lines(tile_m * kM, tile_n * kN);
  tables.make_steps(0);
  tables.make_steps(1);
  __syncthreads();

  using ShareA = Share<A, kM, kK, kThreads, kV>;
  using ShareB = Share<B, kN, kK, kThreads, kV>;
  using V = Vec<float, kV>;
  const ShareA share_a(job.a, tables.lines_a);
  const ShareB share_b(job.b, tables.lines_b);
  // Vector i of stage s is at (s * kVectors + i) * kThreads, those of b behind those of a.
  constexpr int kVectors = ShareA::kCount + ShareB::kCount, kTile = RoundedA::kSize + RoundedB::kSize;
  V* const staged = reinterpret_cast<V*>(memory) + hold(threadIdx.x);

  // One group of copies a step, an empty one after the last, so that waits can count them.
  const auto bring = [&](bool more, int place, V* to) {
    if (more) {
      const auto steps_a = share_a.look_up(tables.steps_a + place);
      const auto steps_b = share_b.look_up(tables.steps_b + place);
      share_a.each(steps_a, [&](int i, bool there, const float* from) { cp_async<kV * 4>(to + i * kThreads, from, there); });
      share_b.each(steps_b, [&](int i, bool there, const float* from) {
        cp_async<kV * 4>(to + (ShareA::kCount + i) * kThreads, from, there);
      });
    }
    cp_async_commit();
  };
  // A thread rounds what it copied itself, so that no barrier is needed in between, nor before the stage's next use.
  const Rounding<kPrecision, RoundedA, ShareA> rounding_a(share_a);
  const Rounding<kPrecision, RoundedB, ShareB> rounding_b(share_b);
  const auto round = [&](const V* from, int tile) {  // tile: 0, or kTile for the second
    V a[ShareA::kCount], b[ShareB::kCount];
#pragma unroll
    for (int i = 0; i < ShareA::kCount; ++i) a[i] = from[i * kThreads];
#pragma unroll
    for (int i = 0; i < ShareB::kCount; ++i) b[i] = from[(ShareA::kCount + i) * kThreads];
    rounding_a.store(a, tiles_a + tile);
    rounding_b.store(b, tiles_b + tile);
  };

  constexpr int kFragmentsM = Tile::kWarpM / 16, kFragmentsN = Tile::kWarpN / 8, kWarpsN = kN / Tile::kWarpN;
  const int warp = threadIdx.x / kWarp;
  const int row = warp / kWarpsN * Tile::kWarpM, column = warp % kWarpsN * Tile::kWarpN;
  const Blocks<kPrecision, RoundedA, A::kAlongK, true, Tile::kWarpM, kK> blocks_a(row);
  const Blocks<kPrecision, RoundedB, B::kAlongK, false, Tile::kWarpN, kK> blocks_b(column);
  float sums[kFragmentsM][kFragmentsN][4] = {};

  // Steps are brought kAhead before they are multiplied, and rounded one before.
  constexpr int kAhead = kStages + 1;
  static_assert(kAhead <= 2 * kChunkSteps);
#pragma unroll 1
  for (int s = 0; s < kStages; ++s) bring(s < steps, s * kK, staged + s * kVectors * kThreads);
  if (steps > 0) {
    cp_async_wait<kStages - 1>();
    round(staged, 0);
    bring(kStages < steps, kStages * kK, staged);
  }
  int stage = 1, tile = 0, t = 0;
  static_assert(kStages > 1);
  for (int chunk = 0; t < steps; ++chunk) {
    const int end = std::min((chunk + 1) * kChunkSteps - kAhead, steps);
    int place = (chunk & 1) * kChunk + (t + kAhead - chunk * kChunkSteps) * kK;
#pragma unroll 1
    for (; t < end; ++t, place += kK) {
      __syncthreads();  // the tile is there, and all are done with the other one
      if (t + 1 < steps) {
        V* const next = staged + stage * kVectors * kThreads;
        cp_async_wait<kStages - 1>();
        round(next, kTile - tile);
        bring(t + kAhead < steps, place, next);
        stage = stage + 1 == kStages ? 0 : stage + 1;
      }
      const Element *from_a = tiles_a + tile, *from_b = tiles_b + tile;
      tile = kTile - tile;
#pragma unroll
      for (int q = 0; q < kK / kMmaK; ++q) {
        uint32_t a[kFragmentsM][4], b[kFragmentsN / 2][4];
#pragma unroll
        for (int f = 0; f < kFragmentsM; ++f) blocks_a.load(a[f], from_a, f, q);
#pragma unroll
        for (int f = 0; f < kFragmentsN / 2; ++f) blocks_b.load(b[f], from_b, f, q);
#pragma unroll
        for (int i = 0; i < kFragmentsM; ++i)
#pragma unroll
          for (int j = 0; j < kFragmentsN; ++j) {
            const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
            if constexpr (kPrecision == Precision::kTf32)
              mma_tf32(sums[i][j], a[i], pair);
            else
              mma_bf16(sums[i][j], a[i], pair);
          }
      }
    }
    if (t < steps) {
      __syncthreads();  // all are done with the chunk
      tables.make_steps(chunk + 2);
    }
  }
  cp_async_wait<0>();

  __syncthreads();  // all are done with the tiles, where the sums go now
  const int group = threadIdx.x % kWarp / 4, member = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < kFragmentsM; ++m)
#pragma unroll
    for (int n = 0; n < kFragmentsN; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        *reinterpret_cast<Vec<float, 2>*>(memory + (row + m * 16 + group + 8 * e) * Tile::kLdSums + column + n * 8 +
                                          2 * member) = {sums[m][n][2 * e], sums[m][n][2 * e + 1]};
  __syncthreads();
  const auto row_of = [&](int i) { return tile_m * kM + i; };
  store<kPrecision, kM, kN, Tile::kLdSums, kThreads>(job, memory, tile_n * kN, first_k, end_k, row_of);
}

// ---- Partial products: thread -> element of y.
template <class J, int kJobs>
__global__ void reduce_kernel(Jobs<J, kJobs> jobs, int slices) {
  using T = typename J::T;
  const J& job = jobs.job[kJobs == 1 ? 0 : blockIdx.z];
  const int64_t size = job.m * job.n;
  for (int64_t i = first_item(); i < size; i += item_step()) {
    T sum = job.partial[i];
    for (int s = 1; s < slices; ++s) sum += job.partial[s * size + i];
    const int64_t row = i / job.n, column = i - row * job.n, at = job.result.row_start(row) + column;
    job.result.y[at] = job.result.finish(sum, at, column);
  }
}

// ---- Launchers

// How a product is cut, by its shape alone.
struct Cut {
  enum { kLarge, kTall, kMedium } tile;
  int64_t slices;

  // m x n results of sums over k, for a GPU of some hundred multiprocessors.
  Cut(int64_t m, int64_t n, int64_t k, bool can_be_tall) {
    constexpr int64_t kBlocks = 128, kSliceK = 128, kMaxSlices = 256;
    const auto tiles = [&](int64_t tm, int64_t tn) { return ceil_div(m, tm) * ceil_div(n, tn); };
    tile = n <= 32 && can_be_tall ? kTall : tiles(128, 128) >= kBlocks ? kLarge : kMedium;
    const int64_t blocks = tile == kTall ? tiles(128, 32) : tile == kLarge ? tiles(128, 128) : tiles(64, 64);
    slices = std::clamp<int64_t>(std::min(2 * kBlocks / std::max<int64_t>(blocks, 1), k / kSliceK), 1, kMaxSlices);
  }
};

template <class T>
Cut cut(int64_t m, int64_t n, int64_t k, Precision precision) {
  Cut c(m, n, k, precision == Precision::kFloat32);
  if (std::is_same_v<T, double>) c.tile = Cut::kMedium;
  return c;
}

// Elements of workspace for a product of m x n over k, or for several that have m rows in all.
template <class T>
int64_t matmul_workspace(int64_t m, int64_t n, int64_t k, Precision precision) {
  const int64_t slices = cut<T>(m, n, k, precision).slices;
  return slices > 1 ? slices * m * n : 0;
}

template <class Tile, class J, int kJobs, class Kernel>
void launch_tiles(Kernel kernel, const Jobs<J, kJobs>& jobs, int count, int64_t slices, size_t shared_bytes, Stream stream) {
  int64_t tiles = 0;
  for (int j = 0; j < count; ++j)
    tiles = std::max(tiles, ceil_div(jobs.job[j].m, Tile::kM) * ceil_div(jobs.job[j].n, Tile::kN));
  launch(kernel, dim3(unsigned(tiles), unsigned(slices), unsigned(count)), Tile::kThreads, shared_bytes, stream, jobs);
}

template <class Tile, int kV, class J, int kJobs>
void launch_fma(const Jobs<J, kJobs>& jobs, int count, int64_t slices, Stream stream) {
  launch_tiles<Tile>(matmul_kernel<Tile, kV, J, kJobs>, jobs, count, slices, Tile::template shared<J>().bytes(), stream);
}

template <class Tile, Precision kPrecision, int kV, class J, int kJobs>
void launch_mma(const Jobs<J, kJobs>& jobs, int count, int64_t slices, Stream stream) {
  constexpr size_t kBytes = Tile::template Memory<kPrecision, J>::shared().bytes();
  static_assert(kBytes <= 99 * 1024, "sm_86 and sm_89 have no more for a block");
  launch_tiles<Tile>(mma_kernel<Tile, kPrecision, kV, J, kJobs>, jobs, count, slices, kBytes, stream);
}

// Where there are no vectors, and for double, where they would not pay, one tile is enough; but a few rows of long sums, the
// weight gradient of a first layer, would fill a fifth of it.
template <Precision kPrecision, class J, int kJobs>
void launch_product(const Jobs<J, kJobs>& jobs, int count, const Cut& c, bool vectors, Stream stream) {
  using T = typename J::T;
  if constexpr (std::is_same_v<T, double>) {
    launch_fma<MediumTile, 1>(jobs, count, c.slices, stream);
  } else {
    if constexpr (!J::A::kScalar) {
      if (vectors) {
        if constexpr (kPrecision != Precision::kFloat32) {
          if (c.tile == Cut::kLarge)
            launch_mma<LargeMmaTile, kPrecision, 4>(jobs, count, c.slices, stream);
          else
            launch_mma<MediumMmaTile, kPrecision, 4>(jobs, count, c.slices, stream);
        } else if (c.tile == Cut::kLarge) {
          launch_fma<LargeTile, 4>(jobs, count, c.slices, stream);
        } else if (c.tile == Cut::kTall) {
          launch_fma<TallTile, 4>(jobs, count, c.slices, stream);
        } else {
          launch_fma<MediumTile, 4>(jobs, count, c.slices, stream);
        }
        return;
      }
    }
    if constexpr (kPrecision != Precision::kFloat32) {
      launch_mma<MediumMmaTile, kPrecision, 1>(jobs, count, c.slices, stream);
    } else {
      if constexpr (!J::A::kAlongK && !J::A::kScalar)
        if (jobs.job[0].m <= SmallTile::kM) return launch_fma<SmallTile, 1>(jobs, count, c.slices, stream);
      launch_fma<TallTile, 1>(jobs, count, c.slices, stream);
    }
  }
}

template <class J, int kJobs>
void launch_product(const Jobs<J, kJobs>& jobs, int count, const Cut& c, bool vectors, Precision precision, Stream stream) {
  if constexpr (std::is_same_v<typename J::T, float>) {
    if (precision == Precision::kTf32) return launch_product<Precision::kTf32>(jobs, count, c, vectors, stream);
    if (precision == Precision::kBfloat16) return launch_product<Precision::kBfloat16>(jobs, count, c, vectors, stream);
  }
  launch_product<Precision::kFloat32>(jobs, count, c, vectors, stream);
}

// Runs `count` jobs, which have `rows` rows in all of this and other launches, with a workspace of matmul_workspace(rows, n,
// k), n and k being the largest of any.
template <class J, int kJobs>
void matmul(Jobs<J, kJobs> jobs, int count, const Cut& c, Precision precision, typename J::T* workspace, Stream stream) {
  using T = typename J::T;
  constexpr int kMultiple = 32;  // of k, so that a slice is whole steps of every tile
  bool vectors = true;
  int64_t most = 0;
  for (int j = 0; j < count; ++j) {
    J& job = jobs.job[j];
    job.slice = ceil_div(ceil_div(job.k, c.slices), kMultiple) * kMultiple;
    job.partial = c.slices > 1 ? workspace : nullptr;  // m x n sums for each slice, job after job
    workspace += c.slices > 1 ? c.slices * job.m * job.n : 0;
    job.vectors = aligned_for<Vec<T, kVec<T>>>(job.partial ? job.partial : job.result.y) && job.n % kVec<T> == 0;
    vectors = vectors && job.a.vectors() && job.b.vectors();
    most = std::max(most, job.m * job.n);
  }
  if (most == 0) return;
  launch_product(jobs, count, c, vectors, precision, stream);
  if (c.slices > 1) {
    dim3 grid = grid_for(most, 256);
    grid.z = unsigned(count);
    launch(reduce_kernel<J, kJobs>, grid, 256, 0, stream, jobs, int(c.slices));
  }
}

// One product of m x n results over k.
template <class T, class A, class B>
void matmul(const A& a, const B& b, int64_t m, int64_t n, int64_t k, const Result<T>& result, Precision precision,
            T* workspace, Stream stream) {
  Jobs<Job<T, A, B>, 1> jobs{};
  jobs.job[0].a = a, jobs.job[0].b = b, jobs.job[0].result = result;
  jobs.job[0].m = m, jobs.job[0].n = n, jobs.job[0].k = k;
  matmul(jobs, 1, cut<T>(m, n, k, precision), precision, workspace, stream);
}

}  // namespace fastnn::FASTNN_TARGET
