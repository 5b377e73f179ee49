// Convolution, ReLU and max pooling as one op: an item is a block of windows of one image. The convolution's outputs under
// them, and no others, are computed by the register tile, a panel of channels at a time, into a buffer that stays in L1, and
// pooled from there: the map before the pool is never stored. Same bits as the three ops one after the other. 2 KH KW C
// flops for each output that a window reads.
#include "conv_pool.h"

#include "window.h"
#include "winograd.h"

namespace fastnn::FASTNN_TARGET {
namespace {

// The coordinates that windows [begin, end) read along one axis, ascending; `all` has room. Gives their number.
int64_t coordinates(int64_t begin, int64_t end, int64_t stride, int64_t pad, int64_t extent, int64_t size, int64_t* all) {
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Range in_window = positions(i, stride, pad, extent, size);
    const int64_t start = i * stride - pad;
    for (int64_t at = std::max(start + in_window.begin, count ? all[count - 1] + 1 : 0); at < start + in_window.end; ++at)
      all[count++] = at;
  }
  return count;
}

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
    down = ceil_div(p.ho, rows), across = ceil_div(p.wo, cols);
    rows = ceil_div(p.ho, down), cols = ceil_div(p.wo, across);
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

  void take(simd::V<T> v, int32_t position) { simd::take_greater(value_, position_, v, simd::Integers<T>{} + position); }

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

// Windows of 2 x 2, the usual ones: a tile's rows are the pixels of whole windows, which are pooled as they lie in
// registers.
constexpr int kPooled = 4, kWindowsOfTile = kRows / kPooled;

// N windows; to: where each one's results lie, in elements.
template <class T, int N, Layout L, bool Wide>
void pool_tile(const TileArgs<T>& t, const int64_t* to, T* y, uint8_t* argmax) {
  constexpr int W = kWidth<T>;
  simd::V<T> sum0[kPooled * N], sum1[kPooled * N];
  accumulate<T, kPooled * N, L, Wide>(t, sum0, sum1);
  const int64_t n0 = std::min<int64_t>(t.n, W), n1 = t.n - n0;
  const simd::V<T> bias0 = t.bias ? simd::load(t.bias + t.column, n0) : simd::V<T>{};
  const simd::V<T> bias1 = t.bias && n1 ? simd::load(t.bias + t.column + W, n1) : simd::V<T>{};
  const bool relu = t.relu;
  y += t.column, argmax += t.column;
#pragma GCC unroll 3
  for (int i = 0; i < N; ++i) {
    Winner<T> winner0(sum0[kPooled * i] + bias0, 0), winner1(sum1[kPooled * i] + bias1, 0);
#pragma GCC unroll 3
    for (int p = 1; p < kPooled; ++p) {
      winner0.take(sum0[kPooled * i + p] + bias0, p);
      if (Wide) winner1.take(sum1[kPooled * i + p] + bias1, p);
    }
    winner0.store(relu, y + to[i], argmax + to[i], n0);
    if (Wide) winner1.store(relu, y + to[i] + W, argmax + to[i] + W, n1);
  }
}

template <class T, Layout L, bool Wide, int... N>
constexpr auto pool_tiles(std::integer_sequence<int, N...>) {
  return std::array{&pool_tile<T, N + 1, L, Wide>...};
}

template <class T>
void run_pool_tile(int64_t windows, const TileArgs<T>& t, const int64_t* to, T* y, uint8_t* argmax) {
  using Windows = std::make_integer_sequence<int, kWindowsOfTile>;
  static constexpr auto wide = pool_tiles<T, Layout::kGatheredPacked, true>(Windows{});
  static constexpr auto narrow = pool_tiles<T, Layout::kGatheredPacked, false>(Windows{});
  static constexpr auto in_place = pool_tiles<T, Layout::kGathered, true>(Windows{});
  (t.ldb != kCols<T> ? in_place : t.n > kWidth<T> ? wide : narrow).data()[windows - 1](t, to, y, argmax);
}

// Whether all windows are 2 x 2, whole and apart.
bool whole_squares(const Pool2dShape& p) {
  return p.kh == 2 && p.kw == 2 && p.sh >= 2 && p.sw >= 2 && p.pad_top == 0 && p.pad_left == 0 &&
         (p.ho - 1) * p.sh + 2 <= p.h && (p.wo - 1) * p.sw + 2 <= p.w;
}

// A window that is a Winograd tile.
bool windows_are_tiles(const ConvPoolShape& s) {
  const Pool2dShape& p = s.pool;
  return winograd_fits(s.conv, 2 * p.ho, 2 * p.wo) && whole_squares(p) && p.sh == 2 && p.sw == 2;
}

// Whether pool_tile serves: besides the windows, pixels of one kind; a tile of fewer rows must be made up for by short sums.
bool pools_in_registers(const Geometry& g) {
  const Conv2dShape& s = g.conv;
  return whole_squares(g.pool) && g.plan.rows.size() * g.plan.cols.size() == 1 &&
         (kRows % kPooled == 0 || s.kh * s.kw * s.c <= 128);
}

// A block of one image's windows, and some of the panels.
struct WindowBlock {
  int64_t n, first_i, end_i, first_j, end_j, first_panel, end_panel;
};

// The block by pool_tile, panel by panel; t has all but the rows and what belongs to a panel.
template <class T>
void pool_in_registers(const Geometry& g, const WindowBlock& block, const T* x, PanelSource<T>& panels, TileArgs<T> t, T* y,
                       uint8_t* argmax) {
  const Pool2dShape& p = g.pool;
  const T* source[kPixels];
  int64_t to[kPixels / kPooled], windows = 0;
  for (int64_t i = block.first_i; i < block.end_i; ++i) {
    const Point* const rows = &g.rows[size_t(i * p.sh)];
    const T *const upper = x + g.x.at(block.n, rows[0].source, 0), *const lower = x + g.x.at(block.n, rows[1].source, 0);
    for (int64_t j = block.first_j; j < block.end_j; ++j) {
      const Point* const cols = &g.cols[size_t(j * p.sw)];
      const int64_t left = cols[0].source * g.x.c, right = cols[1].source * g.x.c;
      const T** const of_window = source + windows * kPooled;
      of_window[0] = upper + left, of_window[1] = upper + right;
      of_window[2] = lower + left, of_window[3] = lower + right;
      to[windows++] = ((block.n * p.ho + i) * p.wo + j) * p.c;
    }
  }
  for (int64_t panel = block.first_panel; panel < block.end_panel; ++panel) {
    panels.select(t, panel);
    for (int64_t first = 0; first < windows; first += kWindowsOfTile) {
      t.rows = source + first * kPooled;
      run_pool_tile(std::min<int64_t>(windows - first, kWindowsOfTile), t, to + first, y, argmax);
    }
  }
}

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
    const Image source{s.h, s.w, s.c}, out{2 * p.ho, 2 * p.wo, s.k};
    winograd_conv<T>({s.n, {source, out, s.pad_top, s.pad_left}, x, forward_view(s, w), b}, workspace,
                     [&](const OutputTile& at, int64_t column, int64_t n, const simd::V<T>* outputs) {
                       const int64_t to = ((at.n * p.ho + at.i / 2) * p.wo + at.j / 2) * s.k + column;
                       Winner<T> winner(outputs[0], 0);
                       for (int32_t o = 1; o < 4; ++o) winner.take(outputs[o], o);
                       winner.store(relu, y + to, argmax + to, n);
                     });
    return;
  }
  const Panels<T> panels = filter_panels<T>(s);
  workspace = pack_filter(s, panels, w, workspace);
  const Geometry g(shape);
  const Blocks blocks(p);
  const size_t col_classes = g.plan.cols.size(), classes = g.plan.rows.size() * col_classes;
  std::vector<Run> runs(classes * size_t(s.kh * s.kw));
  std::vector<int64_t> run_count(classes);
  for (size_t c = 0; c < classes; ++c)
    run_count[c] =
        make_runs(g.plan.rows[c / col_classes], g.plan.cols[c % col_classes], g.x, s.kw, &runs[c * size_t(s.kh * s.kw)]);

  const bool in_registers = pools_in_registers(g);
  const auto some_panels = [&](PanelSource<T>& packed, int64_t item, int64_t first_panel, int64_t end_panel) {
    const int64_t n = item / (blocks.down * blocks.across), down = item / blocks.across % blocks.down;
    const int64_t first_i = down * blocks.rows, end_i = std::min(first_i + blocks.rows, p.ho);
    const int64_t first_j = item % blocks.across * blocks.cols, end_j = std::min(first_j + blocks.cols, p.wo);
    if (in_registers) {
      TileArgs<T> t{};
      t.runs = runs.data(), t.run_count = run_count[0], t.bias = b, t.relu = relu;
      return pool_in_registers(g, {n, first_i, end_i, first_j, end_j, first_panel, end_panel}, x, packed, t, y, argmax);
    }

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

    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      TileArgs<T> t{};
      packed.select(t, panel);
      t.bias = b ? b + t.column : nullptr;
      t.column = 0;  // the buffer has this panel alone
      for (size_t c = 0; c < classes; ++c) {
        const int64_t first = c ? end[c - 1] : 0;
        t.runs = &runs[c * size_t(s.kh * s.kw)], t.run_count = run_count[c];
        for_tiles(end[c] - first, [&](int64_t at, int64_t m) {
          t.rows = source + first + at, t.y = out + first + at;
          run_tile<T, true>(m, t);
        });
      }
      for (int64_t i = first_i, slot_i = 0; i < end_i; ++i) {
        const Range in_rows = positions(i, p.sh, p.pad_top, p.kh, s.ho);
        while (rows[slot_i] < i * p.sh - p.pad_top + in_rows.begin) ++slot_i;
        Range listed{0, 0};  // columns of the windows that `places` are of
        Place places[kMaxPositions];
        int64_t place_count = 0;
        for (int64_t j = first_j, slot_j = 0; j < end_j; ++j) {
          const Range in_cols = positions(j, p.sw, p.pad_left, p.kw, s.wo);
          while (cols[slot_j] < j * p.sw - p.pad_left + in_cols.begin) ++slot_j;
          if (in_cols.begin != listed.begin || in_cols.end != listed.end) {
            listed = in_cols, place_count = 0;
            for (int64_t r = in_rows.begin; r < in_rows.end; ++r)
              for (int64_t q = in_cols.begin; q < in_cols.end; ++q)
                places[place_count++] = {int32_t(r * p.kw + q),
                                         (r - in_rows.begin) * row_step + (q - in_cols.begin) * kCols<T>};
          }
          const int64_t at = ((n * p.ho + i) * p.wo + j) * s.k + panel * kCols<T>;
          pool_window(buffer + slot_i * row_step + slot_j * kCols<T>, places, place_count, t.n, relu, y + at, argmax + at);
        }
      }
    }
  };
  parallel_by_panels(s.n * blocks.down * blocks.across, panels, w, workspace, pack_panel_of(w, panels.rows, s.k, false),
                     some_panels);
}

template <class T>
void add(Ops<T>& ops) {
  ops.conv2d_max_pool2d_forward_workspace = conv2d_max_pool2d_forward_workspace<T>;
  ops.conv2d_max_pool2d_forward = conv2d_max_pool2d_forward<T>;
}

}  // namespace

void add_conv_pool(Kernels& kernels) {
  add_conv_pool_backward_x(kernels);
  add_conv_pool_backward_w(kernels);
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
