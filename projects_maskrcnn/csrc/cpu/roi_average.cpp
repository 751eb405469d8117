// The mean of each bin's samples, and its gradient.
//
// An average over bilinear samples factors: per channel, out = Wy F Wx^T with one sparse matrix for each axis, and the
// gradient is Wy^T G Wx. Forward, the threads share the RoIs. Backward, they share the rows of the maps: each row
// gathers from the RoIs that cross it, in their order, and is written once. So there are no races, and the bits do not
// depend on the number of threads.
#include "roi.h"

namespace maskrcnn::cpu {

namespace {

/// The weights of cells in bins along one axis: a row for each bin. Columns count from cell `low` on.
template <class Real>
struct Weights {
  int low = 0, cells = 0;
  std::vector<int32_t> first, index;
  std::vector<Real> weight;

  void build(const Axis<Real>& axis) {
    first.assign(1, 0);
    index.clear();
    weight.clear();
    for (int bin = 0; bin < axis.bins; bin++) {
      Real start;
      const int samples = axis.samples(bin, start);
      const Real share = axis.share(samples);
      for (int k = 0; k < samples; k++) {
        Sample<Real> sample;
        if (!axis.at(bin, start + k, sample)) continue;
        add(sample.low, (1 - sample.fraction) * share);
        if (sample.high != sample.low) add(sample.high, sample.fraction * share);
      }
      first.push_back(static_cast<int32_t>(index.size()));
    }
    const auto range = std::minmax_element(index.begin(), index.end());
    low = index.empty() ? 0 : *range.first;
    cells = index.empty() ? 0 : *range.second - low + 1;
    for (int32_t& cell : index) cell -= low;
  }

  /// A row for each cell.
  Weights transposed() const {
    Weights result;
    result.low = low;
    result.cells = cells;
    result.first.assign(cells + 1, 0);
    result.index.resize(index.size());
    result.weight.resize(index.size());
    for (int32_t cell : index) result.first[cell + 1]++;
    for (int cell = 0; cell < cells; cell++) result.first[cell + 1] += result.first[cell];
    std::vector<int32_t> next(result.first.begin(), result.first.end() - 1);
    for (int bin = 0; bin + 1 < static_cast<int>(first.size()); bin++)
      for (int k = first[bin]; k < first[bin + 1]; k++) {
        const int32_t to = next[index[k]]++;
        result.index[to] = bin;
        result.weight[to] = weight[k];
      }
    return result;
  }

  SparseRows<Real> view() const {
    return {static_cast<int>(first.size()) - 1, first.data(), index.data(), weight.data()};
  }

 private:
  /// Samples come in order, so a cell that the bin has already is among its last two.
  void add(int cell, Real share) {
    const size_t begin = first.back();
    for (size_t k = index.size(); k > begin && k + 2 > index.size(); k--)
      if (index[k - 1] == cell) {
        weight[k - 1] += share;
        return;
      }
    index.push_back(cell);
    weight.push_back(share);
  }
};

/// Maps of channels last or of any strides: the threads share the RoIs.
template <class T>
void average_of_cells(const std::vector<Map<const T>>& maps, const Rois& rois, const std::vector<Roi>& list,
                      const std::vector<int64_t>& order, const Map<T>& out, int64_t channels) {
  using Real = Sum<T>;
  const RoiKernels<T>& kernel = kernels().roi<T>();
  const int bins = rois.options.bins_y * rois.options.bins_x;
  const int64_t bin_stride = out.channel_stride == 1 ? channels : 1;
  share_work(order.size(), [&](auto next) {
    Weights<Real> y, x;
    std::vector<Real> scratch, sums(static_cast<size_t>(bins) * kBlock<Real>);
    std::vector<uint8_t> used;
    for (size_t i; (i = next()) < order.size();) {
      const int64_t r = order[i];
      const Map<const T>& map = maps[list[r].level];
      y.build(list[r].y<Real>(rois, map));
      x.build(list[r].x<Real>(rois, map));
      used.assign(y.cells, 0);
      for (int32_t cell : y.index) used[cell] = 1;
      T* to = out.data + r * out.image_stride;
      int64_t done = 0;
      if constexpr (std::is_same_v<T, Real>) {
        if (map.channel_stride == 1 && out.channel_stride == 1) {
          const int blocks = static_cast<int>(channels / kBlock<Real>);
          const T* corner =
              map.data + list[r].image * map.image_stride + y.low * map.row_stride + x.low * map.column_stride;
          kernel.sum_bins(corner, map.row_stride, map.column_stride, blocks, y.view(), x.view(), to, channels);
          done = blocks * kBlock<Real>;
        }
      }
      for (; done < channels; done += kBlock<Real>) {
        const int count = static_cast<int>(std::min<int64_t>(kBlock<Real>, channels - done));
        const Cells<T> cells =
            cells_of(map, list[r].image, y.low, x.low, y.cells, x.cells, done, count, used.data(), scratch);
        kernel.sum_bins(cells.data, cells.row_stride, cells.column_stride, 1, y.view(), x.view(), sums.data(),
                        kBlock<Real>);
        kernel.unpack(sums.data(), bins, count, out.channel_stride, bin_stride, to + done * out.channel_stride);
      }
    }
  });
}

/// An RoI on a map whose columns lie together.
struct ColumnRoi {
  int64_t index;
  bool fits;    // whether the map is wide enough
  int low;      // the first column
  int columns;  // in whole vectors of eight
  Weights<float> y, x;

  template <class T>
  void build(const Rois& rois, const Roi& roi, int64_t roi_index, const Map<const T>& map) {
    index = roi_index;
    y.build(roi.y<float>(rois, map));
    x.build(roi.x<float>(rois, map));
    columns = (x.cells + 7) / 8 * 8;
    fits = columns <= map.width;
    low = std::min(x.low, map.width - columns);
    for (int32_t& column : x.index) column += x.low - low;
  }

  /// The cells that it touches, from `channel` on.
  template <class T>
  Patch<T> patch(const Map<const T>& map, int64_t image, int64_t channel) const {
    const T* corner = map.data + image * map.image_stride + channel * map.channel_stride + y.low * map.row_stride + low;
    return {corner, map.channel_stride, map.row_stride, 1, y.cells, columns, 0, nullptr};
  }
};

/// The threads share blocks of channels of stretches of RoIs, so that a block's part of the map stays in the cache.
template <class T>
void sum_columns(const std::vector<ColumnRoi>& rois, int64_t count, const std::vector<Map<const T>>& maps,
                 const std::vector<Roi>& list, const Map<T>& out, int64_t channels) {
  constexpr int64_t kRois = 128, kChannels = 8;
  const int64_t blocks = (channels + kChannels - 1) / kChannels;
  const int64_t items = (count + kRois - 1) / kRois * blocks;
  share_work(items, [&](auto next) {
    std::vector<float> scratch;
    for (int64_t item; (item = next()) < items;) {
      const int64_t channel = item % blocks * kChannels, first = item / blocks * kRois;
      const int64_t last = std::min(count, first + kRois);
      const int in_block = static_cast<int>(std::min(kChannels, channels - channel));
      const auto patch_of = [&](int64_t i) {
        const Roi& roi = list[rois[i].index];
        return rois[i].patch(maps[roi.level], roi.image, channel);
      };
      for (int64_t i = first; i < last; i++) {
        const ColumnRoi& roi = rois[i];
        if (!roi.fits) continue;
        const Patch<T> cells = patch_of(i);
        const Patch<T> ahead = i + 1 < last && rois[i + 1].fits ? patch_of(i + 1) : Patch<T>{};
        const int64_t bins = static_cast<int64_t>(out.height) * out.width;
        scratch.resize(std::max<size_t>(scratch.size(), (roi.columns + bins) * 8));
        kernels().roi<T>().sum_columns(cells, in_block, roi.y.view(), roi.x.view(), ahead, scratch.data(),
                                       out.data + roi.index * out.image_stride + channel * out.channel_stride);
      }
    }
  });
}

/// Maps whose columns lie together. Returns the RoIs that this way does not fit.
template <class T>
std::vector<int64_t> average_of_columns(const std::vector<Map<const T>>& maps, const Rois& rois,
                                        const std::vector<Roi>& list, const std::vector<int64_t>& order,
                                        const Map<T>& out, int64_t channels) {
  constexpr int64_t kPrepared = 4096;  // RoIs whose weights are in memory at a time
  std::vector<ColumnRoi> prepared(std::min<int64_t>(order.size(), kPrepared));
  std::vector<int64_t> others;
  for (size_t begin = 0; begin < order.size(); begin += kPrepared) {
    const int64_t count = std::min<int64_t>(kPrepared, order.size() - begin);
    torch::stable::parallel_for(0, count, 16, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; i++) {
        const int64_t r = order[begin + i];
        prepared[i].build(rois, list[r], r, maps[list[r].level]);
      }
    });
    for (int64_t i = 0; i < count; i++)
      if (!prepared[i].fits) others.push_back(prepared[i].index);
    sum_columns(prepared, count, maps, list, out, channels);
  }
  return others;
}

template <class T>
void average(const std::vector<Map<const T>>& maps, const Rois& rois, const std::vector<Roi>& list, const Map<T>& out,
             int64_t channels) {
  std::vector<int64_t> order = by_place(rois, list);
  if constexpr (std::is_same_v<Sum<T>, float>) {
    const bool columns = std::all_of(maps.begin(), maps.end(), [](const auto& map) { return map.column_stride == 1; });
    if (columns && out.channel_stride == bins_of(rois))
      order = average_of_columns(maps, rois, list, order, out, channels);
  }
  average_of_cells(maps, rois, list, order, out, channels);
}

/// The weights of an RoI's bins: a row for each cell that it touches.
template <class Real>
struct CellWeights {
  Weights<Real> y, x;
};

template <class T>
std::vector<CellWeights<Sum<T>>> weights_by_cell(const Rois& rois, const std::vector<Roi>& list,
                                                 const std::vector<Map<T>>& maps) {
  using Real = Sum<T>;
  std::vector<CellWeights<Real>> weights(list.size());
  torch::stable::parallel_for(0, list.size(), 16, [&](int64_t begin, int64_t end) {
    Weights<Real> by_bin;
    for (int64_t r = begin; r < end; r++) {
      const Map<T>& map = maps[list[r].level];
      by_bin.build(list[r].y<Real>(rois, map));
      weights[r].y = by_bin.transposed();
      by_bin.build(list[r].x<Real>(rois, map));
      weights[r].x = by_bin.transposed();
    }
  });
  return weights;
}

/// A row of cells of a map, and the RoIs that cross it.
template <class T>
struct Row {
  const Map<T>& map;
  int64_t image;
  int64_t at;  // among the map's rows
  const int64_t *begin, *end;

  T* data() const { return map.data + image * map.image_stride + at * map.row_stride; }
};

/// The rows of all maps, in one list.
struct RowLists {
  std::vector<int64_t> first_row;   // of each level; the rows of an image lie together
  std::vector<int64_t> first, roi;  // compressed rows

  template <class MapT, class Real>
  RowLists(const std::vector<MapT>& maps, int64_t num_images, const std::vector<Roi>& list,
           const std::vector<CellWeights<Real>>& weights) {
    first_row.assign(1, 0);
    for (const MapT& map : maps) first_row.push_back(first_row.back() + num_images * map.height);
    first.assign(first_row.back() + 1, 0);
    const auto row_of = [&](size_t r) {
      return first_row[list[r].level] + list[r].image * maps[list[r].level].height + weights[r].y.low;
    };
    for (size_t r = 0; r < list.size(); r++)
      for (int i = 0; i < weights[r].y.cells; i++) first[row_of(r) + i + 1]++;
    for (size_t row = 0; row + 1 < first.size(); row++) first[row + 1] += first[row];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    roi.resize(first.back());
    for (size_t r = 0; r < list.size(); r++)
      for (int i = 0; i < weights[r].y.cells; i++) roi[next[row_of(r) + i]++] = r;
  }

  /// The threads share the rows: calls visit(Row) for each of a thread's.
  template <class T, class MakeVisit>
  void share(const std::vector<Map<T>>& maps, MakeVisit make_visit) const {
    share_work(first_row.back(), [&](auto next) {
      auto visit = make_visit();
      for (int64_t row; (row = next()) < first_row.back();) {
        int level = 0;
        while (row >= first_row[level + 1]) level++;
        const int64_t in_level = row - first_row[level];
        visit(Row<T>{maps[level], in_level / maps[level].height, in_level % maps[level].height, roi.data() + first[row],
                     roi.data() + first[row + 1]});
      }
    });
  }
};

/// Adds to `cells`, of a row from its first column on, what the bins of RoI `r` pass back to them, for a block of
/// channels. The next bin's gradient lies `bin_stride` ahead of `bins`, the next cell's `cell_stride` ahead of `cells`.
template <class T, class Real = Sum<T>>
void spread(const CellWeights<Real>& weights, int64_t row, const Real* bins, int64_t bin_stride, int bins_x,
            Real* scratch, Real* cells, int64_t cell_stride) {
  const auto& [y, x] = weights;
  const int32_t begin = y.first[row - y.low], end = y.first[row - y.low + 1];
  kernels().roi<T>().spread_bins(bins, bin_stride, bins_x, end - begin, y.index.data() + begin, y.weight.data() + begin,
                                 x.view(), scratch, cells + x.low * cell_stride, cell_stride);
}

/// Where all channels of a cell, and of a bin, lie side by side in whole blocks: rows are summed where they shall be.
template <class T>
void spread_in_place(const Map<const T>& grad, const std::vector<CellWeights<T>>& weights, const RowLists& lists,
                     const std::vector<Map<T>>& maps, int64_t channels) {
  lists.share(maps, [&] {
    return [&, scratch = std::vector<T>(static_cast<size_t>(grad.width) * kBlock<T>)](const Row<T>& row) mutable {
      T* cells = row.data();
      std::memset(cells, 0, sizeof(T) * row.map.width * channels);
      for (const int64_t* r = row.begin; r < row.end; r++)
        for (int64_t channel = 0; channel < channels; channel += kBlock<T>)
          spread<T>(weights[*r], row.at, grad.data + *r * grad.image_stride + channel, grad.column_stride, grad.width,
                    scratch.data(), cells + channel, row.map.column_stride);
    };
  });
}

/// In any layout: a block of channels at a time, packed.
template <class T>
void spread_packed(const Map<const T>& grad, const std::vector<CellWeights<Sum<T>>>& weights, const RowLists& lists,
                   const std::vector<Map<T>>& maps, int64_t channels) {
  using Real = Sum<T>;
  const RoiKernels<T>& kernel = kernels().roi<T>();
  const int64_t rois = weights.size();
  const int bins = grad.height * grad.width;
  const bool flat = grad.row_stride == grad.width * grad.column_stride;
  const int rows = flat ? 1 : grad.height, columns = flat ? bins : grad.width;
  const std::unique_ptr<Real[]> packed(new Real[rois * bins * kBlock<Real>]);
  get_pages(packed.get(), sizeof(Real) * rois * bins * kBlock<Real>);
  int widest = 0;
  for (const Map<T>& map : maps) widest = std::max(widest, map.width);

  for (int64_t channel = 0; channel < channels; channel += kBlock<Real>) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock<Real>, channels - channel));
    torch::stable::parallel_for(0, rois, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        kernel.pack({grad.data + r * grad.image_stride + channel * grad.channel_stride, grad.channel_stride,
                     grad.row_stride, grad.column_stride, rows, columns, columns, nullptr},
                    count, packed.get() + r * bins * kBlock<Real>);
    });
    lists.share(maps, [&] {
      return [&, scratch = std::vector<Real>(static_cast<size_t>(grad.width) * kBlock<Real>),
              cells = std::vector<Real>(static_cast<size_t>(widest) * kBlock<Real>)](const Row<T>& row) mutable {
        std::memset(cells.data(), 0, sizeof(Real) * row.map.width * kBlock<Real>);
        for (const int64_t* r = row.begin; r < row.end; r++)
          spread<T>(weights[*r], row.at, packed.get() + *r * bins * kBlock<Real>, kBlock<Real>, grad.width,
                    scratch.data(), cells.data(), kBlock<Real>);
        kernel.unpack(cells.data(), row.map.width, count, row.map.channel_stride, row.map.column_stride,
                      row.data() + channel * row.map.channel_stride);
      };
    });
  }
}

template <class T>
void average_backward(const Map<const T>& grad, const Rois& rois, const std::vector<Roi>& list,
                      const std::vector<Map<T>>& maps, int64_t channels) {
  const std::vector<CellWeights<Sum<T>>> weights = weights_by_cell(rois, list, maps);
  const RowLists lists(maps, rois.num_images, list, weights);
  if constexpr (std::is_same_v<T, Sum<T>>) {
    const auto together = [&](const auto& map) { return map.channel_stride == 1 && map.column_stride == channels; };
    if (channels % kBlock<T> == 0 && together(grad) && grad.row_stride == grad.width * channels &&
        std::all_of(maps.begin(), maps.end(), together))
      return spread_in_place(grad, weights, lists, maps, channels);
  }
  spread_packed(grad, weights, lists, maps, channels);
}

}  // namespace

Tensor roi_average(Tensors features, Tensor boxes, Ints boxes_per_image, Floats scales, int64_t bins_y, int64_t bins_x,
                   int64_t sampling_ratio, bool aligned, int64_t rounding, double canonical_box_size,
                   int64_t canonical_level) {
  const Rois rois = check_features(features, boxes, boxes_per_image, scales, bins_y, bins_x, sampling_ratio, aligned,
                                   rounding, canonical_box_size, canonical_level);
  const std::vector<Roi> list = list_rois(rois, boxes_per_image);
  const int64_t channels = features[0].size(1);
  Tensor out = empty(features[0], features[0].scalar_type(), {rois.size(), channels, bins_y, bins_x},
                     channels_last(features[0]));
  for_dtype(out.scalar_type(), "features", [&](auto zero) {
    using T = decltype(zero);
    average<T>(maps_of<const T>(features), rois, list, maps_of<T>({out})[0], channels);
  });
  return out;
}

Tensors roi_average_backward(Tensor grad, Tensor boxes, Ints boxes_per_image, Floats scales, int64_t num_images,
                             Ints heights, Ints widths, int64_t sampling_ratio, bool aligned, int64_t rounding,
                             double canonical_box_size, int64_t canonical_level, bool channels_last) {
  const Rois rois = check_gradient(grad, boxes, boxes_per_image, scales, num_images, heights, widths, sampling_ratio,
                                   aligned, rounding, canonical_box_size, canonical_level);
  const std::vector<Roi> list = list_rois(rois, boxes_per_image);
  Tensors result = empty_gradients(grad, num_images, heights, widths, channels_last);
  for_dtype(grad.scalar_type(), "grad", [&](auto zero) {
    using T = decltype(zero);
    average_backward<T>(maps_of<const T>({grad})[0], rois, list, maps_of<T>(result), grad.size(1));
  });
  return result;
}

}  // namespace maskrcnn::cpu
