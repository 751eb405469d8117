"""Box regression losses on IoU that fvcore lacks."""

import math

import torch
from torch import Tensor


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() else loss.sum() * 0.0
    return loss


def _iou_and_centre_distance(boxes1: Tensor, boxes2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """IoU, and squared distance of centres over the squared diagonal of the smallest enclosing box; both (...,)."""
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(-1)
    area1 = (boxes1[..., 2:] - boxes1[..., :2]).prod(-1)
    area2 = (boxes2[..., 2:] - boxes2[..., :2]).prod(-1)
    iou = overlap / (area1 + area2 - overlap + eps)
    outer = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(boxes1[..., :2], boxes2[..., :2])
    centres = (boxes1[..., :2] + boxes1[..., 2:] - boxes2[..., :2] - boxes2[..., 2:]) / 2
    return iou, centres.square().sum(-1) / (outer.square().sum(-1) + eps)


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """Distance-IoU loss (Zheng et al., 2020) of boxes (..., 4) in x0, y0, x1, y1."""
    iou, distance = _iou_and_centre_distance(boxes1, boxes2, eps)
    return _reduce(1 - iou + distance, reduction)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """Complete-IoU loss (Zheng et al., 2020) of boxes (..., 4) in x0, y0, x1, y1."""
    iou, distance = _iou_and_centre_distance(boxes1, boxes2, eps)
    size1, size2 = boxes1[..., 2:] - boxes1[..., :2], boxes2[..., 2:] - boxes2[..., :2]
    angle = torch.atan(size2[..., 0] / size2[..., 1]) - torch.atan(size1[..., 0] / size1[..., 1])
    aspect = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect + eps)
    return _reduce(1 - iou + distance + weight * aspect, reduction)
