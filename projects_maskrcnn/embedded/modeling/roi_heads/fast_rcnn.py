"""Classes and boxes from RoI features (Fast R-CNN, section 2.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...layers import ShapeSpec, batched_nms, cat, cross_entropy
from ...structures import Boxes, Instances
from ...utils.events import get_event_storage
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss


def fast_rcnn_inference(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """`fast_rcnn_inference_single_image` of each image."""
    results = [
        fast_rcnn_inference_single_image(b, s, shape, score_thresh, nms_thresh, topk_per_image)
        for b, s, shape in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [r[0] for r in results], [r[1] for r in results]


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """Detections of one image: above a score, after NMS within each class, the best of all classes.

    Args:
        boxes: (R, K * 4), or (R, 4) for all classes.
        scores: (R, K + 1), background last.
        topk_per_image: detections to keep; negative for all.

    Returns:
        `pred_boxes`, `scores`, `pred_classes`, best first; and for each the row of its proposal. Rows that are not
        finite are left out before counting.
    """
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    boxes, scores = boxes[finite], scores[finite, :-1]
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(image_shape)
    boxes = clipped.tensor.view(len(boxes), boxes.shape[1] // 4, 4)
    row, category = (scores > score_thresh).nonzero(as_tuple=True)
    boxes = boxes[row, category if boxes.shape[1] > 1 else 0]
    scores = scores[row, category]
    keep = batched_nms(boxes, scores, category, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    result = Instances(image_shape)
    result.pred_boxes = Boxes(boxes[keep])
    result.scores = scores[keep]
    result.pred_classes = category[keep]
    return result, row[keep]


def _log_classification_stats(logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn") -> None:
    """Put accuracies into the event storage."""
    if not len(gt_classes):
        return
    background = logits.shape[1] - 1
    predicted = logits.argmax(dim=1)
    right = predicted == gt_classes
    foreground = (gt_classes >= 0) & (gt_classes < background)
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", right.float().mean().item())
    if foreground.any():
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", right[foreground].float().mean().item())
        missed = predicted[foreground] == background
        storage.put_scalar(f"{prefix}/false_negative", missed.float().mean().item())


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers, scores and box deltas. Stands for Detectron2's `FastRCNNOutputLayers`.

    Args:
        input_shape: of the box head's output.
        box2box_transform: from proposals and deltas to boxes.
        num_classes: without background.
        test_score_thresh, test_nms_thresh, test_topk_per_image: see `fast_rcnn_inference_single_image`.
        cls_agnostic_bbox_reg: one box for all classes.
        smooth_l1_beta, box_reg_loss_type: see `_dense_box_regression_loss`.
        loss_weight: of both losses, or by name.
        use_sigmoid_ce: classes are independent, with a sigmoid each.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
        use_sigmoid_ce: bool = False,
    ) -> None:
        super().__init__()
        input_size = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        self.num_classes = num_classes
        self.cls_score = nn.Linear(input_size, num_classes + 1)
        num_boxes = 1 if cls_agnostic_bbox_reg else num_classes
        self.bbox_pred = nn.Linear(input_size, num_boxes * len(box2box_transform.weights))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)
        self.box2box_transform = box2box_transform
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight
        self.use_sigmoid_ce = use_sigmoid_ce

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        if head.USE_FED_LOSS:
            raise NotImplementedError(
                "MODEL.ROI_BOX_HEAD.USE_FED_LOSS is for LVIS, which the embedded framework does not have"
            )
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (R, K + 1), background last, and deltas (R, K * 4) or (R, 4), of features (R, ...)."""
        x = x.flatten(start_dim=1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """`loss_cls`, a mean over RoIs, and `loss_box_reg`, a sum over foreground divided by the number of RoIs.

        Args:
            predictions: from `forward`.
            proposals: with `proposal_boxes`, `gt_classes` and, where an image has any, `gt_boxes`.
        """
        scores, deltas = predictions
        gt_classes = cat([p.gt_classes for p in proposals])
        _log_classification_stats(scores, gt_classes)
        proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
        # an image without ground truth has only background, whose boxes no loss looks at
        gt_boxes = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        losses = {
            "loss_cls": self._classification_loss(scores, gt_classes),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _classification_loss(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        if not self.use_sigmoid_ce:
            return cross_entropy(scores, gt_classes, reduction="mean")
        target = F.one_hot(gt_classes, self.num_classes + 1)[:, :-1].to(scores.dtype)
        loss = F.binary_cross_entropy_with_logits(scores[:, :-1], target, reduction="sum")
        return loss / max(len(gt_classes), 1)

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """Box loss of foreground RoIs, over all RoIs, so that each foreground RoI counts the same in any batch.

        Args:
            proposal_boxes, gt_boxes: (R, 4).
            pred_deltas: (R, K * 4) or (R, 4).
            gt_classes: (R,), K for background.
        """
        foreground = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero().squeeze(1)
        deltas = pred_deltas.view(len(pred_deltas), pred_deltas.shape[1] // 4, 4)[foreground]
        if deltas.shape[1] > 1:
            deltas = deltas[torch.arange(len(foreground)), gt_classes[foreground]]
        loss = _dense_box_regression_loss(
            [proposal_boxes[foreground]],
            self.box2box_transform,
            [deltas.reshape(1, -1, 4)],
            [gt_boxes[foreground]],
            ...,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return loss / max(gt_classes.numel(), 1.0)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """See `fast_rcnn_inference`."""
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> tuple[Tensor, ...]:
        """For each image the boxes (R, K * 4) or (R, 4) of its proposals."""
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        return self.box2box_transform.apply_deltas(predictions[1], boxes).split([len(p) for p in proposals])

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """For each image one box (R, 4) a proposal, that of its `gt_classes`."""
        results = []
        for boxes, p in zip(self.predict_boxes(predictions, proposals), proposals, strict=True):
            boxes = boxes.view(len(p), -1, 4)
            if boxes.shape[1] > 1:
                # background has no box; which one it gets does not matter
                category = p.gt_classes.clamp(0, self.num_classes - 1)
                boxes = boxes[torch.arange(len(p)), category]
            results.append(boxes.reshape(-1, 4))
        return results

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> tuple[Tensor, ...]:
        """For each image the probabilities (R, K + 1) of its proposals."""
        scores = predictions[0]
        probs = scores.sigmoid() if self.use_sigmoid_ce else scores.softmax(dim=-1)
        return probs.split([len(p) for p in proposals])
