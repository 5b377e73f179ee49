// Convolution of 3 x 3 taps by Winograd's F(2 x 2, 3 x 3): 16 products for 4 outputs instead of 36
// (A. Lavin, S. Gray, Fast Algorithms for Convolutional Neural Networks, 2015, arXiv:1509.09308).
//
//   y = A' [ sum over channels (G g G') . (B' d B) ] A      g: 3 x 3 taps, d: 4 x 4 of the source, y: 2 x 2
//
// Each of the 16 products is a matrix product over channels, on the register tile: (tiles x C) by (C x K). The filter is
// transformed once per call; a group of tiles is transformed, multiplied and transformed back row by row of the 4 x 4, so
// that what lies in between stays in L1. The sums are not those of the direct convolution, so errors differ (ops.conv2d
// states the bound), and it is for precision kWinograd only. Outputs that are not finite are computed again, directly:
// through the transforms a NaN or infinity reaches all 4 outputs of a tile, and padding takes part as zeros.
#pragma once

#include <memory>

#include "../shapes.h"
#include "conv.h"

namespace fastnn::FASTNN_TARGET {

constexpr int kProducts = 16;

// Tiles of 2 x 2 that images of h x w are covered with.
inline int64_t tile_count(int64_t images, int64_t h, int64_t w) {
  return images * ((h + 1) / 2) * ((w + 1) / 2);
}

// For a convolution or one of its gradients, in tiles of images of h x w. By the shape alone, where the transforms
// pay: of the filter by enough tiles, of the tiles by enough channels, and where padding is not most of what a tile reads.
inline bool winograd_fits(const Conv2dShape& s, int64_t h, int64_t w) {
  constexpr int64_t kChannels = 16, kTiles = 64;
  if (s.precision != Precision::kWinograd || s.kh != 3 || s.kw != 3 || s.sh != 1 || s.sw != 1 || s.dh != 1 || s.dw != 1)
    return false;
  const int64_t tiles = tile_count(s.n, h, w), products = s.n * s.ho * s.wo * 9;
  return s.c >= kChannels && s.k >= kChannels && tiles >= kTiles && 3 * products >= 4 * kProducts * tiles;
}

// ---- The filter: (panels, 16, channels, kCols)

template <class T>
int64_t winograd_workspace(int64_t channels, int64_t out_channels) {
  return ceil_div(out_channels, kCols<T>) * kProducts * channels * kCols<T> + kAlign<T>;
}

// A filter's elements, at w + r * row + q * col + channel * source_channel + column * out_channel.
template <class T>
struct FilterView {
  const T* w;
  int64_t row, col, source_channel, out_channel;

  const T* at(int64_t r, int64_t q, int64_t channel, int64_t column) const {
    return w + r * row + q * col + channel * source_channel + column * out_channel;
  }
  simd::V<T> load(int64_t r, int64_t q, int64_t channel, int64_t column, int64_t n) const {
    const T* from = at(r, q, channel, column);
    if (out_channel == 1) return simd::load(from, n);
    T gathered[simd::kWidth<T>] = {};
    for (int64_t i = 0; i < n; ++i) gathered[i] = from[i * out_channel];
    return simd::load(gathered);
  }
};

// w (KH, KW, C, K) as it lies; and with its taps reversed, from K to C channels, as the gradient of x wants it.
template <class T>
FilterView<T> forward_view(const Conv2dShape& s, const T* w) {
  return {w, 3 * s.c * s.k, s.c * s.k, s.k, 1};
}
template <class T>
FilterView<T> reversed_view(const Conv2dShape& s, const T* w) {
  const int64_t tap = s.c * s.k;
  return {w + 8 * tap, -3 * tap, -tap, 1, s.k};
}

template <class T>
void winograd_filter(int64_t channels, int64_t out_channels, const FilterView<T>& filter, T* workspace);

// ---- Tiles

// Where 2 x 2 outputs of one image begin.
struct OutputTile {
  int64_t n, i, j;
};

// The 4 x 4 pixels of the source that they read.
template <class T>
struct SourceTile {
  const T* first;
  unsigned inside;  // a bit for each pixel: whether it lies in the image
  bool goes_on;     // its first two columns are the last two of the tile before
};

// The tiles of a batch, row by row.
struct TileGrid {
  Image source, out;
  int64_t pad_top, pad_left;

  // Lists `count` tiles from `begin` on, of source x.
  template <class T>
  void list(int64_t begin, int64_t count, const T* x, OutputTile* at, SourceTile<T>* from) const {
    const int64_t down = (out.h + 1) / 2, across = (out.w + 1) / 2;
    OutputTile next{begin / (down * across), begin / across % down * 2, begin % across * 2};
    for (int64_t t = 0; t < count; ++t) {
      const int64_t top = next.i - pad_top, left = next.j - pad_left;
      unsigned inside = 0;
      for (int64_t r = 0; r < 4; ++r)
        for (int64_t q = 0; q < 4; ++q)
          inside |= unsigned(top + r >= 0 && top + r < source.h && left + q >= 0 && left + q < source.w) << (r * 4 + q);
      at[t] = next;
      from[t] = {x + source.at(next.n, top, left), inside, t > 0 && next.j > 0};
      next.j += 2;
      if (next.j >= out.w) next.j = 0, next.i += 2;
      if (next.i >= out.h) next.i = 0, ++next.n;
    }
  }
};

// Row r of the 4 x 4 products of tiles, without the filter: product q of tile t, of all channels, to to[t * width + q *
// step].
template <class T>
void winograd_source(int r, const SourceTile<T>* tiles, int64_t count, const Image& source, T* to, int64_t width,
                     int64_t step);

// The products of row r for m tiles, at most kRows: of source rows (tile t's at rows[t], as winograd_source leaves them) and
// a panel of the transformed filter. Adds to the tiles' 2 x 2 outputs, sums[(t * 4 + output) * kCols + column], what they
// take of row r; row 0 sets them.
template <class T>
void winograd_products(int64_t m, int r, const T* const* rows, int64_t step, const T* filter, int64_t channels, T* sums);

template <class T>
struct WinogradJob {
  int64_t images;
  TileGrid grid;
  const T* x;
  FilterView<T> filter;
  const T* bias;  // or null

  // Of the outputs of n channels, those that are not finite, directly.
  void repair(const OutputTile& at, int64_t column, int64_t n, simd::V<T>* y) const {
    for (int64_t o = 0; o < 4; ++o)
      for (int64_t i = 0; i < n; ++i)
        if (!(y[o][i] - y[o][i] == 0)) y[o][i] = direct(at.n, at.i + o / 2, at.j + o % 2, column + i);
  }

  T direct(int64_t image, int64_t i, int64_t j, int64_t column) const {
    const Image& source = grid.source;
    T sum = 0;
    for (int64_t r = 0; r < 3; ++r)
      for (int64_t q = 0; q < 3; ++q) {
        const int64_t row = i - grid.pad_top + r, col = j - grid.pad_left + q;
        if (row < 0 || row >= source.h || col < 0 || col >= source.w) continue;
        const T* pixel = x + source.at(image, row, col);
        for (int64_t c = 0; c < source.c; ++c) sum += pixel[c] * *filter.at(r, q, c, column);
      }
    return bias ? sum + bias[column] : sum;
  }
};

// For every tile and vector of output channels: emit(tile, column, n, y), y[0..3] being the outputs (0, 0), (0, 1), (1, 0)
// and (1, 1) of channels [column, column + n).
template <class T, class Emit>
void winograd_conv(const WinogradJob<T>& job, T* workspace, Emit emit) {
  const Image &source = job.grid.source, &out = job.grid.out;
  winograd_filter(source.c, out.c, job.filter, workspace);
  using V = simd::V<T>;
  constexpr int W = simd::kWidth<T>;
  const T* const filter = aligned(workspace);
  const int64_t tiles = tile_count(job.images, out.h, out.w), panels = ceil_div(out.c, kCols<T>);
  const int64_t width = ceil_div(source.c, W) * W;  // channels in whole vectors

  // Tiles at once: few, so that what belongs to them stays in L1; where the filter does not stay in L2, as many as let it.
  constexpr int64_t kFew = 12, kMost = 48, kL2 = 512 * 1024 / int64_t(sizeof(T));
  const int64_t room = kL2 / (4 * (width + panels * kCols<T>)) / kRows * kRows;
  const int64_t most = kProducts * source.c * out.c <= kL2 ? kFew : std::clamp(room, kFew, kMost);
  const int64_t groups = ceil_div(tiles, most);
  const int64_t parts = std::clamp<int64_t>(4 * get_num_threads() / std::max<int64_t>(groups, 1), 1, panels);

  parallel_for(groups * parts, [&](int64_t item) {
    const int64_t group = item / parts, begin = tiles * group / groups, count = tiles * (group + 1) / groups - begin;
    const int64_t first_panel = panels * (item % parts) / parts, end_panel = panels * (item % parts + 1) / parts;
    const int64_t step = count * width, of_tile = 4 * kCols<T>, of_panel = count * of_tile;
    const std::unique_ptr<T[]> memory(new T[size_t(4 * step + (end_panel - first_panel) * of_panel + 2 * kAlign<T>)]);
    T* const transformed = aligned(memory.get());
    T* const sums = aligned(transformed + 4 * step);

    OutputTile at[kMost];
    SourceTile<T> from[kMost];
    const T* rows[kMost];
    job.grid.list(begin, count, job.x, at, from);
    for (int64_t t = 0; t < count; ++t) rows[t] = transformed + t * width;

    for (int r = 0; r < 4; ++r) {
      winograd_source(r, from, count, source, transformed, width, step);
      for (int64_t panel = first_panel; panel < end_panel; ++panel) {
        const T* const b = filter + (panel * 4 + r) * 4 * source.c * kCols<T>;
        T* const to = sums + (panel - first_panel) * of_panel;
        for_tiles(count, [&](int64_t first, int64_t m) {
          winograd_products(m, r, rows + first, step, b, source.c, to + first * of_tile);
        });
      }
    }

    for (int64_t panel = first_panel; panel < end_panel; ++panel)
      for (int64_t column = panel * kCols<T>, v = 0; v < 2 && column < out.c; ++v, column += W) {
        const int64_t n = std::min<int64_t>(out.c - column, W);
        const V bias = job.bias ? simd::load(job.bias + column, n) : V{};
        const T* const of_tiles = sums + (panel - first_panel) * of_panel + v * W;
        for (int64_t t = 0; t < count; ++t) {
          V y[4];
#pragma GCC unroll 4
          for (int o = 0; o < 4; ++o) y[o] = simd::load(of_tiles + t * of_tile + o * kCols<T>) + bias;
          const V zero = (y[0] + y[1] + y[2] + y[3]) * T(0);
          if (simd::any<T>(zero != zero)) job.repair(at[t], column, n, y);
          emit(at[t], column, n, y);
        }
      }
  });
}

// ---- The gradient of the filter, in winograd_backward_w.cpp: by the transpose of the algorithm. False where a number of it
// is not finite; dw is then worth nothing.

template <class T>
int64_t winograd_backward_w_workspace(const Conv2dShape& s);

template <class T>
bool winograd_backward_w(const Conv2dShape& s, const T* dy, const T* x, T* dw, T* workspace);

}  // namespace fastnn::FASTNN_TARGET
