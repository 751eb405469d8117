"""From scored boxes to proposals."""

import math

import torch
from torch import Tensor

from ...layers import batched_nms, cat
from ...solver.build import DIVERGENCE_REMEDY
from ...structures import Boxes, Instances


def find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """The best proposals of each image, over all levels. Stands for Detectron2's `find_top_rpn_proposals`.

    Args:
        proposals: for each level, boxes (N, A_l, 4) in pixels of the network's input.
        pred_objectness_logits: for each level, (N, A_l).
        image_sizes: (height, width) of each image without padding.
        pre_nms_topk: candidates of each level and image.
        post_nms_topk: proposals of each image.
        min_box_size: proposals with a side of no more than this are dropped.

    Returns:
        For each image `proposal_boxes` and `objectness_logits`, best first.

    Raises:
        FloatingPointError: a candidate is not finite, in training. Otherwise it is dropped.
    """
    candidates, scores, levels = [], [], []
    for level, (boxes, logits) in enumerate(zip(proposals, pred_objectness_logits, strict=True)):
        best, index = logits.topk(min(logits.shape[1], pre_nms_topk), dim=1)
        candidates.append(boxes.gather(1, index[..., None].expand(-1, -1, 4)))
        scores.append(best)
        levels.append(index.new_full((best.shape[1],), level))
    candidates, scores, levels = cat(candidates, 1), cat(scores, 1), cat(levels)
    finite = candidates.isfinite().all(-1) & scores.isfinite()
    if training and not finite.all():
        raise FloatingPointError(
            f"Predicted boxes or scores contain Inf/NaN. Training has diverged. {DIVERGENCE_REMEDY}"
        )

    results = []
    for image_size, boxes, score, ok in zip(image_sizes, candidates, scores, finite, strict=True):
        boxes, score, level = Boxes(boxes[ok]), score[ok], levels[ok]
        boxes.clip(image_size)
        large = boxes.nonempty(threshold=min_box_size)
        boxes, score, level = boxes[large], score[large], level[large]
        keep = batched_nms(boxes.tensor, score, level, nms_thresh)[:post_nms_topk]
        results.append(Instances(image_size, proposal_boxes=boxes[keep], objectness_logits=score[keep]))
    return results


def add_ground_truth_to_proposals(gt: list[Instances] | list[Boxes], proposals: list[Instances]) -> list[Instances]:
    """Proposals of each image with its ground-truth boxes appended, as proposals of near-certain objectness.

    Args:
        gt: for each image, its boxes, or `Instances` with `gt_boxes` and the other fields that proposals have.
    """
    if len(gt) != len(proposals):
        raise ValueError(f"ground truth of {len(gt)} images, but proposals of {len(proposals)}")
    return [_add_ground_truth(g, p) for g, p in zip(gt, proposals, strict=True)]


def _add_ground_truth(gt: Instances | Boxes, proposals: Instances) -> Instances:
    if isinstance(gt, Boxes):
        gt = Instances(proposals.image_size, gt_boxes=gt)
    certainty = 1.0 - 1e-10
    logit = math.log(certainty / (1 - certainty))
    added = Instances(proposals.image_size, **gt.get_fields())
    added.proposal_boxes = gt.gt_boxes
    added.objectness_logits = torch.full(
        (len(gt),), logit, dtype=torch.float32, device=proposals.objectness_logits.device
    )
    missing = set(proposals.get_fields()) - set(added.get_fields())
    if missing:
        raise ValueError(f"proposals have fields that the ground truth lacks: {', '.join(sorted(missing))}")
    return Instances.cat([proposals, added])
