// Samples as floats: rows of an array of any type, scaled, in one pass over what is read and what is written.
#include <algorithm>
#include <limits>

#include "../ops.h"
#include "parallel.h"

namespace fastnn::FASTNN_TARGET {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements an item takes

BadIndex find_bad_index(int64_t count, int64_t limit, const int32_t* indices, Stream) {
  for (int64_t i = 0; i < count; ++i)
    if (indices[i] < 0 || indices[i] >= limit) return {i, indices[i]};
  return {-1, 0};
}

template <class T, class S>
void convert(int64_t size, const S* __restrict x, T scale, T offset, T* __restrict y) {
  for (int64_t i = 0; i < size; ++i) y[i] = T(x[i]) * scale + offset;
}

template <class T>
void rescale(int64_t samples, int64_t size, int64_t stored, Element type, const void* of_any_type, const int32_t* rows,
             T scale, T offset, T* y, Stream) {
  visit(type, of_any_type, [=](const auto* x) {
    parallel_chunks(samples * size, kGrain, [=](int64_t begin, int64_t end) {
      if (!rows) return convert(end - begin, x + begin, scale, offset, y + begin);
      int64_t sample = begin / size, at = begin % size;
      for (; begin < end; ++sample, at = 0) {
        const int64_t count = std::min(size - at, end - begin), row = rows[sample];
        if (row >= 0 && row < stored)
          convert(count, x + row * size + at, scale, offset, y + begin);
        else
          std::fill_n(y + begin, count, std::numeric_limits<T>::quiet_NaN());
        begin += count;
      }
    });
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
