// Checks and allocation that the operators share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "ops.h"
#include "sampling.h"

namespace maskrcnn {

using torch::headeronly::ScalarType;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); i++) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + ")";
}

/// Calls `f(T())` with the type of features that `type` names.
template <class F>
auto for_dtype(ScalarType type, const char* name, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float());
    case ScalarType::Double:
      return f(double());
    case ScalarType::Half:
      return f(torch::headeronly::Half());
    case ScalarType::BFloat16:
      return f(torch::headeronly::BFloat16());
    default:
      MASKRCNN_CHECK(false, name, " must be float64, float32, float16 or bfloat16");
  }
}

inline bool is_floating(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

/// Whether what is made from `tensor` (N, C, H, W) keeps channels last.
inline bool channels_last(const Tensor& tensor) { return !tensor.is_contiguous() && tensor.stride(1) == 1; }

inline Tensor empty_map(const Tensor& like, ScalarType type, const Ints& sizes, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

/// The RoIs of a call: `boxes` (R, 4) with counts for each image, or (R, 5) with the image's index before the corners.
struct Rois {
  Tensor boxes;
  int64_t num_images;
  Options options;
  std::vector<float> scales;

  int64_t size() const { return boxes.size(0); }
  bool indexed() const { return boxes.size(1) == 5; }
};

/// Raises std::runtime_error: with the name of the argument that is wrong.
inline Rois check_rois(const Tensor& boxes, const Ints& boxes_per_image, const Floats& scales, int64_t num_images,
                       int64_t bins_y, int64_t bins_x, int64_t sampling_ratio, bool aligned, int64_t rounding,
                       double canonical_box_size, int64_t canonical_level) {
  MASKRCNN_CHECK(boxes.scalar_type() == ScalarType::Float, "boxes must be float32");
  MASKRCNN_CHECK(boxes.dim() == 2 && (boxes.size(1) == 4 || boxes.size(1) == 5),
                 "boxes must have shape (R, 4) or, with the image's index first, (R, 5); got ", shape_of(boxes));
  if (boxes.size(1) == 4) {
    MASKRCNN_CHECK(static_cast<int64_t>(boxes_per_image.size()) == num_images, "features of ", num_images,
                   " images, but boxes_per_image counts those of ", boxes_per_image.size());
    int64_t total = 0;
    for (int64_t count : boxes_per_image) {
      MASKRCNN_CHECK(count >= 0, "boxes_per_image must not be negative; got ", count);
      total += count;
    }
    MASKRCNN_CHECK(total == boxes.size(0), "boxes_per_image adds up to ", total, ", but there are ", boxes.size(0),
                   " boxes");
  }
  MASKRCNN_CHECK(!scales.empty() && scales.size() <= kMaxLevels, "scales must have 1 to ", kMaxLevels, " levels; got ",
                 scales.size());
  for (double scale : scales) MASKRCNN_CHECK(scale > 0 && std::isfinite(scale), "scales must be positive; got ", scale);
  constexpr int64_t most = 1 << 15;
  MASKRCNN_CHECK(bins_y > 0 && bins_x > 0 && bins_y <= most && bins_x <= most, "the output must have 1 to ", most,
                 " bins along each axis; got ", bins_y, " x ", bins_x);
  MASKRCNN_CHECK(sampling_ratio >= 0 && sampling_ratio <= most, "sampling_ratio must be 0 (adaptive) to ", most,
                 "; got ", sampling_ratio);
  MASKRCNN_CHECK(rounding >= 0 && rounding <= 2, "rounding must be 0 (none), 1 (RoI) or 2 (RoI and bins); got ",
                 rounding);
  MASKRCNN_CHECK(canonical_box_size > 0, "canonical_box_size must be positive; got ", canonical_box_size);
  Rois rois{torch::stable::contiguous(boxes), num_images, {}, std::vector<float>(scales.begin(), scales.end())};
  rois.options.bins_y = static_cast<int>(bins_y);
  rois.options.bins_x = static_cast<int>(bins_x);
  rois.options.sampling_ratio = static_cast<int>(sampling_ratio);
  rois.options.aligned = aligned;
  rois.options.rounding = static_cast<Rounding>(rounding);
  rois.options.canonical_box_size = static_cast<float>(canonical_box_size);
  rois.options.canonical_level = static_cast<int>(canonical_level);
  rois.options.finest_level = static_cast<int>(std::lround(-std::log2(scales[0])));
  rois.options.num_levels = static_cast<int>(scales.size());
  return rois;
}

inline void check_length(int64_t height, int64_t width) {
  MASKRCNN_CHECK(height > 0 && width > 0 && height <= kMaxLength && width <= kMaxLength,
                 "features must have a cell or more along each axis, and at most 2 ** 28; got ", height, " x ", width);
}

/// `check_rois` for what pools `features`, which are checked too.
inline Rois check_features(const Tensors& features, const Tensor& boxes, const Ints& boxes_per_image,
                           const Floats& scales, int64_t bins_y, int64_t bins_x, int64_t sampling_ratio, bool aligned,
                           int64_t rounding, double canonical_box_size, int64_t canonical_level) {
  MASKRCNN_CHECK(!features.empty() && features.size() == scales.size(), "features of ", features.size(),
                 " levels, but scales of ", scales.size());
  for (const Tensor& map : features) {
    MASKRCNN_CHECK(map.dim() == 4, "features must have shape (N, C, H, W); got ", shape_of(map));
    MASKRCNN_CHECK(map.size(0) == features[0].size(0) && map.size(1) == features[0].size(1),
                   "features of all levels must agree in images and channels; got ", shape_of(features[0]), " and ",
                   shape_of(map));
    check_length(map.size(2), map.size(3));
    MASKRCNN_CHECK(map.scalar_type() == features[0].scalar_type(), "features of all levels must have one dtype");
    MASKRCNN_CHECK(map.device() == boxes.device(), "features and boxes must be on one device");
  }
  return check_rois(boxes, boxes_per_image, scales, features[0].size(0), bins_y, bins_x, sampling_ratio, aligned,
                    rounding, canonical_box_size, canonical_level);
}

/// `check_rois` for what takes `grad` (R, C, bins_y, bins_x) back to maps of these sizes, which are checked too.
inline Rois check_gradient(const Tensor& grad, const Tensor& boxes, const Ints& boxes_per_image, const Floats& scales,
                           int64_t num_images, const Ints& heights, const Ints& widths, int64_t sampling_ratio,
                           bool aligned, int64_t rounding, double canonical_box_size, int64_t canonical_level) {
  MASKRCNN_CHECK(grad.dim() == 4, "grad must have shape (R, C, bins_y, bins_x); got ", shape_of(grad));
  MASKRCNN_CHECK(grad.device() == boxes.device(), "grad and boxes must be on one device");
  MASKRCNN_CHECK(heights.size() == scales.size() && widths.size() == scales.size(), "scales of ", scales.size(),
                 " levels, but heights of ", heights.size(), " and widths of ", widths.size());
  for (size_t level = 0; level < heights.size(); level++) check_length(heights[level], widths[level]);
  Rois rois = check_rois(boxes, boxes_per_image, scales, num_images, grad.size(2), grad.size(3), sampling_ratio,
                         aligned, rounding, canonical_box_size, canonical_level);
  MASKRCNN_CHECK(grad.size(0) == rois.size(), "grad of ", grad.size(0), " RoIs, but ", rois.size(), " boxes");
  return rois;
}

inline void check_argmax(const Tensor& argmax, const Tensor& grad) {
  MASKRCNN_CHECK(argmax.scalar_type() == ScalarType::Int && shape_of(argmax) == shape_of(grad),
                 "argmax must be int32 with the shape of grad, ", shape_of(grad), "; got ", shape_of(argmax));
  MASKRCNN_CHECK(argmax.device() == grad.device(), "argmax and grad must be on one device");
}

inline void check_nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups,
                      double iou_threshold) {
  MASKRCNN_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must have shape (N, 4); got ", shape_of(boxes));
  const int64_t count = boxes.size(0);
  MASKRCNN_CHECK(count < (int64_t{1} << 31), "boxes must be fewer than 2 ** 31; got ", count);
  MASKRCNN_CHECK(scores.dim() == 1 && scores.size(0) == count, "scores must have shape (", count,
                 ",), one for each box; got ", shape_of(scores));
  MASKRCNN_CHECK(is_floating(boxes), "boxes must be float64, float32, float16 or bfloat16");
  MASKRCNN_CHECK(is_floating(scores), "scores must be float64, float32, float16 or bfloat16");
  if (groups) {
    MASKRCNN_CHECK(groups->dim() == 1 && groups->size(0) == count, "groups must have shape (", count,
                   ",), one for each box; got ", shape_of(*groups));
    MASKRCNN_CHECK(groups->scalar_type() == ScalarType::Long, "groups must be int64");
  }
  MASKRCNN_CHECK(scores.device() == boxes.device() && (!groups || groups->device() == boxes.device()),
                 "boxes, scores and groups must be on one device");
  MASKRCNN_CHECK(iou_threshold >= 0, "iou_threshold must not be negative; got ", iou_threshold);
}

inline void check_masks(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width) {
  MASKRCNN_CHECK(masks.dim() == 3, "masks must have shape (N, h, w); got ", shape_of(masks));
  MASKRCNN_CHECK(masks.size(0) == 0 || masks.numel() > 0, "masks must have a cell or more; got ", shape_of(masks));
  MASKRCNN_CHECK(boxes.dim() == 2 && boxes.size(1) == 4 && boxes.size(0) == masks.size(0), "boxes must have shape (",
                 masks.size(0), ", 4), one for each mask; got ", shape_of(boxes));
  MASKRCNN_CHECK(is_floating(masks), "masks must be float64, float32, float16 or bfloat16");
  MASKRCNN_CHECK(is_floating(boxes), "boxes must be float64, float32, float16 or bfloat16");
  MASKRCNN_CHECK(masks.device() == boxes.device(), "masks and boxes must be on one device");
  constexpr int64_t most = int64_t{1} << 31;
  MASKRCNN_CHECK(height >= 0 && width >= 0 && height < most && width < most,
                 "the image's height and width must be from 0 to 2 ** 31 - 1; got ", height, " x ", width);
}

}  // namespace maskrcnn
