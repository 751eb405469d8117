// Max RoIPool, and the maximum of bilinear samples.
#pragma once

#include "roi.cuh"

namespace maskrcnn::cuda {

template <class T>
__device__ __forceinline__ Real<T> bilinear(const T* plane, const Map& map, const Sample<Real<T>>& y,
                                            const Sample<Real<T>>& x) {
  const auto value = [&](int row, int column) {
    return static_cast<Real<T>>(plane[row * map.row_stride + column * map.column_stride]);
  };
  return (1 - y.fraction) * ((1 - x.fraction) * value(y.low, x.low) + x.fraction * value(y.low, x.high)) +
         y.fraction * ((1 - x.fraction) * value(y.high, x.low) + x.fraction * value(y.high, x.high));
}

/// Whether samples of a bin are left out when one looks at `samples` of them: all of those lie off the map.
template <class Real>
__device__ __forceinline__ bool leaves_out(const Axis<Real>& axis, int samples) {
  return !axis.whole_cells && axis.count > static_cast<Real>(samples);
}

/// A block takes an RoI, a thread an output at a time: neighbours in `out` and `argmax`, which are (R, bins_y, bins_x,
/// channels) when channels_last, else (R, channels, bins_y, bins_x). Blocks of equal blockIdx.x share an RoI's outputs.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>)
    roi_max_kernel(const __grid_constant__ Maps maps, const __grid_constant__ LaunchRois rois,
                   const __grid_constant__ Options options, int channels, bool channels_last, T* __restrict__ out,
                   int* __restrict__ argmax) {
  const int index = rois.first + blockIdx.x;
  const Roi<Real<T>> roi(rois, maps, options, index);
  const Map& map = maps.level[roi.level];
  const T* cells = static_cast<const T*>(map.data) + roi.image * map.image_stride;
  const int64_t bins = static_cast<int64_t>(options.bins_y) * options.bins_x, outputs = bins * channels;

  for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < outputs; i += gridDim.y * kThreads) {
    const int64_t bin = channels_last ? i / channels : i % bins;
    const int64_t channel = channels_last ? i % channels : i / bins;
    const int bin_y = static_cast<int>(bin / options.bins_x), bin_x = static_cast<int>(bin % options.bins_x);
    Real<T> first_y, first_x;
    const int samples_y = roi.y.samples(bin_y, first_y), samples_x = roi.x.samples(bin_x, first_x);
    bool off_map = leaves_out(roi.y, samples_y) || leaves_out(roi.x, samples_x);
    Real<T> best = -INFINITY;
    int best_sample = -1;
    for (int j = 0; j < samples_y; j++) {
      Sample<Real<T>> y, x;
      const bool on_map = roi.y.at(bin_y, first_y + static_cast<Real<T>>(j), y);
      for (int k = 0; k < samples_x; k++) {
        if (!on_map || !roi.x.at(bin_x, first_x + static_cast<Real<T>>(k), x)) {
          off_map = true;
          continue;
        }
        const Real<T> value = bilinear(cells + channel * map.channel_stride, map, y, x);
        if (value > best || value != value) {  // a NaN wins, and stays
          best = value;
          best_sample = j * samples_x + k;
        }
      }
    }
    if (samples_y == 0 || samples_x == 0 || (off_map && best < 0)) {  // off the map, features are zero
      best = 0;
      best_sample = -1;
    }
    out[index * outputs + i] = static_cast<T>(best);
    argmax[index * outputs + i] = best_sample;
  }
}

}  // namespace maskrcnn::cuda
