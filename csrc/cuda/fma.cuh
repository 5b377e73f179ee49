// A tile of a product by fused multiply-adds in the operands' own type.
#pragma once

#include <algorithm>
#include <type_traits>

#include "product.cuh"

namespace fastnn::FASTNN_TARGET {

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

// Blocks that must find room in a multiprocessor's registers: 16 warps of the large tile, so that some multiply while others
// wait. It spills a few values for that, read back once for some hundred multiply-adds: 0.81 of the time on an H100.
template <class Tile, class T>
constexpr int kAtOnce = Tile::kThreads == 256 && sizeof(T) == 4 ? 2 : 1;

// Shared memory holds both tiles as [k][line], twice: while one copy is multiplied, the next is on its way through
// registers.
template <class Tile, int kV, class J, int kJobs>
__global__ __launch_bounds__(Tile::kThreads, (kAtOnce<Tile, typename J::T>)) void matmul_kernel(Jobs<J, kJobs> jobs) {
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

}  // namespace fastnn::FASTNN_TARGET
