// Gradient of a convolution's filter, as implicit GEMM like the convolution itself:
//
//   rows: (tap, channel),     k: output pixels,     columns: K    b = dy
//
// An item is a slice of the batch's pixels by a part of the filter: a sum over many pixels is one partial gradient for each
// slice, added up in order at the end. Work: 2 N Ho Wo K KH KW C flops, bound by arithmetic for K and C over some 16.
#include <memory>
#include <numeric>

#include "../ops.h"
#include "conv.h"
#include "winograd.h"

namespace fastnn::FASTNN_TARGET {
namespace {

// Cut by the shape alone: enough items for some tens of threads, slices of at least kSlicePixels, partials of at most
// kPartials.
template <class T>
struct WeightCut {
  int64_t panels, groups, slices;
  explicit WeightCut(const Conv2dShape& s) : panels(ceil_div(s.k, kCols<T>)), groups(ceil_div(panels, kGroup)) {
    constexpr int64_t kItems = 32, kSlicePixels = 512, kPartials = 5 << 17;
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
        dy_memory_(new T[size_t((dy_packed_ ? panels_ * room_ * kCols<T> : 0) + 2 * kAlign<T>)]) {
    for (int64_t r = part.r; r < part.r_end; ++r)
      for (int64_t i = part.from; i < part.to; ++i) std::fill_n(dw_ + (r * s.kw * s.c + i) * s.k, columns_, T(0));
  }

  void add(const ConvPlan& plan, int64_t slice, int64_t slices) {
    const Image x_image{s_.h, s_.w, s_.c}, y_image{s_.ho, s_.wo, 1};
    for (const AxisClass& rows : plan.rows) {
      if (part_.r_end <= rows.tap || part_.r >= rows.tap + rows.taps) continue;
      const int64_t height = int64_t(rows.out.size()), total = s_.n * height;
      const int64_t begin = total * slice / slices, end = total * (slice + 1) / slices;
      if (begin == end) continue;
      for (const AxisClass& cols : plan.cols) {
        // Output pixels of the class lie side by side, so their sources are sw apart: a run for each image row, or for each
        // part of one that is longer than a block. Blocks have as many of them, but for the last.
        const int64_t length = int64_t(cols.out.size()), longest = dy_packed_ ? std::min(length, room_) : length;
        const int64_t runs = (end - begin) * ceil_div(length, longest), fit = dy_packed_ ? room_ / longest : runs;
        const int64_t most = ceil_div(runs, ceil_div(runs, fit));
        // Counted on, because some processors take a hundred cycles to divide.
        int64_t n = begin / height, i = begin % height, count = 0;
        for (int64_t p = begin; p < end; ++p) {
          const int64_t source = x_image.at(n, rows.source[size_t(i)], cols.source[0]);
          const int64_t out = y_image.at(n, rows.out[size_t(i)], cols.out[0]);
          for (int64_t done = 0; done < length; done += longest) {
            const int64_t part = std::min(longest, length - done);
            if (part == length && i > 0 && count > 0)
              ++rows_.back().count;
            else
              rows_.push_back({source + done * s_.sw * s_.c, out + done, 1, part});
            pixels_ += part;
            if (++count == most) add_block(rows, cols), count = 0;
          }
          if (++i == height) i = 0, ++n;
        }
        if (count > 0) add_block(rows, cols);
      }
    }
  }

 private:
  static constexpr int64_t kPixels = 512;         // of a block, at the most
  static constexpr int64_t kPacked = 512 * 1024;  // bytes of dy that it packs, at the most: they stay in L2

  // Of one image, one under the other.
  struct Rows {
    int64_t x, y;  // where the first one's pixels begin: those that the class's first tap reads, and dy's
    int64_t count, length;
  };

  void add_block(const AxisClass& rows, const AxisClass& cols) {
    // Where the filter moves by one row, its rows of taps read the same rows of x: they are packed once for all. But not
    // where that makes many short runs.
    constexpr int64_t kShort = 32;
    const int64_t halo = (rows.taps - 1) * s_.dh, images = int64_t(rows_.size());
    int64_t height = 0;
    for (const Rows& of : rows_) height += of.count;
    const bool together =
        x_packed_ && s_.sh == 1 && height + images * halo < height * rows.taps && pixels_ >= images * kShort;
    const int64_t taps = together ? rows.taps : 1;
    halo_ = together ? halo : 0;

    T* const b = aligned(dy_memory_.get());
    if (dy_packed_) {
      T* to = b;
      for (const Rows& of : rows_) {
        const int64_t joined = of.length == s_.wo ? of.count : 1, length = joined * of.length;  // whole rows of an image
        for (int64_t i = 0; i < of.count; i += joined, to += length * kCols<T>) {
          const T* const from = dy_ + (of.y + i * s_.wo) * s_.k;
          if (panels_ > 2 && columns_ == s_.k) fetch(from, length * s_.k);
          for (int64_t panel = 0; panel < panels_; ++panel)
            pack_panel(from, length, columns_, s_.k, false, panel * kCols<T>, to + panel * room_ * kCols<T>);
        }
      }
    }
    if (x_packed_) {
      x_room_ = (ceil_div((pixels_ + images * halo_ * rows_[0].length) * kAdjacentRows, kAlign<T>) + 1) * kAlign<T>;
      if (x_room_ > x_size_) x_memory_.reset(new T[size_t(kTogether * x_room_ + kAlign<T>)]), x_size_ = x_room_;
    }
    runs_.resize(size_t(taps)), runs_for_ = 0;
    if (dy_packed_ && !x_packed_)  // tiles go from pixel to pixel
      for (const Rows& of : rows_)
        for (int64_t i = 0; i < of.count; ++i)
          for (int64_t tap = s_.sh == 1 && i > 0 ? rows.taps - 1 : 0; tap < rows.taps; ++tap)
            fetch(x_ + of.x + (i * s_.sh + tap * s_.dh) * s_.w * s_.c, ((of.length - 1) * s_.sw + cols.taps) * s_.c);
    for (int64_t tap = 0; tap < rows.taps; tap += taps) add_taps(rows, cols, tap, std::min(tap + taps, rows.taps), b);
    rows_.clear(), pixels_ = 0;
  }

  // Brings into the caches, as it lies, what will be hopped through. Inline, because GCC takes calls of what does nothing
  // but fetch for superfluous.
  [[gnu::always_inline]] static void fetch(const T* from, int64_t count) {
    for (int64_t at = 0; at < count; at += kAlign<T>) simd::prefetch(from + at);
  }

  // Adds the class's rows of taps [first_tap, end_tap), as far as they are the item's. They read x together: the rows under
  // the first of them, and halo_ more. b: dy as it is packed.
  void add_taps(const AxisClass& rows, const AxisClass& cols, int64_t first_tap, int64_t end_tap, const T* b) {
    const int64_t r_begin = std::max(part_.r, rows.tap + first_tap), r_end = std::min(part_.r_end, rows.tap + end_tap);
    if (r_begin >= r_end) return;
    const int64_t x_row = s_.w * s_.c;
    const T* const x = x_ + first_tap * s_.dh * x_row;
    T* const a = x_packed_ ? aligned(x_memory_.get()) : nullptr;
    TileArgs<T> t{};
    t.beta = 1, t.ldb = dy_packed_ ? kCols<T> : s_.k;
    // Without dilation a row of taps is one stretch of memory: (taps x C) adjacent rows of the tile.
    const int64_t stretch = s_.dw == 1 ? cols.taps : std::min<int64_t>(cols.taps, 1);
    for (int64_t tap = 0; tap < cols.taps; tap += stretch) {
      const int64_t begin = (cols.tap + tap) * s_.c, from = std::max(part_.from - begin, int64_t(0));
      const auto add_tile = [&](int64_t first, int64_t m, const T* source) {
        for (int64_t r = r_begin; r < r_end; ++r) {
          const std::vector<Run>& runs = runs_[size_t(r - rows.tap - first_tap)];
          t.runs = runs.data(), t.run_count = int64_t(runs.size());
          T* y_rows[kAdjacentRows];
          for (int64_t i = 0; i < m; ++i) y_rows[i] = dw_ + (r * s_.kw * s_.c + begin + first + i) * s_.k;
          t.rows = &source, t.y = y_rows, t.c = y_rows;
          for (int64_t panel = 0; panel < panels_; ++panel) {
            t.b = dy_packed_ ? b + panel * room_ * kCols<T> : dy_ + panel * kCols<T>;
            t.column = panel * kCols<T>;
            t.n = std::min<int64_t>(kCols<T>, columns_ - t.column);
            run_tile<T, false>(m, t);
          }
        }
      };
      const int64_t count = std::min(part_.to - begin, stretch * s_.c) - from, step = s_.sw * s_.c;
      for_tile_groups<kAdjacentRows, kTogether>(count, [&](int64_t first, const int64_t* heights, int64_t tiles) {
        first += from;
        const T* const source = x + tap * s_.dw * s_.c + first;
        if (x_packed_) {
          T* to[kTogether];
          for (int64_t i = 0; i < tiles; ++i) to[i] = a + i * x_room_;
          pack_adjacent(heights, tiles, to, [&](auto& packer, int64_t row) {
            for (const Rows& of : rows_)
              for (int64_t i = 0; i < of.count + halo_; ++i)
                packer.pack(source + row + of.x + i * s_.sh * x_row, step, of.length);
          });
        }
        for (int64_t i = 0, row = 0; i < tiles; row += heights[i++]) {
          t.step = x_packed_ ? heights[i] : step;
          find_runs(x_packed_ ? heights[i] : 1);
          add_tile(first + row, heights[i], x_packed_ ? a + i * x_room_ : source + row);
        }
      });
    }
  }

  // The block's pixels as runs, under each row of taps that reads x together; for tiles whose rows are `height` elements of
  // what is packed, or 1 where x lies in place.
  void find_runs(int64_t height) {
    if (std::exchange(runs_for_, height) == height) return;
    for (size_t tap = 0; tap < runs_.size(); ++tap) {
      std::vector<Run>& runs = runs_[tap];
      runs.clear();
      int64_t a = 0, b = 0;  // pixels before, of what is packed
      for (const Rows& of : rows_) {
        const int64_t pixels = of.count * of.length;
        if (!x_packed_) {
          for (int64_t i = 0; i < of.count; ++i)
            runs.push_back({of.x + i * s_.sh * s_.w * s_.c, dy_packed_ ? b + i * of.length : of.y + i * s_.wo, of.length});
        } else if (halo_ == 0 && !runs.empty()) {
          runs.back().length += pixels;
        } else {
          runs.push_back({(a + int64_t(tap) * s_.dh * of.length) * height, b, pixels});
        }
        a += pixels + halo_ * of.length, b += pixels;
      }
    }
  }

  const Conv2dShape& s_;
  const T *x_, *dy_;
  const WeightPart part_;
  const int64_t columns_, panels_, room_;  // room for so many pixels in a block
  const bool x_packed_;                    // where more than two panels read it; then dy is, too
  const bool dy_packed_;                   // where more than two tiles read it, or it does not fill its panels
  T* const dw_;
  const std::unique_ptr<T[]> dy_memory_;  // where the block's part of dy is packed
  std::unique_ptr<T[]> x_memory_;         // where that of x is, for kTogether tiles
  int64_t x_room_ = 0, x_size_ = 0;       // of a tile in it; that there is
  std::vector<Rows> rows_;                // the block
  int64_t pixels_ = 0;                    // of it
  int64_t halo_ = 0;                      // rows of x that its rows of taps read besides those under the first
  std::vector<std::vector<Run>> runs_;
  int64_t runs_for_ = 0;  // what find_runs was last called with for this block
};

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
  // Where there are few items, rows of taps are parted, so that all threads have as many. The rows stay together if they
  // can: they share what is packed.
  const int64_t threads = get_num_threads(), length = s.kw * s.c;
  const int64_t most = std::max<int64_t>(length / (2 * kAdjacentRows), 1);
  const int64_t rows = slices * cut.groups >= 4 * threads || most >= threads ? 1 : s.kh, whole = slices * cut.groups * rows;
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
  ops.conv2d_backward_w_workspace = conv2d_backward_w_workspace<T>;
  ops.conv2d_backward_w = conv2d_backward_w<T>;
}

}  // namespace

void add_conv2d_backward_w(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
