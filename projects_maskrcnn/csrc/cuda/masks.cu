// Pasting of masks on a GPU.
#include "host.cuh"
#include "masks.cuh"

namespace maskrcnn::cuda {

Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  check_masks(masks, boxes, height, width);
  const OnDevice device(masks);
  masks = torch::stable::contiguous(torch::stable::to(masks, ScalarType::Float));
  boxes = torch::stable::contiguous(torch::stable::to(boxes, ScalarType::Double));
  const int64_t count = masks.size(0);
  const Tensor pasted =
      torch::stable::new_zeros(masks, {count, height, width}, threshold >= 0 ? ScalarType::Bool : ScalarType::Byte);
  const Canvas canvas{height, width, masks.size(1), masks.size(2), static_cast<float>(threshold)};
  launch(paste_masks_kernel, ceil_div(count * height, kWarps), 1, device.stream,
         static_cast<const float*>(masks.data_ptr()), static_cast<const double*>(boxes.data_ptr()), count, canvas,
         static_cast<uint8_t*>(pasted.data_ptr()));
  return pasted;
}

}  // namespace maskrcnn::cuda
