// The gradient of a 3 x 3 filter by the transpose of F(2 x 2, 3 x 3), 16 products for a tile's 36 (winograd.h has the
// source):
//
//   dw = G' [ sum over tiles (B' d B) (A dy A') ] G      d: 4 x 4 of x, dy: 2 x 2
//
// Each of the 16 sums is a matrix product over tiles, (C x tiles) by (tiles x K), on the register tile. The tiles are parted
// into slices, whose sums are added up in order and transformed back at the end.
#include <atomic>
#include <memory>
#include <vector>

#include "winograd.h"

namespace fastnn::FASTNN_TARGET {
namespace {

// By the shape alone, for the bits' sake: slices of at least kSlice tiles, in blocks that stay in L2 with both transforms.
template <class T>
struct Cut {
  int64_t tiles, panels, product_size, slices, block;
  explicit Cut(const Conv2dShape& s)
      : tiles(tile_count(s.n, s.ho, s.wo)), panels(ceil_div(s.k, kCols<T>)), product_size(panels * s.c * kCols<T>) {
    constexpr int64_t kSlice = 512, kSlices = 16, kPartials = 1 << 22, kBlock = 128, kL2 = 128 * 1024 / int64_t(sizeof(T));
    slices = std::clamp<int64_t>(std::min(tiles / kSlice, kPartials / product_size / kProducts), 1, kSlices);
    block = std::clamp<int64_t>(kL2 / (s.c + s.k), 16, kBlock);
  }
};

// A dy for two vectors.
template <class V>
inline void times_a_transposed(V upper, V lower, V* out) {
  out[0] = upper;
  out[1] = upper + lower;
  out[2] = upper - lower;
  out[3] = -lower;
}

// Row r of A dy A' of a tile: product q of channel k to to[q * step + panel * panel_step + column].
template <class T>
void transform_dy(int r, const T* dy, const Image& image, const OutputTile& at, T* to, int64_t step, int64_t panel_step) {
  using V = simd::V<T>;
  constexpr int W = simd::kWidth<T>;
  const T* const first = dy + image.at(at.n, at.i, at.j);
  const bool below = at.i + 1 < image.h, right = at.j + 1 < image.w;
  for (int64_t k = 0; k < image.c; k += W) {
    const auto pixel = [&](int64_t i, int64_t j) {
      return (i == 0 || below) && (j == 0 || right) ? simd::load(first + (i * image.w + j) * image.c + k, image.c - k) : V{};
    };
    V half[2], out[4];
#pragma GCC unroll 2
    for (int64_t j = 0; j < 2; ++j)
      half[j] = r == 0   ? pixel(0, j)
                : r == 1 ? pixel(0, j) + pixel(1, j)
                : r == 2 ? pixel(0, j) - pixel(1, j)
                         : -pixel(1, j);
    times_a_transposed(half[0], half[1], out);
    T* const panel = to + k / kCols<T> * panel_step + k % kCols<T>;
#pragma GCC unroll 4
    for (int64_t q = 0; q < 4; ++q) simd::store(panel + q * step, out[q]);
  }
}

// G' u for four vectors.
template <class T>
inline void times_g_transposed(const simd::V<T>* u, int64_t step, simd::V<T>* out, int64_t out_step) {
  const simd::V<T> sum = (u[step] + u[2 * step]) * T(0.5);
  out[0] = u[0] + sum;
  out[out_step] = (u[step] - u[2 * step]) * T(0.5);
  out[2 * out_step] = sum + u[3 * step];
}

// Rows [first_row, end_row) of the products, summed over a slice of the tiles: sums (16, panels, C, kCols).
template <class T>
void sum_slice(const Conv2dShape& s, const Cut<T>& cut, int64_t slice, int64_t first_row, int64_t end_row, const T* dy,
               const T* x, T* sums) {
  constexpr int W = simd::kWidth<T>;
  const TileGrid grid{{s.h, s.w, s.c}, {s.ho, s.wo, s.k}, s.pad_top, s.pad_left};
  const int64_t width = ceil_div(s.c, W) * W;
  // Not powers of two, whose multiples would share a set of L1.
  const int64_t step = cut.block * width + kAlign<T>, panel_step = cut.block * kCols<T> + kAlign<T>;
  const std::unique_ptr<T[]> memory(new T[size_t(4 * (step + cut.panels * panel_step) + 2 * kAlign<T>)]);
  T* const source = aligned(memory.get());
  T* const gradient = aligned(source + 4 * step);
  std::vector<SourceTile<T>> from(size_t(cut.block));
  std::vector<OutputTile> at(size_t(cut.block));

  const int64_t begin = cut.tiles * slice / cut.slices, end = cut.tiles * (slice + 1) / cut.slices;
  const int64_t blocks = ceil_div(end - begin, cut.block);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first_tile = begin + (end - begin) * block / blocks;
    const int64_t count = begin + (end - begin) * (block + 1) / blocks - first_tile;
    grid.list(first_tile, count, x, at.data(), from.data());
    for (int64_t r = first_row; r < end_row; ++r) {
      winograd_source(int(r), from.data(), count, grid.source, source, width, step);
      for (int64_t t = 0; t < count; ++t)
        transform_dy(int(r), dy, grid.out, at[t], gradient + t * kCols<T>, cut.panels * panel_step, panel_step);
      for (int64_t q = 0; q < 4; ++q) {
        T* const sum = sums + (r * 4 + q) * cut.product_size;
        const Run run{0, 0, count};
        TileArgs<T> t{};
        t.step = width, t.runs = &run, t.run_count = 1, t.ldb = kCols<T>, t.beta = 1;
        for_tiles<kAdjacentRows>(s.c, [&](int64_t channel, int64_t m) {
          const T* const row = source + q * step + channel;
          t.rows = &row;
          for (int64_t panel = 0; panel < cut.panels; ++panel) {
            T* to[kAdjacentRows];
            for (int64_t i = 0; i < m; ++i) to[i] = sum + (panel * s.c + channel + i) * kCols<T>;
            t.y = to, t.c = block ? to : nullptr;
            t.b = gradient + (q * cut.panels + panel) * panel_step;
            t.n = s.k - panel * kCols<T> > W ? kCols<T> : W;  // whole vectors, as they are read again
            run_tile<T, false>(m, t);
          }
        });
      }
    }
  }
}

// dw of the slices' sums, which are added up in order. Whether all of it is finite.
template <class T>
bool transform_back(const Conv2dShape& s, const Cut<T>& cut, const T* sums, T* dw) {
  using V = simd::V<T>;
  constexpr int W = simd::kWidth<T>;
  const int64_t step = cut.product_size;
  std::atomic<bool> finite{true};
  parallel_chunks(s.c, 4, [&](int64_t begin, int64_t end) {
    V zero{};
    for (int64_t c = begin; c < end; ++c)
      for (int64_t k = 0; k < s.k; k += W) {
        const T* const from = sums + (k / kCols<T> * s.c + c) * kCols<T> + k % kCols<T>;
        V u[kProducts], half[12], g[9];
        for (int64_t p = 0; p < kProducts; ++p) {
          u[p] = simd::load(from + p * step);
          for (int64_t slice = 1; slice < cut.slices; ++slice) u[p] += simd::load(from + (slice * kProducts + p) * step);
        }
        for (int64_t q = 0; q < 4; ++q) times_g_transposed<T>(u + q, 4, half + q, 4);
        for (int64_t r = 0; r < 3; ++r) times_g_transposed<T>(half + r * 4, 1, g + r * 3, 1);
        for (int64_t tap = 0; tap < 9; ++tap) {
          zero += g[tap] * T(0);
          simd::store(dw + (tap * s.c + c) * s.k + k, g[tap], s.k - k);
        }
      }
    if (simd::any<T>(zero != zero)) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load();
}

}  // namespace

template <class T>
int64_t winograd_backward_w_workspace(const Conv2dShape& s) {
  const Cut<T> cut(s);
  return cut.slices * kProducts * cut.product_size + kAlign<T>;
}

template <class T>
bool winograd_backward_w(const Conv2dShape& s, const T* dy, const T* x, T* dw, T* workspace) {
  const Cut<T> cut(s);
  T* const sums = aligned(workspace);
  // The four rows of products are items of their own where slices are few.
  const int64_t parts = cut.slices >= 4 * get_num_threads() ? 1 : 4;
  parallel_for(cut.slices * parts, [&](int64_t item) {
    const int64_t slice = item / parts, part = item % parts;
    sum_slice(s, cut, slice, part * 4 / parts, (part + 1) * 4 / parts, dy, x, sums + slice * kProducts * cut.product_size);
  });
  return transform_back(s, cut, sums, dw);
}

#define INSTANTIATE(T)                                                   \
  template int64_t winograd_backward_w_workspace<T>(const Conv2dShape&); \
  template bool winograd_backward_w<T>(const Conv2dShape&, const T*, const T*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
