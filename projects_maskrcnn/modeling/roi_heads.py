"""RoI heads: what happens to each proposal (paper, section 3 and figure 4).

In training the heads learn from a sample of the proposals, all at once. In testing the box head runs first, and the
mask and keypoint heads on its detections alone, which is faster and more accurate.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..framework import (
    ROI_HEADS_REGISTRY,
    Boxes,
    CfgNode,
    FastRCNNOutputLayers,
    ImageList,
    Instances,
    ROIHeads,
    ShapeSpec,
    build_box_head,
    build_keypoint_head,
    build_mask_head,
    configurable,
    select_foreground_proposals,
    select_proposals_with_visible_keypoints,
)
from .features import shapes_of
from .pooler import MaskRCNNPooler
from .resnet import build_stage


class _TwoStep(ROIHeads):
    """Boxes first, then what is predicted on given boxes. Subclasses say how."""

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detections of each image; in training the sampled proposals, and the losses by name."""
        if self.training:
            if targets is None:
                raise ValueError("RoI heads need `instances` in the inputs to train")
            proposals = self.label_and_sample_proposals(proposals, targets)
            return proposals, self._losses(features, proposals)
        return self.forward_with_given_boxes(features, self._detect(features, proposals)), {}

    def _losses(self, features: dict[str, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        raise NotImplementedError

    def _detect(self, features: dict[str, Tensor], proposals: list[Instances]) -> list[Instances]:
        raise NotImplementedError

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Detections (`pred_boxes`, `pred_classes`) of each image with what is predicted on their boxes added."""
        raise NotImplementedError


@ROI_HEADS_REGISTRY.register()
class MaskRCNNROIHeads(_TwoStep):
    """Heads that pool from the backbone's features each on its own: FPN and DC5. Stands for `StandardROIHeads`.

    Args:
        in_features: names of the feature maps, finest first.
        box_pooler, box_head, box_predictor: RoI features, what is made of them, and classes and boxes from that.
        mask_pooler, mask_head: the mask branch, or None. Without a pooler the head gets the feature maps by name.
        keypoint_pooler, keypoint_head: the keypoint branch, likewise.
        train_on_pred_boxes: train masks and keypoints on the boxes that the box head predicts for proposals.
        kwargs: see the framework's `ROIHeads`.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        box_pooler: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_pooler: nn.Module | None = None,
        mask_head: nn.Module | None = None,
        keypoint_pooler: nn.Module | None = None,
        keypoint_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.in_features = list(in_features)
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head
        self.keypoint_pooler = keypoint_pooler
        self.keypoint_head = keypoint_head
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        args = super().from_config(cfg)
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        shapes = shapes_of(in_features, input_shape, "MODEL.ROI_HEADS.IN_FEATURES")

        def pooler(head: CfgNode) -> MaskRCNNPooler | None:
            if not head.POOLER_TYPE:
                return None
            return MaskRCNNPooler.of_head(head, shapes, cfg.MODEL.ROI_HEADS.CANONICAL_BOX_SIZE)

        def pooled(head: CfgNode) -> ShapeSpec | dict[str, ShapeSpec]:
            if not head.POOLER_TYPE:
                return dict(zip(in_features, shapes, strict=True))
            return ShapeSpec(shapes[0].channels, head.POOLER_RESOLUTION, head.POOLER_RESOLUTION)

        box = cfg.MODEL.ROI_BOX_HEAD
        args["in_features"] = in_features
        args["train_on_pred_boxes"] = box.TRAIN_ON_PRED_BOXES
        args["box_pooler"] = pooler(box)
        args["box_head"] = build_box_head(cfg, pooled(box))
        args["box_predictor"] = FastRCNNOutputLayers(cfg, args["box_head"].output_shape)
        if cfg.MODEL.MASK_ON:
            args["mask_pooler"] = pooler(cfg.MODEL.ROI_MASK_HEAD)
            args["mask_head"] = build_mask_head(cfg, pooled(cfg.MODEL.ROI_MASK_HEAD))
        if cfg.MODEL.KEYPOINT_ON:
            args["keypoint_pooler"] = pooler(cfg.MODEL.ROI_KEYPOINT_HEAD)
            args["keypoint_head"] = build_keypoint_head(cfg, pooled(cfg.MODEL.ROI_KEYPOINT_HEAD))
        return args

    def _predict(self, features: dict[str, Tensor], proposals: list[Instances]) -> tuple[Tensor, Tensor]:
        x = self._pool(self.box_pooler, features, [p.proposal_boxes for p in proposals])
        return self.box_predictor(self.box_head(x))

    def _pool(
        self, pooler: nn.Module | None, features: dict[str, Tensor], boxes: list[Boxes]
    ) -> Tensor | dict[str, Tensor]:
        if pooler is None:  # the head samples the maps itself, as PointRend's does
            return {name: features[name] for name in self.in_features}
        return pooler([features[name] for name in self.in_features], boxes)

    def _losses(self, features: dict[str, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        predictions = self._predict(features, proposals)
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for p, predicted in zip(proposals, boxes, strict=True):
                p.proposal_boxes = Boxes(predicted)
        foreground, _ = select_foreground_proposals(proposals, self.num_classes)
        if self.mask_head is not None:
            x = self._pool(self.mask_pooler, features, [p.proposal_boxes for p in foreground])
            losses.update(self.mask_head(x, foreground))
        if self.keypoint_head is not None:
            foreground = select_proposals_with_visible_keypoints(foreground)
            x = self._pool(self.keypoint_pooler, features, [p.proposal_boxes for p in foreground])
            losses.update(self.keypoint_head(x, foreground))
        return losses

    def _detect(self, features: dict[str, Tensor], proposals: list[Instances]) -> list[Instances]:
        detections, _ = self.box_predictor.inference(self._predict(features, proposals), proposals)
        return detections

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Detections (`pred_boxes`, `pred_classes`) of each image with masks and keypoints added."""
        boxes = [i.pred_boxes for i in instances]
        if self.mask_head is not None:
            instances = self.mask_head(self._pool(self.mask_pooler, features, boxes), instances)
        if self.keypoint_head is not None:
            instances = self.keypoint_head(self._pool(self.keypoint_pooler, features, boxes), instances)
        return instances


@ROI_HEADS_REGISTRY.register()
class MaskRCNNC4ROIHeads(_TwoStep):
    """RoIs pooled from res4, and res5 as the head that boxes and masks share. Stands for `Res5ROIHeads`.

    Args:
        in_features: the name of one feature map, in a list.
        pooler: RoI features of it.
        res5: runs on them.
        box_predictor: on the mean of res5's output.
        mask_head: on res5's output, or None.
        kwargs: see the framework's `ROIHeads`.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: nn.Module,
        res5: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.in_features = list(in_features)
        self.pooler = pooler
        self.res5 = res5
        self.box_predictor = box_predictor
        self.mask_head = mask_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        args = super().from_config(cfg)
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        if len(in_features) != 1:
            raise ValueError(f"MaskRCNNC4ROIHeads pool from one map; MODEL.ROI_HEADS.IN_FEATURES is {in_features}")
        shapes = shapes_of(in_features, input_shape, "MODEL.ROI_HEADS.IN_FEATURES")
        if cfg.MODEL.KEYPOINT_ON:
            raise ValueError("MaskRCNNC4ROIHeads have no keypoint branch: set MODEL.KEYPOINT_ON False, or use FPN")
        head = cfg.MODEL.ROI_BOX_HEAD
        res5 = build_stage(cfg, 5, stride=head.RES5_STRIDE)
        channels = res5[-1].out_channels
        args["in_features"] = in_features
        args["pooler"] = MaskRCNNPooler.of_head(head, shapes)
        args["res5"] = nn.Sequential(*res5)
        args["box_predictor"] = FastRCNNOutputLayers(cfg, ShapeSpec(channels, 1, 1))
        if cfg.MODEL.MASK_ON:
            side = -(-head.POOLER_RESOLUTION // head.RES5_STRIDE)
            args["mask_head"] = build_mask_head(cfg, ShapeSpec(channels, side, side))
        return args

    def _shared(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        return self.res5(self.pooler([features[name] for name in self.in_features], boxes))

    def _losses(self, features: dict[str, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        x = self._shared(features, [p.proposal_boxes for p in proposals])
        losses = self.box_predictor.losses(self.box_predictor(x.mean(dim=(2, 3))), proposals)
        if self.mask_head is not None:
            foreground, chosen = select_foreground_proposals(proposals, self.num_classes)
            losses.update(self.mask_head(x[torch.cat(chosen)], foreground))
        return losses

    def _detect(self, features: dict[str, Tensor], proposals: list[Instances]) -> list[Instances]:
        x = self._shared(features, [p.proposal_boxes for p in proposals])
        detections, _ = self.box_predictor.inference(self.box_predictor(x.mean(dim=(2, 3))), proposals)
        return detections

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Detections (`pred_boxes`, `pred_classes`) of each image with masks added."""
        if self.mask_head is None:
            return instances
        return self.mask_head(self._shared(features, [i.pred_boxes for i in instances]), instances)
