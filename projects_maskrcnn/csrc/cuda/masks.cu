// Pasting of masks on a GPU.
#include "host.cuh"
#include "masks.cuh"

namespace maskrcnn::cuda {

Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  STD_TORCH_CHECK(masks.dim() == 3, "masks must have shape (N, h, w); got ", shape_of(masks));
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(0) == masks.size(0) && boxes.size(1) == 4, "boxes must have shape (",
                  masks.size(0), ", 4); got ", shape_of(boxes));
  STD_TORCH_CHECK(masks.device() == boxes.device(), "masks and boxes must be on one device");
  STD_TORCH_CHECK(height >= 0 && width >= 0 && height <= INT32_MAX && width <= INT32_MAX,
                  "the image must have a height and width; got ", height, " x ", width);
  STD_TORCH_CHECK(masks.size(1) < (1 << 24) && masks.size(2) < (1 << 24), "masks are too large: ", shape_of(masks));
  const OnDevice device(masks);
  masks = torch::stable::contiguous(torch::stable::to(masks, ScalarType::Float));
  boxes = torch::stable::contiguous(torch::stable::to(boxes, ScalarType::Float));
  const int64_t count = masks.size(0);
  const Tensor pasted =
      torch::stable::new_zeros(masks, {count, height, width}, threshold >= 0 ? ScalarType::Bool : ScalarType::Byte);
  const Canvas canvas{static_cast<int>(height), static_cast<int>(width), static_cast<int>(masks.size(1)),
                      static_cast<int>(masks.size(2)), static_cast<float>(threshold)};
  launch(paste_masks_kernel, ceil_div(count * height, kWarps), 1, device.stream,
         static_cast<const float*>(masks.data_ptr()), static_cast<const float*>(boxes.data_ptr()), count, canvas,
         static_cast<uint8_t*>(pasted.data_ptr()));
  return pasted;
}

}  // namespace maskrcnn::cuda
