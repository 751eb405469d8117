// Gradients of the RoI operators: each cell gathers from the RoIs that touch it.
//
// A block owns a tile of a gradient map. It goes through the RoIs in order, lists those that touch the tile, tabulates
// the weights of their bins in the tile's rows and columns, and sums in registers. So each cell is written once, in its
// own type, by one thread: no atomics, no map of zeros to begin with, and the same bits in every run.
#pragma once

#include "roi.cuh"
#include "roi_average.cuh"

namespace maskrcnn::cuda {

constexpr int kTileRows = 4;
constexpr int kTileColumns = 8;
constexpr int kLines = kTileRows + kTileColumns;
constexpr int kRoiBatch = 8;                   // RoIs that are tabulated at a time
constexpr int kCellsPerWarp = kWarp / kWarps;  // cells of a row that a warp of `roi_average_backward_packed` takes
static_assert(kTileRows * kTileColumns == kWarp, "a lane is a cell");

/// Level, image and range of cells that an RoI can have an effect on. Aligned, so as to be loaded in pairs.
struct alignas(8) Extent {
  int level, image;
  int first_y, last_y, first_x, last_x;
};

/// The cells of one axis that samples can touch. A cell too many does no harm.
__device__ __forceinline__ void set_extent(const Axis<float>& axis, int& first, int& last) {
  const float end = axis.start + axis.bin * static_cast<float>(axis.bins);
  const float margin = 1 + 1e-6f * fmaxf(fabsf(axis.start), fabsf(end));  // for the next cell, and for rounding
  const float most = static_cast<float>(axis.length - 1);
  const float from = fminf(axis.start, end) - margin, to = fmaxf(axis.start, end) + margin;
  const bool none = !(axis.count > 0) || to < 0 || from > most;
  first = none ? 0 : static_cast<int>(fmaxf(from, 0));
  last = none ? -1 : static_cast<int>(fminf(to, most));
}

/// A thread takes an RoI.
__global__ void __launch_bounds__(kThreads)
    roi_extents(const __grid_constant__ Maps maps, const __grid_constant__ LaunchRois rois,
                const __grid_constant__ Options options, Extent* __restrict__ extents) {
  const int64_t index = rois.first + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= rois.end) return;
  const Roi<float> roi(rois, maps, options, static_cast<int>(index));
  Extent extent{roi.level, roi.image, 0, 0, 0, 0};
  set_extent(roi.y, extent.first_y, extent.last_y);
  set_extent(roi.x, extent.first_x, extent.last_x);
  extents[index] = extent;
}

/// How the maps of one image are cut into tiles, numbered from the first level on.
struct Tiles {
  int first[kMaxLevels + 1];  // of each level; then the number of all
  int columns[kMaxLevels];    // tiles in a row
};

/// The tile of a block, and where its first cell is.
struct Tile {
  int level, image, y, x;

  /// Blocks (blockIdx.x) take the tiles from the last to the first: most RoIs touch those of the coarsest level, and a
  /// block that takes long had better start early.
  __device__ __forceinline__ Tile(const Tiles& tiles, const LaunchRois& rois, int levels) {
    const int per_image = tiles.first[levels], block = gridDim.x - 1 - blockIdx.x;
    image = rois.first_image + block / per_image;
    int index = block % per_image;
    level = 0;
    while (index >= tiles.first[level + 1]) level++;
    index -= tiles.first[level];
    y = index / tiles.columns[level] * kTileRows;
    x = index % tiles.columns[level] * kTileColumns;
  }

  /// Without branches, lest each number of the extent be waited for before the next is loaded.
  __device__ __forceinline__ bool touched_by(const Extent& extent) const {
    return (extent.level == level) & (extent.image == image) & (extent.first_y < y + kTileRows) & (extent.last_y >= y) &
           (extent.first_x < x + kTileColumns) & (extent.last_x >= x);
  }
};

/// What the bins of one RoI weigh in the lines of a tile: in its rows, along y, and then in its columns, along x.
template <class Real>
struct TileWeights {
  Real weight[kLines][kBins + 1];   // an odd pitch, so that lines lie in different banks
  int first[kLines], last[kLines];  // the bins that weigh anything in a line lie between these

  /// One thread fills in the bin `p`, in column `bin` of the table: lines `begin` to `end`, that lie on the axis from
  /// `cell` on.
  __device__ __forceinline__ void fill(const Axis<Real>& axis, int p, int bin, int begin, int end, int cell) {
    for (int line = begin; line < end; line++) weight[line][bin] = 0;
    if (p >= axis.bins) return;
    Real first_sample;
    const int samples = axis.samples(p, first_sample);
    const Real share = axis.share(samples);
    for (int i = 0; i < samples; i++) {
      Sample<Real> sample;
      if (!axis.at(p, first_sample + static_cast<Real>(i), sample)) continue;
      const int low = sample.low - cell + begin, high = sample.high - cell + begin;
      if (low >= begin && low < end) weight[low][bin] += (1 - sample.fraction) * share;
      if (high >= begin && high < end) weight[high][bin] += sample.fraction * share;
    }
  }

  /// One thread finds the bins of a line.
  __device__ __forceinline__ void find_bins(int line) {
    first[line] = 0;
    last[line] = -1;
    for (int bin = kBins - 1; bin >= 0; bin--) {
      if (weight[line][bin] == 0) continue;
      first[line] = bin;
      if (last[line] < 0) last[line] = bin;
    }
  }

  /// The bins that weigh anything in one of the cells of a warp, from the line of its first cell on.
  __device__ __forceinline__ void bins_of_warp(int line, int& first_bin, int& last_bin) const {
    first_bin = kBins;
    last_bin = -1;
    for (int i = line; i < line + kCellsPerWarp; i++) {
      if (last[i] < 0) continue;
      first_bin = min(first_bin, first[i]);
      last_bin = max(last_bin, last[i]);
    }
  }
};

template <class Real>
struct TileShared {
  int warp_hits[kWarps];
  int hit[kThreads];
  TileWeights<Real> weights[kRoiBatch];
};

/// Lists the RoIs from `start` on, a block's worth of them, that touch the tile, in their order. Returns their number.
template <class Real>
__device__ __forceinline__ int list_hits(TileShared<Real>& shared, const Tile& tile, const Extent* extents, int start,
                                         int end) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int index = start + threadIdx.x;
  const bool hit = index < end && tile.touched_by(extents[index]);
  const unsigned hits = __ballot_sync(~0u, hit);
  if (lane == 0) shared.warp_hits[warp] = __popc(hits);
  __syncthreads();
  int before = __popc(hits & ((1u << lane) - 1)), total = 0;
  for (int i = 0; i < kWarps; i++) {
    if (i < warp) before += shared.warp_hits[i];
    total += shared.warp_hits[i];
  }
  if (hit) shared.hit[before] = index;
  __syncthreads();
  return total;
}

/// Tabulates what the bins from (first_y, first_x) on, of `batch` RoIs, weigh in the tile. For all threads of a block
/// to call together.
template <class Real>
__device__ __forceinline__ void tabulate(TileWeights<Real>* weights, const int* batch_rois, int batch, const Tile& tile,
                                         const Maps& maps, const LaunchRois& rois, const Options& options, int first_y,
                                         int first_x) {
  for (int i = threadIdx.x; i < batch * 2 * kBins; i += kThreads) {
    const int slot = i / (2 * kBins), bin = i % kBins;
    const bool along_x = i / kBins % 2;
    const float* box = rois.corners(batch_rois[slot]);
    weights[slot].fill(axis_of<Real>(box, maps.level[tile.level], options, along_x),
                       (along_x ? first_x : first_y) + bin, bin, along_x ? kTileRows : 0, along_x ? kLines : kTileRows,
                       along_x ? tile.x : tile.y);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < batch * kLines; i += kThreads) weights[i / kLines].find_bins(i % kLines);
  __syncthreads();
}

/// Calls visit(roi, its weights, first bin along y, along x) for each RoI that touches the tile, with all threads of
/// the block, in the RoIs' order; repeatedly, where an RoI has more bins than the table.
template <class Real, class Visit>
__device__ __forceinline__ void visit_rois(TileShared<Real>& shared, const Tile& tile, const Maps& maps,
                                           const LaunchRois& rois, const Options& options, const Extent* extents,
                                           Visit visit) {
  const int end = rois.end_of(tile.image);
  for (int start = rois.begin_of(tile.image); start < end; start += kThreads) {
    const int hits = list_hits(shared, tile, extents, start, end);
    for (int first_hit = 0; first_hit < hits; first_hit += kRoiBatch) {
      const int* batch_rois = shared.hit + first_hit;
      const int batch = min(kRoiBatch, hits - first_hit);
      for (int first_y = 0; first_y < options.bins_y; first_y += kBins) {
        for (int first_x = 0; first_x < options.bins_x; first_x += kBins) {
          tabulate(shared.weights, batch_rois, batch, tile, maps, rois, options, first_y, first_x);
          for (int slot = 0; slot < batch; slot++) visit(batch_rois[slot], shared.weights[slot], first_y, first_x);
          __syncthreads();  // before the table is written anew
        }
      }
    }
  }
}

/// Adds to each cell of a warp what it gets from the bins `first` to `last` of a row, which weighs `row_weight`.
/// `line`: of the first cell. `from`: the gradient of the first bin; the next one's lies `stride` packs ahead.
template <class T>
__device__ __forceinline__ void add_bins(Real<T> (&sum)[kCellsPerWarp][Pack<T>::kSize],
                                         const TileWeights<Real<T>>& weights, int line, int first, int last,
                                         Real<T> row_weight, const Pack<T>* from, int64_t stride) {
  constexpr int kInFlight = 2;  // loads that are under way before the first is waited for
  for (int next = first; next <= last; next += kInFlight, from += kInFlight * stride) {
    Pack<T> pack[kInFlight];
#pragma unroll
    for (int n = 0; n < kInFlight; n++) {
      if (n == 0 || next + n <= last) pack[n] = Pack<T>::load(from + n * stride);
    }
#pragma unroll
    for (int n = 0; n < kInFlight; n++) {
      if (n > 0 && next + n > last) continue;
      Real<T> numbers[Pack<T>::kSize];
      pack[n].read(numbers);
#pragma unroll
      for (int i = 0; i < kCellsPerWarp; i++) {
        const Real<T> weight = row_weight * weights.weight[line + i][next + n];
        if (weight != 0) add_weighted(sum[i], weight, numbers);
      }
    }
  }
}

/// Gradient of the mean, for channels that lie side by side, in packs: maps and `grad` (R, bins_y, bins_x, channels),
/// aligned to 16 bytes. A block takes a tile (blockIdx.x) and a chunk of channels (blockIdx.y); a warp takes four cells
/// of a row, so that a gradient once loaded serves them all; a lane takes a pack of channels.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>)
    roi_average_backward_packed(const __grid_constant__ Maps maps, const __grid_constant__ LaunchRois rois,
                                const __grid_constant__ Options options, const __grid_constant__ Tiles tiles,
                                const Extent* __restrict__ extents, const T* __restrict__ grad, int channels) {
  constexpr int kSize = Pack<T>::kSize;
  const Tile tile(tiles, rois, options.num_levels);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = warp * kCellsPerWarp / kTileColumns, column = warp * kCellsPerWarp % kTileColumns;
  const int line = kTileRows + column;  // of the first cell
  const int channel = (blockIdx.y * kWarp + lane) * kSize;
  const int64_t bins = static_cast<int64_t>(options.bins_y) * options.bins_x, packs_per_bin = channels / kSize;
  const auto* packs = reinterpret_cast<const Pack<T>*>(grad + channel);
  Real<T> sum[kCellsPerWarp][kSize] = {};

  const auto add_roi = [&](int roi, const TileWeights<Real<T>>& weights, int first_y, int first_x) {
    if (channel >= channels) return;
    int first, last;
    weights.bins_of_warp(line, first, last);
    for (int j = weights.first[row]; j <= weights.last[row]; j++) {
      const int64_t bin = static_cast<int64_t>(first_y + j) * options.bins_x + first_x + first;
      add_bins(sum, weights, line, first, last, weights.weight[row][j], packs + (roi * bins + bin) * packs_per_bin,
               packs_per_bin);
    }
  };
  visit_rois(shared_memory<TileShared<Real<T>>>(), tile, maps, rois, options, extents, add_roi);

  const Map& map = maps.level[tile.level];
  if (channel >= channels || tile.y + row >= map.height) return;
  T* cells = static_cast<T*>(map.data) + tile.image * map.image_stride + (tile.y + row) * map.row_stride + channel;
#pragma unroll
  for (int i = 0; i < kCellsPerWarp; i++) {
    const int x = tile.x + column + i;
    if (x < map.width) Pack<T>::of(sum[i]).store(cells + x * map.column_stride);
  }
}

/// The samples of a bin, as a maximum is numbered among them.
template <class Real>
struct BinSamples {
  Axis<Real> y, x;
  int bin_y, bin_x;
  Real first_y, first_x;
  int samples_x;

  __device__ __forceinline__ BinSamples(const float* box, const Map& map, const Options& options, int bin_y, int bin_x)
      : y(axis_of<Real>(box, map, options, false)),
        x(axis_of<Real>(box, map, options, true)),
        bin_y(bin_y),
        bin_x(bin_x) {
    y.samples(bin_y, first_y);
    samples_x = x.samples(bin_x, first_x);
  }

  /// What the sample `number` weighs in a cell.
  __device__ __forceinline__ Real weight(int number, int cell_y, int cell_x) const {
    const Real number_y = first_y + static_cast<Real>(number / samples_x);
    const Real number_x = first_x + static_cast<Real>(number % samples_x);
    return weight(y, bin_y, number_y, cell_y) * weight(x, bin_x, number_x, cell_x);
  }

 private:
  static __device__ __forceinline__ Real weight(const Axis<Real>& axis, int p, Real number, int cell) {
    Sample<Real> sample;
    if (!axis.at(p, number, sample)) return 0;
    return (sample.low == cell ? 1 - sample.fraction : Real(0)) + (sample.high == cell ? sample.fraction : Real(0));
  }
};

/// Gradient of the mean, or of the maximum, in any layout. The strides of `grad` and `argmax` are the `grad_map`'s,
/// with RoIs for images and bins for cells. A block takes a tile and kChannels channels of each warp; a lane takes a
/// cell.
template <class T, bool kMaximum, int kChannels>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>)
    roi_backward_scalar(const __grid_constant__ Maps maps, const __grid_constant__ LaunchRois rois,
                        const __grid_constant__ Options options, const __grid_constant__ Tiles tiles,
                        const __grid_constant__ Map grad_map, const Extent* __restrict__ extents,
                        const int* __restrict__ argmax, int channels) {
  const Tile tile(tiles, rois, options.num_levels);
  const Map& map = maps.level[tile.level];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = lane / kTileColumns, column = lane % kTileColumns;
  const int first_channel = (blockIdx.y * kWarps + warp) * kChannels;
  const int my_channels = min(kChannels, channels - first_channel);
  const T* grad = static_cast<const T*>(grad_map.data);
  Real<T> sum[kChannels] = {};

  const auto add_bin = [&](int roi, int bin_y, int bin_x, Real<T> weight) {
    int64_t from = roi * grad_map.image_stride + first_channel * grad_map.channel_stride + bin_y * grad_map.row_stride +
                   bin_x * grad_map.column_stride;
    if constexpr (kMaximum) {
      const BinSamples<Real<T>> samples(rois.corners(roi), map, options, bin_y, bin_x);
#pragma unroll
      for (int i = 0; i < kChannels; i++, from += grad_map.channel_stride) {
        const int number = i < my_channels ? argmax[from] : -1;
        if (number < 0) continue;
        const Real<T> share = samples.weight(number, tile.y + row, tile.x + column);
        if (share != 0) sum[i] += share * static_cast<Real<T>>(grad[from]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kChannels; i++, from += grad_map.channel_stride) {
        if (i < my_channels) sum[i] += weight * static_cast<Real<T>>(grad[from]);
      }
    }
  };
  const auto add_roi = [&](int roi, const TileWeights<Real<T>>& weights, int first_y, int first_x) {
    const int line = kTileRows + column;
    for (int j = weights.first[row]; j <= weights.last[row]; j++) {
      for (int k = weights.first[line]; k <= weights.last[line]; k++) {
        const Real<T> weight_y = weights.weight[row][j], weight_x = weights.weight[line][k];
        if (weight_y != 0 && weight_x != 0) add_bin(roi, first_y + j, first_x + k, weight_y * weight_x);
      }
    }
  };
  visit_rois(shared_memory<TileShared<Real<T>>>(), tile, maps, rois, options, extents, add_roi);

  if (tile.y + row >= map.height || tile.x + column >= map.width) return;
  T* cell = static_cast<T*>(map.data) + tile.image * map.image_stride + first_channel * map.channel_stride +
            (tile.y + row) * map.row_stride + (tile.x + column) * map.column_stride;
#pragma unroll
  for (int i = 0; i < kChannels; i++) {
    if (i < my_channels) cell[i * map.channel_stride] = static_cast<T>(sum[i]);
  }
}

}  // namespace maskrcnn::cuda
