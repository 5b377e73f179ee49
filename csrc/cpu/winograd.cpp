// Winograd's transforms and products, compiled once for all convolutions that stand on them.
#include "winograd.h"

#include <array>
#include <utility>

namespace fastnn::FASTNN_TARGET {
namespace {

// G g for three vectors.
template <class T>
inline void times_g(const simd::V<T>* g, int64_t step, simd::V<T>* out, int64_t out_step) {
  const simd::V<T> outer = g[0] + g[2 * step];
  out[0] = g[0];
  out[out_step] = (outer + g[step]) * T(0.5);
  out[2 * out_step] = (outer - g[step]) * T(0.5);
  out[3 * out_step] = g[2 * step];
}

// B' d for four vectors.
template <class V>
inline void times_b(const V* d, V* out) {
  out[0] = d[0] - d[2];
  out[1] = d[1] + d[2];
  out[2] = d[2] - d[1];
  out[3] = d[1] - d[3];
}

// The rows of pixels of which row R of B' d is the difference, for R = 1 the sum.
constexpr int kFirstRow[] = {0, 1, 2, 1}, kSecondRow[] = {2, 2, 1, 3};

template <class T, int R>
void source_row(const SourceTile<T>* tiles, int64_t count, const Image& source, T* to, int64_t width, int64_t step) {
  using V = simd::V<T>;
  constexpr int W = simd::kWidth<T>, kFirst = kFirstRow[R], kSecond = kSecondRow[R];
  const int64_t row = source.w * source.c;
  for (int64_t c = 0; c < source.c; c += W) {
    const bool whole = c + W <= source.c;
    V half[4] = {}, v[4];
    for (int64_t t = 0; t < count; ++t) {
      const SourceTile<T>& tile = tiles[t];
      const T* const first = tile.first + c;
      const auto pixels = [&](int64_t begin, auto load) {
#pragma GCC unroll 2
        for (int64_t q = begin; q < begin + 2; ++q) {
          const V a = load(kFirst, q), b = load(kSecond, q);
          half[q] = R == 1 ? a + b : a - b;
        }
      };
      const auto all = [&](auto load) {
        if (tile.goes_on)
          half[0] = half[2], half[1] = half[3];
        else
          pixels(0, load);
        pixels(2, load);
      };
      if (whole && tile.inside == 0xffff)
        all([&](int64_t r, int64_t q) { return simd::load(first + r * row + q * source.c); });
      else
        all([&](int64_t r, int64_t q) {
          return tile.inside >> (r * 4 + q) & 1 ? simd::load(first + r * row + q * source.c, source.c - c) : V{};
        });
      times_b(half, v);
#pragma GCC unroll 4
      for (int64_t q = 0; q < 4; ++q) simd::store(to + t * width + q * step + c, v[q]);
    }
  }
}

// What the two rows of outputs take of row R of the products: all but row 3 the upper one, rows 2 and 3 subtracted the lower
// one.
template <class T, int R>
void add_row(int64_t m, const T* products, int64_t step, T* sums) {
  using V = simd::V<T>;
  for (int64_t i = 0; i < m * kCols<T>; i += simd::kWidth<T>) {
    const T* const from = products + i;
    T* const to = sums + i % kCols<T> + i / kCols<T> * 4 * kCols<T>;
    const V m1 = simd::load(from + step), m2 = simd::load(from + 2 * step);
    const V half[2] = {simd::load(from) + m1 + m2, m1 - m2 - simd::load(from + 3 * step)};
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      T *const upper = to + j * kCols<T>, *const lower = upper + 2 * kCols<T>;
      if (R == 0) simd::store(upper, half[j]);
      if (R == 1 || R == 2) simd::store(upper, simd::load(upper) + half[j]);
      if (R == 1) simd::store(lower, half[j]);
      if (R == 2 || R == 3) simd::store(lower, simd::load(lower) - half[j]);
    }
  }
}

template <class T, int M>
void products_of_row(int r, const T* const* rows, int64_t step, const T* filter, int64_t channels, T* sums) {
  constexpr int W = simd::kWidth<T>;
  constexpr int64_t kStep = M * kCols<T>;
  alignas(64) T products[4 * kStep];
  TileArgs<T> t{};
  t.rows = rows, t.b = filter, t.run_count = 1;
  for (int64_t q = 0; q < 4; ++q) {
    const Run run{q * step, q * channels, channels};
    t.runs = &run;
    simd::V<T> sum0[M], sum1[M];
    accumulate<T, M, Layout::kGatheredPacked, true>(t, sum0, sum1);
#pragma GCC unroll 12
    for (int i = 0; i < M; ++i) {
      simd::store(products + q * kStep + i * kCols<T>, sum0[i]);
      simd::store(products + q * kStep + i * kCols<T> + W, sum1[i]);
    }
  }
  static constexpr std::array kAdd{&add_row<T, 0>, &add_row<T, 1>, &add_row<T, 2>, &add_row<T, 3>};
  kAdd.data()[r](M, products, kStep, sums);
}

template <class T, int... M>
constexpr auto products_table(std::integer_sequence<int, M...>) {
  return std::array{&products_of_row<T, M + 1>...};
}

}  // namespace

template <class T>
void winograd_filter(int64_t channels, int64_t out_channels, const FilterView<T>& filter, T* workspace) {
  constexpr int W = simd::kWidth<T>;
  parallel_chunks(ceil_div(out_channels, kCols<T>) * channels, 16, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t panel = item / channels, channel = item % channels;
      T* to = aligned(workspace) + (panel * kProducts * channels + channel) * kCols<T>;
      for (int64_t v = 0; v < 2; ++v) {
        const int64_t column = panel * kCols<T> + v * W, n = std::clamp<int64_t>(out_channels - column, 0, W);
        simd::V<T> g[9], half[12], u[kProducts];
        for (int64_t r = 0; r < 3; ++r)
          for (int64_t q = 0; q < 3; ++q) g[r * 3 + q] = n ? filter.load(r, q, channel, column, n) : simd::V<T>{};
        for (int q = 0; q < 3; ++q) times_g<T>(g + q, 3, half + q, 3);
        for (int r = 0; r < 4; ++r) times_g<T>(half + r * 3, 1, u + r * 4, 1);
        for (int64_t p = 0; p < kProducts; ++p) simd::store(to + p * channels * kCols<T> + v * W, u[p]);
      }
    }
  });
}

template <class T>
void winograd_source(int r, const SourceTile<T>* tiles, int64_t count, const Image& source, T* to, int64_t width,
                     int64_t step) {
  static constexpr std::array kRow{&source_row<T, 0>, &source_row<T, 1>, &source_row<T, 2>, &source_row<T, 3>};
  kRow.data()[r](tiles, count, source, to, width, step);
}

template <class T>
void winograd_products(int64_t m, int r, const T* const* rows, int64_t step, const T* filter, int64_t channels, T* sums) {
  static constexpr auto table = products_table<T>(std::make_integer_sequence<int, kRows>{});
  table.data()[m - 1](r, rows, step, filter, channels, sums);
}

#define INSTANTIATE(T)                                                                                      \
  template void winograd_filter<T>(int64_t, int64_t, const FilterView<T>&, T*);                             \
  template void winograd_source<T>(int, const SourceTile<T>*, int64_t, const Image&, T*, int64_t, int64_t); \
  template void winograd_products<T>(int64_t, int, const T* const*, int64_t, const T*, int64_t, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastnn::FASTNN_TARGET
