"""Recall of object proposals."""

from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO

from ..structures import Boxes, pairwise_iou

AREA_RANGES = {  # of the ground-truth boxes, in square pixels of the original image
    "all": (0**2, 1e5**2),
    "small": (0**2, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e5**2),
    "96-128": (96**2, 128**2),
    "128-256": (128**2, 256**2),
    "256-512": (256**2, 512**2),
    "512-inf": (512**2, 1e5**2),
}


def evaluate_box_proposals(
    predictions: list[dict],
    coco_api: COCO,
    thresholds: torch.Tensor | None = None,
    area: str = "all",
    limit: int | None = None,
) -> dict[str, Any]:
    """Average recall of proposals over IoU thresholds, each ground-truth box with a proposal of its own.

    Stands for Detectron2's `_evaluate_box_proposals`: images without any proposal are left out.

    Args:
        predictions: dicts with ``image_id`` and ``proposals``, `Instances` on the CPU with ``proposal_boxes``
            (N, 4) in pixels of the original image and ``objectness_logits`` (N,).
        coco_api: the ground truth; crowds do not count.
        thresholds: IoUs; by default 0.5, 0.55, ..., 0.95.
        area: a key of `AREA_RANGES`.
        limit: the number of best proposals of an image to look at.

    Returns:
        ``ar`` and ``recalls`` (one a threshold, NaN without ground truth), ``thresholds``, ``gt_overlaps``
        (each ground-truth box's IoU with its proposal, rising) and ``num_pos``, their number.
    """
    low, high = AREA_RANGES[area]
    overlaps = [torch.zeros(0)]
    for prediction in predictions:
        annotations = coco_api.imgToAnns.get(prediction["image_id"], [])
        boxes = [a["bbox"] for a in annotations if not a["iscrowd"] and low <= a["area"] <= high]
        proposals = prediction["proposals"]
        if not boxes or not len(proposals):
            continue
        best = proposals.objectness_logits.sort(descending=True)[1][:limit]
        gt = torch.tensor(boxes, dtype=torch.float32)
        gt[:, 2:] += gt[:, :2]
        ious = pairwise_iou(Boxes(gt), proposals.proposal_boxes[best])
        overlaps.append(torch.from_numpy(_match(ious.numpy())))
    gt_overlaps = torch.cat(overlaps).sort()[0]

    if thresholds is None:
        thresholds = torch.arange(0.5, 0.95 + 1e-5, 0.05)
    recalls = (gt_overlaps[None] >= thresholds[:, None]).float().sum(dim=1) / len(gt_overlaps)
    return {
        "ar": recalls.mean(),
        "recalls": recalls,
        "thresholds": thresholds,
        "gt_overlaps": gt_overlaps,
        "num_pos": len(gt_overlaps),
    }


def _match(ious: np.ndarray) -> np.ndarray:
    """From IoUs (ground truth, proposal) to each true box's IoU with its proposal, the best pairs first."""
    matched = np.zeros(len(ious), dtype=ious.dtype)
    used = np.zeros(ious.shape[1], dtype=bool)
    gt, proposal = ious.nonzero()
    for k in np.argsort(-ious[gt, proposal], kind="stable"):
        if not matched[gt[k]] and not used[proposal[k]]:
            matched[gt[k]] = ious[gt[k], proposal[k]]
            used[proposal[k]] = True
    return matched
