// What the RoI operators share on a CPU: their maps, their RoIs, and how threads share the work.
#pragma once

#include <atomic>
#include <memory>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../tensors.h"
#include "kernels.h"

namespace maskrcnn::cpu {

/// Runs `worker(next)` on every thread; `next()` hands out 0, 1, 2 ...; the worker stops at the end it knows.
template <class Worker>
void share_work(int64_t items, const Worker& worker) {
  std::atomic<int64_t> counter{0};
  const int64_t threads = std::min<int64_t>(items, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { worker([&] { return counter++; }); });
}

/// Gets the pages of new memory, in large ones where the system offers them: small ones cost as much as pooling does.
/// The threads get different ones; later, when they write side by side, they would wait for each other.
inline void get_pages(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 1 << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (end <= begin) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  torch::stable::parallel_for(0, (end - begin) / page, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) *reinterpret_cast<volatile char*>(begin + i * page) = 0;
  });
#endif
}

inline Tensor empty(const Tensor& like, ScalarType type, const Ints& sizes, bool channels_last) {
  Tensor result = empty_map(like, type, sizes, channels_last);
  get_pages(result.data_ptr(), result.numel() * result.element_size());
  return result;
}

template <class T>
struct Map {
  T* data;
  int64_t image_stride, channel_stride, row_stride, column_stride;
  int height, width;
};

template <class T>
std::vector<Map<T>> maps_of(const Tensors& tensors) {
  std::vector<Map<T>> maps;
  for (const Tensor& t : tensors)
    maps.push_back({reinterpret_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3),
                    static_cast<int>(t.size(2)), static_cast<int>(t.size(3))});
  return maps;
}

/// Image, level and corners of one RoI.
struct Roi {
  int64_t image;
  int level;
  const float* box;

  template <class Real, class MapT>
  Axis<Real> y(const Rois& rois, const MapT& map) const {
    return {box[1], box[3], rois.scales[level], rois.options.bins_y, map.height, rois.options};
  }
  template <class Real, class MapT>
  Axis<Real> x(const Rois& rois, const MapT& map) const {
    return {box[0], box[2], rois.scales[level], rois.options.bins_x, map.width, rois.options};
  }
};

/// Raises std::runtime_error: an image index is out of range.
inline std::vector<Roi> list_rois(const Rois& rois, const Ints& boxes_per_image) {
  std::vector<Roi> list(rois.size());
  const float* data = static_cast<const float*>(rois.boxes.data_ptr());
  const int64_t width = rois.boxes.size(1);
  int64_t image = 0, left = boxes_per_image.empty() ? 0 : boxes_per_image[0];
  for (int64_t r = 0; r < rois.size(); r++) {
    const float* row = data + r * width;
    if (rois.indexed()) {
      MASKRCNN_CHECK(row[0] >= 0 && row[0] < rois.num_images, "image index ", row[0], " of RoI ", r,
                     " is out of range: features hold ", rois.num_images, " images");
      image = static_cast<int64_t>(row[0]);
    } else {
      while (left == 0) left = boxes_per_image[++image];
      left--;
    }
    const float* box = row + (rois.indexed() ? 1 : 0);
    list[r] = {image, level_of(box, rois.options), box};
  }
  return list;
}

inline int64_t bins_of(const Rois& rois) { return static_cast<int64_t>(rois.options.bins_y) * rois.options.bins_x; }

/// An order in which neighbours on a map follow each other, so that what one RoI has read the next finds in the cache.
inline std::vector<int64_t> by_place(const Rois& rois, const std::vector<Roi>& list) {
  constexpr float band = 16;  // cells
  std::vector<std::tuple<int, int64_t, float, float, int64_t>> keys(list.size());
  for (size_t r = 0; r < list.size(); r++) {
    const float scale = rois.scales[list[r].level] / 2;
    const float y = (list[r].box[1] + list[r].box[3]) * scale, x = (list[r].box[0] + list[r].box[2]) * scale;
    const bool finite = std::isfinite(y) && std::isfinite(x);
    keys[r] = {list[r].level, list[r].image, finite ? std::floor(y / band) : 0, finite ? x : 0, r};
  }
  std::sort(keys.begin(), keys.end());
  std::vector<int64_t> order(list.size());
  for (size_t i = 0; i < order.size(); i++) order[i] = std::get<4>(keys[i]);
  return order;
}

/// A block of channels of the cells that an RoI touches: in place where the map's layout allows, else packed.
template <class T>
struct Cells {
  using Real = Sum<T>;
  const Real* data;
  int64_t row_stride, column_stride;
};

template <class T>
Cells<T> cells_of(const Map<const T>& map, int64_t image, int y, int x, int rows, int columns, int64_t channel,
                  int channels, const uint8_t* used_rows, std::vector<Sum<T>>& scratch) {
  using Real = Sum<T>;
  const T* corner =
      map.data + image * map.image_stride + channel * map.channel_stride + y * map.row_stride + x * map.column_stride;
  if constexpr (std::is_same_v<T, Real>) {
    if (map.channel_stride == 1 && channels == kBlock<Real>) return {corner, map.row_stride, map.column_stride};
  }
  const int64_t row_size = static_cast<int64_t>(columns) * kBlock<Real>;
  if (static_cast<int64_t>(scratch.size()) < rows * row_size) scratch.resize(rows * row_size);
  kernels().roi<T>().pack(
      {corner, map.channel_stride, map.row_stride, map.column_stride, rows, columns, map.width - x, used_rows},
      channels, scratch.data());
  return {scratch.data(), row_size, kBlock<Real>};
}

inline Tensors empty_gradients(const Tensor& grad, int64_t num_images, const Ints& heights, const Ints& widths,
                               bool channels_last) {
  Tensors result;
  for (size_t level = 0; level < heights.size(); level++)
    result.push_back(
        empty(grad, grad.scalar_type(), {num_images, grad.size(1), heights[level], widths[level]}, channels_last));
  return result;
}

}  // namespace maskrcnn::cpu
