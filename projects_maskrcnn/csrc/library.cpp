// The operators' schemas, and their CPU kernels. CUDA kernels register themselves, in cuda/.
#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY(maskrcnn, m) {
  m.def(
      "roi_average(Tensor[] features, Tensor boxes, SymInt[] boxes_per_image, float[] scales, SymInt bins_y, "
      "SymInt bins_x, int sampling_ratio, bool aligned, int rounding, float canonical_box_size, int canonical_level) "
      "-> Tensor");
  m.def(
      "roi_average_backward(Tensor grad, Tensor boxes, SymInt[] boxes_per_image, float[] scales, SymInt num_images, "
      "SymInt[] heights, SymInt[] widths, int sampling_ratio, bool aligned, int rounding, float canonical_box_size, "
      "int canonical_level, bool channels_last) -> Tensor[]");
  m.def(
      "roi_max(Tensor[] features, Tensor boxes, SymInt[] boxes_per_image, float[] scales, SymInt bins_y, "
      "SymInt bins_x, int sampling_ratio, bool aligned, int rounding, float canonical_box_size, int canonical_level) "
      "-> (Tensor, Tensor)");
  m.def(
      "roi_max_backward(Tensor grad, Tensor argmax, Tensor boxes, SymInt[] boxes_per_image, float[] scales, "
      "SymInt num_images, SymInt[] heights, SymInt[] widths, int sampling_ratio, bool aligned, int rounding, "
      "float canonical_box_size, int canonical_level, bool channels_last) -> Tensor[]");
  m.def("nms(Tensor boxes, Tensor scores, Tensor? groups, float iou_threshold) -> Tensor");
  m.def("paste_masks(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold) -> Tensor");
  m.def("masks_to_rle(Tensor masks, Tensor boxes, int height, int width, float threshold) -> (Tensor, Tensor)");
  m.def("cpu_capability() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CPU, m) {
  using namespace maskrcnn::cpu;
  m.impl("roi_average", TORCH_BOX(&roi_average));
  m.impl("roi_average_backward", TORCH_BOX(&roi_average_backward));
  m.impl("roi_max", TORCH_BOX(&roi_max));
  m.impl("roi_max_backward", TORCH_BOX(&roi_max_backward));
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("paste_masks", TORCH_BOX(&paste_masks));
  m.impl("masks_to_rle", TORCH_BOX(&masks_to_rle));
}

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&maskrcnn::cpu::capability));
}
