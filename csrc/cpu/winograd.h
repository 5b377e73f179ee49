// Convolution of 3 x 3 taps by Winograd's F(2 x 2, 3 x 3): 16 products for 4 outputs instead of 36
// (A. Lavin, S. Gray, Fast Algorithms for Convolutional Neural Networks, 2015, arXiv:1509.09308).
//
//   y = A' [ sum over channels (G g G') . (B' d B) ] A      g: 3 x 3 taps, d: 4 x 4 of the source, y: 2 x 2
//
// Each of the 16 products is a matrix product over channels, on the register tile: (tiles x C) by (C x K). The filter is
// transformed once per call; a group of tiles is transformed, multiplied and transformed back out of L1 and L2.
// The sums are not those of the direct convolution, so errors differ (ops.conv2d states the bound), and it is for precision
// kWinograd only. Outputs that are not finite are computed again, directly: through the transforms a NaN or infinity reaches
// all 4 outputs of a tile, and padding takes part as zeros.
#pragma once

#include <memory>

#include "../shapes.h"
#include "conv.h"

namespace fastnn::FASTNN_TARGET {

constexpr int kProducts = 16;
constexpr int64_t kGroup = 12;  // tiles at once

// For a convolution, or the gradient of its input, with images of h x w outputs. By the shape alone, where the transforms
// pay: of the filter by enough tiles, of the tiles by enough channels, and where padding is not most of what a tile reads.
inline bool winograd_fits(const Conv2dShape& s, int64_t h, int64_t w) {
  constexpr int64_t kChannels = 16, kTiles = 64;
  if (s.precision != Precision::kWinograd || s.kh != 3 || s.kw != 3 || s.sh != 1 || s.sw != 1 || s.dh != 1 || s.dw != 1)
    return false;
  const int64_t tiles = s.n * ((h + 1) / 2) * ((w + 1) / 2), products = s.n * s.ho * s.wo * 9;
  return s.c >= kChannels && s.k >= kChannels && tiles >= kTiles && 3 * products >= 4 * kProducts * tiles;
}

// ---- The filter: (panels, 16, channels, kCols)

template <class T>
int64_t winograd_workspace(int64_t channels, int64_t out_channels) {
  return panel_count(out_channels, kCols<T>) * kProducts * channels * kCols<T> + kAlign<T>;
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

// G g for three vectors.
template <class T>
inline void times_g(const simd::V<T>* g, int64_t step, simd::V<T>* out, int64_t out_step) {
  const simd::V<T> outer = g[0] + g[2 * step];
  out[0] = g[0];
  out[out_step] = (outer + g[step]) * T(0.5);
  out[2 * out_step] = (outer - g[step]) * T(0.5);
  out[3 * out_step] = g[2 * step];
}

template <class T>
void winograd_filter(int64_t channels, int64_t out_channels, const FilterView<T>& filter, T* workspace) {
  constexpr int W = simd::kWidth<T>;
  parallel_for(panel_count(out_channels, kCols<T>) * channels, [&](int64_t item) {
    const int64_t panel = item / channels, channel = item % channels;
    T* to = aligned(workspace) + (panel * kProducts * channels + channel) * kCols<T>;
    for (int64_t v = 0; v < 2; ++v) {
      const int64_t column = panel * kCols<T> + v * W, n = std::clamp<int64_t>(out_channels - column, 0, W);
      simd::V<T> g[9], half[12], u[kProducts];
      for (int64_t r = 0; r < 3; ++r)
        for (int64_t q = 0; q < 3; ++q) g[r * 3 + q] = n ? filter.load(r, q, channel, column, n) : simd::V<T>{};
      for (int q = 0; q < 3; ++q) times_g<T>(g + q, 3, half + q, 3);
      for (int r = 0; r < 4; ++r) times_g<T>(half + r * 3, 1, u + r * 4, 1);
      for (int64_t p = 0; p < kProducts; ++p) simd::store(to + p * channels * kCols<T> + v * W, u[p]);
    }
  });
}

// ---- Tiles

// B' d for four vectors.
template <class V>
inline void times_b(const V* d, int64_t step, V* out, int64_t out_step) {
  out[0] = d[0] - d[2 * step];
  out[out_step] = d[step] + d[2 * step];
  out[2 * out_step] = d[2 * step] - d[step];
  out[3 * out_step] = d[step] - d[3 * step];
}

// A' m for four vectors.
template <class V>
inline void times_a(const V* m, int64_t step, V* out, int64_t out_step) {
  out[0] = m[0] + m[step] + m[2 * step];
  out[out_step] = m[step] - m[2 * step] - m[3 * step];
}

// A tile's 4 x 4 pixels of the source, the first at `first`, to to[p * step + 0..channels): p of the 16 products. `inside`
// has a bit for each pixel that lies in the image.
template <class T>
void winograd_source(const T* first, const Image& source, unsigned inside, T* to, int64_t step) {
  using V = simd::V<T>;
  constexpr int W = simd::kWidth<T>;
  for (int64_t c = 0; c < source.c; c += W) {
    V d[16], half[16], v[16];
#pragma GCC unroll 4
    for (int64_t r = 0; r < 4; ++r)
#pragma GCC unroll 4
      for (int64_t q = 0; q < 4; ++q)
        d[r * 4 + q] = inside >> (r * 4 + q) & 1 ? simd::load(first + (r * source.w + q) * source.c + c, source.c - c) : V{};
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) times_b(d + q, 4, half + q, 4);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) times_b(half + r * 4, 1, v + r * 4, 1);
#pragma GCC unroll 16
    for (int p = 0; p < kProducts; ++p) simd::store(to + p * step + c, v[p]);
  }
}

// Where 2 x 2 outputs of one image begin.
struct OutputTile {
  int64_t n, i, j;
};

template <class T>
struct WinogradJob {
  int64_t images;
  Image source, out;
  int64_t pad_top, pad_left;
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
    T sum = 0;
    for (int64_t r = 0; r < 3; ++r)
      for (int64_t q = 0; q < 3; ++q) {
        const int64_t row = i - pad_top + r, col = j - pad_left + q;
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
  const Image &source = job.source, &out = job.out;
  winograd_filter(source.c, out.c, job.filter, workspace);
  using V = simd::V<T>;
  constexpr int W = simd::kWidth<T>;
  const T* const filter = aligned(workspace);
  const int64_t down = (out.h + 1) / 2, across = (out.w + 1) / 2, tiles = job.images * down * across;
  const int64_t groups = (tiles + kGroup - 1) / kGroup, panels = panel_count(out.c, kCols<T>);
  const int64_t together = groups >= 32 ? panels : 1;  // of an item; by the shape alone
  const int64_t width = panel_count(source.c, W) * W;  // channels in whole vectors

  parallel_for(groups * (panels / together), [&](int64_t item) {
    const int64_t group = item * together / panels, first_panel = item * together % panels;
    const int64_t begin = tiles * group / groups, count = tiles * (group + 1) / groups - begin;
    const std::unique_ptr<T[]> memory(new T[size_t(kProducts * kGroup * (width + kCols<T>)+2 * kAlign<T>)]);
    T* const transformed = aligned(memory.get());
    T* const products = aligned(transformed + kProducts * kGroup * width);

    OutputTile at[kGroup];
    for (int64_t t = 0; t < count; ++t) {
      const int64_t tile = begin + t;
      at[t] = {tile / (down * across), tile / across % down * 2, tile % across * 2};
      const int64_t top = at[t].i - job.pad_top, left = at[t].j - job.pad_left;
      unsigned inside = 0;
      for (int64_t r = 0; r < 4; ++r)
        for (int64_t q = 0; q < 4; ++q)
          inside |= unsigned(top + r >= 0 && top + r < source.h && left + q >= 0 && left + q < source.w) << (r * 4 + q);
      winograd_source(job.x + source.at(at[t].n, top, left), source, inside, transformed + t * width, kGroup * width);
    }

    for (int64_t panel = first_panel; panel < first_panel + together; ++panel) {
      const Run run{0, 0, source.c};
      TileArgs<T> args{};
      args.runs = &run, args.run_count = 1, args.ldb = kCols<T>, args.n = kCols<T>;
      for (int64_t p = 0; p < kProducts; ++p) {
        args.b = filter + (panel * kProducts + p) * source.c * kCols<T>;
        const T* rows[kGroup];
        T* to[kGroup];
        for (int64_t t = 0; t < count; ++t) {
          rows[t] = transformed + (p * kGroup + t) * width;
          to[t] = products + (p * kGroup + t) * kCols<T>;
        }
        for_tiles(count, [&](int64_t first, int64_t m) {
          args.rows = rows + first, args.y = to + first;
          run_tile<T, true>(m, args);
        });
      }
      for (int64_t column = panel * kCols<T>, v = 0; v < 2 && column < out.c; ++v, column += W) {
        const int64_t n = std::min<int64_t>(out.c - column, W);
        const V bias = job.bias ? simd::load(job.bias + column, n) : V{};
        for (int64_t t = 0; t < count; ++t) {
          V m[kProducts], half[8], y[4];
#pragma GCC unroll 16
          for (int p = 0; p < kProducts; ++p) m[p] = simd::load(products + (p * kGroup + t) * kCols<T> + v * W);
#pragma GCC unroll 4
          for (int q = 0; q < 4; ++q) times_a(m + q, 4, half + q, 4);
#pragma GCC unroll 2
          for (int r = 0; r < 2; ++r) times_a(half + r * 4, 1, y + r * 2, 1);
#pragma GCC unroll 4
          for (int o = 0; o < 4; ++o) y[o] += bias;
          const V zero = (y[0] + y[1] + y[2] + y[3]) * T(0);
          if (simd::any<T>(zero != zero)) job.repair(at[t], column, n, y);
          emit(at[t], column, n, y);
        }
      }
    }
  });
}

}  // namespace fastnn::FASTNN_TARGET
