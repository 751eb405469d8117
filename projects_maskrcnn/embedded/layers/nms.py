"""Non-maximum suppression. Stands for `detectron2.layers.nms`."""

from torch import Tensor

from ... import ops


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """int64 indices of the boxes (N, 4) that survive, by decreasing score (N,). Boxes are compared in float32."""
    return ops.nms(boxes.float(), scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` within each group of equal `idxs` (N,) int64."""
    return ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
