// The operators, one implementation of each a device. Their Python faces in ops/ document them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace maskrcnn {

using torch::stable::Tensor;
using Ints = std::vector<int64_t>;
using Floats = std::vector<double>;
using Tensors = std::vector<Tensor>;

#define MASKRCNN_DECLARE_OPS                                                                                          \
  Tensor roi_average(Tensors features, Tensor boxes, Ints boxes_per_image, Floats scales, int64_t bins_y,             \
                     int64_t bins_x, int64_t sampling_ratio, bool aligned, int64_t rounding,                          \
                     double canonical_box_size, int64_t canonical_level);                                             \
  Tensors roi_average_backward(Tensor grad, Tensor boxes, Ints boxes_per_image, Floats scales, int64_t num_images,    \
                               Ints heights, Ints widths, int64_t sampling_ratio, bool aligned, int64_t rounding,     \
                               double canonical_box_size, int64_t canonical_level, bool channels_last);               \
  std::tuple<Tensor, Tensor> roi_max(Tensors features, Tensor boxes, Ints boxes_per_image, Floats scales,             \
                                     int64_t bins_y, int64_t bins_x, int64_t sampling_ratio, bool aligned,            \
                                     int64_t rounding, double canonical_box_size, int64_t canonical_level);           \
  Tensors roi_max_backward(Tensor grad, Tensor argmax, Tensor boxes, Ints boxes_per_image, Floats scales,             \
                           int64_t num_images, Ints heights, Ints widths, int64_t sampling_ratio, bool aligned,       \
                           int64_t rounding, double canonical_box_size, int64_t canonical_level, bool channels_last); \
  Tensor nms(Tensor boxes, Tensor scores, std::optional<Tensor> groups, double iou_threshold);                        \
  Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold);

namespace cpu {
MASKRCNN_DECLARE_OPS
std::tuple<Tensor, Tensor> masks_to_rle(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold);
/// The instruction set that the vector kernels run on: "baseline", "avx2" or "avx512".
std::string capability();
}  // namespace cpu

namespace cuda {
MASKRCNN_DECLARE_OPS
}

}  // namespace maskrcnn
