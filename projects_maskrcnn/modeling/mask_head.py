"""The mask branch: a small fully convolutional network on each RoI (paper, section 3 and figure 4)."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ..framework import (
    ROI_MASK_HEAD_REGISTRY,
    CfgNode,
    Conv2d,
    ConvTranspose2d,
    Instances,
    ShapeSpec,
    cat,
    configurable,
    get_event_storage,
)
from .conv import conv3x3_relu

LossType = Literal["sigmoid", "softmax"]
LOSS_TYPES = get_args(LossType)


def mask_rcnn_loss(pred_mask_logits: Tensor, instances: list[Instances], loss_type: LossType = "sigmoid") -> Tensor:
    """Mean cross-entropy of the pixels of all masks (paper, table 2b).

    With "sigmoid" it is binary, on the masks of the ground-truth classes alone: classes do not compete. With "softmax"
    a pixel has one of K + 1 labels: the ground-truth class on the object, background (the last) beside it.

    Args:
        pred_mask_logits: (R, K, M, M), or (R, 1, M, M) for all classes; (R, K + 1, M, M) with "softmax".
        instances: for each image its foreground RoIs, R in all: `proposal_boxes`, `gt_classes`, `gt_masks`. The target
            is the ground-truth mask inside the RoI, resized to M x M.
    """
    size = pred_mask_logits.shape[2]
    instances = [i for i in instances if len(i)]
    if not instances:
        return pred_mask_logits.sum() * 0
    targets = cat([i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, size) for i in instances])
    targets = targets.to(pred_mask_logits.device)
    classes = cat([i.gt_classes for i in instances])
    if loss_type == "softmax":
        _log_accuracy(_of_class(pred_mask_logits.softmax(dim=1), classes) > 0.5, targets)
        background = pred_mask_logits.shape[1] - 1
        return F.cross_entropy(pred_mask_logits, torch.where(targets, classes[:, None, None], background))
    logits = _of_class(pred_mask_logits, classes)
    _log_accuracy(logits > 0, targets)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="mean")


def mask_rcnn_inference(
    pred_mask_logits: Tensor, pred_instances: list[Instances], loss_type: LossType = "sigmoid"
) -> None:
    """Give the detections of each image `pred_masks` (R, 1, M, M): probabilities of the predicted class's mask.

    Args:
        pred_mask_logits: as for `mask_rcnn_loss`, of the detections of all images in order.
        pred_instances: with `pred_classes`.
    """
    probabilities = pred_mask_logits.softmax(dim=1) if loss_type == "softmax" else pred_mask_logits.sigmoid()
    masks = _of_class(probabilities, cat([i.pred_classes for i in pred_instances]))
    masks = masks[:, None].split([len(i) for i in pred_instances])
    for instances, mask in zip(pred_instances, masks, strict=True):
        instances.pred_masks = mask


def _of_class(masks: Tensor, classes: Tensor) -> Tensor:
    """(R, M, M): the mask of `classes` (R,) among (R, K, M, M), or the only one."""
    if masks.shape[1] == 1:
        return masks[:, 0]
    return masks[torch.arange(len(masks), device=masks.device), classes]


def _log_accuracy(predicted: Tensor, targets: Tensor) -> None:
    wrong = predicted != targets
    num_positive = targets.sum().item()
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - wrong.float().mean().item())
    storage.put_scalar(
        "mask_rcnn/false_positive", (wrong & ~targets).sum().item() / max(targets.numel() - num_positive, 1)
    )
    storage.put_scalar("mask_rcnn/false_negative", (wrong & targets).sum().item() / max(num_positive, 1))


class MaskHead(nn.Sequential):
    """Layers from RoI features (R, C, height, width) to mask logits, with their loss. Subclasses add the layers.

    Args:
        num_classes: 1 for class-agnostic masks. A RoI has `num_masks`: as many, and one of background with "softmax".
        loss_type: see `mask_rcnn_loss`.
        loss_weight: factor on the loss.

    Raises:
        ValueError: `loss_type` is unknown.
    """

    def __init__(self, num_classes: int, loss_type: LossType, loss_weight: float) -> None:
        super().__init__()
        if loss_type not in LOSS_TYPES:
            raise ValueError(f"MODEL.ROI_MASK_HEAD.LOSS_TYPE is {loss_type!r}; known are {', '.join(LOSS_TYPES)}")
        self.num_masks = num_classes + (loss_type == "softmax")
        self.loss_type = loss_type
        self.loss_weight = loss_weight

    @staticmethod
    def output_of(cfg: CfgNode) -> dict:
        """The arguments `num_classes` and `loss_type` that a config asks for.

        Raises:
            ValueError: LOSS_TYPE is not for class-agnostic masks.
        """
        head = cfg.MODEL.ROI_MASK_HEAD
        if head.LOSS_TYPE == "softmax" and head.CLS_AGNOSTIC_MASK:
            raise ValueError("MODEL.ROI_MASK_HEAD.LOSS_TYPE softmax is over classes: set CLS_AGNOSTIC_MASK False")
        num_classes = 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES
        return {"num_classes": num_classes, "loss_type": head.LOSS_TYPE}

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """In training {"loss_mask": ...}; else `instances` with `pred_masks`.

        Args:
            x: (R, C, height, width) features of the RoIs of all images.
            instances: in training foreground proposals, see `mask_rcnn_loss`; else detections, see
                `mask_rcnn_inference`.
        """
        logits = super().forward(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances, self.loss_type) * self.loss_weight}
        mask_rcnn_inference(logits, instances, self.loss_type)
        return instances


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNMaskHead(MaskHead):
    """3x3 convs, a 2x2 deconv of stride 2, a 1x1 conv to masks. Stands for `MaskRCNNConvUpsampleHead`.

    Without convs (`NUM_CONV: 0`) it is the head of a C4 model, whose res5 has done their work.

    Args:
        input_shape: of a pooled RoI.
        conv_dims: channels of each conv, and last of the deconv.
        conv_norm: after each conv, "" for none.
        num_classes, loss_type, loss_weight: see `MaskHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: list[int],
        conv_norm: str = "",
        loss_type: LossType = "sigmoid",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(num_classes, loss_type, loss_weight)
        channels = input_shape.channels
        *dims, deconv_dim = conv_dims
        for index, dim in enumerate(dims, start=1):
            self.add_module(f"mask_fcn{index}", conv3x3_relu(channels, dim, conv_norm))
            channels = dim
        self.deconv = ConvTranspose2d(channels, deconv_dim, kernel_size=2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = Conv2d(deconv_dim, self.num_masks, kernel_size=1)
        c2_msra_fill(self.deconv)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),
            "conv_norm": head.NORM,
            **cls.output_of(cfg),
        }
