// A tile of a product by tensor cores, its factors rounded to tf32 or bfloat16.
#pragma once

#include <algorithm>
#include <type_traits>

#include "product.cuh"

namespace fastnn::FASTNN_TARGET {

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

}  // namespace fastnn::FASTNN_TARGET
