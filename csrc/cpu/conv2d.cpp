// Convolution as implicit GEMM: no im2col matrix. NHWC makes the channels of a pixel (and, without dilation, of a row of
// taps) contiguous, so a tile gathers its rows straight from the image; HWIO makes the filter the matrix b as it lies.
//
//   forward          rows: output pixels,      k: taps x C,          columns: K    b = w
//   input gradient   rows: input pixels,       k: taps x K,          columns: C    b = w with taps reversed, transposed
//   weight gradient  rows: (tap, channel),     k: output pixels,     columns: K    b = dy
//
// Forward and input gradient are one kernel, gather_conv, over two plans (conv_plan.h). Work: 2 N Ho Wo K KH KW C flops
// each; bound by arithmetic for K and C over some 16.
#include "../ops.h"
#include "conv.h"
#include "winograd.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int64_t kChunk = 8;                // row tiles of pixels per item at the most
constexpr int64_t kPanelBytes = 256 * 1024;  // of b's panels that a tile passes by in turn

// One class of rows by one class of columns: pixels that share their taps.
struct Block {
  const AxisClass *rows, *cols;
  int64_t pixels;              // over the whole batch
  int64_t first_item, chunks;  // its chunks, among the items
};

// out = relu?(bias + gather of source by b's taps): every pixel of a block is a row of the tile.
template <class T>
void gather_conv(int64_t n, const ConvPlan& plan, int64_t kh, int64_t kw, const Image& source, const Image& out, const T* x,
                 const T* b, const Panels<T>& panels, T* workspace, const T* bias, bool relu, T* y) {
  const int64_t blocks = int64_t(plan.rows.size() * plan.cols.size());
  const int64_t tiles = n * out.h * out.w / kRows;
  const int64_t chunk = kRows * std::clamp<int64_t>(tiles / 32, 1, kChunk);  // by the shape alone, for the bits' sake

  // Items are chunks of pixels, block after block.
  std::vector<Block> block(blocks);
  int64_t items = 0;
  for (int64_t k = 0; k < blocks; ++k) {
    const AxisClass &rows = plan.rows[k / plan.cols.size()], &cols = plan.cols[k % plan.cols.size()];
    const int64_t pixels = n * int64_t(rows.out.size() * cols.out.size());
    block[k] = {&rows, &cols, pixels, items, (pixels + chunk - 1) / chunk};
    items += block[k].chunks;
  }

  // As many panels at a time as stay in L2: a tile's pixels come from L1 for all but the first, and y is written in a row.
  const int64_t group = std::max<int64_t>(kPanelBytes / (panels.rows * kCols<T> * int64_t(sizeof(T)) + 1), 1);
  parallel_for(items, [&](int64_t item) {
    const Block* at = &block.back();
    while (item < at->first_item) --at;
    const AxisClass &rows = *at->rows, &cols = *at->cols;
    const int64_t index = item - at->first_item, begin = at->pixels * index / at->chunks;
    const int64_t count = at->pixels * (index + 1) / at->chunks - begin;

    const T* source_pixel[kRows * kChunk];
    T* out_pixel[kRows * kChunk];
    const int64_t height = int64_t(rows.out.size()), width = int64_t(cols.out.size());
    int64_t j = begin % width, i = begin / width % height, image = begin / width / height;
    for (int64_t p = 0; p < count; ++p) {
      source_pixel[p] = x + source.at(image, rows.source[i], cols.source[j]);
      out_pixel[p] = y + out.at(image, rows.out[i], cols.out[j]);
      if (++j == width) j = 0, ++i;
      if (i == height) i = 0, ++image;
    }
    std::vector<Run> runs(kh * kw);
    TileArgs<T> t{};
    t.runs = runs.data(), t.run_count = make_runs(rows, cols, source, kw, runs.data()), t.relu = relu;
    for (int64_t begin = 0; begin < panels.count(); begin += group) {
      const int64_t end = std::min(begin + group, panels.count());
      for_tiles(count, [&](int64_t first, int64_t m) {
        t.rows = source_pixel + first, t.y = out_pixel + first;
        for (int64_t panel = begin; panel < end; ++panel) {
          panels.select(t, b, workspace, panel);
          t.bias = bias ? bias + panel * kCols<T> : nullptr;
          run_tile<T, true>(m, t);
          for (int64_t p = first; p < first + m; ++p) out_pixel[p] += kCols<T>;
        }
      });
    }
  });
}

// Writes the 2 x 2 outputs of a Winograd tile, as far as they lie in the image.
template <class T>
struct StoreTile {
  const Image& out;
  bool relu;
  T* y;
  void operator()(const OutputTile& at, int64_t column, int64_t n, const simd::V<T>* outputs) const {
    for (int64_t o = 0; o < 4; ++o) {
      const int64_t i = at.i + o / 2, j = at.j + o % 2;
      if (i >= out.h || j >= out.w) continue;
      simd::store(y + out.at(at.n, i, j) + column, relu ? simd::relu<T>(outputs[o]) : outputs[o], n);
    }
  }
};

template <class T>
Panels<T> backward_x_panels(const Conv2dShape& s) {
  return Panels<T>(s.kh * s.kw * s.k, s.c, true, s.n * s.h * s.w);
}

// ---- The weight gradient splits its sum over pixels into slices, one partial gradient each, added up in order at the end.

// dy's last columns are packed where they do not fill a panel; whole panels are read in place.
template <class T>
Panels<T> backward_w_panels(const Conv2dShape& s) {
  return Panels<T>(s.n * s.ho * s.wo, s.k, false, 1);
}

// By the shape alone: enough items for some tens of threads, slices of at least kSlicePixels, partials of at most kPartials.
template <class T>
int64_t weight_slices(const Conv2dShape& s) {
  constexpr int64_t kItems = 64, kSlicePixels = 128, kPartials = 1 << 22;
  const int64_t items = s.kh * panel_count(s.k, kCols<T>), weights = s.kh * s.kw * s.c * s.k;
  const int64_t most = std::min({kItems / items, s.n * s.ho * s.wo / kSlicePixels, kPartials / weights});
  return std::max<int64_t>(most, 1);
}

template <class T>
struct WeightItem {
  const Conv2dShape& s;
  const ConvPlan& plan;
  const T *x, *dy;
  const Panels<T>& panels;
  T* workspace;
};

// Adds to dw[r, :, :, one panel] what the slice's share of every class of image rows contributes.
template <class T>
void accumulate_weights(const WeightItem<T>& g, int64_t r, int64_t panel, int64_t slice, int64_t slices, T* dw, Run* runs) {
  const Conv2dShape& s = g.s;
  const Image x_image{s.h, s.w, s.c}, y_image{s.ho, s.wo, 1};
  TileArgs<T> t{};
  t.step = s.sw * s.c, t.runs = runs, t.beta = 1;
  g.panels.select(t, g.dy, g.workspace, panel);
  for (const AxisClass& rows : g.plan.rows) {
    if (r < rows.tap || r >= rows.tap + rows.taps) continue;
    const int64_t height = int64_t(rows.out.size()), total = s.n * height;
    const int64_t begin = total * slice / slices, end = total * (slice + 1) / slices;
    for (const AxisClass& cols : g.plan.cols) {
      // Output pixels of the class lie side by side, so their sources are sw apart: one run per image row.
      for (int64_t p = begin; p < end; ++p)
        runs[p - begin] = {x_image.at(p / height, rows.source[p % height] + (r - rows.tap) * s.dh, cols.source[0]),
                           y_image.at(p / height, rows.out[p % height], cols.out[0]), int64_t(cols.out.size())};
      t.run_count = end - begin;
      // Without dilation a row of taps is one stretch of memory: (taps x C) adjacent rows of the tile.
      const int64_t stretch = s.dw == 1 ? cols.taps : std::min<int64_t>(cols.taps, 1);
      for (int64_t tap = 0; tap < cols.taps; tap += stretch) {
        const T* source = g.x + tap * s.dw * s.c;
        T* target = dw + ((r * s.kw + cols.tap + tap) * s.c) * s.k + panel * kCols<T>;
        for_tiles(stretch * s.c, [&](int64_t first, int64_t m) {
          T* y_rows[kRows];
          for (int64_t i = 0; i < m; ++i) y_rows[i] = target + (first + i) * s.k;
          const T* a = source + first;
          t.rows = &a, t.y = y_rows, t.c = y_rows;
          run_tile<T, false>(m, t);
        });
      }
    }
  }
}

}  // namespace

template <class T>
int64_t conv2d_forward_workspace(const Conv2dShape& s) {
  if (winograd_fits(s, s.ho, s.wo)) return winograd_workspace<T>(s.c, s.k);
  return filter_panels<T>(s).workspace();
}

template <class T>
void conv2d_forward(const Conv2dShape& s, const T* x, const T* w, const T* b, bool relu, T* y, T* workspace, Stream) {
  const Image source{s.h, s.w, s.c}, out{s.ho, s.wo, s.k};
  if (winograd_fits(s, s.ho, s.wo)) {
    const FilterView<T> filter{w, 3 * s.c * s.k, s.c * s.k, s.k, 1};
    winograd_conv<T>({s.n, source, out, s.pad_top, s.pad_left, x, filter, b}, workspace, StoreTile<T>{out, relu, y});
    return;
  }
  const Panels<T> panels = filter_panels<T>(s);
  pack_filter(s, panels, w, workspace);
  gather_conv(s.n, plan_forward(s), s.kh, s.kw, source, out, x, w, panels, workspace, b, relu, y);
}

template <class T>
int64_t conv2d_backward_x_workspace(const Conv2dShape& s) {
  if (winograd_fits(s, s.h, s.w)) return winograd_workspace<T>(s.k, s.c);
  return backward_x_panels<T>(s).workspace();
}

template <class T>
void conv2d_backward_x(const Conv2dShape& s, const T* dy, const T* w, T* dx, T* workspace, Stream) {
  const Image source{s.ho, s.wo, s.k}, out{s.h, s.w, s.c};
  if (winograd_fits(s, s.h, s.w)) {  // a convolution of dy with the taps reversed
    const int64_t tap = s.c * s.k;
    const FilterView<T> filter{w + 8 * tap, -3 * tap, -tap, 1, s.k};
    winograd_conv<T>({s.n, source, out, 2 - s.pad_top, 2 - s.pad_left, dy, filter, nullptr}, workspace,
                     StoreTile<T>{out, false, dx});
    return;
  }
  const Panels<T> panels = backward_x_panels<T>(s);
  const int64_t taps = s.kh * s.kw;
  parallel_for(panels.count() * taps, [&](int64_t item) {
    const int64_t panel = item / taps, tap = item % taps;  // w's tap; the plan counts from the other end
    pack_panel(w + tap * s.c * s.k, s.k, s.c, s.k, true, panel * kCols<T>,
               panels.packed(workspace, panel) + (taps - 1 - tap) * s.k * kCols<T>);
  });
  gather_conv<T>(s.n, plan_backward_x(s), s.kh, s.kw, source, out, dy, w, panels, workspace, nullptr, false, dx);
}

template <class T>
int64_t conv2d_backward_w_workspace(const Conv2dShape& s) {
  const int64_t slices = weight_slices<T>(s);
  return backward_w_panels<T>(s).workspace() + (slices > 1 ? slices * s.kh * s.kw * s.c * s.k : 0);
}

template <class T>
void conv2d_backward_w(const Conv2dShape& s, const T* dy, const T* x, T* dw, T* workspace, Stream) {
  const Panels<T> panels = backward_w_panels<T>(s);
  const ConvPlan plan = plan_forward(s);
  const int64_t pixels = s.n * s.ho * s.wo, slices = weight_slices<T>(s), weights = s.kh * s.kw * s.c * s.k;
  if (panels.first_packed < panels.count()) {
    T* packed = panels.packed(workspace, panels.first_packed);
    parallel_chunks(pixels, 1024, [&](int64_t begin, int64_t end) {
      pack_panel(dy + begin * s.k, end - begin, s.k, s.k, false, panels.first_packed * kCols<T>, packed + begin * kCols<T>);
    });
  }

  T* partials = slices > 1 ? workspace + panels.workspace() : dw;
  const WeightItem<T> g{s, plan, x, dy, panels, workspace};
  parallel_for(slices * s.kh * panels.count(), [&](int64_t item) {
    const int64_t panel = item % panels.count(), r = item / panels.count() % s.kh, slice = item / panels.count() / s.kh;
    T* partial = partials + slice * weights;
    const int64_t width = std::min<int64_t>(kCols<T>, s.k - panel * kCols<T>);
    for (int64_t row = r * s.kw * s.c; row < (r + 1) * s.kw * s.c; ++row)
      std::fill_n(partial + row * s.k + panel * kCols<T>, width, T(0));
    std::vector<Run> runs((s.n * s.ho + slices - 1) / slices + 1);
    accumulate_weights(g, r, panel, slice, slices, partial, runs.data());
  });

  if (slices > 1)
    parallel_chunks(weights, 4096, [&](int64_t begin, int64_t end) {
      std::copy(partials + begin, partials + end, dw + begin);
      for (int64_t slice = 1; slice < slices; ++slice)
        for (int64_t i = begin; i < end; ++i) dw[i] += partials[slice * weights + i];
    });
}

#define INSTANTIATE(T)                                                                                     \
  template int64_t conv2d_forward_workspace<T>(const Conv2dShape&);                                        \
  template void conv2d_forward<T>(const Conv2dShape&, const T*, const T*, const T*, bool, T*, T*, Stream); \
  template int64_t conv2d_backward_x_workspace<T>(const Conv2dShape&);                                     \
  template void conv2d_backward_x<T>(const Conv2dShape&, const T*, const T*, T*, T*, Stream);              \
  template int64_t conv2d_backward_w_workspace<T>(const Conv2dShape&);                                     \
  template void conv2d_backward_w<T>(const Conv2dShape&, const T*, const T*, T*, T*, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
