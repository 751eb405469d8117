"""Greedy non-maximum suppression."""

from torch import Tensor

from .native import check_tensors, operators


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that no better kept one overlaps too much.

    Args:
        boxes: (N, 4) corners x0, y0, x1, y1. Float64 is compared in float64, anything less in float32.
        scores: (N,).
        iou_threshold: a box goes when its IoU with a better kept one is above this.

    Returns:
        int64 indices of the kept boxes, by decreasing score; of equal scores the first comes first. A box without area
        or with a coordinate that is not finite stays, and suppresses nothing.

    Raises:
        TypeError, ValueError, RuntimeError: shapes, dtypes or devices do not fit, or the threshold is negative or NaN.
    """
    check_tensors(boxes=boxes, scores=scores)
    return operators(boxes.device).nms(boxes.detach(), scores.detach(), None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes of equal `idxs` (N,) int64 alone: categories, or levels of a pyramid.

    Returns:
        int64 indices of the kept boxes, by decreasing score.

    Raises:
        As `nms`.
    """
    check_tensors(boxes=boxes, scores=scores, idxs=idxs)
    return operators(boxes.device).nms(boxes.detach(), scores.detach(), idxs.long(), iou_threshold)
