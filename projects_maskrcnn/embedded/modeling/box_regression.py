"""Boxes to regression targets and back (R-CNN, appendix C), and the loss on them."""

import math
from collections.abc import Sequence
from types import EllipsisType

import torch
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

from ..layers import cat, ciou_loss, diou_loss
from ..structures import Boxes

# a box grows by at most this factor (log scale), so that exp() of an untrained output stays finite
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)


class Box2BoxTransform:
    """Deltas (dx, dy, dw, dh) that take one box to another. Stands for Detectron2's `Box2BoxTransform`.

    Args:
        weights: factors on the four deltas, so that each has about unit variance.
        scale_clamp: largest dw and dh that are applied.
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _DEFAULT_SCALE_CLAMP) -> None:
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(N, 4) deltas from `src_boxes` to `target_boxes`, both (N, 4) in x0, y0, x1, y1.

        Raises:
            ValueError: a source box has no width.
        """
        source_size = src_boxes[:, 2:] - src_boxes[:, :2]
        source_centre = src_boxes[:, :2] + 0.5 * source_size
        target_size = target_boxes[:, 2:] - target_boxes[:, :2]
        target_centre = target_boxes[:, :2] + 0.5 * target_size
        if (source_size[:, 0] <= 0).any():
            raise ValueError("a box to regress from has no width")
        wx, wy, ww, wh = self.weights
        shift = (target_centre - source_centre) / source_size
        growth = torch.log(target_size / source_size)
        return torch.stack([wx * shift[:, 0], wy * shift[:, 1], ww * growth[:, 0], wh * growth[:, 1]], dim=1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) moved by deltas (N, k * 4), one box for each of k classes: (N, k * 4), float32."""
        deltas = deltas.float()
        boxes = boxes.to(deltas.dtype)
        size = (boxes[:, 2:] - boxes[:, :2])[:, None]
        centre = boxes[:, None, :2] + 0.5 * size
        wx, wy, ww, wh = self.weights
        delta = deltas.view(len(deltas), deltas.shape[1] // 4, 4) / deltas.new_tensor([wx, wy, ww, wh])
        centre = delta[..., :2] * size + centre
        size = delta[..., 2:].clamp(max=self.scale_clamp).exp() * size
        return torch.cat([centre - 0.5 * size, centre + 0.5 * size], -1).view_as(deltas)


def _dense_box_regression_loss(
    anchors: list[Boxes | Tensor],
    box2box_transform: Box2BoxTransform,
    pred_anchor_deltas: list[Tensor],
    gt_boxes: Sequence[Tensor],
    fg_mask: Tensor | EllipsisType,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """Sum of the box regression loss over foreground anchors of all images.

    Args:
        anchors: for each level, (R_l, 4).
        pred_anchor_deltas: for each level, (N, R_l, 4).
        gt_boxes: for each of N images, (R, 4): what each anchor is matched to.
        fg_mask: (N, R) bool, or `...` for all.

    Raises:
        ValueError: `box_reg_loss_type` is unknown.
    """
    anchors = cat([a.tensor if isinstance(a, Boxes) else a for a in anchors])
    deltas = cat(pred_anchor_deltas, dim=1)[fg_mask]
    targets = torch.stack(list(gt_boxes))[fg_mask]
    anchors = anchors.expand(len(gt_boxes), *anchors.shape)[fg_mask]
    deltas, targets, anchors = (t.reshape(-1, 4) for t in (deltas, targets, anchors))
    if box_reg_loss_type == "smooth_l1":
        target_deltas = box2box_transform.get_deltas(anchors, targets)
        return smooth_l1_loss(deltas, target_deltas, beta=smooth_l1_beta, reduction="sum")
    losses = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
    if box_reg_loss_type not in losses:
        raise ValueError(
            f"BBOX_REG_LOSS_TYPE {box_reg_loss_type!r} is unknown; known are smooth_l1, {', '.join(losses)}"
        )
    boxes = box2box_transform.apply_deltas(deltas, anchors)
    return losses[box_reg_loss_type](boxes, targets, reduction="sum")
