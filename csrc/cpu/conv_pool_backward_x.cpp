// Gradient of the input of a convolution under a max pool: an item is a band of rows of one image's dx, so that batches of
// few images have enough of them.
#include "panels.h"
#include "winners.h"

namespace fastnn::FASTNN_TARGET {
namespace {

int64_t band_count(const Conv2dShape& s) {
  return std::clamp<int64_t>(16 / std::max<int64_t>(s.n, 1), 1, std::max<int64_t>(s.h / 8, 1));
}

// The winners of a few windows side by side: of each window one list for each position and an empty one, as
// Geometry::each_output counts, of the channels that won and of their dy.
template <class T>
class Winners {
 public:
  static constexpr int64_t kWindows = 8;

  explicit Winners(const Geometry& g)
      : g_(g), channels_(kWindows * g.conv.k), lists_(size_t(kWindows * (g.positions + 1))) {}

  // Those of windows [begin, end); dy and argmax are the first window's.
  void list(int64_t begin, int64_t end, const T* dy, const uint8_t* argmax) {
    int64_t list = 0, position = 0, at = 0;
    g_.each_output(begin, end, [&](Geometry::Output output) {
      const int64_t count = output.row ? list_channels(dy, argmax, uint8_t(position), at) : 0;
      lists_[size_t(list++)] = channels_.terms(at, count);
      at += count;
      if (position++ == g_.positions) position = 0, dy += g_.conv.k, argmax += g_.conv.k;
    });
  }

  const Terms<T>& operator[](int64_t list) const { return lists_[size_t(list)]; }

 private:
  // Of one window and position, from `at` on; gives their number.
  int64_t list_channels(const T* dy, const uint8_t* argmax, uint8_t position, int64_t at) {
    constexpr int W = kWidth<T>;
    constexpr uint64_t kVector = (UINT64_C(1) << W) - 1;
    simd::Integers<T> channels;
    for (int i = 0; i < W; ++i) channels[i] = i;
    int64_t count = 0;
    for (int64_t first = 0; first < g_.conv.k; first += 64) {
      const int64_t end = std::min<int64_t>(first + 64, g_.conv.k);
      uint64_t winners = simd::equal_bytes(argmax + first, end - first, position);
      for (int64_t k = first; k < end; k += W, winners >>= W, channels += W)
        count += channels_.store(at + count, uint32_t(winners & kVector), channels, simd::load(dy + k, end - k));
    }
    return count;
  }

  const Geometry& g_;
  TermMemory<T> channels_;
  std::vector<Terms<T>> lists_;
};

// The usual layer: 3 x 3 taps side by side and windows of 2 x 2. What a window sends to dx is a patch of 4 x 4 pixels, which
// stays in registers, one vector of channels at a time, while the winners of all four positions are added: the filter of one
// such vector fits L1, and dx is read and written once for each window.
template <class T>
class PatchGradient {
 public:
  // Whether it serves and, by the vectors of a row of taps, pays: channels that do not fill theirs make them more.
  static bool fits(const ConvPoolShape& s) {
    const Conv2dShape& c = s.conv;
    return simd::kBytes == 64 && c.kh == kTaps && c.kw == kTaps && c.sh == 1 && c.sw == 1 && c.dh == 1 && c.dw == 1 &&
           s.pool.kh == kSize && s.pool.kw == kSize && 4 * kTaps * ceil_div(c.c, W) <= 5 * ceil_div(kTaps * c.c, W);
  }
  static int64_t filter_size(const Conv2dShape& s) { return ceil_div(s.c, W) * s.k * kFilter; }

  // w (KH, KW, C, K) -> (vectors of channels, K, KH, KW, W), zeros after the last channel: one of its filter_parts.
  static int64_t filter_parts(const Conv2dShape& s) { return ceil_div(s.c, W) * kTaps * kTaps; }
  static void pack(const Conv2dShape& s, const T* w, int64_t part, T* filter) {
    const int64_t vectors = ceil_div(s.c, W);
    const int64_t tap = part / vectors, first = part % vectors * W, count = std::min<int64_t>(s.c - first, W);
    const T* from = w + (tap * s.c + first) * s.k;
    T* to = filter + first / W * s.k * kFilter + tap * W;
    int64_t k = 0;
    for (; k + W <= s.k; k += W) pack_transposed(from + k, s.k, count, to + k * kFilter, kFilter);
    for (; k < s.k; ++k)
      for (int64_t c = 0; c < W; ++c) to[k * kFilter + c] = c < count ? from[c * s.k + k] : T(0);
  }

  PatchGradient(const Geometry& g, const T* filter) : g_(g), filter_(filter) {}

  // Adds what the winners of windows [begin, end), of one row of windows, send to rows [first_row, end_row) of dx.
  void add(int64_t begin, int64_t end, const Winners<T>& winners, int64_t first_row, int64_t end_row, T* dx) const {
    const Conv2dShape& s = g_.conv;
    const Pool2dShape& pool = g_.pool;
    const int64_t row = begin / pool.wo * pool.sh - pool.pad_top - s.pad_top;
    const int64_t col = begin % pool.wo * pool.sw - pool.pad_left - s.pad_left;
    for (int64_t c = 0; c < s.c; c += W)
      for (int64_t window = 0; window < end - begin; ++window) {
        simd::V<T> sum[kPixels];
        add_winners(winners, window * (g_.positions + 1), filter_ + c * s.k * kTaps * kTaps, sum);
        add_patch(sum, row, col + window * pool.sw, c, first_row, end_row, dx);
      }
  }

 private:
  static constexpr int W = kWidth<T>, kTaps = 3, kSize = 2, kPatch = kTaps + kSize - 1, kPixels = kPatch * kPatch,
                       kFilter = kTaps * kTaps * W;

  [[gnu::always_inline]] static void add_winners(const Winners<T>& winners, int64_t list, const T* filter,
                                                 simd::V<T> (&sum)[kPixels]) {
#pragma GCC unroll 16
    for (int pixel = 0; pixel < kPixels; ++pixel) sum[pixel] = simd::V<T>{};
    add_position<0, 0>(winners[list], filter, sum);
    add_position<0, 1>(winners[list + 1], filter, sum);
    add_position<1, 0>(winners[list + 2], filter, sum);
    add_position<1, 1>(winners[list + 3], filter, sum);
  }

  template <int Row, int Col>
  [[gnu::always_inline]] static void add_position(const Terms<T>& terms, const T* filter, simd::V<T> (&sum)[kPixels]) {
    for (int64_t term = 0; term < terms.count; ++term) {
      const simd::V<T> weight = simd::broadcast(terms.weight[term]);
      const T* const taps = filter + int64_t(terms.row[term]) * kFilter;
#pragma GCC unroll 9
      for (int tap = 0; tap < kTaps * kTaps; ++tap) {
        simd::V<T>& pixel = sum[(Row + tap / kTaps) * kPatch + Col + tap % kTaps];
        pixel = simd::multiply_add(weight, simd::load(taps + tap * W), pixel);
      }
    }
  }

  // The patch's first pixel is at (row, col), which need not lie in the image; channels from c on.
  [[gnu::always_inline]] void add_patch(const simd::V<T> (&sum)[kPixels], int64_t row, int64_t col, int64_t c,
                                        int64_t first_row, int64_t end_row, T* dx) const {
    const int64_t down = g_.x.w * g_.x.c, right = g_.x.c;
    const simd::First<T> channels(std::min<int64_t>(g_.x.c - c, W));
    const int64_t first = row * down + col * right + c;
    const auto add = [&](int64_t r, int64_t q, simd::V<T> v) {
      T* const pixel = dx + (first + r * down + q * right);
      channels.store(pixel, channels.load(pixel) + v);
    };
    if (row >= first_row && row + kPatch <= end_row && col >= 0 && col + kPatch <= g_.x.w) {
#pragma GCC unroll 16
      for (int pixel = 0; pixel < kPixels; ++pixel) add(pixel / kPatch, pixel % kPatch, sum[pixel]);
      return;
    }
    alignas(64) T sums[kPixels * W];
#pragma GCC unroll 16
    for (int pixel = 0; pixel < kPixels; ++pixel) simd::store(sums + pixel * W, sum[pixel]);
    for (int64_t r = std::max<int64_t>(first_row - row, 0); r < std::min<int64_t>(end_row - row, kPatch); ++r)
      for (int64_t q = std::max<int64_t>(-col, 0); q < std::min<int64_t>(g_.x.w - col, kPatch); ++q)
        add(r, q, simd::load(sums + (r * kPatch + q) * W));
  }

  const Geometry& g_;
  const T* const filter_;
};

// Any layer. The rows of taps come one after another over all windows, so that a row of the filter serves many of them from
// L1.
template <class T>
class InputGradient {
 public:
  // w (KH, KW, C, K) -> (KH, pieces, K, length), as Pieces say: one of its filter_parts.
  static int64_t filter_parts(const Geometry& g) { return g.conv.kh * g.pieces.count; }
  static void pack(const Geometry& g, const T* w, int64_t part, T* filter) {
    const int64_t length = g.pieces.length, k = g.conv.k, at = part * length * k;
    transpose(w + at, k, length, k, filter + at, length);
  }

  InputGradient(const Geometry& g, const T* filter) : g_(g), filter_(size_t(g.conv.k)) {
    for (size_t k = 0; k < filter_.size(); ++k) filter_[k] = filter + int64_t(k) * g.pieces.length;
  }

  // Adds what the winners of windows [begin, end) send to rows [first_row, end_row) of dx.
  void add(int64_t begin, int64_t end, const Winners<T>& winners, int64_t first_row, int64_t end_row, T* dx) {
    strips_.clear();
    int64_t list = 0;
    g_.each_output(begin, end, [&](Geometry::Output output) { add_strips(winners[list++], output, first_row, end_row); });
    const int64_t together = rows_together<T>(g_.pieces.length), filter_step = g_.pieces.row_step();
    const int64_t x_step = g_.conv.dh * g_.x.w * g_.x.c;
    for (int64_t r = 0; r < g_.conv.kh; r += together)
      for (const Strip& strip : strips_) {
        const int64_t first = std::max(strip.begin, r), rows = std::min(strip.end, r + together) - first;
        if (rows > 0)
          add_rows(filter_.data(), strip.terms, rows, strip.length, strip.in_filter + first * filter_step, filter_step,
                   dx + strip.at + (first - strip.begin) * x_step, x_step);
      }
  }

 private:
  // A piece of rows [begin, end) of the taps, which the winners of a list add to dx from `at` on.
  struct Strip {
    Terms<T> terms;
    int64_t begin, end, in_filter, length, at;
  };

  // Those of a list, as far as they lie in the image and the rows of dx.
  void add_strips(const Terms<T>& terms, Geometry::Output output, int64_t first_row, int64_t end_row) {
    const Conv2dShape& s = g_.conv;
    if (!output.row || terms.count == 0) return;
    const Point &row = *output.row, &col = *output.col;
    const auto tap_at = [&](int64_t edge) {  // the first whose source is not above the edge
      const int64_t rows = std::max<int64_t>(edge - row.source, 0);
      return row.tap + (s.dh == 1 ? rows : ceil_div(rows, s.dh));  // some processors take a hundred cycles to divide
    };
    const int64_t begin = std::max(row.tap, tap_at(first_row)), end = std::min(row.tap + row.taps, tap_at(end_row));
    if (begin >= end) return;
    const int64_t at = g_.x.at(0, row.source + (begin - row.tap) * s.dh, col.source);
    g_.pieces.each(s, col, [&](int64_t in_filter, int64_t in_x, int64_t length) {
      strips_.push_back({terms, begin, end, in_filter, length, at + in_x});
    });
  }

  const Geometry& g_;
  std::vector<const T*> filter_;  // of each channel
  std::vector<Strip> strips_;
};

template <class T>
int64_t filter_size(const ConvPoolShape& s) {
  return PatchGradient<T>::fits(s) ? PatchGradient<T>::filter_size(s.conv) : Pieces(s.conv).size(s.conv);
}

template <class T>
int64_t conv2d_max_pool2d_backward_x_workspace(const ConvPoolShape& s) {
  return filter_size<T>(s) + kAlign<T>;
}

template <class T>
void conv2d_max_pool2d_backward_x(const ConvPoolShape& shape, const T* dy, const uint8_t* argmax, const T* w, T* dx,
                                  T* workspace, Stream) {
  const Conv2dShape& s = shape.conv;
  const Geometry g(shape);
  const bool patches = PatchGradient<T>::fits(shape);
  const int64_t parts = patches ? PatchGradient<T>::filter_parts(s) : InputGradient<T>::filter_parts(g);
  const auto pack = [&](int64_t part, T* filter) {
    patches ? PatchGradient<T>::pack(s, w, part, filter) : InputGradient<T>::pack(g, w, part, filter);
  };
  // Each thread packs for itself where that pays: nobody waits, nor reads what another core wrote.
  const int64_t size = filter_size<T>(shape);
  const bool by_each = packed_by_each(size * int64_t(sizeof(T)), s.n * g.windows, get_num_threads());
  if (!by_each) parallel_for(parts, [&](int64_t part) { pack(part, aligned(workspace)); });
  struct Own {
    std::unique_ptr<T[]> filter;  // null where it is packed for all
    Winners<T> winners;
    PatchGradient<T> in_patches;
    InputGradient<T> in_strips;
  };
  const auto make_own = [&] {
    std::unique_ptr<T[]> own(by_each ? new T[size_t(size + kAlign<T>)] : nullptr);
    T* const filter = aligned(own ? own.get() : workspace);
    for (int64_t part = 0; own && part < parts; ++part) pack(part, filter);
    return Own{std::move(own), Winners<T>(g), {g, filter}, {g, filter}};
  };

  const int64_t bands = band_count(s), reach = (s.kh - 1) * s.dh;
  parallel_for(s.n * bands, make_own, [&](Own& own, int64_t item) {
    const int64_t n = item / bands, band = item % bands;
    const int64_t first_row = s.h * band / bands, end_row = s.h * (band + 1) / bands;
    T* image = dx + g.x.at(n, 0, 0);
    std::fill(image + g.x.at(0, first_row, 0), image + g.x.at(0, end_row, 0), T(0));
    for (int64_t i = 0; i < shape.pool.ho; ++i) {
      // Rows of x that this row of windows can reach.
      const int64_t top = (i * shape.pool.sh - shape.pool.pad_top) * s.sh - s.pad_top;
      if (top >= end_row || top + (shape.pool.kh - 1) * s.sh + reach < first_row) continue;
      for (int64_t begin = i * shape.pool.wo, last = begin + shape.pool.wo; begin < last;) {
        const int64_t end = std::min(begin + Winners<T>::kWindows, last), at = (n * g.windows + begin) * s.k;
        own.winners.list(begin, end, dy + at, argmax + at);
        if (patches)
          own.in_patches.add(begin, end, own.winners, first_row, end_row, image);
        else
          own.in_strips.add(begin, end, own.winners, first_row, end_row, image);
        begin = end;
      }
    }
  });
}

template <class T>
void add(Ops<T>& ops) {
  ops.conv2d_max_pool2d_backward_x_workspace = conv2d_max_pool2d_backward_x_workspace<T>;
  ops.conv2d_max_pool2d_backward_x = conv2d_max_pool2d_backward_x<T>;
}

}  // namespace

void add_conv_pool_backward_x(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
