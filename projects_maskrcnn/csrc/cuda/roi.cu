// The RoI operators on a GPU: checks, allocation, choice of the kernel.
#include <numeric>

#include "host.cuh"
#include "roi_average.cuh"
#include "roi_backward.cuh"
#include "roi_max.cuh"

namespace maskrcnn::cuda {

namespace {

Map map_of(const Tensor& tensor, float scale) {
  return {tensor.data_ptr(),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          tensor.stride(3),
          static_cast<int>(tensor.size(2)),
          static_cast<int>(tensor.size(3)),
          scale};
}

Maps maps_of(const Tensors& tensors, const Rois& rois) {
  Maps maps{};
  for (size_t i = 0; i < tensors.size(); i++) maps.level[i] = map_of(tensors[i], rois.scales[i]);
  return maps;
}

/// The launches that all RoIs take: a kernel's arguments have room for the counts of some images only.
std::vector<LaunchRois> launches_of(const Rois& rois, const Ints& boxes_per_image) {
  MASKRCNN_CHECK(rois.size() <= INT32_MAX && rois.num_images <= INT32_MAX, "too many boxes or images: ", rois.size(),
                 ", ", rois.num_images);
  LaunchRois launch{};
  launch.boxes = static_cast<const float*>(rois.boxes.data_ptr());
  launch.columns = static_cast<int>(rois.boxes.size(1));
  const int num_images = static_cast<int>(rois.num_images);
  if (rois.indexed()) {
    launch.end = static_cast<int>(rois.size());
    launch.end_image = num_images;
    return {launch};
  }
  std::vector<LaunchRois> launches;
  for (int image = 0; image < num_images; image += kImagesPerLaunch) {
    launch.first = launch.end;
    launch.first_image = image;
    launch.end_image = std::min(image + kImagesPerLaunch, num_images);
    launch.image_begin[0] = launch.first;
    for (int i = image; i < launch.end_image; i++) {
      launch.end += static_cast<int>(boxes_per_image[i]);
      launch.image_begin[i - image + 1] = launch.end;
    }
    launches.push_back(launch);
  }
  return launches;
}

/// Whether the channels of each cell lie side by side, in whole packs, aligned, and not too far from an image's first.
bool packed(const Tensors& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor& t) {
    const auto in_packs = [&](int64_t elements) { return elements * t.element_size() % 16 == 0; };
    const int64_t farthest = (t.size(2) - 1) * t.stride(2) + (t.size(3) - 1) * t.stride(3);
    if (farthest * t.element_size() / 16 > UINT32_MAX) return false;
    return t.element_size() <= 4 && t.stride(1) == 1 && in_packs(t.size(1)) && in_packs(t.stride(0)) &&
           in_packs(t.stride(2)) && in_packs(t.stride(3)) && reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
  });
}

int num_channels(const Tensor& tensor) {
  MASKRCNN_CHECK(tensor.size(1) <= INT32_MAX, "too many channels: ", tensor.size(1));
  return static_cast<int>(tensor.size(1));
}

/// The layout that the kernels for gradients know: the one of the maps.
Tensor in_layout(const Tensor& tensor, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::contiguous(tensor, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

/// The gradients' maps, their tiles, and what else the kernels for gradients share.
struct Gradients {
  Tensors maps;
  Tiles tiles{};
  Tensor extents;

  Gradients(const Tensor& grad, const Rois& rois, const Ints& heights, const Ints& widths, bool channels_last)
      : extents(torch::stable::new_empty(rois.boxes, {rois.size() * static_cast<int64_t>(sizeof(Extent) / 4)},
                                         ScalarType::Int)) {
    int64_t total = 0;
    for (size_t i = 0; i < heights.size(); i++) {
      maps.push_back(
          empty_map(grad, grad.scalar_type(), {rois.num_images, grad.size(1), heights[i], widths[i]}, channels_last));
      const int64_t columns = ceil_div(widths[i], kTileColumns);
      total += columns * ceil_div(heights[i], kTileRows);
      MASKRCNN_CHECK(total <= INT32_MAX, "the maps are too large: ", total, " tiles");
      tiles.columns[i] = static_cast<int>(columns);
      tiles.first[i + 1] = static_cast<int>(total);
    }
  }
};

template <class T, bool kMaximum>
void launch_backward_scalar(const Gradients& gradients, const Maps& maps, const LaunchRois& launch_rois,
                            const Options& options, const Tensor& grad, const int* argmax, int64_t blocks,
                            cudaStream_t stream) {
  constexpr int kChannels = kMaximum ? 4 : 16;  // of a thread
  launch(roi_backward_scalar<T, kMaximum, kChannels>, blocks, ceil_div(grad.size(1), kChannels * kWarps), stream, maps,
         launch_rois, options, gradients.tiles, map_of(grad, 1),
         static_cast<const Extent*>(gradients.extents.data_ptr()), argmax, num_channels(grad));
}

/// Args: argmax: null for the gradient of the mean.
Tensors backward(const Tensor& some_grad, const Tensor* some_argmax, const Rois& rois, const Ints& boxes_per_image,
                 const Ints& heights, const Ints& widths, bool channels_last) {
  const OnDevice device(some_grad);
  const Tensor grad = in_layout(some_grad, channels_last);
  const Tensor argmax = some_argmax == nullptr ? grad : in_layout(*some_argmax, channels_last);
  const Gradients gradients(grad, rois, heights, widths, channels_last);
  const Maps maps = maps_of(gradients.maps, rois);
  auto* extents = static_cast<Extent*>(gradients.extents.data_ptr());
  for (const LaunchRois& launch_rois : launches_of(rois, boxes_per_image)) {
    launch(roi_extents, ceil_div(launch_rois.end - launch_rois.first, kThreads), 1, device.stream, maps, launch_rois,
           rois.options, extents);
    const int64_t images = launch_rois.end_image - launch_rois.first_image;
    const int64_t blocks = images * gradients.tiles.first[rois.options.num_levels];
    for_native_dtype(grad.scalar_type(), "grad", [&](auto zero) {
      using T = decltype(zero);
      if (some_argmax != nullptr) {
        launch_backward_scalar<T, true>(gradients, maps, launch_rois, rois.options, grad,
                                        static_cast<const int*>(argmax.data_ptr()), blocks, device.stream);
        return;
      }
      if constexpr (sizeof(T) <= 4) {
        if (packed(gradients.maps) && packed({grad})) {
          launch(roi_average_backward_packed<T>, blocks, ceil_div(grad.size(1), kWarp * Pack<T>::kSize), device.stream,
                 maps, launch_rois, rois.options, gradients.tiles, extents, static_cast<const T*>(grad.data_ptr()),
                 num_channels(grad));
          return;
        }
      }
      launch_backward_scalar<T, false>(gradients, maps, launch_rois, rois.options, grad, nullptr, blocks,
                                       device.stream);
    });
  }
  return gradients.maps;
}

}  // namespace

Tensor roi_average(Tensors features, Tensor boxes, Ints boxes_per_image, Floats scales, int64_t bins_y, int64_t bins_x,
                   int64_t sampling_ratio, bool aligned, int64_t rounding, double canonical_box_size,
                   int64_t canonical_level) {
  const Rois rois = check_features(features, boxes, boxes_per_image, scales, bins_y, bins_x, sampling_ratio, aligned,
                                   rounding, canonical_box_size, canonical_level);
  const OnDevice device(features[0]);
  const bool last = channels_last(features[0]);
  const int channels = num_channels(features[0]);
  Tensor out = empty_map(features[0], features[0].scalar_type(), {rois.size(), channels, bins_y, bins_x}, last);
  const Maps maps = maps_of(features, rois);
  for (const LaunchRois& launch_rois : launches_of(rois, boxes_per_image)) {
    const int64_t count = launch_rois.end - launch_rois.first;
    for_native_dtype(out.scalar_type(), "features", [&](auto zero) {
      using T = decltype(zero);
      T* data = static_cast<T*>(out.data_ptr());
      if constexpr (sizeof(T) <= 4) {
        if (last && packed(features)) {
          launch(roi_average_packed<T>, count, ceil_div(channels, kWarp * Pack<T>::kSize), device.stream, maps,
                 launch_rois, rois.options, channels, data);
          return;
        }
      }
      launch(roi_average_scalar<T>, count, ceil_div(channels, kScalarChannels), device.stream, maps, launch_rois,
             rois.options, channels, last, data);
    });
  }
  return out;
}

Tensors roi_average_backward(Tensor grad, Tensor boxes, Ints boxes_per_image, Floats scales, int64_t num_images,
                             Ints heights, Ints widths, int64_t sampling_ratio, bool aligned, int64_t rounding,
                             double canonical_box_size, int64_t canonical_level, bool channels_last) {
  const Rois rois = check_gradient(grad, boxes, boxes_per_image, scales, num_images, heights, widths, sampling_ratio,
                                   aligned, rounding, canonical_box_size, canonical_level);
  return backward(grad, nullptr, rois, boxes_per_image, heights, widths, channels_last);
}

std::tuple<Tensor, Tensor> roi_max(Tensors features, Tensor boxes, Ints boxes_per_image, Floats scales, int64_t bins_y,
                                   int64_t bins_x, int64_t sampling_ratio, bool aligned, int64_t rounding,
                                   double canonical_box_size, int64_t canonical_level) {
  const Rois rois = check_features(features, boxes, boxes_per_image, scales, bins_y, bins_x, sampling_ratio, aligned,
                                   rounding, canonical_box_size, canonical_level);
  const OnDevice device(features[0]);
  const bool last = channels_last(features[0]);
  const int channels = num_channels(features[0]);
  const Ints sizes{rois.size(), channels, bins_y, bins_x};
  Tensor out = empty_map(features[0], features[0].scalar_type(), sizes, last);
  Tensor argmax = empty_map(features[0], ScalarType::Int, sizes, last);
  const Maps maps = maps_of(features, rois);
  constexpr int kOutputsPerThread = 4;
  const int64_t blocks = ceil_div(bins_y * bins_x * channels, kThreads * kOutputsPerThread);
  for (const LaunchRois& launch_rois : launches_of(rois, boxes_per_image)) {
    for_native_dtype(out.scalar_type(), "features", [&](auto zero) {
      using T = decltype(zero);
      launch(roi_max_kernel<T>, launch_rois.end - launch_rois.first, std::min<int64_t>(blocks, 65535), device.stream,
             maps, launch_rois, rois.options, channels, last, static_cast<T*>(out.data_ptr()),
             static_cast<int*>(argmax.data_ptr()));
    });
  }
  return {out, argmax};
}

Tensors roi_max_backward(Tensor grad, Tensor argmax, Tensor boxes, Ints boxes_per_image, Floats scales,
                         int64_t num_images, Ints heights, Ints widths, int64_t sampling_ratio, bool aligned,
                         int64_t rounding, double canonical_box_size, int64_t canonical_level, bool channels_last) {
  const Rois rois = check_gradient(grad, boxes, boxes_per_image, scales, num_images, heights, widths, sampling_ratio,
                                   aligned, rounding, canonical_box_size, canonical_level);
  check_argmax(argmax, grad);
  return backward(grad, &argmax, rois, boxes_per_image, heights, widths, channels_last);
}

}  // namespace maskrcnn::cuda
