// Gradient of the filter of a convolution under a max pool: an item is a slice of the batch's units by a block of channels.
// A unit is a run of windows of one image, or a few whole images, whose winners are listed for each channel first.
#include <memory>
#include <optional>

#include "panels.h"
#include "winners.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int64_t kChannels = 64;  // of a block at the most

// By the shape alone, for the bits' sake. Each slice is one more gradient to write and to add up, for which some ten windows
// could be added: beyond kFew, slices have kEnough windows.
struct Units {
  int64_t images, windows;   // that a unit has at most; of each image
  int64_t per_image, count;  // units
  int64_t slices;

  explicit Units(const ConvPoolShape& s) {
    constexpr int64_t kTerms = 1 << 12, kSlices = 16, kFew = 4, kEnough = 256, kPartials = 1 << 22;
    const int64_t all = s.pool.ho * s.pool.wo;
    windows = std::clamp<int64_t>(kTerms / std::min(s.conv.k, kChannels), 16, 512);
    windows = std::clamp<int64_t>(s.pool.n * all / kSlices, 16, windows);
    images = std::max<int64_t>(windows / all, 1);
    const int64_t row = s.pool.wo <= windows ? s.pool.wo : 1;  // whole rows of windows, where one fits
    windows -= windows % row;
    per_image = ceil_div(all, windows);
    windows = ceil_div(all / row, per_image) * row;
    count = ceil_div(s.pool.n, images) * per_image;
    const int64_t weights = s.conv.kh * s.conv.kw * s.conv.c * s.conv.k;
    const int64_t most = std::min({count, kPartials / weights, std::max(s.pool.n * all / kEnough, kFew)});
    slices = std::clamp<int64_t>(most, 1, kSlices);
  }
};

// Channels of a block: fewer, where there are too few items for all threads. No bit of the result depends on it.
int64_t block_channels(const Units& units, int64_t k, int64_t threads) {
  constexpr int64_t kLeast = 16;
  int64_t channels = kChannels;
  while (channels > kLeast && units.slices * ceil_div(k, channels) < 4 * threads) channels /= 2;
  return channels;
}

// Short patches, as an image of three channels has, of outputs that read no padding. The rows of taps under a few rows of
// windows are copied in whole vectors, those of one column under each other: a patch is vectors side by side, and shares
// most of them with its neighbours. Then the sums of several channels fit the registers, and each winner is read once,
// without a list.
template <class T>
class ShortPatches {
 public:
  static bool fits(const Geometry& g) {
    if (g.conv.dh != 1 || g.conv.dw != 1 || g.conv.kh * vectors_of_row(g) > kMaxVectors) return false;
    return whole_outputs(g.rows, g.conv.kh).size() > 0 && whole_outputs(g.cols, g.conv.kw).size() > 0;
  }

  ShortPatches(const Geometry& g, int64_t channels)
      : g_(g),
        channels_(channels),
        room_(ceil_div(channels, W) * W),
        row_(vectors_of_row(g) * W),
        patch_(g.conv.kh * row_),
        whole_rows_(whole_outputs(g.rows, g.conv.kh)),
        whole_cols_(whole_outputs(g.cols, g.conv.kw)),
        sums_(new T[size_t(channels * patch_)]) {
    constexpr int64_t kElements = 3 << 10, kWindows = 32;
    const int64_t wo = g.pool.wo;
    while (rows_ < g.pool.ho && (rows_ + 1) * wo <= kWindows &&
           rows_under(rows_ + 1) * columns_under(wo) * row_ <= kElements)
      ++rows_;
    columns_ = std::min(wo, kWindows);
    while (columns_ > 1 && rows_under(rows_) * columns_under(columns_) * row_ > kElements) columns_ = (columns_ + 1) / 2;
    memory_.reset(new T[size_t(patch_ + rows_under(rows_) * columns_under(columns_) * row_ + kAlign<T>)]);
    kept_.reset(new T[size_t(rows_ * columns_ * room_)]);
    at_.reset(new Element[size_t(rows_ * columns_ * room_)]);
    places_.resize(size_t(g.positions));
    row_at_.resize(size_t((rows_ - 1) * g.pool.sh + g.pool.kh));
    col_at_.resize(size_t(columns_under(columns_)));
    std::fill_n(sums_.get(), channels * patch_, T(0));
  }

  // Adds windows [begin, end) of image n, and to `bias_sums`, unless null, what of dy has a winner; dy and argmax are the
  // first window's, at the first channel.
  void add(int64_t n, int64_t begin, int64_t end, const T* x, const T* dy, const uint8_t* argmax, double* bias_sums) {
    const int64_t wo = g_.pool.wo;
    for (int64_t i = begin; i < end;) {
      const int64_t rows = i % wo == 0 && columns_ == wo ? rows_ : 1;
      const int64_t last = rows > 1 ? i + rows * wo : std::min(i + columns_, (i / wo + 1) * wo);
      const int64_t windows = std::min(last, end) - i, at = (i - begin) * g_.conv.k;
      copy(n, i, i + windows, x, dy + at, argmax + at);
      for (int64_t window = 0; bias_sums && window < windows; ++window)
        for (int64_t k = 0; k < channels_; ++k) bias_sums[k] += double(kept_[size_t(window * room_ + k)]);
      static constexpr auto adders = adders_table(std::make_integer_sequence<int, kMaxVectors>{});
      (this->*adders.data()[patch_ / W - 1])(windows);
      i += windows;
    }
  }

  // Adds the sums to dw, laid out as Pieces say, at the first channel.
  void finish(T* dw) const {
    const T* sum = sums_.get();
    for (int64_t k = 0; k < channels_; ++k)
      for (int64_t r = 0; r < g_.conv.kh; ++r, sum += row_) {
        T* to = dw + r * g_.pieces.row_step() + k * g_.pieces.length;
        for (int64_t i = 0; i < g_.pieces.length; ++i) to[i] += sum[i];
      }
  }

 private:
  using Element = simd::Element<T>;
  static constexpr Element kFar = -(1 << 30);  // twice of it is still an Element
  static constexpr int W = kWidth<T>, kMaxVectors = 9;
  static constexpr int kSums = simd::kRegisters == 32 ? 24 : 12, kMaxTogether = 8;

  static int64_t vectors_of_row(const Geometry& g) { return ceil_div(g.conv.kw * g.conv.c, W); }

  // Outputs with all taps, which lie side by side.
  struct Outputs {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
  };
  static Outputs whole_outputs(const std::vector<Point>& points, int64_t taps) {
    const auto is_whole = [=](const Point& point) { return point.taps == taps; };
    const auto first = std::find_if(points.begin(), points.end(), is_whole);
    return {first - points.begin(), std::find_if_not(first, points.end(), is_whole) - points.begin()};
  }

  // Rows of x under so many rows of windows, and columns of outputs under so many windows side by side.
  int64_t rows_under(int64_t rows) const { return ((rows - 1) * g_.pool.sh + g_.pool.kh - 1) * g_.conv.sh + g_.conv.kh; }
  int64_t columns_under(int64_t windows) const { return (windows - 1) * g_.pool.sw + g_.pool.kw; }

  // Windows [begin, end): of one row, or of several from the first one's beginning.
  void copy(int64_t n, int64_t begin, int64_t end, const T* x, const T* dy, const uint8_t* argmax) {
    const Pool2dShape& pool = g_.pool;
    const int64_t first = begin / pool.wo, rows = (end - 1) / pool.wo + 1 - first;
    const int64_t window = rows == 1 ? begin % pool.wo : 0, windows = rows == 1 ? end - begin : pool.wo;
    // Outputs, as far as they have all taps.
    const int64_t top = first * pool.sh - pool.pad_top, left = window * pool.sw - pool.pad_left;
    const int64_t first_row = std::max(top, whole_rows_.begin), first_col = std::max(left, whole_cols_.begin);
    const int64_t end_row = std::min(top + (rows - 1) * pool.sh + pool.kh, whole_rows_.end);
    const int64_t end_col = std::min(left + columns_under(windows), whole_cols_.end);

    T* const zeros = aligned(memory_.get());
    std::fill_n(zeros, patch_, T(0));
    const int64_t x_rows = end_row > first_row ? (end_row - 1 - first_row) * g_.conv.sh + g_.conv.kh : 0;
    const int64_t whole = row_ - W, column = x_rows * row_, x_step = g_.conv.sw * g_.x.c;
    const simd::First<T> rest(g_.pieces.length - whole);
    for (int64_t row = 0; row < x_rows && first_col < end_col; ++row) {
      const T* from = x + g_.x.at(n, g_.rows[size_t(first_row)].source + row, g_.cols[size_t(first_col)].source);
      T* to = zeros + patch_ + row * row_;
      for (int64_t col = first_col; col < end_col; ++col, from += x_step, to += column) {
        for (int64_t i = 0; i < whole; i += W) simd::store(to + i, simd::load(from + i));
        simd::store(to + whole, rest.load(from + whole));
      }
    }

    // What an output's row and its column say of where its patch lies.
    const auto find = [](std::vector<Element>& at, int64_t begin, int64_t first, int64_t end, int64_t start, int64_t step) {
      for (int64_t i = 0; i < int64_t(at.size()); ++i)
        at[size_t(i)] = begin + i < first || begin + i >= end ? kFar : Element(start + (begin + i - first) * step);
    };
    find(row_at_, top, first_row, end_row, patch_, g_.conv.sh * row_);
    find(col_at_, left, first_col, end_col, 0, column);

    T* kept = kept_.get();
    Element* at = at_.get();
    for (const Element* row_at = row_at_.data(); begin < end; row_at += pool.sh) {
      const Element* col_at = col_at_.data();
      for (int64_t of_row = 0; of_row < windows && begin < end; ++of_row, ++begin, col_at += pool.sw) {
        Element* place = places_.data();
        for (int64_t r = 0; r < pool.kh; ++r)
          for (int64_t q = 0; q < pool.kw; ++q) *place++ = row_at[r] + col_at[q];
        find_winners(dy, argmax, kept, at);
        dy += g_.conv.k, argmax += g_.conv.k, kept += room_, at += room_;
      }
    }
  }

  // Of one window, dy and the place of the winner's patch; zero and a patch of zeros where there is none.
  void find_winners(const T* dy, const uint8_t* argmax, T* kept, Element* at) const {
    using Integers = simd::Integers<T>;
    const Element* const places = places_.data();
    const int64_t positions = g_.positions, channels = channels_;
    for (int64_t k = 0; k < channels; k += W) {
      const Integers winner = simd::load_bytes<T>(argmax + k, channels - k);
      Integers place = Integers{} - 1;
#pragma GCC unroll 4
      for (int64_t p = 0; p < positions; ++p) place = winner == Element(p) ? Integers{} + places[p] : place;
      const Integers none = place < 0;
      simd::store(kept + k, none ? simd::V<T>{} : simd::load(dy + k, channels - k));
      place = none ? Integers{} : place;
      std::memcpy(at + k, &place, sizeof place);
    }
  }

  template <int V>
  void add_channels(int64_t windows) {
    constexpr int kTogether = std::min(kSums / V, kMaxTogether);
    int64_t channel = 0;
    for (; channel + kTogether <= channels_; channel += kTogether) add_block<V, kTogether>(windows, channel);
    for (; channel < channels_; ++channel) add_block<V, 1>(windows, channel);
  }

  template <int... V>
  static constexpr auto adders_table(std::integer_sequence<int, V...>) {
    return std::array{&ShortPatches::add_channels<V + 1>...};
  }

  // Channels [channel, channel + B).
  template <int V, int B>
  void add_block(int64_t windows, int64_t channel) {
    T* const sums = sums_.get() + channel * patch_;
    simd::V<T> sum[B][V];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b)
#pragma GCC unroll 9
      for (int v = 0; v < V; ++v) sum[b][v] = simd::load(sums + (b * V + v) * W);
    const T *kept = kept_.get() + channel, *const patches = aligned(memory_.get());
    const Element* at = at_.get() + channel;
    for (int64_t window = 0; window < windows; ++window, kept += room_, at += room_) {
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) {
        const simd::V<T> weight = simd::broadcast(kept[b]);
        const T* patch = patches + at[b];
#pragma GCC unroll 9
        for (int v = 0; v < V; ++v) sum[b][v] = simd::multiply_add(weight, simd::load(patch + v * W), sum[b][v]);
      }
    }
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b)
#pragma GCC unroll 9
      for (int v = 0; v < V; ++v) simd::store(sums + (b * V + v) * W, sum[b][v]);
  }

  const Geometry& g_;
  const int64_t channels_, room_;  // and in whole vectors
  const int64_t row_, patch_;      // elements of a row of taps in whole vectors, and of a patch of such rows
  const Outputs whole_rows_, whole_cols_;
  int64_t rows_ = 1, columns_ = 1;        // windows at a time, so that all of theirs fits L1
  std::unique_ptr<T[]> memory_;           // zeros for a patch, then x's rows of taps
  std::unique_ptr<T[]> kept_;             // of each window and channel, dy where it has a winner
  std::unique_ptr<Element[]> at_;         // and where the winner's patch lies
  std::vector<Element> row_at_, col_at_;  // of each output's patch: their sum is its place, negative where it is not copied
  std::vector<Element> places_;           // of one window's positions
  const std::unique_ptr<T[]> sums_;
};

// Patches of any length; of all outputs, or of those that read padding.
template <class T>
class FilterGradient {
 public:
  // windows: that a unit has at most.
  FilterGradient(const Geometry& g, int64_t windows, int64_t first_channel, int64_t channels, bool padded)
      : g_(g),
        padded_(padded),
        first_channel_(first_channel),
        channels_(channels),
        several_classes_(g.plan.rows.size() * g.plan.cols.size() > 1),
        patches_(size_t(windows * (g.positions + 1))),
        room_(windows + W),
        winners_(W * room_),
        sorted_(windows) {
    listed_windows_.reserve(size_t(windows));
    if (several_classes_) {
      class_of_patch_.resize(patches_.size());
      begin_.resize(g.plan.rows.size() * g.plan.cols.size() + 1);
    }
  }

  // Adds windows [begin, end) of images [n, end_n) to dw, laid out as Pieces say; all windows, where the images are several.
  void add_unit(int64_t n, int64_t end_n, int64_t begin, int64_t end, const T* x, const T* dy, const uint8_t* argmax,
                T* dw) {
    if (const Windows windows{end_n - n, begin, end}; windows != found_) {
      found_ = windows, found_at_ = n;
      windows_found_ = 0, listed_windows_.clear();
      for (int64_t image = n; image < end_n; ++image) find_patches(image, begin, end, x);
    }
    shift_ = g_.x.at(n - found_at_, 0, 0);
    if (listed_windows_.empty()) return;
    for (int64_t first = 0; first < channels_; first += W) {
      const int64_t channels = std::min<int64_t>(channels_ - first, W);
      const int64_t at = (n * g_.windows + begin) * g_.conv.k + first_channel_ + first;
      list_winners(channels, dy + at, argmax + at);
      for (int64_t k = 0; k < channels; ++k) {
        const Terms<T> terms = winners_.terms(k * room_, count_[k]);
        T* gradient = dw + (first_channel_ + first + k) * g_.pieces.length;
        several_classes_ ? add_by_class(terms, gradient) : add(g_.rows[0], g_.cols[0], terms, gradient);
      }
    }
  }

 private:
  using Element = simd::Element<T>;
  static constexpr int W = kWidth<T>;

  // Of so many images, windows [begin, end).
  struct Windows {
    int64_t images, begin, end;
    bool operator==(const Windows&) const = default;
  };

  // A window of the unit with patches that are listed, and whether all of them are.
  struct ListedWindow {
    int64_t number;
    bool whole;
  };

  // Where the patch under each position of the windows begins, after those that were found before.
  void find_patches(int64_t n, int64_t begin, int64_t end, const T* x) {
    int64_t at = windows_found_ * (g_.positions + 1), position = 0, listed = 0;  // of the window's patches
    g_.each_output(begin, end, [&](Geometry::Output output) {
      const auto [row, col] = output;
      const bool is_listed = row && !(padded_ && row->taps == g_.conv.kh && col->taps == g_.conv.kw);
      if (several_classes_ && is_listed)
        class_of_patch_[size_t(at)] = int32_t(row->class_index * int(g_.plan.cols.size()) + col->class_index);
      patches_[size_t(at++)] = is_listed ? x + g_.x.at(n, row->source, col->source) : nullptr;
      listed += is_listed;
      if (position++ < g_.positions) return;
      if (listed) listed_windows_.push_back({windows_found_, listed == g_.positions});
      ++windows_found_, position = listed = 0;
    });
  }

  // The winners' patches of W channels at the most, by the numbers that find_patches gave them; dy and argmax are the unit's
  // first window's, at the first channel. W windows at a time, transposed, so that a channel's are side by side.
  void list_winners(int64_t channels, const T* dy, const uint8_t* argmax) {
    std::fill_n(count_, W, 0);
    alignas(64) T weights[W * W], patches[W * W];  // the numbers as bits of T
    const int64_t windows = int64_t(listed_windows_.size());
    for (int64_t begin = 0; begin < windows; begin += W) {
      const int64_t rows = std::min<int64_t>(windows - begin, W);
      for (int64_t row = 0; row < rows; ++row) {
        const ListedWindow& window = listed_windows_[size_t(begin + row)];
        const int64_t at = window.number * g_.conv.k;
        simd::store(weights + row * W, simd::load(dy + at, channels));
        const auto patch = winning_patches(window, simd::load_bytes<T>(argmax + at, channels));
        std::memcpy(patches + row * W, &patch, sizeof patch);
      }
      pack_transposed(weights, W, rows, weights, W);
      pack_transposed(patches, W, rows, patches, W);
      const uint32_t real = uint32_t((uint64_t(1) << rows) - 1);
      for (int64_t k = 0; k < channels; ++k) {
        simd::Integers<T> patch;
        std::memcpy(&patch, patches + k * W, sizeof patch);
        count_[k] +=
            winners_.store(k * room_ + count_[k], ~simd::negative<T>(patch) & real, patch, simd::load(weights + k * W));
      }
    }
  }

  // -1 where there is none that is listed.
  simd::Integers<T> winning_patches(ListedWindow window, simd::Integers<T> position) const {
    const simd::Integers<T> none = simd::Integers<T>{} - 1;
    const Element first = Element(window.number * (g_.positions + 1)), positions = Element(g_.positions);
    simd::Integers<T> patch = position < positions ? position + first : none;
    for (Element p = 0; p < positions && !window.whole; ++p)
      if (!patches_[size_t(first + p)]) patch = position == p ? none : patch;
    return patch;
  }

  // Winners whose patches have the same taps.
  void add(const Point& row, const Point& col, Terms<T> terms, T* gradient) const {
    g_.pieces.each(g_.conv, col, [&](int64_t in_filter, int64_t in_x, int64_t length) {
      add_rows(patches_.data(), terms, row.taps, length, in_x + shift_, g_.conv.dh * g_.x.w * g_.x.c,
               gradient + in_filter + row.tap * g_.pieces.row_step(), g_.pieces.row_step());
    });
  }

  void add_by_class(Terms<T> terms, T* gradient) {
    const auto class_of = [&](int64_t i) { return size_t(class_of_patch_[size_t(terms.row[i])]); };
    std::fill(begin_.begin(), begin_.end(), 0);
    for (int64_t i = 0; i < terms.count; ++i) ++begin_[class_of(i) + 1];
    for (size_t c = 1; c < begin_.size(); ++c) begin_[c] += begin_[c - 1];
    for (int64_t i = 0; i < terms.count; ++i) sorted_.store(begin_[class_of(i)]++, terms.row[i], terms.weight[i]);
    int64_t first = 0;
    for (size_t c = 0; c + 1 < begin_.size(); first = begin_[c++]) {  // begin_[c] has moved to the end of c
      if (first == begin_[c]) continue;
      const AxisClass& rows = g_.plan.rows[c / g_.plan.cols.size()];
      const AxisClass& cols = g_.plan.cols[c % g_.plan.cols.size()];
      add({rows.tap, rows.taps, 0, 0}, {cols.tap, cols.taps, 0, 0}, sorted_.terms(first, begin_[c] - first), gradient);
    }
  }

  const Geometry& g_;
  const bool padded_;
  const int64_t first_channel_, channels_;
  const bool several_classes_;
  std::vector<const T*> patches_;        // window by window, positions + 1 each; null: none, or not listed
  std::vector<int32_t> class_of_patch_;  // of rows and columns together
  Windows found_{};                      // whose patches these are, of the images from found_at_ on; those of others are as
  int64_t found_at_ = 0, shift_ = 0;     // far apart, and lie shift_ elements further on
  int64_t windows_found_ = 0;
  std::vector<ListedWindow> listed_windows_;
  const int64_t room_;     // of a channel in winners_: a unit's windows and a vector
  TermMemory<T> winners_;  // of W channels: patches, by their numbers
  int64_t count_[W];
  TermMemory<T> sorted_;
  std::vector<int64_t> begin_;
};

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
  const int64_t weights = g.pieces.size(s), most = block_channels(units, s.k, get_num_threads());
  const int64_t blocks = ceil_div(s.k, most);
  double* const bias_sums = reinterpret_cast<double*>(aligned(workspace));  // (slices, K)
  T* const partials = reinterpret_cast<T*>(bias_sums + units.slices * s.k);

  parallel_for(units.slices * blocks, [&](int64_t item) {
    const int64_t slice = item / blocks, first = item % blocks * most, channels = std::min(most, s.k - first);
    T* partial = partials + slice * weights;
    for (int64_t row = 0; row < s.kh * g.pieces.count; ++row)
      std::fill_n(partial + (row * s.k + first) * g.pieces.length, channels * g.pieces.length, T(0));
    double* __restrict sums = bias_sums + slice * s.k + first;
    std::fill_n(sums, channels, 0.0);
    std::optional<ShortPatches<T>> copied;
    std::optional<FilterGradient<T>> listed;
    if (ShortPatches<T>::fits(g)) copied.emplace(g, channels);
    if (!copied || g.plan.rows.size() * g.plan.cols.size() > 1)
      listed.emplace(g, units.images * units.windows, first, channels, copied.has_value());
    for (int64_t unit = units.count * slice / units.slices; unit < units.count * (slice + 1) / units.slices; ++unit) {
      const int64_t n = unit / units.per_image * units.images, end_n = std::min(n + units.images, s.n);
      const int64_t begin = unit % units.per_image * units.windows, end = std::min(begin + units.windows, g.windows);
      const auto at_window = [&](int64_t image, int64_t window) { return (image * g.windows + window) * s.k + first; };
      for (int64_t image = n; copied && image < end_n; ++image) {
        const int64_t at = at_window(image, begin);
        copied->add(image, begin, end, x, dy + at, argmax + at, listed ? nullptr : sums);
      }
      if (!listed) continue;
      listed->add_unit(n, end_n, begin, end, x, dy, argmax, partial);
      const int positions = int(g.positions);
      for (int64_t at = at_window(n, begin); at < at_window(end_n - 1, end); at += s.k) {
        const T* __restrict from = dy + at;
        const uint8_t* __restrict where = argmax + at;
        for (int64_t k = 0; k < channels; ++k) {
          const T gradient = from[k];  // read in any case: a select, not a branch
          sums[k] += double(where[k] < positions ? gradient : T(0));
        }
      }
    }
    if (copied) copied->finish(partial + first * g.pieces.length);
  });

  // The slices in order, and back to (KH, KW, C, K).
  constexpr int64_t kColumns = 16;  // channels of an item
  const int64_t columns = ceil_div(s.k, kColumns);
  parallel_for(s.kh * g.pieces.count * columns, [&](int64_t item) {
    const int64_t piece = item / columns, first = item % columns * kColumns, count = std::min(kColumns, s.k - first);
    const int64_t length = g.pieces.length, at = (piece * s.k + first) * length;
    T* from = partials + at;
    for (int64_t slice = 1; slice < units.slices; ++slice)
      for (int64_t i = 0; i < count * length; ++i) from[i] += partials[slice * weights + at + i];
    transpose(from, length, count, length, dw + piece * length * s.k + first, s.k);
  });
  if (!db) return;
  for (int64_t k = 0; k < s.k; ++k) {
    double sum = 0;
    for (int64_t slice = 0; slice < units.slices; ++slice) sum += bias_sums[slice * s.k + k];
    db[k] = T(sum);
  }
}

template <class T>
void add(Ops<T>& ops) {
  ops.conv2d_max_pool2d_backward_w_workspace = conv2d_max_pool2d_backward_w_workspace<T>;
  ops.conv2d_max_pool2d_backward_w = conv2d_max_pool2d_backward_w<T>;
}

}  // namespace

void add_conv_pool_backward_w(Kernels& kernels) {
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
