// The matrix b in panels of kCols columns each. A panel is read in place where it is whole and few tiles will read it, and
// from a packed copy otherwise: rows of kCols side by side, so that a tile reads one stream; zeros past the last column.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "parallel.h"
#include "tile.h"

namespace fastnn::FASTNN_TARGET {

template <class T>
constexpr int64_t kAlign = 64 / int64_t(sizeof(T));

template <class T>
inline T* aligned(T* p) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t(63));
}

// The elements of two vectors in turn: those of their first halves, those of their second halves.
template <class V, int... I>
inline void interleave(V a, V b, V& first, V& second, std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  first = __builtin_shufflevector(a, b, (I / 2 + I % 2 * W)...);
  second = __builtin_shufflevector(a, b, (I / 2 + I % 2 * W + W / 2)...);
}

// `count` vectors at most W, ld apart, become the columns of a block of W rows, each a whole vector, `step` apart. Each
// round rotates the bits of an element's place, row and column together, by one: after log2(W) of them the two have changed
// places.
template <class T>
inline void pack_transposed(const T* b, int64_t ld, int64_t count, T* packed, int64_t step) {
  constexpr int W = simd::kWidth<T>;
  simd::V<T> v[W], next[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) v[i] = i < count ? simd::load(b + i * ld) : simd::V<T>{};
#pragma GCC unroll 4
  for (int round = 1; round < W; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i)
      interleave(v[i], v[i + W / 2], next[2 * i], next[2 * i + 1], std::make_integer_sequence<int, W>{});
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) v[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) simd::store(packed + i * step, v[i]);
}

// to[j * to_ld + i] = from[i * ld + j], of `rows` rows of `cols` elements.
template <class T>
inline void transpose(const T* from, int64_t ld, int64_t rows, int64_t cols, T* to, int64_t to_ld) {
  constexpr int64_t W = simd::kWidth<T>;
  const int64_t whole_rows = rows / W * W, whole_cols = cols / W * W;
  for (int64_t j = 0; j < whole_cols; j += W)
    for (int64_t i = 0; i < whole_rows; i += W) pack_transposed(from + i * ld + j, ld, W, to + j * to_ld + i, to_ld);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_cols : 0; j < cols; ++j) to[j * to_ld + i] = from[i * ld + j];
}

// Packs m rows of a (element (i, k) at a[i * ld + k]) as adjacent ones: packed[k * m + i], with room for a vector more.
template <class T>
void pack_side_by_side(const T* a, int64_t ld, int64_t m, int64_t depth, T* packed) {
  constexpr int64_t W = simd::kWidth<T>;
  // Whole vectors are stored; what is too much of one, a later one writes over.
  const int64_t whole = depth / W * W;
  for (int64_t i = (m - 1) / W * W; i >= 0; i -= W)
    for (int64_t k = 0; k < whole; k += W) pack_transposed(a + i * ld + k, ld, m - i, packed + k * m + i, m);
  for (int64_t k = whole; k < depth; ++k)
    for (int64_t i = 0; i < m; ++i) packed[k * m + i] = a[i * ld + k];
}

constexpr int kTogether = 2;  // tiles whose adjacent rows are packed in one go: a line holds those of several

// The same from rows that are adjacent already (element (i, k) at a[k * ld + i]), term after term, for N tiles of one upon
// the other.
template <class T, int N>
class AdjacentPacker {
 public:
  // Each tile's height, and where it goes, with room for a vector more.
  AdjacentPacker(const int64_t* heights, T* const* to) {
    for (int t = 0; t < N; ++t) {
      to_[t] = to[t], height_[t] = heights[t], last_[t] = (heights[t] - 1) / W * W;
      rest_[t] = simd::First<T>(heights[t] - last_[t]);
    }
  }

  // The next terms, of which the first is at a.
  void pack(const T* a, int64_t ld, int64_t depth) {
    for (; depth > 0; --depth, a += ld) {
      const T* from = a;
#pragma GCC unroll 4
      for (int t = 0; t < N; from += height_[t], to_[t] += height_[t], ++t) {
        if constexpr (kAdjacentRows > W)
          for (int64_t i = 0; i < last_[t]; i += W) simd::store(to_[t] + i, simd::load(from + i));
        simd::store(to_[t] + last_[t], rest_[t].load(from + last_[t]));
      }
    }
  }

  // The last term, and nothing after it. Nor did the vectors before it reach further, but for the last tile's: of several,
  // the others have half a vector of rows at the least.
  void finish(const T* a) {
    for (int t = 0; t < N; a += height_[t], ++t) std::copy_n(a, height_[t], to_[t]);
  }

 private:
  static constexpr int64_t W = simd::kWidth<T>;
  static_assert(ceil_div(kAdjacentRows + 1, 2) >= W / 2);
  T* to_[N];
  int64_t height_[N], last_[N];
  simd::First<T> rest_[N];
};

// f(packer, first row) for packers of so many tiles, kTogether at the most.
template <class T, class F>
void pack_adjacent(const int64_t* heights, int64_t count, T* const* to, F f) {
  if (count == kTogether) {
    AdjacentPacker<T, kTogether> packer(heights, to);
    f(packer, int64_t(0));
    return;
  }
  for (int64_t t = 0, first = 0; t < count; first += heights[t++]) {
    AdjacentPacker<T, 1> packer(heights + t, to + t);
    f(packer, first);
  }
}

// Packs columns [j, j + kCols) of b (rows x n, or its transpose: element (k, j) at b[j * ld + k]).
template <class T>
void pack_panel(const T* b, int64_t rows, int64_t n, int64_t ld, bool transposed, int64_t j, T* packed) {
  constexpr int W = simd::kWidth<T>;
  const int64_t cols = std::min<int64_t>(kCols<T>, n - j);
  if (transposed) {
    for (int64_t first = 0; first < kCols<T>; first += W)
      for (int64_t k = 0; k < rows; k += W) {
        T* to = packed + k * kCols<T> + first;
        if (k + W <= rows && first + W <= cols)
          pack_transposed(b + (j + first) * ld + k, ld, W, to, kCols<T>);
        else
          for (int64_t r = 0; r < std::min<int64_t>(W, rows - k); ++r)
            for (int64_t i = 0; i < W; ++i) to[r * kCols<T> + i] = first + i < cols ? b[(j + first + i) * ld + k + r] : T(0);
      }
    return;
  }
  const simd::First<T> low(std::min<int64_t>(cols, W)), high(std::max<int64_t>(cols - W, 1));
  b += j;
  for (int64_t k = 0; k < rows; ++k, b += ld, packed += kCols<T>) {
    simd::store(packed, low.load(b));
    simd::store(packed + W, cols > W ? high.load(b + W) : simd::V<T>{});
  }
}

// Whether each thread had best pack so many bytes of a matrix for itself, with so many rows to go through them for all
// threads: where they stay in its L2.
inline bool packed_by_each(int64_t bytes, int64_t readers, int64_t threads) {
  constexpr int64_t kOwn = 640 << 10, kManyRows = 80;
  return bytes <= kOwn && readers >= kManyRows * threads;
}

// Which panels of a (rows x n) matrix are packed, and where they lie.
template <class T>
struct Panels {
  int64_t rows, n, first_packed;
  Panels(int64_t rows, int64_t n, int64_t first_packed) : rows(rows), n(n), first_packed(first_packed) {}
  // readers: how many rows of tiles will read each panel.
  Panels(int64_t rows, int64_t n, bool transposed, int64_t readers)
      : rows(rows), n(n), first_packed(transposed || readers >= few_readers() * kRows ? 0 : n / kCols<T>) {}

  // Packing pays late where b's own rows are short, and later still where all of it stays in L2 and its rows are whole
  // lines.
  int64_t few_readers() const {
    if (n <= 4 * kCols<T>) return 16;
    return n <= 8 * kCols<T> && n % kAlign<T> == 0 && bytes() <= 512 * 1024 ? 32 : 4;
  }

  int64_t bytes() const { return rows * n * int64_t(sizeof(T)); }
  int64_t count() const { return ceil_div(n, kCols<T>); }
  int64_t workspace() const { return (count() - first_packed) * rows * kCols<T> + kAlign<T>; }
  T* packed(T* workspace, int64_t panel) const { return aligned(workspace) + (panel - first_packed) * rows * kCols<T>; }

  // Points t at the panel's b and columns.
  void select(TileArgs<T>& t, const T* b, T* workspace, int64_t panel) const {
    const bool in_place = panel < first_packed;
    t.b = in_place ? b + panel * kCols<T> : packed(workspace, panel);
    t.ldb = in_place ? n : kCols<T>;
    t.column = panel * kCols<T>;
    t.n = std::min<int64_t>(kCols<T>, n - t.column);
  }
};

// Packs rows [begin, end) of panels [left, right): FewRows at a time by all of these, as a row's next part lies in the same
// page.
template <int64_t FewRows, class T>
void pack_rows_of_panels(const Panels<T>& panels, const T* b, int64_t begin, int64_t end, int64_t left, int64_t right,
                         T* workspace) {
  for (int64_t row = begin; row < end; row += FewRows)
    for (int64_t panel = left; panel < right; ++panel)
      pack_panel(b + row * panels.n, std::min(FewRows, end - row), panels.n, panels.n, false, panel * kCols<T>,
                 panels.packed(workspace, panel) + row * kCols<T>);
}

// Packs the panels that are to be, neighbours by one thread.
template <class T>
void pack_panels(const Panels<T>& panels, const T* b, bool transposed, T* workspace) {
  constexpr int64_t kElements = 1 << 14;             // that are worth a thread's while
  constexpr int64_t kNeighbours = 4, kFewRows = 16;  // long pieces of rows, that leave room in L1 for their copies
  const int64_t first = panels.first_packed, count = panels.count() - first;
  if (transposed)
    return parallel_chunks(count, std::max<int64_t>(kElements / std::max<int64_t>(panels.rows * kCols<T>, 1), 1),
                           [&](int64_t begin, int64_t end) {
                             for (int64_t panel = first + begin; panel < first + end; ++panel)
                               pack_panel(b, panels.rows, panels.n, panels.rows, true, panel * kCols<T>,
                                          panels.packed(workspace, panel));
                           });
  if (count == 0) return;
  const int64_t rows = std::max(kElements / (std::min(count, kNeighbours) * kCols<T>), kFewRows);
  const int64_t groups = ceil_div(count, kNeighbours), blocks = ceil_div(panels.rows, rows);
  parallel_for(groups * blocks, [&](int64_t item) {
    const int64_t left = item / blocks * kNeighbours, right = std::min(left + kNeighbours, count);
    const int64_t begin = item % blocks * rows, end = std::min(begin + rows, panels.rows);
    pack_rows_of_panels<kFewRows>(panels, b, begin, end, first + left, first + right, workspace);
  });
}

// Packs a panel to where it is told.
template <class T>
using PackPanel = std::function<void(int64_t panel, T* packed)>;

// Those of b, or of its transpose.
template <class T>
PackPanel<T> pack_panel_of(const T* b, int64_t rows, int64_t n, bool transposed) {
  return
      [=](int64_t panel, T* packed) { pack_panel(b, rows, n, transposed ? rows : n, transposed, panel * kCols<T>, packed); };
}

// Where one thread finds b's panels: packed in `workspace`, or, where that is null, packed by itself, each panel when it
// first comes to it. Then nobody waits, nor reads what another core wrote.
template <class T>
class PanelSource {
 public:
  PanelSource(const Panels<T>& panels, const T* b, T* workspace, const PackPanel<T>& pack)
      : panels_(panels), b_(b), pack_(pack), memory_(workspace) {
    if (workspace) return;
    own_.reset(new T[size_t(panels.workspace())]), has_.reset(new bool[size_t(panels.count())]());
    memory_ = own_.get();
  }

  // Points t at the panel's b and columns.
  void select(TileArgs<T>& t, int64_t panel) {
    panels_.select(t, b_, memory_, panel);
    if (!own_ || panel < panels_.first_packed || has_[size_t(panel)]) return;
    pack_(panel, panels_.packed(memory_, panel));
    has_[size_t(panel)] = true;
  }

 private:
  const Panels<T>& panels_;
  const T* b_;
  const PackPanel<T>& pack_;
  T* memory_;
  std::unique_ptr<T[]> own_;
  std::unique_ptr<bool[]> has_;  // whether a panel is packed here
};

// f(source, item, first panel, end) for each item and all panels. Few items are shared out by panels, too: a thread has all
// items for some panels, rather than all panels. workspace, pack: as for PanelSource.
template <class T, class F>
void parallel_by_panels(int64_t items, const Panels<T>& panels, const T* b, T* workspace, const PackPanel<T>& pack, F f) {
  constexpr int64_t kItems = 16;  // that few are shared out into
  const int64_t count = panels.count();
  const int64_t shares = std::clamp<int64_t>(kItems / std::max<int64_t>(items, 1), 1, std::max<int64_t>(count, 1));
  parallel_for(
      items * shares, [&] { return PanelSource<T>(panels, b, workspace, pack); },
      [&](PanelSource<T>& source, int64_t item) {
        const int64_t share = item / items;
        f(source, item % items, count * share / shares, count * (share + 1) / shares);
      });
}

}  // namespace fastnn::FASTNN_TARGET
