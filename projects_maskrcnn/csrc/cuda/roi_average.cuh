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

/// A cell along one axis, and what it weighs in a bin.
template <class Real>
struct WeightedCell {
  int cell;
  Real weight;
};

/// The cells that the samples of one bin touch along one axis, with the sum of their weights.
template <class Real>
struct Bin {
  int count;
  WeightedCell<Real> cells[kCells];

  /// False when the cell is new, and there is no room. A weight of zero must not matter, though the cell hold a NaN.
  __device__ __forceinline__ bool add(int cell, Real weight) {
    if (weight == 0) return true;
    // Samples come in order, so a cell that is not new is one of the last two.
    for (int i = count - 1; i >= 0 && i >= count - 2; --i) {
      if (cells[i].cell != cell) continue;
      cells[i].weight += weight;
      return true;
    }
    if (count == kCells) return false;
    cells[count++] = {cell, weight};
    return true;
  }

  /// Takes the cells of the axis' bin `p`. False when they are too many.
  __device__ __forceinline__ bool fill(const Axis<Real>& axis, int p) {
    count = 0;
    Real first;
    const int samples = axis.samples(p, first);
    const Real share = share_of_sample(axis, samples);
    for (int i = 0; i < samples; ++i) {
      Sample<Real> sample;
      if (!axis.at(p, first + static_cast<Real>(i), sample)) continue;
      if (!add(sample.low, (1 - sample.fraction) * share)) return false;
      if (!add(sample.high, sample.fraction * share)) return false;
    }
    return true;
  }
};

/// The slow way, for a bin with any number of cells: the two around each sample.
template <class Real>
__device__ __forceinline__ int unmerged_count(const Axis<Real>& axis, int p) {
  Real first;
  return 2 * axis.samples(p, first);
}

/// The `i`-th of these cells. It weighs nothing when its sample is off the map.
template <class Real>
__device__ __forceinline__ WeightedCell<Real> unmerged_cell(const Axis<Real>& axis, int p, int i) {
  Real first;
  const Real share = share_of_sample(axis, axis.samples(p, first));
  Sample<Real> sample;
  if (!axis.at(p, first + static_cast<Real>(i / 2), sample)) return {0, 0};
  if (i % 2) return {sample.high, sample.fraction * share};
  return {sample.low, (1 - sample.fraction) * share};
}

/// The bins from (first_y, first_x) on, as many as there is room for.
template <class Real>
struct BinTable {
  Bin<Real> y[kBins], x[kBins];

  /// For all threads of a block to call together. False when a bin has too many cells for the table.
  __device__ __forceinline__ bool fill(const LaunchRois& rois, const Maps& maps, const Options& options, int index,
                                       int first_y, int first_x) {
    const int warp = threadIdx.x / kWarp, bin = threadIdx.x % kWarp;  // a warp takes an axis
    bool fits = true;
    if (warp < 2 && bin < kBins) {
      const Roi<Real> roi(rois, maps, options, index);
      if (warp == 0 && first_y + bin < roi.y.bins) fits = y[bin].fill(roi.y, first_y + bin);
      if (warp == 1 && first_x + bin < roi.x.bins) fits = x[bin].fill(roi.x, first_x + bin);
    }
    return __syncthreads_and(fits);
  }
};

template <class T>
struct PackedShared {
  /// A cell of a bin: its channels, and its weight.
  struct Cell {
    const T* channels;
    Real<T> weight;
  };
  BinTable<Real<T>> table;
  Cell cells[kWarps][kWarp];  // each warp has its own
};

/// For channels that lie side by side, in packs: maps and `out` (R, bins_y, bins_x, channels), aligned to 16 bytes.
/// A block takes an RoI (blockIdx.x) and a chunk of channels (blockIdx.y); a warp takes a bin at a time: each lane
/// looks up one of its cells, then all lanes read the channels of each.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>)
    roi_average_packed(const __grid_constant__ Maps maps, const __grid_constant__ LaunchRois rois,
                       const __grid_constant__ Options options, int channels, T* __restrict__ out) {
  constexpr int kSize = Pack<T>::kSize;
  constexpr int kInFlight = 4;  // loads that are under way before the first is waited for
  auto& shared = shared_memory<PackedShared<T>>();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  auto* list = shared.cells[warp];
  const int index = rois.first + blockIdx.x;
  const int my_channel = (blockIdx.y * kWarp + lane) * kSize;
  const int channel = min(my_channel, channels - kSize);  // a lane with none repeats the last one, and stores nothing
  const int image = rois.image_of(index);
  const float* box = rois.corners(index);
  const Map& map = maps.level[level_of(box, options)];
  const T* cells = static_cast<const T*>(map.data) + image * map.image_stride;

  for (int first_y = 0; first_y < options.bins_y; first_y += kBins) {
    for (int first_x = 0; first_x < options.bins_x; first_x += kBins) {
      __syncthreads();  // before the table is written anew
      const bool fits = shared.table.fill(rois, maps, options, index, first_y, first_x);
      const int bins_y = min(kBins, options.bins_y - first_y), bins_x = min(kBins, options.bins_x - first_x);
      for (int bin = warp; bin < bins_y * bins_x; bin += kWarps) {
        const int bin_y = bin / bins_x, bin_x = bin % bins_x;
        // Where the table does not serve, an axis is made anew each time, lest it take registers from the usual case.
        const auto y_axis = [&] { return axis_of<Real<T>>(box, map, options, false); };
        const auto x_axis = [&] { return axis_of<Real<T>>(box, map, options, true); };
        const int count_y = fits ? shared.table.y[bin_y].count : unmerged_count(y_axis(), first_y + bin_y);
        const int count_x = fits ? shared.table.x[bin_x].count : unmerged_count(x_axis(), first_x + bin_x);
        const int64_t count = static_cast<int64_t>(count_y) * count_x;
        Real<T> sum[kSize] = {};
        for (int64_t first = 0; first < count; first += kWarp) {
          const T* channels_of_cell = cells;
          Real<T> weight = 0;
          if (first + lane < count) {
            const int i = static_cast<int>((first + lane) / count_x), j = static_cast<int>((first + lane) % count_x);
            const auto y = fits ? shared.table.y[bin_y].cells[i] : unmerged_cell(y_axis(), first_y + bin_y, i);
            const auto x = fits ? shared.table.x[bin_x].cells[j] : unmerged_cell(x_axis(), first_x + bin_x, j);
            channels_of_cell += y.cell * map.row_stride + x.cell * map.column_stride;
            weight = y.weight * x.weight;
          }
          const unsigned used = __ballot_sync(~0u, weight != 0);
          const int listed = __popc(used);
          __syncwarp();  // before the list is written anew
          if (weight != 0) list[__popc(used & ((1u << lane) - 1))] = {channels_of_cell, weight};
          __syncwarp();
          for (int i = 0; i < listed; i += kInFlight) {
            Pack<T> packs[kInFlight];
#pragma unroll
            for (int k = 0; k < kInFlight; ++k) {
              if (i + k < listed) packs[k] = Pack<T>::load(list[i + k].channels + channel);
            }
#pragma unroll
            for (int k = 0; k < kInFlight; ++k) {
              if (i + k < listed) packs[k].add_to(sum, list[i + k].weight);
            }
          }
        }
        const int64_t out_row = static_cast<int64_t>(index) * options.bins_y + first_y + bin_y;
        const int64_t out_bin = out_row * options.bins_x + first_x + bin_x;
        if (my_channel < channels) Pack<T>::of(sum).store(out + out_bin * channels + my_channel);
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
  const float* box = rois.corners(index);
  const Map& map = maps.level[level_of(box, options)];
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
            const T* row = plane + y.cells[j].cell * map.row_stride;
            Real<T> row_sum = 0;
            for (int k = 0; k < x.count; ++k) {
              row_sum += x.cells[k].weight * static_cast<Real<T>>(row[x.cells[k].cell * map.column_stride]);
            }
            sum += y.cells[j].weight * row_sum;
          }
        } else {
          const Axis<Real<T>> y_axis = axis_of<Real<T>>(box, map, options, false);
          const Axis<Real<T>> x_axis = axis_of<Real<T>>(box, map, options, true);
          const int count_y = unmerged_count(y_axis, first_y + bin_y);
          const int count_x = unmerged_count(x_axis, first_x + bin_x);
          for (int j = 0; j < count_y; ++j) {
            const WeightedCell<Real<T>> y = unmerged_cell(y_axis, first_y + bin_y, j);
            for (int k = 0; k < count_x && y.weight != 0; ++k) {
              const WeightedCell<Real<T>> x = unmerged_cell(x_axis, first_x + bin_x, k);
              if (x.weight == 0) continue;
              const T* value = plane + y.cell * map.row_stride + x.cell * map.column_stride;
              sum += y.weight * x.weight * static_cast<Real<T>>(*value);
            }
          }
        }
        const int64_t out_bin = static_cast<int64_t>(first_y + bin_y) * options.bins_x + first_x + bin_x;
        pooled[channels_last ? out_bin * channels + channel : channel * bins + out_bin] = static_cast<T>(sum);
      }
    }
  }
}

}  // namespace maskrcnn::cuda
