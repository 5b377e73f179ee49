// Gradient of the input of a convolution under a max pool: an item is a band of rows of one image's dx, so that batches of
// few images have enough of them.
#include <memory>

#include "winners.h"

namespace fastnn::FASTNN_TARGET {
namespace {

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
        count_(size_t(kWindows * lists_)) {}

  // Adds what the winners of windows [begin, end) send to rows [first_row, end_row) of dx; dy and argmax are the first
  // window's, `filter` is laid out as Pieces say.
  void add(int64_t begin, int64_t end, const T* dy, const uint8_t* argmax, const T* filter, int64_t first_row,
           int64_t end_row, T* dx) {
    const int64_t k = g_.conv.k;
    for (int64_t window = 0; window < end - begin; ++window, dy += k, argmax += k) list_winners(window, dy, argmax, filter);
    strips_.clear();
    int64_t list = 0;
    g_.each_output(begin, end, [&](Geometry::Output output) { add_strips(list++, output, first_row, end_row); });
    const int64_t together = rows_together<T>(g_.pieces.length), filter_step = g_.pieces.row_step();
    const int64_t x_step = g_.conv.dh * g_.x.w * g_.x.c;
    for (int64_t r = 0; r < g_.conv.kh; r += together)
      for (const Strip& strip : strips_) {
        const int64_t first = std::max(strip.begin, r), rows = std::min(strip.end, r + together) - first;
        if (rows > 0)
          add_rows(strip.terms, strip.count, rows, strip.length, strip.in_filter + first * filter_step, filter_step,
                   dx + strip.at + (first - strip.begin) * x_step, x_step);
      }
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

  // A piece of rows [begin, end) of the taps, which the winners of a list add to dx from `at` on.
  struct Strip {
    const Term<T>* terms;
    int64_t count, begin, end, in_filter, length, at;
  };

  // Those of a list, as far as they lie in the image and the rows of dx.
  void add_strips(int64_t list, Geometry::Output output, int64_t first_row, int64_t end_row) {
    const Conv2dShape& s = g_.conv;
    const int64_t count = count_[size_t(list)];
    if (!output.row || count == 0) return;
    const Point &row = *output.row, &col = *output.col;
    const auto tap_at = [&](int64_t edge) {  // the first whose source is not above the edge
      const int64_t rows = std::max<int64_t>(edge - row.source, 0);
      return row.tap + (s.dh == 1 ? rows : ceil_div(rows, s.dh));  // some processors take a hundred cycles to divide
    };
    const int64_t begin = std::max(row.tap, tap_at(first_row)), end = std::min(row.tap + row.taps, tap_at(end_row));
    if (begin >= end) return;
    const int64_t at = g_.x.at(0, row.source + (begin - row.tap) * s.dh, col.source);
    g_.pieces.each(s, col, [&](int64_t in_filter, int64_t in_x, int64_t length) {
      strips_.push_back({terms_.get() + list * s.k, count, begin, end, in_filter, length, at + in_x});
    });
  }

  const Geometry& g_;
  const int64_t lists_;                     // of a window: one for each position, and an empty one
  const std::unique_ptr<Term<T>[]> terms_;  // K for each list
  std::vector<int64_t> count_;
  std::vector<Strip> strips_;
};

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
