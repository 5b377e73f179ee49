// y = epilogue(a b) for any two operands (operands.cuh): GEMM and all three passes of a convolution are this kernel.
//
//   matmul_kernel  fused multiply-adds in the operands' own type: the default, for float and double
//   mma_kernel     tensor cores, float operands rounded to tf32 or bfloat16, float sums; asked for by precision
//   reduce_kernel  adds up the partial products of a split sum, in order, and applies the epilogue
//
// A block computes one tile of y over one slice of k. Where y has too few tiles to fill a GPU, k is cut into slices, by the
// shape alone: results do not depend on the number of multiprocessors, and there are no atomics.
// Work: 2 m n k flops. Bound by arithmetic where m, n and k are large; by reading b or writing y where one is small.
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
    const auto *a = job.a.at(line_a, job.a.step(k)), *b = job.b.at(line_b, job.b.step(k));
    if (a && b) sum += rounded<kPrecision>(*a) * rounded<kPrecision>(*b);
  }
  return sum;
}

// Writes kRows x kColumns sums from shared memory: to the slice's partial, or finished to y. Local row i is row_of(i) of y.
// Padding takes no part in a sum, but so far it has been a zero, and 0 * inf is NaN: a NaN is added up again without it.
template <Precision kPrecision, int kRows, int kColumns, int kLd, int kThreads, int kCount, class J, class RowOf>
__device__ __forceinline__ void store(const J& job, const typename J::T* sums, int64_t first_column, int64_t first_k,
                                      int64_t end_k, RowOf row_of) {
  using T = typename J::T;
  using V = Vec<T, kCount>;
  const Result<T>& r = job.result;
#pragma unroll 1
  for (int at = threadIdx.x * kCount; at < kRows * kColumns; at += kThreads * kCount) {
    const int64_t row = row_of(at / kColumns), column = first_column + at % kColumns;
    if (row >= job.m || column >= job.n) continue;
    V v = *reinterpret_cast<const V*>(sums + at / kColumns * kLd + at % kColumns);
    if constexpr (J::A::kGaps)
      for (int i = 0; i < kCount; ++i)
        if (v.v[i] != v.v[i]) v.v[i] = sum_without_gaps<kPrecision>(job, row, column + i, first_k, end_k);
    if (job.partial) {
      *reinterpret_cast<V*>(job.partial + (blockIdx.y * job.m + row) * job.n + column) = v;
    } else {
      const int64_t start = r.row_start(row) + column;
      for (int i = 0; i < kCount; ++i) v.v[i] = r.finish(v.v[i], start + i, column + i);
      *reinterpret_cast<V*>(r.y + start) = v;
    }
  }
}

// ---- What a thread brings of an operand's tile: kLines x kK elements, in vectors of kV, by kThreads threads.
template <class Op, int kLines, int kK, int kThreads, int kV>
class Share {
  static constexpr int kAcross = (Op::kAlongK ? kK : kLines) / kV;  // vectors side by side in memory
  static constexpr int kApart = kThreads / kAcross;                 // from one of a thread's vectors to its next
  static constexpr int kOther = Op::kAlongK ? kLines : kK;
  static_assert(kThreads % kAcross == 0 && kOther % kApart == 0, "the tile must be whole rounds of all threads");

 public:
  static constexpr int kCount = kOther / kApart;

  __device__ Share(const Op& op, int64_t first_line)
      : op_(op), side_(threadIdx.x % kAcross * kV), other_(threadIdx.x / kAcross) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) line_[i] = op.line(first_line + (Op::kAlongK ? other_ + i * kApart : side_));
  }

  // f(i, address or null, line in the tile, k in the tile) for each of the thread's vectors.
  template <class F>
  __device__ __forceinline__ void each(int64_t k, F f) const {
    typename Op::Step step;
    if constexpr (Op::kAlongK) step = op_.step(k + side_);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int other = other_ + i * kApart;
      if constexpr (Op::kAlongK) {
        f(i, op_.at(line_[i], step), other, side_);
      } else {
        step = op_.step(k + other);
        f(i, op_.at(line_[0], step), side_, other);
      }
    }
  }

 private:
  static constexpr int kHeld = Op::kAlongK ? kCount : 1;
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

  template <class T>
  static constexpr SharedSize shared() {
    return SharedSize().add<T>(2 * kK * (kM + kN + 2 * kPad));
  }
};
using LargeTile = FmaTile<128, 128, 8, 8>;  // 256 threads
using TallTile = FmaTile<128, 32, 8, 4>;    // 128 threads, for few columns
using MediumTile = FmaTile<64, 64, 8, 4>;   // 128 threads

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

  Shared shared;
  T* const tile_a = shared.alloc<T>(2 * kK * (kLdM + kLdN));
  T* const tile_b = tile_a + 2 * kK * kLdM;

  using ShareA = Share<typename J::A, kM, kK, Tile::kThreads, kV>;
  using ShareB = Share<typename J::B, kN, kK, Tile::kThreads, kV>;
  using V = Vec<T, kV>;
  const ShareA share_a(job.a, tile_m * kM);
  const ShareB share_b(job.b, tile_n * kN);
  V fresh_a[ShareA::kCount], fresh_b[ShareB::kCount];

  const auto fetch = [&](int64_t k) {
    const auto into = [](V* fresh) {
      return [fresh](int i, const T* from, int, int) { fresh[i] = from ? *reinterpret_cast<const V*>(from) : V{}; };
    };
    share_a.each(k, into(fresh_a));
    share_b.each(k, into(fresh_b));
  };
  const auto put = [&](int copy) {
    const auto out_of = [](const V* fresh, T* tile, int ld, bool along_k) {
      return [=](int i, const T*, int line, int k) {
        if (along_k)
          for (int e = 0; e < kV; ++e) tile[(k + e) * ld + line] = fresh[i].v[e];
        else
          *reinterpret_cast<V*>(tile + k * ld + line) = fresh[i];
      };
    };
    share_a.each(0, out_of(fresh_a, tile_a + copy * kK * kLdM, kLdM, J::A::kAlongK));
    share_b.each(0, out_of(fresh_b, tile_b + copy * kK * kLdN, kLdN, J::B::kAlongK));
  };

  // This thread's pieces of the tile: rows row + p * 4 pieces, columns likewise over 8.
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = warp / Tile::kWarpsN * Tile::kLanesM * Tile::kThreadM + lane / Tile::kLanesN * kPiece;
  const int column = warp % Tile::kWarpsN * Tile::kLanesN * Tile::kThreadN + lane % Tile::kLanesN * kPiece;
  constexpr int kRowStep = Tile::kLanesM * kPiece, kColumnStep = Tile::kLanesN * kPiece;
  constexpr int kPiecesM = Tile::kThreadM / kPiece, kPiecesN = Tile::kThreadN / kPiece;
  using Piece = Vec<T, kPiece>;
  T sums[Tile::kThreadM][Tile::kThreadN] = {};

  if (first_k < end_k) {
    fetch(first_k);
    put(0);
  }
  __syncthreads();
  int copy = 0;
  for (int64_t k = first_k; k < end_k; k += kK, copy ^= 1) {
    const bool more = k + kK < end_k;
    if (more) fetch(k + kK);
    const T *from_a = tile_a + copy * kK * kLdM + row, *from_b = tile_b + copy * kK * kLdN + column;
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
    if (more) put(copy ^ 1);
    __syncthreads();
  }

  // Through shared memory, a piece of every thread's rows at a time, so that neighbouring threads write neighbouring
  // elements.
  constexpr int kBandM = kM / kPiecesM;
  static_assert(kBandM * kLdN <= 2 * kK * (kLdM + kLdN));
  T* const band = tile_a;
  const int band_row = row / (Tile::kLanesM * Tile::kThreadM) * kRowStep + lane / Tile::kLanesN * kPiece;
#pragma unroll
  for (int p = 0; p < kPiecesM; ++p) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kThreadN; ++j)
        band[(band_row + i) * kLdN + column + j / kPiece * kColumnStep + j % kPiece] = sums[p * kPiece + i][j];
    __syncthreads();
    const auto row_of = [&](int i) {
      return tile_m * kM + i / kRowStep * (Tile::kLanesM * Tile::kThreadM) + p * kRowStep + i % kRowStep;
    };
    if (job.vectors)
      store<Precision::kFloat32, kBandM, kN, kLdN, Tile::kThreads, kPiece>(job, band, tile_n * kN, first_k, end_k, row_of);
    else
      store<Precision::kFloat32, kBandM, kN, kLdN, Tile::kThreads, 1>(job, band, tile_n * kN, first_k, end_k, row_of);
    __syncthreads();
  }
}

// ---- Tensor cores

// A warp has kWarpM x kWarpN of the tile, as 16 x 8 fragments. Tiles lie in shared memory as the operand lies in memory,
// float, kStages of them, brought by cp.async while earlier ones are multiplied. The padding makes the fragments' loads free
// of bank conflicts: lanes are 4 apart in k and 8 apart in lines.
template <int kM_, int kN_, int kK_, int kWarpM_, int kWarpN_, int kStages_>
struct MmaTile {
  static constexpr int kM = kM_, kN = kN_, kK = kK_, kWarpM = kWarpM_, kWarpN = kWarpN_, kStages = kStages_;
  static constexpr int kThreads = (kM / kWarpM) * (kN / kWarpN) * kWarp;
  template <class Op, int kLines>
  static constexpr int kLd = Op::kAlongK ? kK + 4 : kLines + 8;
  template <class Op, int kLines>
  static constexpr int kSize = (Op::kAlongK ? kLines : kK) * kLd<Op, kLines>;  // of one stage

  template <class J>
  static constexpr SharedSize shared() {
    return SharedSize().add<float>(kStages * (kSize<typename J::A, kM> + kSize<typename J::B, kN>));
  }
};
using LargeMmaTile = MmaTile<128, 128, 16, 64, 32, 4>;  // 256 threads; 76 KB, for the 99 KB of sm_86 and sm_89
using MediumMmaTile = MmaTile<64, 64, 32, 32, 32, 3>;   // 128 threads; 55 KB

// The two or four registers of a fragment: element (line, k) of a tile in shared memory, lines apart by 8, k by 4 or 8.
template <Precision kPrecision, bool kAlongK, int kLd>
__device__ __forceinline__ uint32_t fragment_register(const float* tile, int line, int k) {
  const float* at = tile + (kAlongK ? line * kLd + k : k * kLd + line);
  if constexpr (kPrecision == Precision::kTf32) return to_tf32(*at);
  return to_bf16x2(at[0], at[kAlongK ? 1 : kLd]);
}

template <class Tile, Precision kPrecision, int kV, class J, int kJobs>
__global__ __launch_bounds__(Tile::kThreads, 1) void mma_kernel(Jobs<J, kJobs> jobs) {
  using A = typename J::A;
  using B = typename J::B;
  constexpr int kM = Tile::kM, kN = Tile::kN, kK = Tile::kK;
  constexpr int kLdA = Tile::template kLd<A, kM>, kLdB = Tile::template kLd<B, kN>;
  constexpr int kSizeA = Tile::template kSize<A, kM>, kSizeB = Tile::template kSize<B, kN>;
  constexpr int kPack = kPrecision == Precision::kTf32 ? 1 : 2;  // elements a register
  const J& job = jobs.job[kJobs == 1 ? 0 : blockIdx.z];
  const int64_t tiles_n = ceil_div(job.n, kN), tile_m = blockIdx.x / tiles_n, tile_n = blockIdx.x - tile_m * tiles_n;
  if (tile_m * kM >= job.m) return;
  const int64_t first_k = blockIdx.y * job.slice, end_k = first_k + job.slice < job.k ? first_k + job.slice : job.k;

  Shared shared;
  float* const stages_a = shared.alloc<float>(Tile::kStages * (kSizeA + kSizeB));
  float* const stages_b = stages_a + Tile::kStages * kSizeA;
  const Share<A, kM, kK, Tile::kThreads, kV> share_a(job.a, tile_m * kM);
  const Share<B, kN, kK, Tile::kThreads, kV> share_b(job.b, tile_n * kN);

  // One group of copies a step, an empty one after the last, so that waits can count them.
  const auto bring = [&](int64_t k, int stage) {
    if (k < end_k) {
      share_a.each(k, [&](int, const float* from, int line, int kk) {
        float* to = stages_a + stage * kSizeA + (A::kAlongK ? line * kLdA + kk : kk * kLdA + line);
        cp_async<kV * 4>(to, from ? from : job.result.y, from != nullptr);
      });
      share_b.each(k, [&](int, const float* from, int line, int kk) {
        float* to = stages_b + stage * kSizeB + (B::kAlongK ? line * kLdB + kk : kk * kLdB + line);
        cp_async<kV * 4>(to, from ? from : job.result.y, from != nullptr);
      });
    }
    cp_async_commit();
  };

  constexpr int kFragmentsM = Tile::kWarpM / 16, kFragmentsN = Tile::kWarpN / 8, kWarpsN = kN / Tile::kWarpN;
  const int warp = threadIdx.x / kWarp, group = threadIdx.x % kWarp / 4, member = threadIdx.x % 4;
  const int row = warp / kWarpsN * Tile::kWarpM, column = warp % kWarpsN * Tile::kWarpN;
  float sums[kFragmentsM][kFragmentsN][4] = {};

#pragma unroll
  for (int s = 0; s < Tile::kStages - 1; ++s) bring(first_k + s * kK, s);
  int stage = 0;
  for (int64_t k = first_k; k < end_k; k += kK) {
    cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // the stage has landed for all, and all are done with the one that is brought next
    bring(k + (Tile::kStages - 1) * kK, (stage + Tile::kStages - 1) % Tile::kStages);
    const float *from_a = stages_a + stage * kSizeA, *from_b = stages_b + stage * kSizeB;
#pragma unroll
    for (int kk = 0; kk < kK; kk += 8 * kPack) {
      uint32_t a[kFragmentsM][4], b[kFragmentsN][2];
#pragma unroll
      for (int f = 0; f < kFragmentsM; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[f][i] = fragment_register<kPrecision, A::kAlongK, kLdA>(from_a, row + f * 16 + group + 8 * (i % 2),
                                                                    kk + kPack * (member + 4 * (i / 2)));
#pragma unroll
      for (int f = 0; f < kFragmentsN; ++f)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          b[f][i] =
              fragment_register<kPrecision, B::kAlongK, kLdB>(from_b, column + f * 8 + group, kk + kPack * (member + 4 * i));
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i)
#pragma unroll
        for (int j = 0; j < kFragmentsN; ++j) {
          if constexpr (kPrecision == Precision::kTf32)
            mma_tf32(sums[i][j], a[i], b[j]);
          else
            mma_bf16(sums[i][j], a[i], b[j]);
        }
    }
    stage = (stage + 1) % Tile::kStages;
  }
  cp_async_wait<0>();

  __syncthreads();  // all are done with the stages, where the sums go now
  constexpr int kLd = kN + 4;
  static_assert(kM * kLd <= Tile::kStages * (kSizeA + kSizeB));
  float* const tile = stages_a;
#pragma unroll
  for (int m = 0; m < kFragmentsM; ++m)
#pragma unroll
    for (int n = 0; n < kFragmentsN; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        tile[(row + m * 16 + group + 8 * (e / 2)) * kLd + column + n * 8 + 2 * member + e % 2] = sums[m][n][e];
  __syncthreads();
  const auto row_of = [&](int i) { return tile_m * kM + i; };
  if (job.vectors)
    store<kPrecision, kM, kN, kLd, Tile::kThreads, 4>(job, tile, tile_n * kN, first_k, end_k, row_of);
  else
    store<kPrecision, kM, kN, kLd, Tile::kThreads, 1>(job, tile, tile_n * kN, first_k, end_k, row_of);
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
  launch_tiles<Tile>(matmul_kernel<Tile, kV, J, kJobs>, jobs, count, slices, Tile::template shared<typename J::T>().bytes(),
                     stream);
}

template <class Tile, int kV, class J, int kJobs>
void launch_mma(const Jobs<J, kJobs>& jobs, int count, int64_t slices, Precision precision, Stream stream) {
  constexpr size_t kBytes = Tile::template shared<J>().bytes();
  if (precision == Precision::kTf32)
    launch_tiles<Tile>(mma_kernel<Tile, Precision::kTf32, kV, J, kJobs>, jobs, count, slices, kBytes, stream);
  else
    launch_tiles<Tile>(mma_kernel<Tile, Precision::kBfloat16, kV, J, kJobs>, jobs, count, slices, kBytes, stream);
}

template <int kV, class J, int kJobs>
void launch_product(const Jobs<J, kJobs>& jobs, int count, const Cut& c, Precision precision, Stream stream) {
  if constexpr (std::is_same_v<typename J::T, double>) {
    launch_fma<MediumTile, kV>(jobs, count, c.slices, stream);
  } else if (precision != Precision::kFloat32) {
    if (c.tile == Cut::kLarge)
      launch_mma<LargeMmaTile, kV>(jobs, count, c.slices, precision, stream);
    else
      launch_mma<MediumMmaTile, kV>(jobs, count, c.slices, precision, stream);
  } else if (c.tile == Cut::kLarge) {
    launch_fma<LargeTile, kV>(jobs, count, c.slices, stream);
  } else if (c.tile == Cut::kTall) {
    launch_fma<TallTile, kV>(jobs, count, c.slices, stream);
  } else {
    launch_fma<MediumTile, kV>(jobs, count, c.slices, stream);
  }
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
  if (vectors)
    launch_product<kVec<T>>(jobs, count, c, precision, stream);
  else
    launch_product<1>(jobs, count, c, precision, stream);
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
