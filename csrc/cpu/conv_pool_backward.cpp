// Gradients of a convolution under ReLU and a max pool. Of each window and channel one output at most has a gradient, so the
// sums run over winners: a quarter of the dense work with 2 x 2 windows, less what ReLU stops.
//
//   dw[:, :, :, k]           += over windows   dy * patch of x under the winner of channel k
//   dx's patch of a winner   += over channels  dy * w[:, :, :, k]
//
// Both are sums of weighted rows of memory, kept in registers. A row of taps is one stretch of kw * C elements where they
// lie side by side (dilation 1). One multiply-add per load: bound by loads and arithmetic alike. Order of the sums: over
// channels within a window, over windows within a unit (a run of windows of one image), over units within a slice; all of
// them by the shape alone.
#include <memory>
#include <optional>

#include "conv_pool.h"

namespace fastnn::FASTNN_TARGET {
namespace {

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
      : g_(g),
        lists_(g.positions + 1),
        terms_(new Term<T>[size_t(kWindows * lists_ * g.conv.k)]),
        count_(size_t(kWindows * lists_)),
        outputs_(size_t(kWindows * lists_)) {}

  // Adds what the winners of windows [begin, end) send to rows [first_row, end_row) of dx; dy and argmax are the first
  // window's, `filter` is laid out as Pieces say.
  void add(int64_t begin, int64_t end, const T* dy, const uint8_t* argmax, const T* filter, int64_t first_row,
           int64_t end_row, T* dx) {
    const int64_t k = g_.conv.k;
    for (int64_t window = 0; window < end - begin; ++window, dy += k, argmax += k) list_winners(window, dy, argmax, filter);
    Geometry::Output* output = outputs_.data();
    g_.each_output(begin, end, [&](Geometry::Output at) { *output++ = at; });
    const int64_t together = rows_together<T>(g_.pieces.length);
    for (int64_t r = 0; r < g_.conv.kh; r += together)
      for (int64_t list = 0; list < (end - begin) * lists_; ++list)
        if (count_[size_t(list)] > 0) add_taps(list, outputs_[size_t(list)], r, r + together, first_row, end_row, dx);
  }

 private:
  // Position by position, a bit for each channel of 64: no branch on what won.
  void list_winners(int64_t window, const T* dy, const uint8_t* argmax, const T* filter) {
    const int64_t channels = g_.conv.k, length = g_.pieces.length;
    for (int64_t position = 0; position < g_.positions; ++position) {
      Term<T>* const begin = terms_.get() + (window * lists_ + position) * channels;
      Term<T>* term = begin;
      for (int64_t first = 0; first < channels; first += 64)
        for (uint64_t winners = simd::equal_bytes(argmax + first, channels - first, uint8_t(position)); winners;
             winners &= winners - 1) {
          const int64_t k = first + __builtin_ctzll(winners);
          *term++ = {filter + k * length, dy[k]};
        }
      count_[size_t(window * lists_ + position)] = term - begin;
    }
  }

  // Rows [begin, end) of the taps, as far as they lie in the image and the rows of dx.
  void add_taps(int64_t list, Geometry::Output output, int64_t begin, int64_t end, int64_t first_row, int64_t end_row,
                T* dx) {
    const Conv2dShape& s = g_.conv;
    if (!output.row) return;
    const Point &row = *output.row, &col = *output.col;
    const auto tap_at = [&](int64_t edge) {  // the first whose source is not above the edge
      const int64_t rows = std::max<int64_t>(edge - row.source, 0);
      return row.tap + (s.dh == 1 ? rows : (rows + s.dh - 1) / s.dh);  // some processors take a hundred cycles to divide
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
  const int64_t lists_;                     // of a window: one for each position, and an empty one
  const std::unique_ptr<Term<T>[]> terms_;  // K for each list
  std::vector<int64_t> count_;
  std::vector<Geometry::Output> outputs_;
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
    g_.each_output(begin, end, [&](Geometry::Output output) {
      const auto [row, col] = output;
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
    g_.each_output(begin, end, [&](Geometry::Output output) {
      const auto [row, col] = output;
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
  template int64_t conv2d_max_pool2d_backward_x_workspace<T>(const ConvPoolShape&);                                        \
  template void conv2d_max_pool2d_backward_x<T>(const ConvPoolShape&, const T*, const uint8_t*, const T*, T*, T*, Stream); \
  template int64_t conv2d_max_pool2d_backward_w_workspace<T>(const ConvPoolShape&);                                        \
  template void conv2d_max_pool2d_backward_w<T>(const ConvPoolShape&, const T*, const uint8_t*, const T*, T*, T*, T*,      \
                                                Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
