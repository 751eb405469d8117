// Non-maximum suppression on a GPU.
#include <array>

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

template <class Real>
void find_overlaps(const Tensor& boxes, const Tensor* groups, const int64_t* order, double iou_threshold,
                   Bits* overlaps, cudaStream_t stream) {
  const int count = static_cast<int>(boxes.size(0));
  launch(nms_overlaps<Real>, ceil_div(count, kThreads), words_of(count), stream,
         static_cast<const Real*>(boxes.data_ptr()),
         groups != nullptr ? static_cast<const int64_t*>(groups->data_ptr()) : nullptr, order, count,
         rounded_down<Real>(iou_threshold), overlaps);
}

}  // namespace

Tensor nms(Tensor boxes, Tensor scores, std::optional<Tensor> groups, double iou_threshold) {
  check_nms(boxes, scores, groups, iou_threshold);
  const OnDevice device(boxes);
  using torch::stable::contiguous, torch::stable::new_empty;
  const bool is_double = boxes.scalar_type() == ScalarType::Double;
  boxes = contiguous(torch::stable::to(boxes, is_double ? ScalarType::Double : ScalarType::Float));
  if (groups) groups = contiguous(*groups);
  const int count = static_cast<int>(boxes.size(0));
  Tensor kept = new_empty(boxes, {count}, ScalarType::Long);
  if (count == 0) return kept;

  const int64_t words = words_of(count);
  const Tensor order = sorted(scores);
  const Tensor overlaps = new_empty(boxes, {count * words}, ScalarType::Long);
  const Tensor scratch = new_empty(boxes, {words + 1}, ScalarType::Long);
  const auto* order_data = static_cast<const int64_t*>(order.data_ptr());
  auto* overlaps_data = static_cast<Bits*>(overlaps.data_ptr());
  auto* suppressed = static_cast<Bits*>(scratch.data_ptr());
  auto* kept_count = static_cast<int64_t*>(scratch.data_ptr()) + words;
  (is_double ? find_overlaps<double> : find_overlaps<float>)(boxes, groups ? &*groups : nullptr, order_data,
                                                             iou_threshold, overlaps_data, device.stream);
  launch(nms_keep, 1, 1, device.stream, overlaps_data, order_data, count, suppressed,
         static_cast<int64_t*>(kept.data_ptr()), kept_count);
  int64_t total = 0;
  check(cudaMemcpyAsync(&total, kept_count, sizeof(total), cudaMemcpyDeviceToHost, device.stream));
  check(cudaStreamSynchronize(device.stream));
  return torch::stable::narrow(kept, 0, 0, total);
}

}  // namespace maskrcnn::cuda
