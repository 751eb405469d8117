"""The keypoint branch: one heatmap a keypoint, of which one cell is right (paper, section 5)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..framework import (
    ROI_KEYPOINT_HEAD_REGISTRY,
    CfgNode,
    Conv2d,
    ConvTranspose2d,
    Instances,
    ShapeSpec,
    cat,
    configurable,
    heatmaps_to_keypoints,
)


def keypoint_rcnn_loss(pred_keypoint_logits: Tensor, instances: list[Instances], normalizer: float | None) -> Tensor:
    """Cross-entropy over the S x S cells of each visible keypoint's heatmap, summed and divided by `normalizer`.

    Args:
        pred_keypoint_logits: (R, K, S, S).
        instances: for each image its RoIs, R in all: `proposal_boxes`, `gt_keypoints`.
        normalizer: None for the number of visible keypoints.
    """
    size = pred_keypoint_logits.shape[2]
    maps = [i.gt_keypoints.to_heatmap(i.proposal_boxes.tensor, size) for i in instances if len(i)]
    targets = cat([m[0].flatten() for m in maps]) if maps else None
    visible = cat([m[1].flatten() for m in maps]).nonzero().squeeze(1) if maps else ()
    if not len(visible):
        return pred_keypoint_logits.sum() * 0
    logits = pred_keypoint_logits.flatten(2).flatten(0, 1)
    loss = F.cross_entropy(logits[visible], targets[visible], reduction="sum")
    return loss / (len(visible) if normalizer is None else normalizer)


def keypoint_rcnn_inference(pred_keypoint_logits: Tensor, pred_instances: list[Instances]) -> None:
    """Give the detections of each image `pred_keypoints` (R, K, 3) of x, y, score and `pred_keypoint_heatmaps`.

    Args:
        pred_keypoint_logits: (R, K, S, S), of the detections of all images in order.
        pred_instances: with `pred_boxes`.
    """
    logits = pred_keypoint_logits.detach()
    boxes = cat([i.pred_boxes.tensor for i in pred_instances]).detach()
    keypoints = heatmaps_to_keypoints(logits, boxes)[:, :, [0, 1, 3]]
    counts = [len(i) for i in pred_instances]
    for instances, points, heatmaps in zip(pred_instances, keypoints.split(counts), logits.split(counts), strict=True):
        instances.pred_keypoints = points
        instances.pred_keypoint_heatmaps = heatmaps


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class MaskRCNNKeypointHead(nn.Sequential):
    """3x3 convs, a deconv and a bilinear resize, each of factor 2. Stands for `KRCNNConvDeconvUpsampleHead`.

    Args:
        input_shape: of a pooled RoI.
        num_keypoints: heatmaps per RoI.
        conv_dims: channels of each conv.
        loss_weight: factor on the loss.
        loss_normalizer: the loss of an image is divided by this; "visible" for the number of visible keypoints.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_keypoints: int,
        conv_dims: list[int],
        loss_weight: float = 1.0,
        loss_normalizer: float | str = 1.0,
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.loss_normalizer = loss_normalizer
        channels = input_shape.channels
        for index, dim in enumerate(conv_dims, start=1):
            self.add_module(f"conv_fcn{index}", Conv2d(channels, dim, kernel_size=3, padding=1))
            self.add_module(f"conv_fcn_relu{index}", nn.ReLU())
            channels = dim
        self.score_lowres = ConvTranspose2d(channels, num_keypoints, kernel_size=4, stride=2, padding=1)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head, heads = cfg.MODEL.ROI_KEYPOINT_HEAD, cfg.MODEL.ROI_HEADS
        normalizer = "visible"
        if not head.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS:
            normalizer = head.NUM_KEYPOINTS * heads.BATCH_SIZE_PER_IMAGE * heads.POSITIVE_FRACTION
        return {
            "input_shape": input_shape,
            "num_keypoints": head.NUM_KEYPOINTS,
            "conv_dims": head.CONV_DIMS,
            "loss_weight": head.LOSS_WEIGHT,
            "loss_normalizer": normalizer,
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """In training {"loss_keypoint": ...}; else `instances` with `pred_keypoints` and `pred_keypoint_heatmaps`.

        Args:
            x: (R, C, height, width) features of the RoIs of all images.
            instances: in training proposals, see `keypoint_rcnn_loss`; else detections.
        """
        logits = super().forward(x)
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        if self.training:
            normalizer = None if self.loss_normalizer == "visible" else len(instances) * self.loss_normalizer
            return {"loss_keypoint": keypoint_rcnn_loss(logits, instances, normalizer) * self.loss_weight}
        keypoint_rcnn_inference(logits, instances)
        return instances
