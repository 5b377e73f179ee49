// Convolution, ReLU and max pooling as one op.
//
//   forward   An item is a block of windows of one image. The convolution's outputs under them, and no others, are computed
//   by
//             the register tile, a panel of channels at a time, into a buffer that stays in L1, and pooled from there: the
//             map before the pool is never stored. Same bits as the three ops one after the other. 2 KH KW C flops for each
//             output that a window reads.
//   backward  Of each window and channel one output at most has a gradient, so the sums run over winners: a quarter of the
//             dense work with 2 x 2 windows, less what ReLU stops. Both gradients are sums of weighted rows of memory
//             (add_rows), kept in registers:
//               dw[:, :, :, k]           += over windows   dy * patch of x under the winner of channel k
//               dx's patch of a winner   += over channels  dy * w[:, :, :, k]
//             A row of taps is one stretch of kw * C elements where they lie side by side (dilation 1). One multiply-add per
//             load: bound by loads and arithmetic alike.
// Order of the sums: over channels within a window, over windows within a unit (a run of windows of one image), over units
// within a slice; all of them by the shape alone.
#include <memory>
#include <optional>

#include "../ops.h"
#include "conv.h"
#include "winograd.h"

namespace fastnn::FASTNN_TARGET {
namespace {

using simd::kWidth;

// ---- Geometry

// One coordinate of the convolution's output: its valid taps tap, tap + 1, ..., `taps` of them, and the source under the
// first.
struct Point {
  int64_t tap, taps, source;
  int class_index;
};

std::vector<Point> points_of(const std::vector<AxisClass>& classes, int64_t size) {
  std::vector<Point> points(static_cast<size_t>(size));
  for (size_t c = 0; c < classes.size(); ++c)
    for (size_t i = 0; i < classes[c].out.size(); ++i)
      points[size_t(classes[c].out[i])] = {classes[c].tap, classes[c].taps, classes[c].source[i], int(c)};
  return points;
}

// The coordinates that a window reads along one axis.
struct Reach {
  int64_t begin, end;
};

Reach window_reach(int64_t window, int64_t stride, int64_t pad, int64_t extent, int64_t size) {
  const int64_t start = window * stride - pad;
  return {std::max<int64_t>(start, 0), std::min(start + extent, size)};
}

// Those that windows [begin, end) read, ascending; `all` has room. Gives their number.
int64_t coordinates(int64_t begin, int64_t end, int64_t stride, int64_t pad, int64_t extent, int64_t size, int64_t* all) {
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Reach r = window_reach(i, stride, pad, extent, size);
    for (int64_t at = count ? std::max(r.begin, all[count - 1] + 1) : r.begin; at < r.end; ++at) all[count++] = at;
  }
  return count;
}

// ---- Forward

constexpr int64_t kPixels = 192;  // of the convolution's output that a block has, unless one window has more
static_assert(kMaxPositions <= 256);

// Blocks of windows: `rows` x `cols` of them, by the shape alone.
struct Blocks {
  int64_t rows, cols, down, across;  // down x across blocks an image
  explicit Blocks(const Pool2dShape& p) {
    const auto most = [](int64_t pixels, int64_t extent, int64_t stride, int64_t size) {
      const int64_t more = pixels < extent ? 0 : (pixels - extent) / std::min(stride, extent);
      return std::clamp<int64_t>(more + 1, 1, size);
    };
    const auto extent_of = [](int64_t windows, int64_t extent, int64_t stride) {
      return extent + (windows - 1) * std::min(stride, extent);
    };
    cols = most(kPixels / p.kh, p.kw, p.sw, p.wo);
    rows = most(kPixels / extent_of(cols, p.kw, p.sw), p.kh, p.sh, p.ho);
    rows = std::min(rows, std::max<int64_t>(p.n * p.ho / 16, 1));  // enough items for some threads
    down = (p.ho + rows - 1) / rows, across = (p.wo + cols - 1) / cols;
    rows = (p.ho + down - 1) / down, cols = (p.wo + across - 1) / across;
  }
};

// A position of a window and where it lies from the window's first, in elements.
struct Place {
  int32_t position;
  int64_t offset;
};

// The greatest value of a window and its position, or those of the first NaN, for a vector of channels.
template <class T>
class Winner {
 public:
  Winner(simd::V<T> v, int32_t position) : value_(v), position_(simd::Integers<T>{} + position) {}

  void take(simd::V<T> v, int32_t position) {
    const simd::V<T> value = v <= value_ ? value_ : v;
    const simd::Integers<T> where = v <= value_ ? position_ : simd::Integers<T>{} + position;
    position_ = value_ == value_ ? where : position_;  // not once a NaN stands
    value_ = value_ == value_ ? value : value_;
  }

  void store(bool relu, T* y, uint8_t* argmax, int64_t n) {
    if (relu) {
      position_ = value_ > simd::V<T>{} ? position_ : simd::Integers<T>{} + kNoGradient;
      value_ = simd::relu<T>(value_);
    }
    simd::store(y, value_, n);
    simd::store_bytes<T>(argmax, position_, n);
  }

 private:
  simd::V<T> value_;
  simd::Integers<T> position_;
};

// One window over the n channels of a panel.
template <class T>
void pool_window(const T* first, const Place* places, int64_t count, int64_t n, bool relu, T* y, uint8_t* argmax) {
  for (int64_t c = 0; c < n; c += kWidth<T>) {
    Winner<T> winner(simd::load(first + places[0].offset + c), places[0].position);
    for (const Place* place = places + 1; place != places + count; ++place)
      winner.take(simd::load(first + place->offset + c), place->position);
    winner.store(relu, y + c, argmax + c, n - c);
  }
}

// A window that is a Winograd tile.
bool windows_are_tiles(const ConvPoolShape& s) {
  const Pool2dShape& p = s.pool;
  return winograd_fits(s.conv, 2 * p.ho, 2 * p.wo) && p.kh == 2 && p.kw == 2 && p.sh == 2 && p.sw == 2 && p.pad_top == 0 &&
         p.pad_left == 0 && 2 * p.ho <= p.h && 2 * p.wo <= p.w;
}

// ---- Sums of weighted rows

template <class T>
struct Term {
  const T* row;
  T weight;
};

constexpr int kMaxVectors = 12, kMaxSegments = 3;

// out[s * out_step + 0..n) += sum over terms of weight * row[s * row_step + 0..n), for segments s < S; n is V vectors, the
// last one as far as `last` says.
template <class T, int S, int V>
void add_segments(const Term<T>* terms, int64_t count, int64_t shift, int64_t row_step, simd::First<T> last, T* out,
                  int64_t out_step) {
  constexpr int W = kWidth<T>;
  simd::V<T> sum[S][V];
#pragma GCC unroll 3
  for (int s = 0; s < S; ++s)
#pragma GCC unroll 12
    for (int v = 0; v < V; ++v) sum[s][v] = simd::V<T>{};
  for (const Term<T>* term = terms; term != terms + count; ++term) {
    const simd::V<T> weight = simd::broadcast(term->weight);
#pragma GCC unroll 3
    for (int s = 0; s < S; ++s) {
      const T* row = term->row + shift + s * row_step;
#pragma GCC unroll 12
      for (int v = 0; v < V - 1; ++v) sum[s][v] = simd::multiply_add(weight, simd::load(row + v * W), sum[s][v]);
      sum[s][V - 1] = simd::multiply_add(weight, last.load(row + (V - 1) * W), sum[s][V - 1]);
    }
  }
#pragma GCC unroll 3
  for (int s = 0; s < S; ++s) {
    T* to = out + s * out_step;
#pragma GCC unroll 12
    for (int v = 0; v < V - 1; ++v) simd::store(to + v * W, simd::load(to + v * W) + sum[s][v]);
    last.store(to + (V - 1) * W, last.load(to + (V - 1) * W) + sum[s][V - 1]);
  }
}

template <class T, int S, int... V>
constexpr auto segments_table(std::integer_sequence<int, V...>) {
  return std::array<decltype(&add_segments<T, 1, 1>), sizeof...(V)>{&add_segments<T, S, V + 1>...};
}

// Segments of a length that add_rows takes at once.
template <class T>
int64_t rows_together(int64_t length) {
  return length <= kMaxVectors / kMaxSegments * kWidth<T> ? kMaxSegments : 1;
}

// The same for any number of segments of any length.
template <class T>
void add_rows(const Term<T>* terms, int64_t count, int64_t segments, int64_t length, int64_t shift, int64_t row_step, T* out,
              int64_t out_step) {
  constexpr int W = kWidth<T>;
  constexpr int kShort = kMaxVectors / kMaxSegments;  // vectors of which all segments fit
  static constexpr auto one = segments_table<T, 1>(std::make_integer_sequence<int, kMaxVectors>{});
  static constexpr auto two = segments_table<T, 2>(std::make_integer_sequence<int, kShort>{});
  static constexpr auto three = segments_table<T, 3>(std::make_integer_sequence<int, kShort>{});
  if (count == 0) return;
  for (int64_t begin = 0; begin < length; begin += kMaxVectors * W) {
    const int64_t n = std::min<int64_t>(length - begin, kMaxVectors * W), vectors = (n + W - 1) / W;
    const simd::First<T> last(n - (vectors - 1) * W);
    for (int64_t s = 0; s < segments;) {
      const int64_t together = std::min(segments - s, rows_together<T>(n));
      const auto add = (together == 1 ? one.data() : together == 2 ? two.data() : three.data())[vectors - 1];
      add(terms, count, shift + begin + s * row_step, row_step, last, out + begin + s * out_step, out_step);
      s += together;
    }
  }
}

// ---- The filter with its channels side by side, as backward wants it: (KH, pieces, K, length). A piece is a row of taps
// where they lie side by side in x, and one tap elsewhere.
struct Pieces {
  bool joined;
  int64_t count, length, k;  // pieces in a row of taps, elements of each

  explicit Pieces(const Conv2dShape& s)
      : joined(s.dw == 1), count(joined ? 1 : s.kw), length((joined ? s.kw : 1) * s.c), k(s.k) {}
  int64_t row_step() const { return count * k * length; }  // from one row of taps to the next
  int64_t size(const Conv2dShape& s) const { return s.kh * row_step(); }

  // f(offset of channel 0 in the filter, offset in x from the patch's first element, length) for the valid pieces of a
  // row of taps.
  template <class F>
  void each(const Conv2dShape& s, const Point& column, F f) const {
    if (joined)
      f(column.tap * s.c, int64_t(0), column.taps * s.c);
    else
      for (int64_t q = 0; q < column.taps; ++q) f((column.tap + q) * k * length, q * s.dw * s.c, length);
  }
};

struct Geometry {
  const Conv2dShape& conv;
  const Pool2dShape& pool;
  ConvPlan plan;
  std::vector<Point> rows, cols;
  Image x;
  Pieces pieces;
  int64_t positions, windows;  // of a window; of an image

  explicit Geometry(const ConvPoolShape& s)
      : conv(s.conv),
        pool(s.pool),
        plan(plan_forward(s.conv)),
        rows(points_of(plan.rows, s.conv.ho)),
        cols(points_of(plan.cols, s.conv.wo)),
        x{s.conv.h, s.conv.w, s.conv.c},
        pieces(s.conv),
        positions(s.pool.kh * s.pool.kw),
        windows(s.pool.ho * s.pool.wo) {}

  // The convolution's output at a window's position: row and column, or null where it lies in the pool's padding.
  struct Output {
    const Point *row, *col;
  };
  Output output(int64_t window, int64_t position) const {
    const int64_t i = window / pool.wo * pool.sh - pool.pad_top + position / pool.kw;
    const int64_t j = window % pool.wo * pool.sw - pool.pad_left + position % pool.kw;
    if (i < 0 || i >= pool.h || j < 0 || j >= pool.w) return {nullptr, nullptr};
    return {&rows[size_t(i)], &cols[size_t(j)]};
  }

  // f(row, column) for each position of windows [begin, end), as `output` gives them, and once more after each window, with
  // nulls: for what is no position.
  template <class F>
  void each_output(int64_t begin, int64_t end, F f) const {
    int64_t i = begin / pool.wo, j = begin % pool.wo;
    for (int64_t window = begin; window < end; ++window) {
      const int64_t top = i * pool.sh - pool.pad_top, left = j * pool.sw - pool.pad_left;
      for (int64_t r = top; r < top + pool.kh; ++r)
        for (int64_t q = left; q < left + pool.kw; ++q) {
          const bool inside = r >= 0 && r < pool.h && q >= 0 && q < pool.w;
          f(inside ? &rows[size_t(r)] : nullptr, inside ? &cols[size_t(q)] : nullptr);
        }
      f(static_cast<const Point*>(nullptr), static_cast<const Point*>(nullptr));
      if (++j == pool.wo) j = 0, ++i;
    }
  }
};

// ---- Gradient of the input: an item is a band of rows of one image's dx, so that batches of few images have enough of
// them.

int64_t band_count(const Conv2dShape& s) {
  return std::clamp<int64_t>(16 / std::max<int64_t>(s.n, 1), 1, std::max<int64_t>(s.h / 8, 1));
}

// The winners of a few windows side by side, listed by window and position. The rows of taps come one after another over all
// of them, so that a row of the filter serves many windows from L1.
template <class T>
class InputGradient {
 public:
  static constexpr int64_t kWindows = 8;

  explicit InputGradient(const Geometry& g)
      : g_(g), terms_(new Term<T>[size_t(kWindows * g.positions * g.conv.k)]), count_(size_t(kWindows * g.positions)) {}

  // Adds what the winners of windows [begin, end) send to rows [first_row, end_row) of dx; dy and argmax are the first
  // window's, `filter` is laid out as Pieces say.
  void add(int64_t begin, int64_t end, const T* dy, const uint8_t* argmax, const T* filter, int64_t first_row,
           int64_t end_row, T* dx) {
    const int64_t k = g_.conv.k;
    for (int64_t window = 0; window < end - begin; ++window, dy += k, argmax += k) list_winners(window, dy, argmax, filter);
    const int64_t together = rows_together<T>(g_.pieces.length);
    for (int64_t r = 0; r < g_.conv.kh; r += together)
      for (int64_t list = 0; list < (end - begin) * g_.positions; ++list)
        if (count_[size_t(list)] > 0)
          add_taps(list, g_.output(begin + list / g_.positions, list % g_.positions), r, r + together, first_row, end_row,
                   dx);
  }

 private:
  // Position by position, a bit for each channel of 64: no branch on what won.
  void list_winners(int64_t window, const T* dy, const uint8_t* argmax, const T* filter) {
    const int64_t channels = g_.conv.k, length = g_.pieces.length;
    for (int64_t position = 0; position < g_.positions; ++position) {
      Term<T>* const begin = terms_.get() + (window * g_.positions + position) * channels;
      Term<T>* term = begin;
      for (int64_t first = 0; first < channels; first += 64)
        for (uint64_t winners = simd::equal_bytes(argmax + first, channels - first, uint8_t(position)); winners;
             winners &= winners - 1) {
          const int64_t k = first + __builtin_ctzll(winners);
          *term++ = {filter + k * length, dy[k]};
        }
      count_[size_t(window * g_.positions + position)] = term - begin;
    }
  }

  // Rows [begin, end) of the taps, as far as they lie in the image and the rows of dx.
  void add_taps(int64_t list, Geometry::Output output, int64_t begin, int64_t end, int64_t first_row, int64_t end_row,
                T* dx) {
    const Conv2dShape& s = g_.conv;
    if (!output.row) return;
    const Point &row = *output.row, &col = *output.col;
    const auto tap_at = [&](int64_t edge) {  // the first whose source is not above the edge
      return row.tap + (edge <= row.source ? 0 : (edge - row.source + s.dh - 1) / s.dh);
    };
    begin = std::max(begin, tap_at(first_row)), end = std::min({end, row.tap + row.taps, tap_at(end_row)});
    if (begin >= end) return;
    g_.pieces.each(s, col, [&](int64_t in_filter, int64_t in_x, int64_t length) {
      add_rows(terms_.get() + list * s.k, count_[size_t(list)], end - begin, length,
               in_filter + begin * g_.pieces.row_step(), g_.pieces.row_step(),
               dx + g_.x.at(0, row.source + (begin - row.tap) * s.dh, col.source) + in_x, s.dh * g_.x.w * g_.x.c);
    });
  }

  const Geometry& g_;
  const std::unique_ptr<Term<T>[]> terms_;  // K for each window and position
  std::vector<int64_t> count_;
};

// ---- Gradient of the filter: an item is a slice of the batch's units by a block of channels. A unit is a run of windows of
// one image, whose winners are listed for each channel first.

constexpr int64_t kChannels = 64;  // of a block

struct Units {
  int64_t windows, per_image, count, slices;  // windows a unit has at most

  explicit Units(const ConvPoolShape& s) {
    constexpr int64_t kTerms = 1 << 12, kSlices = 16, kPartials = 1 << 22;
    const int64_t all = s.pool.ho * s.pool.wo;
    windows = std::clamp<int64_t>(kTerms / std::min(s.conv.k, kChannels), 16, 512);
    windows = std::clamp<int64_t>(s.pool.n * all / kSlices, 16, windows);
    per_image = (all + windows - 1) / windows, windows = (all + per_image - 1) / per_image;
    count = s.pool.n * per_image;
    const int64_t weights = s.conv.kh * s.conv.kw * s.conv.c * s.conv.k;
    slices = std::clamp<int64_t>(std::min(count, kPartials / weights), 1, kSlices);
  }
};

// Short patches, as an image of three channels has. Those of a few windows are copied side by side, a patch in whole
// vectors; then the sums of several channels fit the registers, and winners are looked up as they come, without a list.
template <class T>
class ShortPatches {
 public:
  static bool fits(const Geometry& g) {
    if (g.plan.rows.size() * g.plan.cols.size() != 1) return false;
    const int64_t length = g.rows[0].taps * g.cols[0].taps * g.conv.c;
    return length > 0 && length <= kMaxVectors * kWidth<T>;
  }

  ShortPatches(const Geometry& g, int64_t channels)
      : g_(g),
        vectors_(panel_count(g.rows[0].taps * g.cols[0].taps * g.conv.c, kWidth<T>)),
        windows_(std::clamp<int64_t>(128 / g.positions, 1, 32)),
        places_(size_t(windows_ * (g.positions + 1))),
        // A copy's last vector may reach beyond its patch.
        memory_(new T[size_t((windows_ * g.positions + 1) * vectors_ * kWidth<T> + kWidth<T> + 2 * kAlign<T>)]),
        sums_(new T[size_t(channels * vectors_ * kWidth<T>)]) {
    std::fill_n(sums_.get(), channels * vectors_ * kWidth<T>, T(0));
  }

  // Adds windows [begin, end) of image n; dy and argmax are the first window's, at the first of `channels` channels.
  void add(int64_t n, int64_t begin, int64_t end, int64_t channels, const T* x, const T* dy, const uint8_t* argmax) {
    for (int64_t i = begin; i < end; i += windows_) {
      const int64_t windows = std::min(end - i, windows_);
      copy(n, i, i + windows, x);
      const int64_t at = (i - begin) * g_.conv.k;
      static constexpr auto adders = adders_table(std::make_integer_sequence<int, kMaxVectors>{});
      (this->*adders.data()[vectors_ - 1])(windows, channels, dy + at, argmax + at);
    }
  }

  // Adds the sums to dw, laid out as Pieces say, at the first channel.
  void finish(int64_t channels, T* dw) const {
    for (int64_t k = 0; k < channels; ++k) {
      const T* sum = sums_.get() + k * vectors_ * kWidth<T>;
      for (int64_t r = 0; r < g_.rows[0].taps; ++r)
        g_.pieces.each(g_.conv, g_.cols[0], [&](int64_t in_filter, int64_t, int64_t length) {
          T* to = dw + (g_.rows[0].tap + r) * g_.pieces.row_step() + in_filter + k * g_.pieces.length;
          for (int64_t i = 0; i < length; ++i) to[i] += *sum++;
        });
    }
  }

 private:
  static constexpr int kMaxVectors = kWidth<T> < 8 ? 8 : 4;
  static constexpr int kSums = simd::kRegisters == 32 ? 24 : 12, kMaxTogether = 8;

  struct Place {
    const T* patch;
    simd::Element<T> keep;  // the bits of dy that count: all, or none where there is no patch
  };

  void copy(int64_t n, int64_t begin, int64_t end, const T* x) {
    const int64_t size = vectors_ * kWidth<T>, row_step = g_.conv.dh * g_.x.w * g_.x.c, piece_step = g_.conv.dw * g_.x.c;
    const int64_t pieces = g_.pieces.joined ? 1 : g_.cols[0].taps, length = g_.cols[0].taps * g_.x.c / pieces;
    const int64_t whole = length / kWidth<T> * kWidth<T>;
    const simd::First<T> last(std::max<int64_t>(length - whole, 1));
    T* to = aligned(memory_.get());
    const T* const zeros = to;
    for (int64_t i = 0; i < size; ++i) *to++ = 0;
    Place* place = places_.data();
    g_.each_output(begin, end, [&](const Point* row, const Point* col) {
      if (!row) {
        *place++ = {zeros, 0};
        return;
      }
      *place++ = {to, ~simd::Element<T>(0)};
      const T* from = x + g_.x.at(n, row->source, col->source);
      T* at = to;
      for (int64_t r = 0; r < row->taps; ++r, from += row_step)
        for (int64_t q = 0; q < pieces; ++q, at += length) {
          for (int64_t i = 0; i < whole; i += kWidth<T>) simd::store(at + i, simd::load(from + q * piece_step + i));
          if (whole < length) simd::store(at + whole, last.load(from + q * piece_step + whole));  // and zeros behind it
        }
      to += size;
    });
  }

  template <int V>
  void add_channels(int64_t windows, int64_t channels, const T* dy, const uint8_t* argmax) {
    constexpr int kTogether = std::min(kSums / V, kMaxTogether);
    int64_t channel = 0;
    for (; channel + kTogether <= channels; channel += kTogether) add_block<V, kTogether>(windows, channel, dy, argmax);
    for (; channel < channels; ++channel) add_block<V, 1>(windows, channel, dy, argmax);
  }

  template <int... V>
  static constexpr auto adders_table(std::integer_sequence<int, V...>) {
    return std::array{&ShortPatches::add_channels<V + 1>...};
  }

  // Channels [channel, channel + B).
  template <int V, int B>
  void add_block(int64_t windows, int64_t channel, const T* dy, const uint8_t* argmax) {
    constexpr int W = kWidth<T>;
    const int positions = int(g_.positions);
    T* const sums = sums_.get() + channel * V * W;
    simd::V<T> sum[B][V];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[b][v] = simd::load(sums + (b * V + v) * W);
    dy += channel, argmax += channel;
    const Place* place = places_.data();
    for (int64_t window = 0; window < windows; ++window, dy += g_.conv.k, argmax += g_.conv.k, place += positions + 1) {
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) {
        const Place& winner = place[std::min<int>(argmax[b], positions)];
        const simd::V<T> weight = simd::broadcast_bits<T>(dy[b], winner.keep);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[b][v] = simd::multiply_add(weight, simd::load(winner.patch + v * W), sum[b][v]);
      }
    }
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) simd::store(sums + (b * V + v) * W, sum[b][v]);
  }

  const Geometry& g_;
  const int64_t vectors_;      // of a patch
  const int64_t windows_;      // at a time: their patches fit L1
  std::vector<Place> places_;  // of each window its positions, and one for what is none
  const std::unique_ptr<T[]> memory_, sums_;
};

// Patches of any length.
template <class T>
class FilterGradient {
 public:
  FilterGradient(const Geometry& g, const Units& units, int64_t first_channel, int64_t channels)
      : g_(g),
        units_(units),
        first_channel_(first_channel),
        channels_(channels),
        several_classes_(g.plan.rows.size() * g.plan.cols.size() > 1),
        patches_(size_t(units.windows * (g.positions + 1))),
        terms_(new Term<T>[size_t(channels * units.windows)]),
        class_of_(new int32_t[size_t(channels * units.windows)]),
        count_(size_t(channels)) {
    if (several_classes_) {
      sorted_.resize(size_t(units.windows));
      begin_.resize(g.plan.rows.size() * g.plan.cols.size() + 1);
    }
  }

  // Adds windows [begin, end) of image n to dw, laid out as Pieces say.
  void add_unit(int64_t n, int64_t begin, int64_t end, const T* x, const T* dy, const uint8_t* argmax, T* dw) {
    find_patches(n, begin, end, x);
    const int64_t at = (n * g_.windows + begin) * g_.conv.k + first_channel_;
    several_classes_ ? list_winners<true>(at, end - begin, dy, argmax) : list_winners<false>(at, end - begin, dy, argmax);
    for (int64_t k = 0; k < channels_; ++k) {
      const Term<T>* terms = terms_.get() + k * units_.windows;
      T* gradient = dw + (first_channel_ + k) * g_.pieces.length;
      if (!several_classes_)
        add(g_.rows[0], g_.cols[0], terms, count_[size_t(k)], gradient);
      else
        add_by_class(terms, class_of_.get() + k * units_.windows, count_[size_t(k)], gradient);
    }
  }

 private:
  struct Patch {
    const T* first;       // null where there is none: beyond the last position, or in the pool's padding
    int32_t class_index;  // of rows and columns together
  };

  void find_patches(int64_t n, int64_t begin, int64_t end, const T* x) {
    Patch* patch = patches_.data();
    g_.each_output(begin, end, [&](const Point* row, const Point* col) {
      *patch++ = row ? Patch{x + g_.x.at(n, row->source, col->source),
                             int32_t(row->class_index * int(g_.plan.cols.size()) + col->class_index)}
                     : Patch{nullptr, 0};
    });
  }

  template <bool kClasses>
  void list_winners(int64_t at, int64_t windows, const T* dy, const uint8_t* argmax) {
    Term<T>* const terms = terms_.get();
    int32_t *const class_of = class_of_.get(), *const count = count_.data();
    const int64_t room = units_.windows, channels = channels_, all = g_.conv.k;
    const int positions = int(g_.positions);
    std::fill_n(count, channels, 0);
    for (int64_t p = 0; p < windows; ++p, at += all) {
      const Patch* patch = patches_.data() + p * (positions + 1);
      for (int64_t k = 0; k < channels; ++k) {
        // Written in any case and kept where there is a patch: no branch on what won.
        const Patch& winner = patch[std::min<int>(argmax[at + k], positions)];
        const int64_t place = k * room + count[k];
        terms[place].row = winner.first, terms[place].weight = dy[at + k];
        if (kClasses) class_of[place] = winner.class_index;
        count[k] += winner.first != nullptr;
      }
    }
  }

  // Winners whose patches have the same taps.
  void add(const Point& row, const Point& col, const Term<T>* terms, int64_t count, T* gradient) const {
    g_.pieces.each(g_.conv, col, [&](int64_t in_filter, int64_t in_x, int64_t length) {
      add_rows(terms, count, row.taps, length, in_x, g_.conv.dh * g_.x.w * g_.x.c,
               gradient + in_filter + row.tap * g_.pieces.row_step(), g_.pieces.row_step());
    });
  }

  void add_by_class(const Term<T>* terms, const int32_t* classes, int64_t count, T* gradient) {
    std::fill(begin_.begin(), begin_.end(), 0);
    for (int64_t i = 0; i < count; ++i) ++begin_[size_t(classes[i]) + 1];
    for (size_t c = 1; c < begin_.size(); ++c) begin_[c] += begin_[c - 1];
    for (int64_t i = 0; i < count; ++i) sorted_[size_t(begin_[size_t(classes[i])]++)] = terms[i];
    int64_t first = 0;
    for (size_t c = 0; c + 1 < begin_.size(); first = begin_[c++]) {  // begin_[c] has moved to the end of c
      if (first == begin_[c]) continue;
      const AxisClass& rows = g_.plan.rows[c / g_.plan.cols.size()];
      const AxisClass& cols = g_.plan.cols[c % g_.plan.cols.size()];
      add({rows.tap, rows.taps, 0, 0}, {cols.tap, cols.taps, 0, 0}, sorted_.data() + first, begin_[c] - first, gradient);
    }
  }

  const Geometry& g_;
  const Units& units_;
  const int64_t first_channel_, channels_;
  const bool several_classes_;
  std::vector<Patch> patches_;              // window by window, positions + 1 each
  const std::unique_ptr<Term<T>[]> terms_;  // of each channel, room for a unit's windows
  const std::unique_ptr<int32_t[]> class_of_;
  std::vector<int32_t> count_;
  std::vector<int64_t> begin_;
  std::vector<Term<T>> sorted_;
};

}  // namespace

template <class T>
int64_t conv2d_max_pool2d_forward_workspace(const ConvPoolShape& s) {
  if (windows_are_tiles(s)) return winograd_workspace<T>(s.conv.c, s.conv.k);
  return filter_panels<T>(s.conv).workspace();
}

template <class T>
void conv2d_max_pool2d_forward(const ConvPoolShape& shape, const T* x, const T* w, const T* b, bool relu, T* y,
                               uint8_t* argmax, T* workspace, Stream) {
  const Conv2dShape& s = shape.conv;
  const Pool2dShape& p = shape.pool;
  if (windows_are_tiles(shape)) {
    const FilterView<T> filter{w, 3 * s.c * s.k, s.c * s.k, s.k, 1};
    const Image source{s.h, s.w, s.c}, out{2 * p.ho, 2 * p.wo, s.k};
    winograd_conv<T>({s.n, source, out, s.pad_top, s.pad_left, x, filter, b}, workspace,
                     [&](const OutputTile& at, int64_t column, int64_t n, const simd::V<T>* outputs) {
                       const int64_t to = ((at.n * p.ho + at.i / 2) * p.wo + at.j / 2) * s.k + column;
                       Winner<T> winner(outputs[0], 0);
                       for (int32_t o = 1; o < 4; ++o) winner.take(outputs[o], o);
                       winner.store(relu, y + to, argmax + to, n);
                     });
    return;
  }
  const Panels<T> panels = filter_panels<T>(s);
  pack_filter(s, panels, w, workspace);
  const Geometry g(shape);
  const Blocks blocks(p);
  const size_t col_classes = g.plan.cols.size(), classes = g.plan.rows.size() * col_classes;
  std::vector<Run> runs(classes * size_t(s.kh * s.kw));
  std::vector<int64_t> run_count(classes);
  for (size_t c = 0; c < classes; ++c)
    run_count[c] =
        make_runs(g.plan.rows[c / col_classes], g.plan.cols[c % col_classes], g.x, s.kw, &runs[c * size_t(s.kh * s.kw)]);

  parallel_for(s.n * blocks.down * blocks.across, [&](int64_t item) {
    const int64_t n = item / (blocks.down * blocks.across), down = item / blocks.across % blocks.down;
    const int64_t first_i = down * blocks.rows, end_i = std::min(first_i + blocks.rows, p.ho);
    const int64_t first_j = item % blocks.across * blocks.cols, end_j = std::min(first_j + blocks.cols, p.wo);
    constexpr int64_t kMost = std::max(kPixels, kMaxPositions);
    int64_t rows[kMost], cols[kMost];
    const int64_t height = coordinates(first_i, end_i, p.sh, p.pad_top, p.kh, s.ho, rows);
    const int64_t width = coordinates(first_j, end_j, p.sw, p.pad_left, p.kw, s.wo, cols);
    const int64_t row_step = width * kCols<T>;

    // Pixels class by class.
    alignas(64) T buffer[kMost * kCols<T>];
    const T* source[kMost];
    T* out[kMost];
    std::vector<int64_t> end(classes);
    int64_t count = 0;
    for (size_t c = 0; c < classes; ++c) {
      for (int64_t i = 0; i < height; ++i) {
        const Point& row = g.rows[size_t(rows[i])];
        if (row.class_index != int(c / col_classes)) continue;
        for (int64_t j = 0; j < width; ++j) {
          const Point& col = g.cols[size_t(cols[j])];
          if (col.class_index != int(c % col_classes)) continue;
          source[count] = x + g.x.at(n, row.source, col.source);
          out[count++] = buffer + i * row_step + j * kCols<T>;
        }
      }
      end[c] = count;
    }

    for (int64_t panel = 0; panel < panels.count(); ++panel) {
      TileArgs<T> t{};
      panels.select(t, w, workspace, panel);
      t.bias = b ? b + panel * kCols<T> : nullptr;
      for (size_t c = 0; c < classes; ++c) {
        const int64_t first = c ? end[c - 1] : 0;
        t.runs = &runs[c * size_t(s.kh * s.kw)], t.run_count = run_count[c];
        for_tiles(end[c] - first, [&](int64_t at, int64_t m) {
          t.rows = source + first + at, t.y = out + first + at;
          run_tile<T, true>(m, t);
        });
      }
      for (int64_t i = first_i, slot_i = 0; i < end_i; ++i) {
        const Reach reach_i = window_reach(i, p.sh, p.pad_top, p.kh, s.ho);
        while (rows[slot_i] < reach_i.begin) ++slot_i;
        Reach listed{0, 0};  // columns of the windows that `places` are of
        Place places[kMaxPositions];
        int64_t place_count = 0;
        for (int64_t j = first_j, slot_j = 0; j < end_j; ++j) {
          const Reach reach_j = window_reach(j, p.sw, p.pad_left, p.kw, s.wo);
          while (cols[slot_j] < reach_j.begin) ++slot_j;
          const int64_t top = i * p.sh - p.pad_top, left = j * p.sw - p.pad_left;
          const Reach in_window{reach_j.begin - left, reach_j.end - left};
          if (in_window.begin != listed.begin || in_window.end != listed.end) {
            listed = in_window, place_count = 0;
            for (int64_t r = reach_i.begin - top; r < reach_i.end - top; ++r)
              for (int64_t q = listed.begin; q < listed.end; ++q)
                places[place_count++] = {int32_t(r * p.kw + q),
                                         (r - reach_i.begin + top) * row_step + (q - listed.begin) * kCols<T>};
          }
          const int64_t at = ((n * p.ho + i) * p.wo + j) * s.k + panel * kCols<T>;
          pool_window(buffer + slot_i * row_step + slot_j * kCols<T>, places, place_count, t.n, relu, y + at, argmax + at);
        }
      }
    }
  });
}

template <class T>
int64_t conv2d_max_pool2d_backward_x_workspace(const ConvPoolShape& s) {
  return Pieces(s.conv).size(s.conv) + kAlign<T>;
}

template <class T>
void conv2d_max_pool2d_backward_x(const ConvPoolShape& shape, const T* dy, const uint8_t* argmax, const T* w, T* dx,
                                  T* workspace, Stream) {
  const Conv2dShape& s = shape.conv;
  const Geometry g(shape);
  // w (KH, KW, C, K) -> (KH, pieces, K, length)
  T* const filter = aligned(workspace);
  parallel_for(s.kh * g.pieces.count, [&](int64_t piece) {
    const T* from = w + piece * g.pieces.length * s.k;
    T* to = filter + piece * g.pieces.length * s.k;
    for (int64_t k = 0; k < s.k; ++k)
      for (int64_t i = 0; i < g.pieces.length; ++i) to[k * g.pieces.length + i] = from[i * s.k + k];
  });

  const int64_t bands = band_count(s), reach = (s.kh - 1) * s.dh;
  parallel_for(s.n * bands, [&](int64_t item) {
    const int64_t n = item / bands, band = item % bands;
    const int64_t first_row = s.h * band / bands, end_row = s.h * (band + 1) / bands;
    T* image = dx + g.x.at(n, 0, 0);
    std::fill(image + g.x.at(0, first_row, 0), image + g.x.at(0, end_row, 0), T(0));
    InputGradient<T> gradient(g);
    for (int64_t i = 0; i < shape.pool.ho; ++i) {
      // Rows of x that this row of windows can reach.
      const int64_t top = (i * shape.pool.sh - shape.pool.pad_top) * s.sh - s.pad_top;
      if (top >= end_row || top + (shape.pool.kh - 1) * s.sh + reach < first_row) continue;
      for (int64_t begin = i * shape.pool.wo, last = begin + shape.pool.wo; begin < last;) {
        const int64_t end = std::min(begin + gradient.kWindows, last), at = (n * g.windows + begin) * s.k;
        gradient.add(begin, end, dy + at, argmax + at, filter, first_row, end_row, image);
        begin = end;
      }
    }
  });
}

template <class T>
int64_t conv2d_max_pool2d_backward_w_workspace(const ConvPoolShape& s) {
  const Units units(s);
  return units.slices * (Pieces(s.conv).size(s.conv) + s.conv.k * int64_t(sizeof(double) / sizeof(T))) + kAlign<T>;
}

template <class T>
void conv2d_max_pool2d_backward_w(const ConvPoolShape& shape, const T* dy, const uint8_t* argmax, const T* x, T* dw, T* db,
                                  T* workspace, Stream) {
  const Conv2dShape& s = shape.conv;
  const Geometry g(shape);
  const Units units(shape);
  const int64_t weights = g.pieces.size(s), blocks = (s.k + kChannels - 1) / kChannels;
  double* const bias_sums = reinterpret_cast<double*>(aligned(workspace));  // (slices, K)
  T* const partials = reinterpret_cast<T*>(bias_sums + units.slices * s.k);

  parallel_for(units.slices * blocks, [&](int64_t item) {
    const int64_t slice = item / blocks, first = item % blocks * kChannels, channels = std::min(kChannels, s.k - first);
    T* partial = partials + slice * weights;
    for (int64_t row = 0; row < s.kh * g.pieces.count; ++row)
      std::fill_n(partial + (row * s.k + first) * g.pieces.length, channels * g.pieces.length, T(0));
    double* __restrict sums = bias_sums + slice * s.k + first;
    std::fill_n(sums, channels, 0.0);
    std::optional<ShortPatches<T>> copied;
    std::optional<FilterGradient<T>> listed;
    if (ShortPatches<T>::fits(g))
      copied.emplace(g, channels);
    else
      listed.emplace(g, units, first, channels);
    for (int64_t unit = units.count * slice / units.slices; unit < units.count * (slice + 1) / units.slices; ++unit) {
      const int64_t n = unit / units.per_image, part = unit % units.per_image;
      const int64_t begin = part * units.windows, end = std::min(begin + units.windows, g.windows);
      const int64_t unit_at = (n * g.windows + begin) * s.k + first;
      if (copied)
        copied->add(n, begin, end, channels, x, dy + unit_at, argmax + unit_at);
      else
        listed->add_unit(n, begin, end, x, dy, argmax, partial);
      const int positions = int(g.positions);
      for (int64_t at = unit_at; at < (n * g.windows + end) * s.k; at += s.k) {
        const T* __restrict from = dy + at;
        const uint8_t* __restrict where = argmax + at;
        for (int64_t k = 0; k < channels; ++k) {
          const T gradient = from[k];  // read in any case: a select, not a branch
          sums[k] += double(where[k] < positions ? gradient : T(0));
        }
      }
    }
    if (copied) copied->finish(channels, partial + first * g.pieces.length);
  });

  // The slices in order, and back to (KH, KW, C, K).
  parallel_for(s.kh * g.pieces.count, [&](int64_t piece) {
    T* from = partials + piece * g.pieces.length * s.k;
    for (int64_t slice = 1; slice < units.slices; ++slice)
      for (int64_t i = 0; i < g.pieces.length * s.k; ++i) from[i] += from[slice * weights + i];
    T* to = dw + piece * g.pieces.length * s.k;
    for (int64_t i = 0; i < g.pieces.length; ++i)
      for (int64_t k = 0; k < s.k; ++k) to[i * s.k + k] = from[k * g.pieces.length + i];
  });
  if (!db) return;
  for (int64_t k = 0; k < s.k; ++k) {
    double sum = 0;
    for (int64_t slice = 0; slice < units.slices; ++slice) sum += bias_sums[slice * s.k + k];
    db[k] = T(sum);
  }
}

#define INSTANTIATE(T)                                                                                                     \
  template int64_t conv2d_max_pool2d_forward_workspace<T>(const ConvPoolShape&);                                           \
  template void conv2d_max_pool2d_forward<T>(const ConvPoolShape&, const T*, const T*, const T*, bool, T*, uint8_t*, T*,   \
                                             Stream);                                                                      \
  template int64_t conv2d_max_pool2d_backward_x_workspace<T>(const ConvPoolShape&);                                        \
  template void conv2d_max_pool2d_backward_x<T>(const ConvPoolShape&, const T*, const uint8_t*, const T*, T*, T*, Stream); \
  template int64_t conv2d_max_pool2d_backward_w_workspace<T>(const ConvPoolShape&);                                        \
  template void conv2d_max_pool2d_backward_w<T>(const ConvPoolShape&, const T*, const uint8_t*, const T*, T*, T*, T*,      \
                                                Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
