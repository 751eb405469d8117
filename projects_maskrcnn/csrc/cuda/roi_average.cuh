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

/// A cell along one axis, by its distance from the first in elements, and what it weighs in a bin.
template <class Real>
struct WeightedCell {
  int64_t offset;
  Real weight;
};

/// The cells that the samples of one bin touch along one axis, with the sum of their weights.
template <class Real>
struct Bin {
  int count;
  WeightedCell<Real> cells[kCells];

  /// Takes the cells of the axis' bin `p`; `stride` lies between two cells. False when they are too many.
  __device__ __forceinline__ bool fill(const Axis<Real>& axis, int p, int64_t stride) {
    int filled = 0;
    const auto add = [&](int cell, Real weight) {
      if (weight == 0) return true;  // and must not matter, though the cell hold a NaN
      const int64_t offset = cell * stride;
      // Samples come in order, so a cell that is not new is one of the last two.
      for (int i = filled - 1; i >= 0 && i >= filled - 2; i--) {
        if (cells[i].offset != offset) continue;
        cells[i].weight += weight;
        return true;
      }
      if (filled == kCells) return false;
      cells[filled++] = {offset, weight};
      return true;
    };
    Real first;
    const int samples = axis.samples(p, first);
    const Real share = axis.share(samples);
    for (int i = 0; i < samples; i++) {
      Sample<Real> sample;
      if (!axis.at(p, first + static_cast<Real>(i), sample)) continue;
      if (!add(sample.low, (1 - sample.fraction) * share)) return false;
      if (!add(sample.high, sample.fraction * share)) return false;
    }
    count = filled;
    return true;
  }
};

/// The slow way, for a bin with any number of cells: calls visit(offset of a cell, weight) for the four around each
/// sample.
template <class Real, class Visit>
__device__ __forceinline__ void visit_samples(const float* box, const Map& map, const Options& options, int bin_y,
                                              int bin_x, Visit visit) {
  const Axis<Real> y_axis = axis_of<Real>(box, map, options, false), x_axis = axis_of<Real>(box, map, options, true);
  Real first_y, first_x;
  const int samples_y = y_axis.samples(bin_y, first_y), samples_x = x_axis.samples(bin_x, first_x);
  const Real share = y_axis.share(samples_y) * x_axis.share(samples_x);
  for (int i = 0; i < samples_y; i++) {
    Sample<Real> y;
    if (!y_axis.at(bin_y, first_y + static_cast<Real>(i), y)) continue;
    for (int j = 0; j < samples_x; j++) {
      Sample<Real> x;
      if (!x_axis.at(bin_x, first_x + static_cast<Real>(j), x)) continue;
      for (int corner = 0; corner < 4; corner++) {
        const bool low_y = corner < 2, low_x = corner % 2 == 0;
        const Real weight = share * (low_y ? 1 - y.fraction : y.fraction) * (low_x ? 1 - x.fraction : x.fraction);
        if (weight == 0) continue;
        visit((low_y ? y.low : y.high) * map.row_stride + (low_x ? x.low : x.high) * map.column_stride, weight);
      }
    }
  }
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
      const Map& map = maps.level[roi.level];
      if (warp == 0 && first_y + bin < roi.y.bins) fits = y[bin].fill(roi.y, first_y + bin, map.row_stride);
      if (warp == 1 && first_x + bin < roi.x.bins) fits = x[bin].fill(roi.x, first_x + bin, map.column_stride);
    }
    return __syncthreads_and(fits);
  }
};

/// A cell of a bin, by its distance from the image's first in packs, and what it weighs.
template <class T>
struct ListedCell {
  uint32_t offset;
  Real<T> weight;
};

/// Adds the cells of a bin to `sum`, for a warp: each lane lists one of them, then all read the channels of each.
template <class T>
__device__ __forceinline__ void add_cells(const Pack<T>* cells, const Bin<Real<T>>& y, const Bin<Real<T>>& x,
                                          ListedCell<T>* list, Real<T> (&sum)[Pack<T>::kSize]) {
  constexpr int kInFlight = 4;  // loads that are under way before the first is waited for
  const int lane = threadIdx.x % kWarp;
  const auto add_some = [&](const ListedCell<T>* some, unsigned number) {
    Pack<T> packs[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; k++) packs[k] = Pack<T>::load(cells + some[k].offset);
#pragma unroll
    for (unsigned k = 0; k < kInFlight; k++) {
      if (k < number) packs[k].add_to(sum, some[k].weight);
    }
  };
  const unsigned count_x = x.count, count = y.count * count_x;
  for (unsigned first = 0; first < count; first += kWarp) {
    // A lane with none repeats the last one, so that loads need no condition; it is not counted.
    const unsigned mine = min(first + lane, count - 1), listed = min(unsigned{kWarp}, count - first);
    const auto &cell_y = y.cells[mine / count_x], &cell_x = x.cells[mine % count_x];
    const auto offset = static_cast<uint64_t>(cell_y.offset + cell_x.offset) / Pack<T>::kSize;
    __syncwarp();  // before the list is written anew
    list[lane] = {static_cast<uint32_t>(offset), cell_y.weight * cell_x.weight};
    __syncwarp();
    unsigned next = 0;
#pragma unroll 1  // twice would be more registers than there are
    for (; next + kInFlight <= listed; next += kInFlight) add_some(list + next, kInFlight);
    if (next < listed) add_some(list + next, listed - next);
  }
}

/// For channels that lie side by side, in packs: maps and `out` (R, bins_y, bins_x, channels), aligned to 16 bytes. No
/// cell is 2 ** 32 packs away from its image's first. A block takes an RoI (blockIdx.x) and a chunk of channels
/// (blockIdx.y), a warp a bin at a time, a lane a pack.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>)
    roi_average_packed(const __grid_constant__ Maps maps, const __grid_constant__ LaunchRois rois,
                       const __grid_constant__ Options options, int channels, T* __restrict__ out) {
  constexpr int kSize = Pack<T>::kSize;
  struct Shared {
    BinTable<Real<T>> table;
    ListedCell<T> lists[kWarps][kWarp];
  };
  auto& [table, lists] = shared_memory<Shared>();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int index = rois.first + blockIdx.x;
  const int my_channel = (blockIdx.y * kWarp + lane) * kSize;
  const int channel = min(my_channel, channels - kSize);  // a lane with none repeats the last one, and stores nothing
  const int image = rois.image_of(index);
  const float* box = rois.corners(index);
  const Map& map = maps.level[level_of(box, options)];
  const T* corner = static_cast<const T*>(map.data) + image * map.image_stride + channel;
  const auto* cells = reinterpret_cast<const Pack<T>*>(corner);
  T* pooled = out + static_cast<int64_t>(index) * options.bins_y * options.bins_x * channels + channel;

  for (int first_y = 0; first_y < options.bins_y; first_y += kBins) {
    for (int first_x = 0; first_x < options.bins_x; first_x += kBins) {
      __syncthreads();  // before the table is written anew
      const bool fits = table.fill(rois, maps, options, index, first_y, first_x);
      const unsigned bins_y = min(kBins, options.bins_y - first_y), bins_x = min(kBins, options.bins_x - first_x);
      for (unsigned bin = warp; bin < bins_y * bins_x; bin += kWarps) {
        const int bin_y = bin / bins_x, bin_x = bin % bins_x;
        Real<T> sum[kSize] = {};
        if (fits) {
          add_cells<T>(cells, table.y[bin_y], table.x[bin_x], lists[warp], sum);
        } else {
          visit_samples<Real<T>>(
              box, map, options, first_y + bin_y, first_x + bin_x,
              [&](int64_t offset, Real<T> weight) { Pack<T>::load(cells + offset / kSize).add_to(sum, weight); });
        }
        const int64_t out_bin = static_cast<int64_t>(first_y + bin_y) * options.bins_x + first_x + bin_x;
        if (my_channel < channels) Pack<T>::of(sum).store(pooled + out_bin * channels);
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
          const int count_y = y.count, count_x = x.count;
          for (int j = 0; j < count_y; j++) {
            const T* row = plane + y.cells[j].offset;
            Real<T> row_sum = 0;
            for (int k = 0; k < count_x; k++) {
              row_sum += x.cells[k].weight * static_cast<Real<T>>(row[x.cells[k].offset]);
            }
            sum += y.cells[j].weight * row_sum;
          }
        } else {
          visit_samples<Real<T>>(
              box, map, options, first_y + bin_y, first_x + bin_x,
              [&](int64_t offset, Real<T> weight) { sum += weight * static_cast<Real<T>>(plane[offset]); });
        }
        const int64_t out_bin = static_cast<int64_t>(first_y + bin_y) * options.bins_x + first_x + bin_x;
        pooled[channels_last ? out_bin * channels + channel : channel * bins + out_bin] = static_cast<T>(sum);
      }
    }
  }
}

}  // namespace maskrcnn::cuda
