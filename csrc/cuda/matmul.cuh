// y = epilogue(a b) for any two operands (operands.cuh): GEMM and all three passes of a convolution are this kernel.
//
//   matmul_kernel  fma.cuh: fused multiply-adds in the operands' own type, the default, for float and double
//   mma_kernel     mma.cuh: tensor cores, float operands rounded to tf32 or bfloat16, float sums; asked for by precision
//   reduce_kernel  adds up the partial products of a split sum, in a fixed order, and applies the epilogue
//
// A block computes one tile of y over one slice of k. It works out its lines when it begins and the steps of k some tiles
// ahead, each once, into tables in shared memory: what is left for the main loop is a test and an addition for each access.
// For double and where there are no vectors, as for the three channels of an image, one tile is enough: accesses of single
// elements lie side by side along k, over the ends of taps, and cost the float32 loop about a tenth more instructions. Where
// y has too few tiles to fill a GPU, k is cut into slices, by the shape alone: results do not depend on the number of
// multiprocessors, and there are no atomics. Work: 2 m n k flops. Bound by arithmetic where m, n and k are large; by reading
// b or writing y where one is small.
#pragma once

#include <algorithm>
#include <type_traits>

#include "fma.cuh"
#include "mma.cuh"

namespace fastnn::FASTNN_TARGET {

// ---- Partial products: thread -> element of y; with kMany slices, kSliceGroups threads.
template <bool kMany, class J, int kJobs>
__global__ void reduce_kernel(Jobs<J, kJobs> jobs, int slices) {
  using T = typename J::T;
  const J& job = jobs.job[kJobs == 1 ? 0 : blockIdx.z];
  const int64_t size = job.m * job.n;
  const auto finish = [&](int64_t i, T sum) {
    const int64_t row = i / job.n, column = i - row * job.n, at = job.result.row_start(row) + column;
    job.result.y[at] = job.result.finish(sum, at, column);
  };
  if constexpr (kMany) {
    T* shared = Shared().alloc<T>(kSliceThreads);
    for (int64_t first = int64_t(blockIdx.x) * kWarp; first < size; first += int64_t(gridDim.x) * kWarp) {
      const int64_t i = first + threadIdx.x % kWarp;
      const T sum = sum_slices(slices, shared, [&](int64_t s) { return i < size ? job.partial[s * size + i] : T(0); });
      if (threadIdx.x < kWarp && i < size) finish(i, sum);
    }
  } else {
    for (int64_t i = first_item(); i < size; i += item_step()) {
      T sum = job.partial[i];
      for (int s = 1; s < slices; ++s) sum += job.partial[s * size + i];
      finish(i, sum);
    }
  }
}

// ---- Launchers

// How a product is cut, by its shape alone.
struct Cut {
  enum { kLarge, kTall, kMedium } tile;
  int64_t slices;

  // m x n results of sums over k, for a GPU of some hundred multiprocessors. A large tile of 64 columns would be half empty.
  Cut(int64_t m, int64_t n, int64_t k, bool float_fma) {
    constexpr int64_t kBlocks = 128, kSliceK = 64, kLongSliceK = 256, kMaxSlices = 256;
    const auto tiles = [&](int64_t tm, int64_t tn) { return ceil_div(m, tm) * ceil_div(n, tn); };
    tile = n <= 32 && float_fma ? kTall : n > 64 && tiles(128, 128) >= kBlocks ? kLarge : kMedium;
    const int64_t blocks = tile == kTall ? tiles(128, 32) : tile == kLarge ? tiles(128, 128) : tiles(64, 64);
    // Two blocks for each multiprocessor; of small tiles without tensor cores four, where slices stay long.
    const auto most = [&](int64_t each, int64_t length) {
      return std::min(each * kBlocks / std::max<int64_t>(blocks, 1), k / length);
    };
    slices = std::max(most(2, kSliceK), float_fma && tile != kLarge ? most(4, kLongSliceK) : 0);
    slices = std::clamp<int64_t>(slices, 1, kMaxSlices);
  }
};

template <class T>
Cut cut(int64_t m, int64_t n, int64_t k, Precision precision) {
  Cut c(m, n, k, std::is_same_v<T, float> && precision == Precision::kFloat32);
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
    const bool many = c.slices > kSliceGroups;
    dim3 grid = grid_for(most, many ? kWarp : kSliceThreads);
    grid.z = unsigned(count);
    launch(many ? reduce_kernel<true, J, kJobs> : reduce_kernel<false, J, kJobs>, grid, kSliceThreads,
           many ? SharedSize().add<T>(kSliceThreads).bytes() : 0, stream, jobs, int(c.slices));
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
