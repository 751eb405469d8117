"""The mask branch: a small fully convolutional network on each RoI (paper, section 3 and figure 4)."""

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
    get_norm,
)


def mask_rcnn_loss(pred_mask_logits: Tensor, instances: list[Instances]) -> Tensor:
    """Mean binary cross-entropy on the masks of the ground-truth classes alone: classes do not compete.

    Args:
        pred_mask_logits: (R, K, M, M), or (R, 1, M, M) for all classes.
        instances: for each image its foreground RoIs, R in all: `proposal_boxes`, `gt_classes`, `gt_masks`. The target
            is the ground-truth mask inside the RoI, resized to M x M.
    """
    size = pred_mask_logits.shape[2]
    instances = [i for i in instances if len(i)]
    if not instances:
        return pred_mask_logits.sum() * 0
    targets = cat([i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, size) for i in instances])
    targets = targets.to(pred_mask_logits.device)
    logits = _of_class(pred_mask_logits, cat([i.gt_classes for i in instances]))
    _log_accuracy(logits > 0, targets)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="mean")


def mask_rcnn_inference(pred_mask_logits: Tensor, pred_instances: list[Instances]) -> None:
    """Give the detections of each image `pred_masks` (R, 1, M, M): probabilities of the predicted class's mask.

    Args:
        pred_mask_logits: (R, K, M, M), or (R, 1, M, M) for all classes, of the detections of all images in order.
        pred_instances: with `pred_classes`.
    """
    logits = _of_class(pred_mask_logits, cat([i.pred_classes for i in pred_instances]))
    masks = logits.sigmoid()[:, None].split([len(i) for i in pred_instances])
    for instances, mask in zip(pred_instances, masks, strict=True):
        instances.pred_masks = mask


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """(R, M, M): the mask of `classes` (R,) among (R, K, M, M), or the only one."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[torch.arange(len(logits), device=logits.device), classes]


def _log_accuracy(predicted: Tensor, targets: Tensor) -> None:
    wrong = predicted != targets
    num_positive = targets.sum().item()
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - wrong.float().mean().item())
    storage.put_scalar(
        "mask_rcnn/false_positive", (wrong & ~targets).sum().item() / max(targets.numel() - num_positive, 1)
    )
    storage.put_scalar("mask_rcnn/false_negative", (wrong & targets).sum().item() / max(num_positive, 1))


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNMaskHead(nn.Sequential):
    """3x3 convs, a 2x2 deconv of stride 2, a 1x1 conv to masks. Stands for `MaskRCNNConvUpsampleHead`.

    Without convs (`NUM_CONV: 0`) it is the head of a C4 model, whose res5 has done their work.

    Args:
        input_shape: of a pooled RoI.
        num_classes: masks per RoI, 1 for class-agnostic ones.
        conv_dims: channels of each conv, and last of the deconv.
        conv_norm: after each conv, "" for none.
        loss_weight: factor on the loss.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: list[int],
        conv_norm: str = "",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        channels = input_shape.channels
        *dims, deconv_dim = conv_dims
        for index, dim in enumerate(dims, start=1):
            conv = Conv2d(
                channels,
                dim,
                kernel_size=3,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, dim),
                activation=nn.ReLU(),
            )
            c2_msra_fill(conv)
            self.add_module(f"mask_fcn{index}", conv)
            channels = dim
        self.deconv = ConvTranspose2d(channels, deconv_dim, kernel_size=2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = Conv2d(deconv_dim, num_classes, kernel_size=1)
        c2_msra_fill(self.deconv)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),
            "conv_norm": head.NORM,
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """In training {"loss_mask": ...}; else `instances` with `pred_masks`.

        Args:
            x: (R, C, height, width) features of the RoIs of all images.
            instances: in training foreground proposals, see `mask_rcnn_loss`; else detections, see
                `mask_rcnn_inference`.
        """
        logits = super().forward(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances
