// Convolution as implicit GEMM: no im2col matrix. NHWC makes the channels of a pixel (and, without dilation, of a row of
// taps) contiguous, so a tile gathers its rows straight from the image; HWIO makes the filter the matrix b as it lies.
//
//   forward          rows: output pixels,      k: taps x C,          columns: K    b = w
//   input gradient   rows: input pixels,       k: taps x K,          columns: C    b = w with taps reversed, transposed
//   weight gradient  rows: (tap, channel),     k: output pixels,     columns: K    b = dy
//
// Forward and input gradient are one kernel, gather_conv, over two plans (conv_plan.h). Work: 2 N Ho Wo K KH KW C flops
// each; bound by arithmetic for K and C over some 16. An input gradient of fewer channels scatters instead:
//
//   input gradient   rows: output pixels,      k: K,                 columns: taps x C   b = w transposed
#include <memory>
#include <numeric>

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
    t.runs = runs.data(), t.run_count = make_runs(rows, cols, source, kw, runs.data()), t.bias = bias, t.relu = relu;
    for (int64_t begin = 0; begin < panels.count(); begin += group) {
      const int64_t end = std::min(begin + group, panels.count());
      for_tiles(count, [&](int64_t first, int64_t m) {
        t.rows = source_pixel + first, t.y = out_pixel + first;
        for (int64_t panel = begin; panel < end; ++panel) {
          panels.select(t, b, workspace, panel);
          run_tile<T, true>(m, t);
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
    return 4 * (s.k + kAdding) * panel_count(taps * s.c, kCols<T>) <= 3 * s.k * taps * panel_count(s.c, kCols<T>);
  }

  // Columns of dy in blocks that the buffer can hold. Stretches that overlap are as far apart as can be, so that none has to
  // wait for the one before.
  std::vector<ColumnBlock> column_blocks(const Conv2dShape& s) const {
    const int64_t count = panel_count(s.wo, pixels);
    const int64_t joined = s.dw == 1 ? s.kw : 1;  // taps side by side in dx
    const int64_t phases = (joined + s.sw - 1) / s.sw;
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
    const int64_t first = (std::max<int64_t>(first_row + s.pad_top - reach, 0) + s.sh - 1) / s.sh;
    const int64_t last = std::min((end_row + s.pad_top + s.sh - 1) / s.sh, s.ho);
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

// ---- The weight gradient splits its sum over pixels into slices, one partial gradient each, added up in order at the end.

// Cut by the shape alone: enough items for some tens of threads, slices of at least kSlicePixels, partials of at most
// kPartials.
template <class T>
struct WeightCut {
  int64_t panels, groups, slices;
  explicit WeightCut(const Conv2dShape& s) : panels(panel_count(s.k, kCols<T>)), groups((panels + kGroup - 1) / kGroup) {
    constexpr int64_t kItems = 32, kSlicePixels = 512, kPartials = 1 << 20;
    const int64_t most =
        std::min({kItems / (s.kh * groups), s.n * s.ho * s.wo / kSlicePixels, kPartials / (s.kh * s.kw * s.c * s.k)});
    slices = std::max<int64_t>(most, 1);
  }
  static constexpr int64_t kGroup = 16;  // panels of an item at the most
};

// What of dw an item computes: elements [from, to) of the (KW, C) of rows of taps [r, r_end), and panels [left, right).
struct WeightPart {
  int64_t r, r_end, from, to, left, right;
};

// A part of dw over one slice's share of every class of image rows. The sum goes in blocks of pixels, whose part of dy and,
// tile after tile, of x are packed to stay in the caches.
template <class T>
class WeightItem {
 public:
  WeightItem(const Conv2dShape& s, const T* x, const T* dy, const WeightPart& part, T* dw)
      : s_(s),
        x_(x),
        dy_(dy + part.left * kCols<T>),
        part_(part),
        columns_(std::min(part.right * kCols<T>, s.k) - part.left * kCols<T>),
        panels_(part.right - part.left),
        room_(std::min<int64_t>(kPixels, kPacked / (panels_ * kCols<T> * int64_t(sizeof(T))))),
        x_packed_(panels_ > 2 && s.kw * s.c > 2 * kAdjacentRows),
        dy_packed_((panels_ > 1 && s.kw * s.c > 2 * kAdjacentRows) || columns_ % kCols<T> != 0),
        dw_(dw + part.left * kCols<T>),
        memory_(new T[size_t((dy_packed_ ? panels_ * room_ * kCols<T> : 0) + (x_packed_ ? room_ * kAdjacentRows : 0) +
                             3 * kAlign<T>)]) {
    for (int64_t r = part.r; r < part.r_end; ++r)
      for (int64_t i = part.from; i < part.to; ++i) std::fill_n(dw_ + (r * s.kw * s.c + i) * s.k, columns_, T(0));
  }

  void add(const ConvPlan& plan, int64_t slice, int64_t slices) {
    const Image x_image{s_.h, s_.w, s_.c}, y_image{s_.ho, s_.wo, 1};
    for (const AxisClass& rows : plan.rows) {
      if (part_.r_end <= rows.tap || part_.r >= rows.tap + rows.taps) continue;
      const int64_t height = int64_t(rows.out.size()), total = s_.n * height;
      const int64_t begin = total * slice / slices, end = total * (slice + 1) / slices;
      for (const AxisClass& cols : plan.cols) {
        // Output pixels of the class lie side by side, so their sources are sw apart: one run per image row, or a part of
        // it.
        const int64_t length = int64_t(cols.out.size()), pixels = (end - begin) * length;
        const int64_t blocks = dy_packed_ ? (pixels + room_ - 1) / room_ : 1;
        const int64_t most = blocks ? (pixels + blocks - 1) / blocks : 0;  // of a block
        // Counted on, because some processors take a hundred cycles to divide.
        int64_t n = begin / height, i = begin % height;
        for (int64_t p = begin; p < end; ++p) {
          const Run run = {x_image.at(n, rows.source[i], cols.source[0]), y_image.at(n, rows.out[i], cols.out[0]), length};
          if (++i == height) i = 0, ++n;
          for (int64_t done = 0; done < length;) {
            const int64_t part = std::min(length - done, most - pixels_);
            runs_.push_back({run.a + done * s_.sw * s_.c, run.b + done, part});
            pixels_ += part, done += part;
            if (pixels_ == most) add_block(rows, cols);
          }
        }
        if (pixels_ > 0) add_block(rows, cols);
      }
    }
  }

 private:
  static constexpr int64_t kPixels = 512;         // of a block, at the most
  static constexpr int64_t kPacked = 512 * 1024;  // bytes of dy that it packs, at the most: they stay in L2

  void add_block(const AxisClass& rows, const AxisClass& cols) {
    T *const b = aligned(memory_.get()), *const a = b + (dy_packed_ ? panels_ * room_ * kCols<T> : 0);
    if (dy_packed_) {
      int64_t k = 0;
      for (Run& run : runs_) {
        for (int64_t panel = 0; panel < panels_; ++panel)
          pack_panel(dy_ + run.b * s_.k, run.length, columns_, s_.k, false, panel * kCols<T>,
                     b + (panel * room_ + k) * kCols<T>);
        run.b = std::exchange(k, k + run.length);
      }
    }
    for (int64_t r = std::max(part_.r, rows.tap); r < std::min(part_.r_end, rows.tap + rows.taps); ++r)
      add_taps(cols, x_ + (r - rows.tap) * s_.dh * s_.w * s_.c, b, a, dw_ + r * s_.kw * s_.c * s_.k);
    runs_.clear(), pixels_ = 0;
  }

  // Adds one row of taps; b: dy as packed, a: room for a tile's rows of x.
  void add_taps(const AxisClass& cols, const T* x, const T* b, T* a, T* dw) {
    // Tiles hop through x from pixel to pixel. So it is fetched before, as it lies.
    if (dy_packed_)
      for (const Run& run : runs_)
        for (int64_t at = 0, end = ((run.length - 1) * s_.sw + cols.taps) * s_.c; at < end; at += kAlign<T>)
          simd::prefetch(x + run.a + at);
    const Run together{0, 0, pixels_};
    TileArgs<T> t{};
    t.beta = 1, t.ldb = dy_packed_ ? kCols<T> : s_.k;
    t.runs = x_packed_ ? &together : runs_.data(), t.run_count = x_packed_ ? 1 : int64_t(runs_.size());
    // Without dilation a row of taps is one stretch of memory: (taps x C) adjacent rows of the tile.
    const int64_t stretch = s_.dw == 1 ? cols.taps : std::min<int64_t>(cols.taps, 1);
    for (int64_t tap = 0; tap < cols.taps; tap += stretch) {
      const int64_t begin = (cols.tap + tap) * s_.c, from = std::max(part_.from - begin, int64_t(0));
      for_tiles<kAdjacentRows>(std::min(part_.to - begin, stretch * s_.c) - from, [&](int64_t first, int64_t m) {
        first += from;
        const T* source = x + tap * s_.dw * s_.c + first;
        t.step = s_.sw * s_.c;
        if (x_packed_) {
          T* packed = a;
          for (const Run& run : runs_) {
            pack_side_by_side(source + run.a, t.step, true, m, run.length, packed);
            packed += run.length * m;
          }
          source = a, t.step = m;
        }
        T* y_rows[kAdjacentRows];
        for (int64_t i = 0; i < m; ++i) y_rows[i] = dw + (begin + first + i) * s_.k;
        t.rows = &source, t.y = y_rows, t.c = y_rows;
        for (int64_t panel = 0; panel < panels_; ++panel) {
          t.b = dy_packed_ ? b + panel * room_ * kCols<T> : dy_ + panel * kCols<T>;
          t.column = panel * kCols<T>;
          t.n = std::min<int64_t>(kCols<T>, columns_ - t.column);
          run_tile<T, false>(m, t);
        }
      });
    }
  }

  const Conv2dShape& s_;
  const T *x_, *dy_;
  const WeightPart part_;
  const int64_t columns_, panels_, room_;  // room for so many pixels in a block
  const bool x_packed_;                    // where more than two panels read it; then dy is, too
  const bool dy_packed_;                   // where more than two tiles read it, or it does not fill its panels
  T* const dw_;
  const std::unique_ptr<T[]> memory_;
  std::vector<Run> runs_;
  int64_t pixels_ = 0;  // of the runs
};

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
  pack_panels(panels, w, false, workspace);
  gather_conv(s.n, plan_forward(s), s.kh, s.kw, source, out, x, w, panels, workspace, b, relu, y);
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
  parallel_for(panels.count() * taps, [&](int64_t item) {
    const int64_t panel = item / taps, tap = item % taps;  // w's tap; the plan counts from the other end
    pack_panel(w + tap * s.c * s.k, s.k, s.c, s.k, true, panel * kCols<T>,
               panels.packed(workspace, panel) + (taps - 1 - tap) * s.k * kCols<T>);
  });
  gather_conv<T>(s.n, plan_backward_x(s), s.kh, s.kw, source, out, dy, w, panels, workspace, nullptr, false, dx);
}

template <class T>
int64_t conv2d_backward_w_workspace(const Conv2dShape& s) {
  const int64_t slices = WeightCut<T>(s).slices, partials = slices > 1 ? slices * s.kh * s.kw * s.c * s.k : 0;
  return winograd_fits(s, s.ho, s.wo) ? std::max(partials, winograd_backward_w_workspace<T>(s)) : partials;
}

template <class T>
void conv2d_backward_w(const Conv2dShape& s, const T* dy, const T* x, T* dw, T* workspace, Stream) {
  if (winograd_fits(s, s.ho, s.wo) && winograd_backward_w(s, dy, x, dw, workspace)) return;
  const ConvPlan plan = plan_forward(s);
  const WeightCut<T> cut(s);
  const int64_t slices = cut.slices, weights = s.kh * s.kw * s.c * s.k;
  T* partials = slices > 1 ? workspace : dw;
  // Rows of taps share what of dy is packed, where there are enough items without them; and where there are few with them, a
  // row is parted, so that all threads have as many.
  const int64_t threads = get_num_threads(), length = s.kw * s.c;
  const int64_t rows = slices * cut.groups >= 4 * threads ? 1 : s.kh, whole = slices * cut.groups * rows;
  const int64_t most = std::max<int64_t>(length / (2 * kAdjacentRows), 1);
  const int64_t parts = whole >= 4 * threads ? 1 : std::min(threads / std::gcd(threads, whole), most);
  parallel_for(whole * parts, [&](int64_t item) {
    const int64_t group = item % cut.groups, part = item / cut.groups % parts, row = item / cut.groups / parts % rows;
    const int64_t slice = item / cut.groups / parts / rows;
    const WeightPart mine{
        s.kh * row / rows,           s.kh * (row + 1) / rows,         length * part / parts,
        length * (part + 1) / parts, cut.panels * group / cut.groups, cut.panels * (group + 1) / cut.groups};
    WeightItem<T>(s, x, dy, mine, partials + slice * weights).add(plan, slice, slices);
  });

  if (slices > 1)
    parallel_chunks(weights, 4096, [&](int64_t begin, int64_t end) {
      std::copy(partials + begin, partials + end, dw + begin);
      for (int64_t slice = 1; slice < slices; ++slice)
        for (int64_t i = begin; i < end; ++i) dw[i] += partials[slice * weights + i];
    });
}

template <class T>
void add(Ops<T>& ops) {
  ops.conv2d_forward_workspace = conv2d_forward_workspace<T>;
  ops.conv2d_forward = conv2d_forward<T>;
  ops.conv2d_backward_x_workspace = conv2d_backward_x_workspace<T>;
  ops.conv2d_backward_x = conv2d_backward_x<T>;
  ops.conv2d_backward_w_workspace = conv2d_backward_w_workspace<T>;
  ops.conv2d_backward_w = conv2d_backward_w<T>;
}

}  // namespace

void add_conv2d(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
