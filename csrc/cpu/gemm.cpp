// GEMM: y (M, N) = relu?(alpha * op(a) op(b) + beta * c + bias).
//
// A unit of work is a chunk of y's rows by a group of b's panels. The sum goes in blocks of terms: a block of the chunk's
// rows is packed as the tiles read it and stays in L2 while the panels pass by, each read from afar by its first tile alone,
// and not even by that where the tiles before have fetched it. Few rows sweep over b instead (sweep.h), few columns are dot
// products (narrow.h). Work: 2 M N K flops, bound by arithmetic for M and N over some 50, by reading b below.
#include <memory>
#include <stdexcept>

#include "../ops.h"
#include "narrow.h"
#include "panels.h"
#include "sweep.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int64_t kChunk = 16;           // row tiles per item at the most
constexpr int64_t kCached = 4 << 20;     // bytes of b that may be expected to stay in the caches
constexpr int64_t kGroup = 16;           // panels per item at the least, unless threads have fewer of their own
constexpr int64_t kPacked = 8;           // panels from which on it pays to pack the rows that they multiply
constexpr int64_t kDepth = 512;          // terms of a block of the sum at the most
constexpr int64_t kLeastWork = 1 << 14;  // multiply-adds that are worth a thread's while
constexpr int64_t kPage = 4096;          // bytes whose address is looked up at once
constexpr int64_t kFewRows = 16;         // rows at the most that sweep over b
constexpr int64_t kSwept = 8;            // rows of b that they meet at a time
constexpr int64_t kBeyondL2 = 1 << 19;   // bytes of b beyond which that pays
constexpr int64_t kSomeRows = 96;        // rows at the most for which b is packed block by block
constexpr int64_t kLarge = 2 << 20;      // bytes of b beyond which that pays
constexpr int64_t kMany = 16;            // or its panels from which on it does, where it is transposed
constexpr int64_t kBlock = 128 << 10;    // bytes of a block: it stays in L2 beside the rows and their sums

template <class T>
Panels<T> panels_of_b(const GemmShape& s) {
  return Panels<T>(s.k, s.n, s.transpose_b, s.m);
}

// How b is read.
enum class Way {
  kShared,   // panels in place, or packed before, for all threads
  kAlone,    // each thread packs panels for itself, each when it first comes to it
  kByBlock,  // each thread packs the block of terms that it is at, of its own panels
  kSwept,    // as it lies
};

// How y is cut into items, for so many threads; no bit of the result depends on it.
template <class T>
struct Cut {
  bool packed;  // whether rows are packed
  Way way;
  int64_t groups;          // of panels
  Parts rows;              // in chunks
  int64_t depth = kDepth;  // terms of a block at the most

  Cut(const GemmShape& s, const Panels<T>& panels_of_b, const T* b, int64_t threads)
      : packed(s.transpose_a || panels_of_b.count() >= kPacked), way(way_of(s, panels_of_b, b, threads)) {
    const int64_t panels = panels_of_b.count(), height = packed ? kAdjacentRows : kRows, tiles = ceil_div(s.m, height);
    const auto worth = [&](int64_t rows) {  // panels that are worth a thread's while
      return std::max<int64_t>(kLeastWork / std::max<int64_t>(rows * s.k * kCols<T>, 1), 1);
    };
    if (way == Way::kSwept || way == Way::kByBlock) {
      // All rows by as many columns as are some way to go in a row of b. Where b is transposed, its rows are the columns.
      constexpr int64_t kHalf = kPage / 2 / (kCols<T> * int64_t(sizeof(T)));
      const int64_t wanted = way == Way::kSwept ? 2 * kHalf : s.transpose_b ? kPacked : kHalf;
      groups = std::max(
          {std::min(threads, panels / std::max<int64_t>(worth(s.m), 2)), panels / std::max(wanted, worth(s.m)), int64_t(1)});
      if (groups > threads) groups = ceil_div(groups, threads) * threads;
      rows = Parts(s.m, 1, height);
      const int64_t bytes = ceil_div(panels, groups) * kCols<T> * int64_t(sizeof(T));
      depth = way == Way::kSwept ? s.k : std::clamp<int64_t>(kBlock / bytes, 32, kDepth);
      return;
    }
    // Each thread has panels of its own if it can: it packed them, and what one core wrote another one gets slowly.
    const int64_t own = std::min(threads, panels / std::max(kPacked, worth(s.m)));
    groups = packed ? std::max({own, panels / std::max(kGroup, worth(s.m)), int64_t(1)}) : 1;
    // Items for threads that are not equally fast; but where b is too large for the caches, each chunk fetches it again.
    const int64_t items = s.k * s.n * int64_t(sizeof(T)) > kCached ? threads : threads > 1 ? 8 * threads : 4;
    const int64_t chunk = std::clamp<int64_t>(ceil_div(tiles * groups, items), 2, kChunk);
    int64_t chunks = tiles < 4 ? 1 : ceil_div(tiles, chunk);
    // As many for each thread, where that makes them little smaller.
    if (chunks >= 4 * threads) chunks = ceil_div(chunks, threads) * threads;
    // Rows that are not packed gain nothing by more panels than are worth it.
    if (!packed) groups = std::max<int64_t>(panels / worth(s.m / chunks), 1);
    rows = Parts(s.m, chunks, height);
  }
  int64_t items() const { return rows.count() * groups; }
  // Neighbours share what is packed: columns of b, or, where they are many, rows of a.
  int64_t chunk(int64_t item) const { return packed ? item % rows.count() : item / groups; }
  int64_t group(int64_t item) const { return packed ? item / rows.count() : item % groups; }

 private:
  Way way_of(const GemmShape& s, const Panels<T>& panels, const T* b, int64_t threads) const {
    if (!packed) return Way::kShared;
    // To hop from one row of b to the next is slow where they are long.
    const int64_t row = s.n * int64_t(sizeof(T)), bytes = panels.bytes();
    if (!s.transpose_b && s.m <= kFewRows && row >= kPage / 2 && bytes > kBeyondL2) return Way::kSwept;
    if (s.m <= kSomeRows && (s.transpose_b ? panels.count() >= kMany : row >= kPage && bytes > kLarge)) return Way::kByBlock;
    const bool worthwhile = panels.first_packed == 0 || aligned(b) != b;
    return worthwhile && packed_by_each(bytes, s.m, threads) ? Way::kAlone : Way::kShared;
  }
};
static_assert(kSomeRows <= kChunk * kAdjacentRows);

template <class T>
struct Product {
  const GemmShape& s;
  const T *a, *b, *c, *bias;
  T alpha, beta;
  bool relu;
  T *y, *workspace;  // workspace: null where each thread packs b's panels for itself
  const Panels<T>& panels;
  const PackPanel<T>& pack;
};

// Rows [first, first + count) of op(a), terms [k, k + depth): tile after tile, each with its rows side by side for one term
// after the other.
template <class T>
void pack_rows(const GemmShape& s, const T* a, int64_t first, int64_t count, int64_t k, int64_t depth, T* packed) {
  if (!s.transpose_a)
    return for_tiles<kAdjacentRows>(count, [&](int64_t begin, int64_t m) {
      pack_side_by_side(a + (first + begin) * s.k + k, s.k, m, depth, packed + begin * depth);
    });
  if (depth == 0) return;
  for_tile_groups<kAdjacentRows, kTogether>(count, [&](int64_t begin, const int64_t* heights, int64_t tiles) {
    T* to[kTogether];
    for (int64_t t = 0, row = begin; t < tiles; row += heights[t++]) to[t] = packed + row * depth;
    pack_adjacent(heights, tiles, to, [&](auto& packer, int64_t row) {
      const T* from = a + k * s.m + first + begin + row;
      packer.pack(from, s.m, depth - 1);
      packer.finish(from + (depth - 1) * s.m);
    });
  });
}

// One thread's part of a product: its memory, and the items that it does.
template <class T>
class Worker {
 public:
  Worker(const Product<T>& g, const Cut<T>& cut)
      : g_(g),
        cut_(cut),
        panels_(g.panels, g.b, g.workspace, g.pack),
        blocks_(std::max<int64_t>(ceil_div(g.s.k, cut.depth), 1)) {
    const int64_t count = cut.rows.most(), columns = ceil_div(g.panels.count(), cut.groups) * kCols<T>;
    const int64_t depth = ceil_div(g.s.k, blocks_);
    const int64_t sums = blocks_ > 1 || cut.way == Way::kSwept ? count * columns : 0;
    const int64_t block = cut.way == Way::kByBlock ? depth * columns : 0;
    const int64_t rows = cut.packed ? count * depth + kAlign<T> : 0;
    memory_.reset(new T[size_t(kAlign<T> + block + sums + rows)]);
    block_ = aligned(memory_.get()), sums_ = block_ + block, rows_ = sums_ + sums;
  }

  // All rows by panels [left, right), sweeping over all that are whole.
  void sweep(int64_t left, int64_t right) {
    const GemmShape& s = g_.s;
    const int64_t end = std::min(right, s.n / kCols<T>), step = s.m * kCols<T>;
    pack_rows(s, g_.a, 0, s.m, 0, s.k, rows_);
    std::fill_n(sums_, (end - left) * step, T(0));
    for (int64_t k = 0; k < s.k; k += kSwept)
      for_tiles<kAdjacentRows>(s.m, [&](int64_t begin, int64_t m) {
        sweep_of<T>(m)(rows_ + begin * s.k + k * m, std::min(kSwept, s.k - k), g_.b + k * s.n + left * kCols<T>, s.n,
                       end - left, sums_ + begin * kCols<T>, step);
      });
    // What a tile makes of its sums, without another term.
    const Run none{};
    const T* c_rows[kAdjacentRows];
    T* y_rows[kAdjacentRows];
    TileArgs<T> t = tile_args();
    t.rows = &g_.a, t.runs = &none, t.c = g_.c ? c_rows : nullptr, t.y = y_rows, t.b = g_.b, t.ldb = t.n = kCols<T>;
    for_tiles<kAdjacentRows>(s.m, [&](int64_t begin, int64_t m) {
      find_rows(begin, m, c_rows, y_rows);
      for (int64_t panel = left; panel < end; ++panel) {
        t.column = panel * kCols<T>, t.start = sums_ + (panel - left) * step + begin * kCols<T>;
        run_tile<T, false>(m, t);
      }
    });
    if (end < right) multiply(0, s.m, end, right);
  }

  // Rows [first, first + count) by panels [left, right).
  void multiply(int64_t first, int64_t count, int64_t left, int64_t right) {
    const GemmShape& s = g_.s;
    const T* rows[kRows];
    const T* c_rows[kAdjacentRows * kChunk];
    T* y_rows[kAdjacentRows * kChunk];
    find_rows(first, count, c_rows, y_rows);
    Run run{};
    TileArgs<T> t = tile_args();
    t.rows = rows, t.runs = &run;
    t.next_step = ceil_div(kCols<T>, std::max<int64_t>(ceil_div(count, kAdjacentRows), 1));
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t k = s.k * block / blocks_, depth = s.k * (block + 1) / blocks_ - k;
      run = {0, k, depth};
      if (cut_.packed) pack_rows(s, g_.a, first, count, k, depth, rows_);
      const bool by_block = cut_.way == Way::kByBlock;
      const Panels<T> of_block{depth, s.n, left};
      if (by_block) pack_block(of_block, k, right), run.b = 0;
      for (int64_t panel = left; panel < right; ++panel) {
        by_block ? of_block.select(t, nullptr, block_, panel) : panels_.select(t, panel);
        // Each tile brings its part of the next panel; both are packed then.
        const bool fetches = !by_block && g_.workspace && panel + 1 < right && panel >= g_.panels.first_packed;
        t.next = fetches ? g_.panels.packed(g_.workspace, panel + 1) + k * kCols<T> : nullptr;
        const auto next_rows = [&](int64_t begin) {
          t.y = y_rows + begin, t.c = g_.c ? c_rows + begin : nullptr;
          T* const sum = sums_ + ((panel - left) * count + begin) * kCols<T>;
          t.start = block > 0 ? sum : nullptr;
          t.stop = block < blocks_ - 1 ? sum : nullptr;
        };
        if (cut_.packed)
          for_tiles<kAdjacentRows>(count, [&](int64_t begin, int64_t m) {
            next_rows(begin);
            rows[0] = rows_ + begin * depth, t.step = m;
            run_tile<T, false>(m, t);
            if (t.next) t.next += depth * t.next_step;
          });
        else
          for_tiles(count, [&](int64_t begin, int64_t m) {
            next_rows(begin);
            for (int64_t r = 0; r < m; ++r) rows[r] = g_.a + (first + begin + r) * s.k + k;
            run_tile<T, true>(m, t);
          });
      }
    }
  }

 private:
  TileArgs<T> tile_args() const {
    TileArgs<T> t{};
    t.run_count = 1, t.bias = g_.bias, t.alpha = g_.alpha, t.beta = g_.beta, t.relu = g_.relu;
    return t;
  }

  void find_rows(int64_t first, int64_t count, const T** c_rows, T** y_rows) const {
    for (int64_t r = 0; r < count; ++r) {
      c_rows[r] = g_.c ? g_.c + (first + r) * g_.s.n : nullptr;
      y_rows[r] = g_.y + (first + r) * g_.s.n;
    }
  }

  // Terms from k on of the panels up to `end`.
  void pack_block(const Panels<T>& block, int64_t k, int64_t end) {
    const GemmShape& s = g_.s;
    if (!s.transpose_b)
      return pack_rows_of_panels<kSwept>(block, g_.b + k * s.n, 0, block.rows, block.first_packed, end, block_);
    for (int64_t panel = block.first_packed; panel < end; ++panel)
      pack_panel(g_.b + k, block.rows, s.n, s.k, true, panel * kCols<T>, block.packed(block_, panel));
  }

  const Product<T>& g_;
  const Cut<T>& cut_;
  PanelSource<T> panels_;
  const int64_t blocks_;  // of the sum
  std::unique_ptr<T[]> memory_;
  T *block_, *sums_, *rows_;
};

void check_precision(Precision precision) {
  if (precision == Precision::kTf32 || precision == Precision::kBfloat16)
    throw std::invalid_argument(
        "the CPU computes in the arrays' own type only, which is precision 'float32' or 'winograd'; 'tf32' and "
        "'bfloat16' need arrays on a GPU");
}

template <class T>
int64_t gemm_workspace(const GemmShape& s) {
  return Narrow<T>::fits(s) ? Narrow<T>::workspace(s) : panels_of_b<T>(s).workspace();
}

template <class T>
void gemm(const GemmShape& s, const T* a, const T* b, const T* c, const T* bias, T alpha, T beta, bool relu, T* y,
          T* workspace, Stream) {
  if (beta == T(0)) c = nullptr;
  if (Narrow<T>::fits(s)) return Narrow<T>::multiply(s, a, b, c, bias, alpha, beta, relu, y, workspace);
  Panels<T> panels = panels_of_b<T>(s);
  const Cut<T> cut(s, panels, b, get_num_threads());
  if (cut.way == Way::kAlone)
    panels.first_packed = 0, workspace = nullptr;
  else if (cut.way != Way::kByBlock)
    pack_panels(panels, b, s.transpose_b, workspace);
  const PackPanel<T> pack = pack_panel_of(b, s.k, s.n, s.transpose_b);
  const Product<T> g{s, a, b, c, bias, alpha, beta, relu, y, workspace, panels, pack};
  parallel_for(
      cut.items(), [&] { return Worker<T>(g, cut); },
      [&](Worker<T>& worker, int64_t item) {
        const int64_t chunk = cut.chunk(item), group = cut.group(item);
        const int64_t first = cut.rows.begin(chunk), count = cut.rows.end(chunk) - first;
        const int64_t left = panels.count() * group / cut.groups, right = panels.count() * (group + 1) / cut.groups;
        cut.way == Way::kSwept ? worker.sweep(left, right) : worker.multiply(first, count, left, right);
      });
}

template <class T>
void add(Ops<T>& ops) {
  ops.gemm_workspace = gemm_workspace<T>;
  ops.gemm = gemm<T>;
}

}  // namespace

void add_gemm(Kernels& kernels) {
  kernels.check_precision = check_precision;
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
