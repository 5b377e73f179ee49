// GEMM: y (M, N) = relu?(alpha * op(a) op(b) + beta * c + bias).
//
// A unit of work is up to kChunk row tiles by one panel of kCols columns of y. Its panel of b (K x kCols) is read once per
// tile and stays in L2, a long one in blocks of kDepth rows; the rows of a come from L1, and are copied first where they
// would not stay there. Work: 2 M N K flops, bound by arithmetic for M and N over some 50, by reading b below.
#include <stdexcept>

#include "../ops.h"
#include "parallel.h"
#include "tile.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int64_t kChunk = 8;            // row tiles per item
constexpr int64_t kDepth = 1024;         // terms of a sum that a panel's tiles add up in turn
constexpr int64_t kLeastWork = 1 << 14;  // multiply-adds that are worth a thread's while

// a's rows as they lie, and as the tiles read them. Rows a multiple of 4 KiB apart begin in one and the same set of the L1
// cache, which has no room for a tile's: they are copied a line further apart, where enough panels will read the copy.
template <class T>
struct RowsOfA {
  int64_t rows, length, ld;
  explicit RowsOfA(const GemmShape& s)
      : rows(s.transpose_a ? s.k : s.m), length(s.transpose_a ? s.m : s.k), ld(length + (copied(s) ? kAlign<T> : 0)) {}

  bool copied(const GemmShape& s) const {
    return length > 0 && length * sizeof(T) % 4096 == 0 && s.m >= kRows && s.n >= 8 * kCols<T>;
  }
  bool copied() const { return ld != length; }
  int64_t workspace() const { return copied() ? rows * ld : 0; }

  const T* copy(const T* a, T* workspace) const {
    parallel_chunks(rows, std::max<int64_t>((1 << 14) / length, 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::copy_n(a + i * length, length, workspace + i * ld);
    });
    return workspace;
  }
};

template <class T>
Panels<T> panels_of_b(const GemmShape& s) {
  return Panels<T>(s.k, s.n, s.transpose_b, s.m);
}

template <class T>
struct Product {
  const GemmShape& s;
  const T* a;
  int64_t lda;
  const T *c, *bias;
  T alpha, beta;
  bool relu;
  T* y;
};

// Rows [first, first + count), kChunk tiles at the most, by one panel: b, ldb and n of t.
template <class T, bool Gathered>
void gemm_panel(const Product<T>& g, int64_t first, int64_t count, int64_t column, TileArgs<T>& t) {
  const GemmShape& s = g.s;
  alignas(64) T sums[kChunk * kRows * kCols<T>];
  const T* rows[kRows];
  const T* c_rows[kRows];
  T* y_rows[kRows];
  Run run{};
  t.rows = rows, t.step = g.lda, t.runs = &run, t.run_count = 1, t.y = y_rows, t.c = g.c ? c_rows : nullptr;
  t.bias = g.bias ? g.bias + column : nullptr, t.alpha = g.alpha, t.beta = g.beta, t.relu = g.relu;
  const int64_t depth = s.k <= 2 * kDepth ? s.k : kDepth;
  int64_t k = 0;
  do {
    run = {Gathered ? k : k * g.lda, k, std::min(depth, s.k - k)};
    for_tiles(count, [&](int64_t begin, int64_t m) {
      const int64_t i = first + begin;
      for (int64_t r = 0; r < m; ++r) {
        rows[r] = Gathered ? g.a + (i + r) * g.lda : g.a + i + r;
        c_rows[r] = g.c ? g.c + (i + r) * s.n + column : nullptr;
        y_rows[r] = g.y + (i + r) * s.n + column;
      }
      t.start = k > 0 ? sums + begin * kCols<T> : nullptr;
      t.stop = k + run.length < s.k ? sums + begin * kCols<T> : nullptr;
      run_tile<T, Gathered>(m, t);
    });
    k += run.length;
  } while (k < s.k);
}

}  // namespace

void check_precision(Precision precision) {
  if (precision == Precision::kTf32 || precision == Precision::kBfloat16)
    throw std::invalid_argument(
        "the CPU computes in the arrays' own type only, which is precision 'float32' or 'winograd'; 'tf32' and "
        "'bfloat16' need arrays on a GPU");
}

template <class T>
int64_t gemm_workspace(const GemmShape& s) {
  return panels_of_b<T>(s).workspace() + RowsOfA<T>(s).workspace();
}

template <class T>
void gemm(const GemmShape& s, const T* a, const T* b, const T* c, const T* bias, T alpha, T beta, bool relu, T* y,
          T* workspace, Stream) {
  const Panels<T> panels = panels_of_b<T>(s);
  const RowsOfA<T> rows(s);
  // Items of several panels where one is little work: by the shape alone.
  const auto panels_per_item = [&](int64_t height) {
    return std::max<int64_t>(kLeastWork / std::max<int64_t>(height * s.k * kCols<T>, 1), 1);
  };
  parallel_chunks(panels.count() - panels.first_packed, panels_per_item(1), [&](int64_t begin, int64_t end) {
    for (int64_t panel = panels.first_packed + begin; panel < panels.first_packed + end; ++panel)
      pack_panel(b, s.k, s.n, s.transpose_b ? s.k : s.n, s.transpose_b, panel * kCols<T>, panels.packed(workspace, panel));
  });
  if (rows.copied()) a = rows.copy(a, workspace + panels.workspace());

  const Product<T> g{s, a, rows.ld, beta == T(0) ? nullptr : c, bias, alpha, beta, relu, y};
  const int64_t chunk = kRows * kChunk, chunks = (s.m + chunk - 1) / chunk;
  const int64_t width = panels_per_item(std::min(s.m, chunk)), across = (panels.count() + width - 1) / width;
  parallel_for(chunks * across, [&](int64_t item) {
    const int64_t row = item / across * chunk, first = item % across * width;
    for (int64_t panel = first; panel < std::min(first + width, panels.count()); ++panel) {
      TileArgs<T> t{};
      panels.select(t, b, workspace, panel);
      (s.transpose_a ? gemm_panel<T, false> : gemm_panel<T, true>)(g, row, std::min(chunk, s.m - row), panel * kCols<T>, t);
    }
  });
}

#define INSTANTIATE(T)                                  \
  template int64_t gemm_workspace<T>(const GemmShape&); \
  template void gemm<T>(const GemmShape&, const T*, const T*, const T*, const T*, T, T, bool, T*, T*, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
