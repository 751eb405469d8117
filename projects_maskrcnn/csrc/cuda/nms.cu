// Non-maximum suppression on a GPU.
#include "host.cuh"
#include "nms.cuh"

namespace maskrcnn::cuda {

namespace {

/// Indices of `scores` by decreasing score; of equal scores the first comes first.
Tensor sorted(const Tensor& scores) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(scores), from(std::optional<bool>(true)), from(int64_t(0)), from(true)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the scores: taken, so that they are freed
  return torch::stable::detail::to<Tensor>(stack[1]);
}

/// The largest float that is not above `threshold`. A float is above the one just if it is above the other.
float rounded_down(double threshold) {
  const float nearest = static_cast<float>(threshold);
  return nearest > threshold ? std::nextafter(nearest, -INFINITY) : nearest;
}

}  // namespace

Tensor nms(Tensor boxes, Tensor scores, std::optional<Tensor> groups, double iou_threshold) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must have shape (N, 4); got ", shape_of(boxes));
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float, "boxes must be float32");
  const int64_t count = boxes.size(0);
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == count, "scores must have shape (", count, "); got ",
                  shape_of(scores));
  STD_TORCH_CHECK(scores.device() == boxes.device(), "scores and boxes must be on one device");
  if (groups) {
    STD_TORCH_CHECK(groups->dim() == 1 && groups->size(0) == count && groups->scalar_type() == ScalarType::Long,
                    "groups must be int64 of shape (", count, "); got ", shape_of(*groups));
    STD_TORCH_CHECK(groups->device() == boxes.device(), "groups and boxes must be on one device");
    groups = torch::stable::contiguous(*groups);
  }
  const OnDevice device(boxes);
  boxes = torch::stable::contiguous(boxes);
  const Tensor kept = torch::stable::new_empty(boxes, {count}, ScalarType::Long);
  if (count == 0) return kept;
  STD_TORCH_CHECK(count <= INT32_MAX, "too many boxes: ", count);

  const int64_t words = ceil_div(count, kBits);
  const Tensor order = sorted(scores);
  const Tensor overlaps = torch::stable::new_empty(boxes, {count * words}, ScalarType::Long);
  const Tensor scratch = torch::stable::new_empty(boxes, {words + 1}, ScalarType::Long);
  const auto* order_data = static_cast<const int64_t*>(order.data_ptr());
  auto* overlaps_data = static_cast<Bits*>(overlaps.data_ptr());
  auto* suppressed = static_cast<Bits*>(scratch.data_ptr());
  auto* kept_count = static_cast<int64_t*>(scratch.data_ptr()) + words;
  launch(nms_overlaps, ceil_div(count, kThreads), std::min<int64_t>(words, 65535), device.stream,
         static_cast<const float*>(boxes.data_ptr()),
         groups ? static_cast<const int64_t*>(groups->data_ptr()) : nullptr, order_data, static_cast<int>(count),
         rounded_down(iou_threshold), overlaps_data);
  launch(nms_keep, 1, 1, device.stream, overlaps_data, order_data, static_cast<int>(count), suppressed,
         static_cast<int64_t*>(kept.data_ptr()), kept_count);
  int64_t total = 0;
  check(cudaMemcpyAsync(&total, kept_count, sizeof(total), cudaMemcpyDeviceToHost, device.stream));
  check(cudaStreamSynchronize(device.stream));
  Tensor all = kept;
  return torch::stable::narrow(all, 0, 0, total);
}

}  // namespace maskrcnn::cuda
