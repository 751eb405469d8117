// RoIAlign, RoIWarp and average RoIPool: the mean of each bin's samples.
//
// The bilinear weights of a grid of samples are products of a weight along y and one along x. So a block first merges,
// along each axis apart, the samples of a bin into the few cells that they touch; each cell is then read once per bin.
#pragma once

#include "roi.cuh"

namespace maskrcnn::cuda {

constexpr int kBins = 16;            // bins along an axis that are tabulated at a time
constexpr int kCells = 16;           // cells of a bin, along an axis, that the table has room for
constexpr int kScalarChannels = 64;  // channels of a block of `roi_average_scalar`

/// The cells that the samples of one bin touch along one axis, with the sum of their weights.
template <class Real>
struct Bin {
  int count;
  int cell[kCells];
  Real weight[kCells];
};

/// Adds to a cell's weight. False when the cell is new, and there is no room.
template <class Real>
__device__ __forceinline__ bool add_weight(Bin<Real>& bin, int cell, Real weight) {
  if (weight == 0) return true;  // such a cell must not matter, though it hold a NaN
  int i = 0;
  while (i < bin.count && bin.cell[i] != cell) ++i;
  if (i == kCells) return false;
  if (i == bin.count) {
    bin.cell[i] = cell;
    bin.weight[i] = 0;
    ++bin.count;
  }
  bin.weight[i] += weight;
  return true;
}

/// Fills `bin` with the cells of the axis' bin `p`. False when they are too many.
template <class Real>
__device__ __forceinline__ bool merge_samples(const Axis<Real>& axis, int p, Bin<Real>& bin) {
  bin.count = 0;
  Real first;
  const int samples = axis.samples(p, first);
  const Real share = share_of_sample(axis, samples);
  for (int i = 0; i < samples; ++i) {
    Sample<Real> sample;
    if (!axis.at(p, first + static_cast<Real>(i), sample)) continue;
    if (!add_weight(bin, sample.low, (1 - sample.fraction) * share)) return false;
    if (!add_weight(bin, sample.high, sample.fraction * share)) return false;
  }
  return true;
}

/// The bins from (first_y, first_x) on, as many as there is room for.
template <class Real>
struct BinTable {
  Bin<Real> y[kBins], x[kBins];

  /// For all threads of a block to call together. False when a bin has too many cells for the table.
  __device__ __forceinline__ bool fill(const LaunchRois& rois, const Maps& maps, const Options& options, int index,
                                       int first_y, int first_x) {
    const Roi<Real> roi(rois, maps, options, index);
    const int axis = threadIdx.x / kWarp, bin = threadIdx.x % kWarp;
    bool fits = true;
    if (bin < kBins && axis == 0 && first_y + bin < roi.y.bins) fits = merge_samples(roi.y, first_y + bin, y[bin]);
    if (bin < kBins && axis == 1 && first_x + bin < roi.x.bins) fits = merge_samples(roi.x, first_x + bin, x[bin]);
    return __syncthreads_and(fits);
  }
};

/// Calls visit(y, x, weight) with the four cells around each sample of a bin: the slow way, for bins of any size.
template <class Real, class Visit>
__device__ __forceinline__ void visit_samples(const Roi<Real>& roi, int bin_y, int bin_x, Visit visit) {
  Real first_y, first_x;
  const int samples_y = roi.y.samples(bin_y, first_y), samples_x = roi.x.samples(bin_x, first_x);
  const Real share = share_of_sample(roi.y, samples_y) * share_of_sample(roi.x, samples_x);
#pragma unroll 1  // this is not the place to spend registers
  for (int i = 0; i < samples_y; ++i) {
    Sample<Real> y;
    if (!roi.y.at(bin_y, first_y + static_cast<Real>(i), y)) continue;
#pragma unroll 1
    for (int j = 0; j < samples_x; ++j) {
      Sample<Real> x;
      if (!roi.x.at(bin_x, first_x + static_cast<Real>(j), x)) continue;
#pragma unroll 1
      for (int corner = 0; corner < 4; ++corner) {
        const bool down = corner & 2, right = corner & 1;
        const Real weight = (down ? y.fraction : 1 - y.fraction) * (right ? x.fraction : 1 - x.fraction) * share;
        if (weight != 0) visit(down ? y.high : y.low, right ? x.high : x.low, weight);
      }
    }
  }
}

/// For channels that lie side by side, in packs: maps and `out` (R, bins_y, bins_x, channels), aligned to 16 bytes.
/// A block takes an RoI (blockIdx.x) and a chunk of channels (blockIdx.y); a warp takes a bin at a time.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>)
    roi_average_packed(const __grid_constant__ Maps maps, const __grid_constant__ LaunchRois rois,
                       const __grid_constant__ Options options, int channels, T* __restrict__ out) {
  constexpr int kSize = Pack<T>::kSize;
  constexpr int kInFlight = 4;  // loads that are under way before the first is waited for
  auto& table = shared_memory<BinTable<Real<T>>>();
  const int index = rois.first + blockIdx.x;
  const int channel = (blockIdx.y * kWarp + threadIdx.x % kWarp) * kSize;
  const int image = rois.image_of(index);
  const Map& map = maps.level[level_of(rois.corners(index), options)];
  const T* cells = static_cast<const T*>(map.data) + image * map.image_stride + channel;
  const int64_t bins = static_cast<int64_t>(options.bins_y) * options.bins_x;
  T* pooled = out + index * bins * channels + channel;

  for (int first_y = 0; first_y < options.bins_y; first_y += kBins) {
    for (int first_x = 0; first_x < options.bins_x; first_x += kBins) {
      __syncthreads();  // before the table is written anew
      const bool fits = table.fill(rois, maps, options, index, first_y, first_x);
      const int bins_y = min(kBins, options.bins_y - first_y), bins_x = min(kBins, options.bins_x - first_x);
      if (channel >= channels) continue;
      for (int bin = threadIdx.x / kWarp; bin < bins_y * bins_x; bin += kWarps) {
        const int bin_y = bin / bins_x, bin_x = bin % bins_x;
        Real<T> sum[kSize] = {};
        if (fits) {
          const Bin<Real<T>>&y = table.y[bin_y], &x = table.x[bin_x];
          for (int i = 0; i < y.count; ++i) {
            const T* row = cells + y.cell[i] * map.row_stride;
            for (int j = 0; j < x.count; j += kInFlight) {
              Pack<T> packs[kInFlight];
#pragma unroll
              for (int k = 0; k < kInFlight; ++k) {
                if (j + k < x.count) packs[k] = Pack<T>::load(row + x.cell[j + k] * map.column_stride);
              }
#pragma unroll
              for (int k = 0; k < kInFlight; ++k) {
                if (j + k < x.count) packs[k].add_to(sum, y.weight[i] * x.weight[j + k]);
              }
            }
          }
        } else {
          const Roi<Real<T>> roi(rois, maps, options, index);  // not kept, for the sake of registers
          visit_samples(roi, first_y + bin_y, first_x + bin_x, [&](int y, int x, Real<T> weight) {
            Pack<T>::load(cells + y * map.row_stride + x * map.column_stride).add_to(sum, weight);
          });
        }
        const int64_t out_bin = static_cast<int64_t>(first_y + bin_y) * options.bins_x + first_x + bin_x;
        Pack<T>::of(sum).store(pooled + out_bin * channels);
      }
    }
  }
}

/// For maps of any strides. `out` is (R, bins_y, bins_x, channels) when channels_last, else (R, channels, bins_y,
/// bins_x). A block takes an RoI (blockIdx.x) and kScalarChannels channels (blockIdx.y), a thread an output at a time:
/// those of a warp are neighbours in `out`, so their cells are mostly neighbours on a map of the same layout.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>)
    roi_average_scalar(const __grid_constant__ Maps maps, const __grid_constant__ LaunchRois rois,
                       const __grid_constant__ Options options, int channels, bool channels_last, T* __restrict__ out) {
  auto& table = shared_memory<BinTable<Real<T>>>();
  const int index = rois.first + blockIdx.x;
  const int first_channel = blockIdx.y * kScalarChannels;
  const int block_channels = min(kScalarChannels, channels - first_channel);
  const int image = rois.image_of(index);
  const Map& map = maps.level[level_of(rois.corners(index), options)];
  const T* cells = static_cast<const T*>(map.data) + image * map.image_stride;
  const int64_t bins = static_cast<int64_t>(options.bins_y) * options.bins_x;
  T* pooled = out + index * bins * channels;

  for (int first_y = 0; first_y < options.bins_y; first_y += kBins) {
    for (int first_x = 0; first_x < options.bins_x; first_x += kBins) {
      __syncthreads();  // before the table is written anew
      const bool fits = table.fill(rois, maps, options, index, first_y, first_x);
      const int bins_y = min(kBins, options.bins_y - first_y), bins_x = min(kBins, options.bins_x - first_x);
      for (int i = threadIdx.x; i < block_channels * bins_y * bins_x; i += kThreads) {
        const int bin = channels_last ? i / block_channels : i % (bins_y * bins_x);
        const int channel = first_channel + (channels_last ? i % block_channels : i / (bins_y * bins_x));
        const int bin_y = bin / bins_x, bin_x = bin % bins_x;
        const T* plane = cells + channel * map.channel_stride;
        Real<T> sum = 0;
        if (fits) {
          const Bin<Real<T>>&y = table.y[bin_y], &x = table.x[bin_x];
          for (int j = 0; j < y.count; ++j) {
            const T* row = plane + y.cell[j] * map.row_stride;
            Real<T> row_sum = 0;
            for (int k = 0; k < x.count; ++k) {
              row_sum += x.weight[k] * static_cast<Real<T>>(row[x.cell[k] * map.column_stride]);
            }
            sum += y.weight[j] * row_sum;
          }
        } else {
          const Roi<Real<T>> roi(rois, maps, options, index);  // not kept, for the sake of registers
          visit_samples(roi, first_y + bin_y, first_x + bin_x, [&](int y, int x, Real<T> weight) {
            sum += weight * static_cast<Real<T>>(plane[y * map.row_stride + x * map.column_stride]);
          });
        }
        const int64_t out_bin = static_cast<int64_t>(first_y + bin_y) * options.bins_x + first_x + bin_x;
        pooled[channels_last ? out_bin * channels + channel : channel * bins + out_bin] = static_cast<T>(sum);
      }
    }
  }
}

}  // namespace maskrcnn::cuda
