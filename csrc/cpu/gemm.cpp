// GEMM: y (M, N) = relu?(alpha * op(a) op(b) + beta * c + bias).
//
// An item is up to kChunk row tiles by one panel of kCols columns of y, computed over all of K at once. Its panel of b
// (K x kCols) is read once per tile and stays in L2; the rows of a come from L1. Work: 2 M N K flops, bound by arithmetic
// for M and N over some 50, by reading b below.
#include <stdexcept>

#include "../ops.h"
#include "parallel.h"
#include "tile.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int64_t kChunk = 8;  // row tiles per item

template <class T>
Panels<T> panels_of_b(const GemmShape& s) {
  return Panels<T>(s.k, s.n, s.transpose_b, s.m);
}

// Rows [i, i + m) by one panel.
template <class T>
void gemm_tile(const GemmShape& s, const T* a, TileArgs<T>& t, int64_t i, int64_t m, int64_t column, const T* c, T* y) {
  const T* rows[kRows];
  const T* c_rows[kRows];
  T* y_rows[kRows];
  for (int64_t r = 0; r < m; ++r) {
    rows[r] = s.transpose_a ? a + i + r : a + (i + r) * s.k;
    c_rows[r] = c ? c + (i + r) * s.n + column : nullptr;
    y_rows[r] = y + (i + r) * s.n + column;
  }
  t.rows = rows, t.y = y_rows, t.c = c ? c_rows : nullptr;
  if (s.transpose_a)
    run_tile<T, false>(m, t);
  else
    run_tile<T, true>(m, t);
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
  return panels_of_b<T>(s).workspace();
}

template <class T>
void gemm(const GemmShape& s, const T* a, const T* b, const T* c, const T* bias, T alpha, T beta, bool relu, T* y,
          T* workspace, Stream) {
  if (beta == T(0)) c = nullptr;
  const Panels<T> panels = panels_of_b<T>(s);
  parallel_for(panels.count() - panels.first_packed, [&](int64_t item) {
    const int64_t panel = panels.first_packed + item;
    pack_panel(b, s.k, s.n, s.transpose_b ? s.k : s.n, s.transpose_b, panel * kCols<T>, panels.packed(workspace, panel));
  });

  const int64_t chunk = kRows * kChunk, chunks = (s.m + chunk - 1) / chunk;
  parallel_for(chunks * panels.count(), [&](int64_t item) {
    const int64_t panel = item % panels.count(), first = item / panels.count() * chunk;
    const Run run{0, 0, s.k};
    TileArgs<T> t{};
    t.step = s.m, t.runs = &run, t.run_count = 1, t.alpha = alpha, t.beta = beta, t.relu = relu;
    t.bias = bias ? bias + panel * kCols<T> : nullptr;
    panels.select(t, b, workspace, panel);
    for_tiles(std::min(chunk, s.m - first),
              [&](int64_t i, int64_t m) { gemm_tile(s, a, t, first + i, m, panel * kCols<T>, c, y); });
  });
}

#define INSTANTIATE(T)                                  \
  template int64_t gemm_workspace<T>(const GemmShape&); \
  template void gemm<T>(const GemmShape&, const T*, const T*, const T*, const T*, T, T, bool, T*, T*, Stream);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
