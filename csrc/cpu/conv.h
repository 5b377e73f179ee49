// What the convolution kernels share: addresses in an image batch, the taps of a class of pixels as runs over memory, and
// the filter as the matrix b of a tile.
#pragma once

#include "conv_plan.h"
#include "panels.h"

namespace fastnn::FASTNN_TARGET {

struct Image {
  int64_t h, w, c;
  int64_t at(int64_t n, int64_t i, int64_t j) const { return ((n * h + i) * w + j) * c; }
};

// The taps that pixels of a class of rows and a class of columns share, as runs over the source's memory; `runs` has room
// for all of the filter's taps. Where a row of taps lies side by side, it is one run. Gives the number of runs.
inline int64_t make_runs(const AxisClass& rows, const AxisClass& cols, const Image& source, int64_t kw, Run* runs) {
  const bool joined = cols.tap_step == 1 && cols.source_step == 1;
  int64_t count = 0;
  for (int64_t i = 0; i < rows.taps; ++i)
    for (int64_t j = 0; j < (joined ? std::min<int64_t>(cols.taps, 1) : cols.taps); ++j)
      runs[count++] = {(i * rows.source_step * source.w + j * cols.source_step) * source.c,
                       ((rows.tap + i * rows.tap_step) * kw + cols.tap + j * cols.tap_step) * source.c,
                       (joined ? cols.taps : 1) * source.c};
  return count;
}

// w (KH, KW, C, K) as the matrix b of (KH * KW * C) x K.
template <class T>
Panels<T> filter_panels(const Conv2dShape& s) {
  return Panels<T>(s.kh * s.kw * s.c, s.k, false, s.n * s.ho * s.wo);
}

// Packs it, unless each thread had best do so for itself; gives the workspace that PanelSource wants.
template <class T>
T* pack_filter(const Conv2dShape& s, const Panels<T>& panels, const T* w, T* workspace) {
  if (packed_by_each(panels.bytes(), s.n * s.ho * s.wo, get_num_threads())) return nullptr;
  pack_panels(panels, w, false, workspace);
  return workspace;
}

}  // namespace fastnn::FASTNN_TARGET
