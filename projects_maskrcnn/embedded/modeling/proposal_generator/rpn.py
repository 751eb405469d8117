"""The region proposal network (Faster R-CNN, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...layers import Conv2d, ShapeSpec, cat
from ...structures import Boxes, ImageList, Instances, pairwise_iou
from ...utils.events import get_event_storage
from ...utils.registry import Registry
from ..anchor_generator import build_anchor_generator
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher
from ..sampling import subsample_labels
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")


def build_rpn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """The head that `MODEL.RPN.HEAD_NAME` names."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convs shared by all levels, then 1x1 convs to logits and deltas. Stands for Detectron2's `StandardRPNHead`.

    Args:
        in_channels: of every feature map.
        num_anchors: per cell.
        box_dim: deltas of a box.
        conv_dims: channels of each 3x3 conv; -1 for as many as come in.
    """

    @configurable
    def __init__(self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: list[int] = (-1,)) -> None:
        super().__init__()
        convs, channels = [], in_channels
        for dim in conv_dims:
            out_channels = channels if dim == -1 else dim
            if out_channels <= 0:
                raise ValueError(f"MODEL.RPN.CONV_DIMS {list(conv_dims)}: channels must be positive, or -1")
            convs.append(Conv2d(channels, out_channels, kernel_size=3, padding=1, activation=nn.ReLU()))
            channels = out_channels
        # Detectron2's names: a single conv is `conv`, several are `conv.conv0`, `conv.conv1` ...
        if len(convs) == 1:
            self.conv = convs[0]
        else:
            self.conv = nn.Sequential()
            for index, conv in enumerate(convs):
                self.conv.add_module(f"conv{index}", conv)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        anchor_generator = build_anchor_generator(cfg, input_shape)
        channels, anchors = {s.channels for s in input_shape}, set(anchor_generator.num_anchors)
        if len(channels) != 1 or len(anchors) != 1:
            raise ValueError(
                f"MODEL.RPN.IN_FEATURES share one head, but have {channels} channels and {anchors} anchors a cell"
            )
        return {
            "in_channels": channels.pop(),
            "num_anchors": anchors.pop(),
            "box_dim": anchor_generator.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each map (N, C, H, W): logits (N, A, H, W) and deltas (N, A * box_dim, H, W)."""
        hidden = [self.conv(x) for x in features]
        return [self.objectness_logits(t) for t in hidden], [self.anchor_deltas(t) for t in hidden]


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Stands for Detectron2's `RPN`.

    Args:
        in_features: names of the feature maps.
        head: gives logits and deltas.
        anchor_generator: gives the anchors of each feature map.
        anchor_matcher: labels anchors by their overlap with ground truth.
        box2box_transform: from anchors and deltas to proposals.
        batch_size_per_image, positive_fraction: the sample of anchors in the loss.
        pre_nms_topk, post_nms_topk: (in training, in testing), see `find_top_rpn_proposals`.
        nms_thresh: overlap above which the worse of two proposals goes.
        min_box_size: smallest side of a proposal, in pixels of the network's input.
        anchor_boundary_thresh: if >= 0, anchors that stick out of the image by more pixels are not trained.
        loss_weight: of both losses, or by name.
        box_reg_loss_type, smooth_l1_beta: see `_dense_box_regression_loss`.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        rpn = cfg.MODEL.RPN
        if not rpn.IN_FEATURES or not set(rpn.IN_FEATURES) <= input_shape.keys():
            raise ValueError(f"MODEL.RPN.IN_FEATURES is {rpn.IN_FEATURES}; choose from {', '.join(input_shape)}")
        shapes = [input_shape[f] for f in rpn.IN_FEATURES]
        return {
            "in_features": rpn.IN_FEATURES,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_rpn_cls": rpn.LOSS_WEIGHT,
                "loss_rpn_loc": rpn.BBOX_REG_LOSS_WEIGHT * rpn.LOSS_WEIGHT,
            },
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals of each image (`proposal_boxes`, `objectness_logits`), and in training the losses by name."""
        maps = [features[f] for f in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        # anchors are ordered by row, column, anchor of the cell: bring the predictions into that order
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [
            x.unflatten(1, (-1, self.anchor_generator.box_dim)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas
        ]
        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("the region proposal network needs `instances` in the inputs to train")
            labels, boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, labels, deltas, boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each image the label (R,) of each anchor: 1 object, 0 background, -1 not sampled; and (R, 4) its box."""
        anchors = Boxes.cat(anchors)
        labels, matched_boxes = [], []
        for gt in gt_instances:
            matches, label = self.anchor_matcher(pairwise_iou(gt.gt_boxes, anchors))
            if self.anchor_boundary_thresh >= 0:
                label[~anchors.inside_box(gt.image_size, self.anchor_boundary_thresh)] = -1
            labels.append(self._subsample_labels(label))
            if len(gt):
                matched_boxes.append(gt.gt_boxes.tensor[matches])
            else:
                matched_boxes.append(torch.zeros_like(anchors.tensor))
        return labels, matched_boxes

    def _subsample_labels(self, label: Tensor) -> Tensor:
        """`label` with -1 for all that is not in a random sample of it."""
        positive, negative = subsample_labels(label, self.batch_size_per_image, self.positive_fraction, 0)
        label.fill_(-1)
        label[positive] = 1
        label[negative] = 0
        return label

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """`loss_rpn_cls` and `loss_rpn_loc`, both over the size of the full sample.

        Args:
            pred_objectness_logits, pred_anchor_deltas: for each level, (N, R_l) and (N, R_l, 4).
            gt_labels, gt_boxes: from `label_and_sample_anchors`.
        """
        labels = torch.stack(gt_labels)
        positive, sampled = labels == 1, labels >= 0
        storage = get_event_storage()
        num_positive = positive.sum().item()
        storage.put_scalar("rpn/num_pos_anchors", num_positive / len(labels))
        storage.put_scalar("rpn/num_neg_anchors", (sampled.sum().item() - num_positive) / len(labels))
        localization = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        objectness = F.binary_cross_entropy_with_logits(
            cat(pred_objectness_logits, dim=1)[sampled], labels[sampled].float(), reduction="sum"
        )
        normalizer = self.batch_size_per_image * len(labels)
        losses = {"loss_rpn_cls": objectness / normalizer, "loss_rpn_loc": localization / normalizer}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """The best proposals of each image, best first. They are constants for the heads' gradients."""
        proposals, scores = [], []
        topk = self.pre_nms_topk[self.training]
        for boxes, logits, deltas in zip(anchors, pred_objectness_logits, pred_anchor_deltas, strict=True):
            # decode the candidates alone: most anchors are never looked at
            best, index = logits.topk(min(logits.shape[1], topk), dim=1)
            chosen = deltas.gather(1, index[..., None].expand(-1, -1, deltas.shape[-1]))
            decoded = self.box2box_transform.apply_deltas(chosen.flatten(0, 1), boxes.tensor[index.flatten()])
            proposals.append(decoded.view_as(chosen))
            scores.append(best)
        return find_top_rpn_proposals(
            proposals,
            scores,
            image_sizes,
            self.nms_thresh,
            topk,
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )
