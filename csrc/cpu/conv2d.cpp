// Convolution as implicit GEMM: no im2col matrix. NHWC makes the channels of a pixel (and, without dilation, of a row of
// taps) contiguous, so a tile gathers its rows straight from the image; HWIO makes the filter the matrix b as it lies.
//
//   forward          rows: output pixels,      k: taps x C,          columns: K    b = w
//   input gradient   rows: input pixels,       k: taps x K,          columns: C    b = w with taps reversed, transposed
//   weight gradient  in conv2d_backward_w.cpp
//
// Forward and input gradient are one kernel, gather_conv, over two plans (conv_plan.h). Work: 2 N Ho Wo K KH KW C flops
// each; bound by arithmetic for K and C over some 16. An input gradient of fewer channels scatters instead:
//
//   input gradient   rows: output pixels,      k: K,                 columns: taps x C   b = w transposed
#include <memory>

#include "../ops.h"
#include "conv.h"
#include "winograd.h"

namespace fastnn::FASTNN_TARGET {

void add_conv2d_backward_w(Kernels&);

namespace {

constexpr int64_t kChunk = 8;                // row tiles of pixels per item at the most
constexpr int64_t kPanelBytes = 256 * 1024;  // of b's panels that a tile passes by in turn

// One class of rows by one class of columns: pixels that share their taps.
struct Block {
  const AxisClass *rows, *cols;
  Parts chunks;        // of its pixels over the whole batch
  int64_t first_item;  // its first chunk's, among the items
};

// out = relu?(bias + gather of source by b's taps): every pixel of a block is a row of the tile. b's panels are packed in
// `workspace`, or, where that is null, by each thread for itself.
template <class T>
void gather_conv(int64_t n, const ConvPlan& plan, int64_t kh, int64_t kw, const Image& source, const Image& out, const T* x,
                 const T* b, const Panels<T>& panels, const PackPanel<T>& pack, T* workspace, const T* bias, bool relu,
                 T* y) {
  const int64_t blocks = int64_t(plan.rows.size() * plan.cols.size());
  const int64_t tiles = n * out.h * out.w / kRows;
  const int64_t chunk = kRows * std::clamp<int64_t>(tiles / 32, 1, kChunk);  // by the shape alone, for the bits' sake

  // Items are chunks of pixels, block after block.
  std::vector<Block> block(blocks);
  int64_t items = 0;
  for (int64_t k = 0; k < blocks; ++k) {
    const AxisClass &rows = plan.rows[k / plan.cols.size()], &cols = plan.cols[k % plan.cols.size()];
    const int64_t pixels = n * int64_t(rows.out.size() * cols.out.size());
    block[k] = {&rows, &cols, Parts(pixels, ceil_div(pixels, chunk), kRows), items};
    items += block[k].chunks.count();
  }

  // As many panels at a time as stay in L2: a tile's pixels come from L1 for all but the first, and y is written in a row.
  const int64_t group = std::max<int64_t>(kPanelBytes / (panels.rows * kCols<T> * int64_t(sizeof(T)) + 1), 1);
  const auto some_panels = [&](PanelSource<T>& packed, int64_t item, int64_t first_panel, int64_t end_panel) {
    const Block* at = &block.back();
    while (item < at->first_item) --at;
    const AxisClass &rows = *at->rows, &cols = *at->cols;
    const int64_t begin = at->chunks.begin(item - at->first_item), count = at->chunks.end(item - at->first_item) - begin;

    const T* source_pixel[kRows * kChunk];
    T* out_pixel[kRows * kChunk];
    const int64_t height = int64_t(rows.out.size()), width = int64_t(cols.out.size());
    int64_t j = begin % width, i = begin / width % height, image = begin / width / height;
    for (int64_t p = 0; p < count; j = 0) {
      const T* const source_row = x + source.at(image, rows.source[i], 0);
      T* const out_row = y + out.at(image, rows.out[i], 0);
      for (const int64_t end = std::min(count, p + width - j); p < end; ++p, ++j) {
        source_pixel[p] = source_row + cols.source[j] * source.c;
        out_pixel[p] = out_row + cols.out[j] * out.c;
      }
      if (++i == height) i = 0, ++image;
    }
    std::vector<Run> runs(kh * kw);
    TileArgs<T> t{};
    t.runs = runs.data(), t.run_count = make_runs(rows, cols, source, kw, runs.data()), t.bias = bias, t.relu = relu;
    for (int64_t begin = first_panel; begin < end_panel; begin += group) {
      const int64_t end = std::min(begin + group, end_panel);
      for_tiles(count, [&](int64_t first, int64_t m) {
        t.rows = source_pixel + first, t.y = out_pixel + first;
        for (int64_t panel = begin; panel < end; ++panel) {
          packed.select(t, panel);
          run_tile<T, true>(m, t);
        }
      });
    }
  };
  parallel_by_panels(items, panels, b, workspace, pack, some_panels);
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

// ---- The input gradient of few channels. They would leave most of a panel empty, so that all taps of a pixel of dy are
// computed side by side instead: dy (pixels, K) x w^T (K, KH KW C), a few rows of pixels at a time into a buffer that stays
// in L1, whose rows are then added to dx.

// A stretch of elements of the buffer and where in a row of dx it belongs, the same for each row of taps.
struct Stretch {
  int64_t from, to, length;
};

// A run of columns of dy and the stretches under them.
struct ColumnBlock {
  int64_t first, count;
  std::vector<Stretch> stretches;
};

template <class T>
struct Scatter {
  Panels<T> panels;
  int64_t width;   // of the buffer's rows, one for a pixel of dy
  int64_t pixels;  // the most that the buffer holds
  int64_t bands;   // of an image's rows: each is an item, so that batches of few images have enough of them

  explicit Scatter(const Conv2dShape& s)
      : panels(s.k, s.kh * s.kw * s.c, true, s.n * s.ho * s.wo), width(panels.count() * kCols<T>) {
    constexpr int64_t kElements = 4096, kItems = 16;
    pixels = kRows * std::clamp<int64_t>(kElements / (width * kRows), 1, kChunk);
    const int64_t least =
        std::max<int64_t>(8, 4 * (s.kh - 1) * s.dh);  // rows: a band's neighbours compute its borders again
    bands = std::clamp<int64_t>(kItems / std::max<int64_t>(s.n, 1), 1, std::max<int64_t>(s.h / least, 1));
  }

  // Whether it saves a quarter of the panels that a pixel of dy costs the tile, counting kAdding terms of each panel for the
  // adding.
  static bool pays(const Conv2dShape& s) {
    constexpr int64_t kAdding = 8;
    const int64_t taps = s.kh * s.kw;
    return 4 * (s.k + kAdding) * ceil_div(taps * s.c, kCols<T>) <= 3 * s.k * taps * ceil_div(s.c, kCols<T>);
  }

  // Columns of dy in blocks that the buffer can hold. Stretches that overlap are as far apart as can be, so that none has to
  // wait for the one before.
  std::vector<ColumnBlock> column_blocks(const Conv2dShape& s) const {
    const int64_t count = ceil_div(s.wo, pixels);
    const int64_t joined = s.dw == 1 ? s.kw : 1;  // taps side by side in dx
    const int64_t phases = ceil_div(joined, s.sw);
    std::vector<ColumnBlock> blocks;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t begin = s.wo * k / count, end = s.wo * (k + 1) / count;
      ColumnBlock& block = blocks.emplace_back(ColumnBlock{begin, end - begin, {}});
      for (int64_t tap = 0; tap < s.kw; tap += joined)
        for (int64_t phase = 0; phase < phases; ++phase)
          for (int64_t j = begin + phase; j < end; j += phases) {
            const int64_t at = j * s.sw - s.pad_left + tap * s.dw;
            const int64_t first = std::max<int64_t>(-at, 0), last = std::min(joined, s.w - at);
            if (first < last)
              block.stretches.push_back(
                  {(j - begin) * width + (tap + first) * s.c, (at + first) * s.c, (last - first) * s.c});
          }
    }
    return blocks;
  }
};

template <class T>
void add_stretches(const std::vector<Stretch>& stretches, const T* buffer, T* row) {
  for (const Stretch& stretch : stretches) {
    const T* from = buffer + stretch.from;
    T* to = row + stretch.to;
    simd::for_pieces<T>(0, stretch.length,
                        [&](auto some, int64_t at) { some.store(to + at, some.load(to + at) + some.load(from + at)); });
  }
}

template <class T>
void scatter_conv(const Conv2dShape& s, const Scatter<T>& g, const T* dy, const T* w, T* workspace, T* dx) {
  parallel_for(g.panels.count(), [&](int64_t panel) {
    pack_panel(w, s.k, g.panels.n, s.k, true, panel * kCols<T>, g.panels.packed(workspace, panel));
  });
  const std::vector<ColumnBlock> blocks = g.column_blocks(s);
  const Image y_image{s.ho, s.wo, s.k}, x_image{s.h, s.w, s.c};

  parallel_for(s.n * g.bands, [&](int64_t item) {
    const int64_t n = item / g.bands, band = item % g.bands;
    const int64_t first_row = s.h * band / g.bands, end_row = s.h * (band + 1) / g.bands;
    const std::unique_ptr<T[]> memory(new T[size_t(g.pixels * g.width + kAlign<T>)]);
    T* const buffer = aligned(memory.get());
    const Run run{0, 0, s.k};
    int64_t cleared = first_row;
    const auto clear = [&](int64_t end) {
      for (; cleared < std::min(end, end_row); ++cleared) std::fill_n(dx + x_image.at(n, cleared, 0), s.w * s.c, T(0));
    };

    // The rows of dy that reach the band.
    const int64_t reach = (s.kh - 1) * s.dh;
    const int64_t first = ceil_div(std::max<int64_t>(first_row + s.pad_top - reach, 0), s.sh);
    const int64_t last = std::min(ceil_div(end_row + s.pad_top, s.sh), s.ho);
    const int64_t together = std::max<int64_t>(g.pixels / s.wo, 1);
    for (int64_t begin = first; begin < last; begin += together) {
      const int64_t end = std::min(begin + together, last);
      clear((end - 1) * s.sh - s.pad_top + reach + 1);
      for (const ColumnBlock& block : blocks) {
        const int64_t count = (end - begin) * block.count;
        const T* pixel[kRows * kChunk];
        T* row[kRows * kChunk];
        for (int64_t p = 0; p < count; ++p) {
          pixel[p] = dy + y_image.at(n, begin, block.first + p);
          row[p] = buffer + p * g.width;
        }
        TileArgs<T> t{};
        t.runs = &run, t.run_count = 1;
        for (int64_t panel = 0; panel < g.panels.count(); ++panel) {
          g.panels.select(t, w, workspace, panel);
          t.n = kCols<T>;  // the buffer has room for whole vectors
          for_tiles(count, [&](int64_t at, int64_t m) {
            t.rows = pixel + at, t.y = row + at;
            run_tile<T, true>(m, t);
          });
        }
        for (int64_t i = begin; i < end; ++i)
          for (int64_t r = 0; r < s.kh; ++r) {
            const int64_t h = i * s.sh - s.pad_top + r * s.dh;
            if (h >= first_row && h < end_row)
              add_stretches(block.stretches, buffer + (i - begin) * block.count * g.width + r * s.kw * s.c,
                            dx + x_image.at(n, h, 0));
          }
      }
    }
    clear(end_row);
  });
}

template <class T>
int64_t conv2d_forward_workspace(const Conv2dShape& s) {
  if (winograd_fits(s, s.ho, s.wo)) return winograd_workspace<T>(s.c, s.k);
  return filter_panels<T>(s).workspace();
}

template <class T>
void conv2d_forward(const Conv2dShape& s, const T* x, const T* w, const T* b, bool relu, T* y, T* workspace, Stream) {
  const Image source{s.h, s.w, s.c}, out{s.ho, s.wo, s.k};
  if (winograd_fits(s, s.ho, s.wo)) {
    winograd_conv<T>({s.n, {source, out, s.pad_top, s.pad_left}, x, forward_view(s, w), b}, workspace,
                     StoreTile<T>{out, relu, y});
    return;
  }
  const Panels<T> panels = filter_panels<T>(s);
  workspace = pack_filter(s, panels, w, workspace);
  gather_conv(s.n, plan_forward(s), s.kh, s.kw, source, out, x, w, panels, pack_panel_of(w, panels.rows, s.k, false),
              workspace, b, relu, y);
}

template <class T>
int64_t conv2d_backward_x_workspace(const Conv2dShape& s) {
  if (winograd_fits(s, s.h, s.w)) return winograd_workspace<T>(s.k, s.c);
  return Scatter<T>::pays(s) ? Scatter<T>(s).panels.workspace() : backward_x_panels<T>(s).workspace();
}

template <class T>
void conv2d_backward_x(const Conv2dShape& s, const T* dy, const T* w, T* dx, T* workspace, Stream) {
  const Image source{s.ho, s.wo, s.k}, out{s.h, s.w, s.c};
  if (winograd_fits(s, s.h, s.w)) {  // a convolution of dy with the taps reversed
    winograd_conv<T>({s.n, {source, out, 2 - s.pad_top, 2 - s.pad_left}, dy, reversed_view(s, w), nullptr}, workspace,
                     StoreTile<T>{out, false, dx});
    return;
  }
  if (Scatter<T>::pays(s)) return scatter_conv(s, Scatter<T>(s), dy, w, workspace, dx);
  const Panels<T> panels = backward_x_panels<T>(s);
  const int64_t taps = s.kh * s.kw;
  const auto pack_tap = [&](int64_t panel, int64_t tap, T* packed) {  // w's tap; the plan counts from the other end
    pack_panel(w + tap * s.c * s.k, s.k, s.c, s.k, true, panel * kCols<T>, packed + (taps - 1 - tap) * s.k * kCols<T>);
  };
  const PackPanel<T> pack = [&](int64_t panel, T* packed) {
    for (int64_t tap = 0; tap < taps; ++tap) pack_tap(panel, tap, packed);
  };
  if (packed_by_each(panels.bytes(), s.n * s.h * s.w, get_num_threads()))
    workspace = nullptr;
  else
    parallel_for(panels.count() * taps,
                 [&](int64_t item) { pack_tap(item / taps, item % taps, panels.packed(workspace, item / taps)); });
  gather_conv<T>(s.n, plan_backward_x(s), s.kh, s.kw, source, out, dy, w, panels, pack, workspace, nullptr, false, dx);
}

template <class T>
void add(Ops<T>& ops) {
  ops.conv2d_forward_workspace = conv2d_forward_workspace<T>;
  ops.conv2d_forward = conv2d_forward<T>;
  ops.conv2d_backward_x_workspace = conv2d_backward_x_workspace<T>;
  ops.conv2d_backward_x = conv2d_backward_x<T>;
}

}  // namespace

void add_conv2d(Kernels& kernels) {
  add_conv2d_backward_w(kernels);
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
