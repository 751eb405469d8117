#include "../ops.h"
namespace maskrcnn::cpu {
Tensor nms(Tensor boxes, Tensor scores, std::optional<Tensor> groups, double iou_threshold) {
  STD_TORCH_CHECK(false, "to be written");
}
}  // namespace maskrcnn::cpu
