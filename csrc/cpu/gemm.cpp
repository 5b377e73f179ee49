// GEMM: y (M, N) = relu?(alpha * op(a) op(b) + beta * c + bias).
//
// A unit of work is a chunk of y's rows by a group of b's panels. The sum goes in blocks of terms: a block of the chunk's
// rows is packed as the tiles read it and stays in L2 while the panels pass by, each read from afar by its first tile alone,
// and not even by that where the tiles before have fetched it. Few columns are dot products instead (narrow.h). Work: 2 M N
// K flops, bound by arithmetic for M and N over some 50, by reading b below.
#include <memory>
#include <stdexcept>

#include "../ops.h"
#include "narrow.h"
#include "panels.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int64_t kChunk = 16;           // row tiles per item at the most
constexpr int64_t kCached = 4 << 20;     // bytes of b that may be expected to stay in the caches
constexpr int64_t kGroup = 16;           // panels per item at the least, unless threads have fewer of their own
constexpr int64_t kPacked = 8;           // panels from which on it pays to pack the rows that they multiply
constexpr int64_t kDepth = 512;          // terms of a block of the sum at the most
constexpr int64_t kLeastWork = 1 << 14;  // multiply-adds that are worth a thread's while

template <class T>
Panels<T> panels_of_b(const GemmShape& s) {
  return Panels<T>(s.k, s.n, s.transpose_b, s.m);
}

// How y is cut into items, for so many threads; no bit of the result depends on it.
template <class T>
struct Cut {
  bool packed;     // whether rows are packed
  bool alone;      // whether each thread packs b's panels for itself, each when it first comes to it
  int64_t groups;  // of panels
  Parts rows;      // in chunks
  Cut(const GemmShape& s, const Panels<T>& panels_of_b, const T* b, int64_t threads) {
    const int64_t panels = panels_of_b.count();
    packed = s.transpose_a || panels >= kPacked;
    const bool worthwhile = panels_of_b.first_packed == 0 || aligned(b) != b;
    alone = packed && worthwhile && packed_by_each(panels_of_b.bytes(), s.m, threads);
    const int64_t height = packed ? kAdjacentRows : kRows, tiles = ceil_div(s.m, height);
    const auto worth = [&](int64_t rows) {  // panels that are worth a thread's while
      return std::max<int64_t>(kLeastWork / std::max<int64_t>(rows * s.k * kCols<T>, 1), 1);
    };
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
};

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
  for_tiles<kAdjacentRows>(count, [&](int64_t begin, int64_t m) {
    pack_side_by_side(s.transpose_a ? a + k * s.m + first + begin : a + (first + begin) * s.k + k, s.transpose_a ? s.m : s.k,
                      s.transpose_a, m, depth, packed + begin * depth);
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
        blocks_(std::max<int64_t>(ceil_div(g.s.k, kDepth), 1)) {
    const int64_t count = cut.rows.most();
    const int64_t sums = blocks_ > 1 ? count * ceil_div(g.panels.count(), cut.groups) * kCols<T> : 0;
    const int64_t rows = cut.packed ? count * ceil_div(g.s.k, blocks_) + kAlign<T> : 0;
    memory_.reset(new T[size_t(kAlign<T> + sums + rows)]);
    sums_ = aligned(memory_.get()), rows_ = sums_ + sums;
  }

  // Rows [first, first + count) by panels [left, right).
  void multiply(int64_t first, int64_t count, int64_t left, int64_t right) {
    const GemmShape& s = g_.s;
    const T* rows[kRows];
    const T* c_rows[kAdjacentRows * kChunk];
    T* y_rows[kAdjacentRows * kChunk];
    for (int64_t r = 0; r < count; ++r) {
      c_rows[r] = g_.c ? g_.c + (first + r) * s.n : nullptr;
      y_rows[r] = g_.y + (first + r) * s.n;
    }
    Run run{};
    TileArgs<T> t{};
    t.rows = rows, t.runs = &run, t.run_count = 1;
    t.bias = g_.bias, t.alpha = g_.alpha, t.beta = g_.beta, t.relu = g_.relu;
    t.next_step = ceil_div(kCols<T>, std::max<int64_t>(ceil_div(count, kAdjacentRows), 1));
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t k = s.k * block / blocks_, depth = s.k * (block + 1) / blocks_ - k;
      run = {0, k, depth};
      if (cut_.packed) pack_rows(s, g_.a, first, count, k, depth, rows_);
      for (int64_t panel = left; panel < right; ++panel) {
        panels_.select(t, panel);
        // Each tile brings its part of the next panel; both are packed then.
        const bool fetches = g_.workspace && panel + 1 < right && panel >= g_.panels.first_packed;
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
  const Product<T>& g_;
  const Cut<T>& cut_;
  PanelSource<T> panels_;
  const int64_t blocks_;  // of the sum
  std::unique_ptr<T[]> memory_;
  T *sums_, *rows_;
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
  if (cut.alone)
    panels.first_packed = 0, workspace = nullptr;
  else
    pack_panels(panels, b, s.transpose_b, workspace);
  const PackPanel<T> pack = pack_panel_of(b, s.k, s.n, s.transpose_b);
  const Product<T> g{s, a, b, c, bias, alpha, beta, relu, y, workspace, panels, pack};
  parallel_for(
      cut.items(), [&] { return Worker<T>(g, cut); },
      [&](Worker<T>& worker, int64_t item) {
        const int64_t chunk = cut.chunk(item), group = cut.group(item);
        const int64_t first = cut.rows.begin(chunk), count = cut.rows.end(chunk) - first;
        worker.multiply(first, count, panels.count() * group / cut.groups, panels.count() * (group + 1) / cut.groups);
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
