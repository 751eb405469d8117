"""The base of RoI heads: which proposals are trained, and on what."""

import numpy as np
import torch
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...layers import ShapeSpec
from ...structures import ImageList, Instances, pairwise_iou
from ...utils.events import get_event_storage
from ...utils.registry import Registry
from ..matcher import Matcher
from ..proposal_generator.proposal_utils import add_ground_truth_to_proposals
from ..sampling import subsample_labels

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
"""Classes that take a config and the `ShapeSpec` of each feature map by name."""


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The heads that `MODEL.ROI_HEADS.NAME` names."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def select_foreground_proposals(proposals: list[Instances], bg_label: int) -> tuple[list[Instances], list[Tensor]]:
    """For each image the proposals whose `gt_classes` is an object's, and a mask (R,) of which they were."""
    masks = [(p.gt_classes != -1) & (p.gt_classes != bg_label) for p in proposals]
    return [p[mask.nonzero().squeeze(1)] for p, mask in zip(proposals, masks, strict=True)], masks


def select_proposals_with_visible_keypoints(proposals: list[Instances]) -> list[Instances]:
    """For each image the proposals that hold at least one visible keypoint of their ground truth."""
    selected, counts = [], []
    for p in proposals:
        if not len(p):
            selected.append(p)
            continue
        x, y, visibility = p.gt_keypoints.tensor.unbind(-1)
        x0, y0, x1, y1 = p.proposal_boxes.tensor[:, None].unbind(-1)
        inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1) & (visibility >= 1)
        index = inside.any(dim=1).nonzero().squeeze(1)
        counts.append(len(index))
        selected.append(p[index])
    get_event_storage().put_scalar("keypoint_head/num_fg_samples", float(np.mean(counts)) if counts else 0.0)
    return selected


class ROIHeads(nn.Module):
    """Matches and samples proposals; subclasses do the rest. Stands for Detectron2's `ROIHeads`.

    Args:
        num_classes: without background, which is labelled `num_classes`.
        batch_size_per_image, positive_fraction: the sample of proposals that is trained on.
        proposal_matcher: labels proposals by their overlap with ground truth.
        proposal_append_gt: ground-truth boxes are proposals too, so that there are good ones from the first iteration.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        heads = cfg.MODEL.ROI_HEADS
        return {
            "num_classes": heads.NUM_CLASSES,
            "batch_size_per_image": heads.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": heads.POSITIVE_FRACTION,
            "proposal_append_gt": heads.PROPOSAL_APPEND_GT,
            "proposal_matcher": Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality_matches=False),
        }

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Indices of the sampled proposals, foreground first, and their classes."""
        if len(gt_classes):
            classes = gt_classes[matched_idxs]
            classes[matched_labels == 0] = self.num_classes
            classes[matched_labels == -1] = -1
        else:
            classes = torch.full_like(matched_idxs, self.num_classes)
        sampled = torch.cat(
            subsample_labels(classes, self.batch_size_per_image, self.positive_fraction, self.num_classes)
        )
        return sampled, classes[sampled]

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """A random sample of the proposals of each image with `gt_classes` and, where the image has ground truth,
        every other `gt_*` field of the ground truth that each is matched to. Those of background mean nothing.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled_proposals, num_foreground, num_background = [], [], []
        for image_proposals, gt in zip(proposals, targets, strict=True):
            matches, labels = self.proposal_matcher(pairwise_iou(gt.gt_boxes, image_proposals.proposal_boxes))
            sampled, classes = self._sample_proposals(matches, labels, gt.gt_classes)
            image_proposals = image_proposals[sampled]
            image_proposals.gt_classes = classes
            if len(gt):
                for name, value in gt.get_fields().items():
                    if name.startswith("gt_") and not image_proposals.has(name):
                        image_proposals.set(name, value[matches[sampled]])
            num_background.append((classes == self.num_classes).sum().item())
            num_foreground.append(len(classes) - num_background[-1])
            sampled_proposals.append(image_proposals)
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", float(np.mean(num_foreground)))
        storage.put_scalar("roi_head/num_bg_samples", float(np.mean(num_background)))
        return sampled_proposals

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detections of each image, and in training the losses by name."""
        raise NotImplementedError
