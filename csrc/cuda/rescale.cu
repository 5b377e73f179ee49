// Samples as floats: rows of an array of any type, scaled, in one pass. Bound by memory, what is read and what is written.
//
//   rescale  thread -> 16 bytes of y where rows are whole vectors and aligned, otherwise one element
#include <climits>

#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int kThreads = 256;

// ---- Kernels

__global__ void bad_index_kernel(int64_t count, int64_t limit, const int32_t* indices, long long* first) {
  for (int64_t i = first_item(); i < count; i += item_step())
    if (indices[i] < 0 || indices[i] >= limit) atomicMin(first, static_cast<long long>(i));  // an integer: any order
}

// size: of a sample, in vectors of N.
template <int N, class T, class S>
__global__ void rescale_kernel(int64_t vectors, FastDiv size, int64_t stored, const S* x, const int32_t* rows, T scale,
                               T offset, T* y) {
  for (int64_t i = first_item(); i < vectors; i += item_step()) {
    int64_t from = i;
    if (rows) {
      const int64_t sample = size(i), row = rows[sample];
      from = row < 0 || row >= stored ? -1 : i + (row - sample) * size.divisor;
    }
    Vec<T, N> result;
    if (from < 0) {
      for (T& element : result.v) element = T(NAN);
    } else {
      const Vec<S, N> v = reinterpret_cast<const Vec<S, N>*>(x)[from];
      for (int e = 0; e < N; ++e) result.v[e] = T(v.v[e]) * scale + offset;
    }
    reinterpret_cast<Vec<T, N>*>(y)[i] = result;
  }
}

// ---- Entry points

BadIndex find_bad_index(int64_t count, int64_t limit, const int32_t* indices, Stream stream) {
  if (count == 0 || capturing(stream)) return {-1, 0};
  ReadBack<long long> first(LLONG_MAX, stream);
  launch(bad_index_kernel, grid_for(count, kThreads), kThreads, 0, stream, count, limit, indices, first.device());
  const int64_t position = first.get();
  if (position == LLONG_MAX) return {-1, 0};
  return {position, read_back(indices + position, stream)};
}

template <class T>
void rescale(int64_t samples, int64_t size, int64_t stored, Element type, const void* of_any_type, const int32_t* rows,
             T scale, T offset, T* y, Stream stream) {
  if (samples * size == 0) return;
  visit(type, of_any_type, [&](const auto* x) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      const int64_t vectors = samples * size / N;
      launch(rescale_kernel<N, T, S>, grid_for(vectors, kThreads), kThreads, 0, stream, vectors, FastDiv(size / N), stored,
             x, rows, scale, offset, y);
    };
    constexpr int N = kVec<T>;
    if (size % N == 0 && aligned_for<Vec<S, N>>(x) && aligned_for<Vec<T, N>>(y))
      run(std::integral_constant<int, N>());
    else
      run(std::integral_constant<int, 1>());
  });
}

template <class T>
void add(Ops<T>& ops) {
  ops.rescale = rescale<T>;
}

}  // namespace

void add_rescale(Kernels& kernels) {
  kernels.find_bad_index = find_bad_index;
  add(kernels.float32);
  add(kernels.float64);
}

}  // namespace fastnn::FASTNN_TARGET
