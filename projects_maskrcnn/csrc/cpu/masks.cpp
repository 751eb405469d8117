#include "../ops.h"
namespace maskrcnn::cpu {
Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  STD_TORCH_CHECK(false, "to be written");
}
std::tuple<Tensor, Tensor> masks_to_rle(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  STD_TORCH_CHECK(false, "to be written");
}
}  // namespace maskrcnn::cpu
