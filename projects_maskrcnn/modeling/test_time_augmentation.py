"""Test-time augmentation: an image is seen at several sizes and mirrored, and what is found is merged."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..framework import (
    Boxes,
    CfgNode,
    Instances,
    ResizeShortestEdge,
    batched_nms,
    create_keypoint_hflip_indices,
    detector_postprocess,
)
from .keypoint_head import keypoint_rcnn_inference

WITHOUT_VIEWS = ("PanopticFPN",)
"""Meta-architectures that have RoI heads, and whose inference gives more than detections."""


@dataclass(frozen=True)
class View:
    """An image at a height and width in pixels, mirrored or not."""

    height: int
    width: int
    flip: bool

    def of_image(self, image: Tensor) -> Tensor:
        """The view of an image (C, H, W): (C, height, width), float32."""
        size = (self.height, self.width)
        image = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True, align_corners=False)[0]
        return image.flip(-1) if self.flip else image

    def of_boxes(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Boxes (N, 4) of an image of that height and width, in pixels of the view."""
        return self._flipped(boxes * self._scale(boxes, image_size))

    def to_image(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The inverse of `of_boxes`."""
        return self._flipped(boxes) / self._scale(boxes, image_size)

    def unmirrored(self, maps: Tensor) -> Tensor:
        """Maps (..., M, M) of boxes in the view, as the image has them."""
        return maps.flip(-1) if self.flip else maps

    def _scale(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        return boxes.new_tensor([self.width / image_size[1], self.height / image_size[0]] * 2)

    def _flipped(self, boxes: Tensor) -> Tensor:
        if not self.flip:
            return boxes
        x0, y0, x1, y1 = boxes.unbind(1)
        return torch.stack([self.width - x1, y0, self.width - x0, y1], dim=1)


class GeneralizedRCNNWithTTA(nn.Module):
    """A model in whose place this can be tested. Stands for Detectron2's class, and does keypoints too.

    The boxes of all views together go through non-maximum suppression. On those that are left every view then gives
    masks and keypoint heatmaps, of which the mean is taken. Give it images of their own size: they are resized once,
    and nothing is lost.

    Args:
        cfg: its `TEST.AUG` names the views: the shorter sides `MIN_SIZES`, with the longer no more than `MAX_SIZE`,
            and `FLIP`.
        model: a `GeneralizedRCNN` with a proposal generator.

    Raises:
        ValueError: the model is none, or takes precomputed proposals, which are of one size.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        super().__init__()
        self.model = getattr(model, "module", model)
        if cfg.MODEL.META_ARCHITECTURE in WITHOUT_VIEWS or not hasattr(self.model, "inference"):
            raise ValueError(
                f"TEST.AUG.ENABLED needs a GeneralizedRCNN, and MODEL.META_ARCHITECTURE is "
                f"{cfg.MODEL.META_ARCHITECTURE}: set TEST.AUG.ENABLED False"
            )
        if cfg.MODEL.LOAD_PROPOSALS:
            raise ValueError("TEST.AUG.ENABLED needs a model that makes its proposals: set MODEL.LOAD_PROPOSALS False")
        self.min_sizes = cfg.TEST.AUG.MIN_SIZES
        self.max_size = cfg.TEST.AUG.MAX_SIZE
        self.flips = (False, True) if cfg.TEST.AUG.FLIP else (False,)
        self.nms_thresh = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
        self.detections_per_image = cfg.TEST.DETECTIONS_PER_IMAGE
        self.mirrored_keypoints = None
        if cfg.MODEL.KEYPOINT_ON:
            self.mirrored_keypoints = create_keypoint_hflip_indices(cfg.DATASETS.TRAIN)
        self.train(self.model.training)

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Instances]]:
        """For each input (`image` (C, H, W), `height`, `width`) {"instances": detections in the original image}."""
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def views(self, height: int, width: int) -> list[View]:
        """The views of an image of that size."""
        sizes = [ResizeShortestEdge.get_output_shape(height, width, s, self.max_size) for s in self.min_sizes]
        return [View(*size, flip) for size in sizes for flip in self.flips]

    def _detect(self, x: dict) -> Instances:
        image = x["image"]
        size = (x.get("height", image.shape[1]), x.get("width", image.shape[2]))
        views = self.views(*image.shape[1:])
        found = [self.model.inference([{"image": v.of_image(image)}], do_postprocess=False)[0] for v in views]
        boxes = [v.to_image(f.pred_boxes.tensor, size) for v, f in zip(views, found, strict=True)]
        merged = self._merge(boxes, found, size)

        seen = [self._look_at(image, v, merged, size) for v in views]
        if seen[0].has("pred_masks"):
            masks = [v.unmirrored(s.pred_masks) for v, s in zip(views, seen, strict=True)]
            merged.pred_masks = torch.stack(masks).mean(dim=0)
        if seen[0].has("pred_keypoint_heatmaps"):
            maps = [v.unmirrored(s.pred_keypoint_heatmaps) for v, s in zip(views, seen, strict=True)]
            maps = [m[:, self.mirrored_keypoints] if v.flip else m for v, m in zip(views, maps, strict=True)]
            keypoint_rcnn_inference(torch.stack(maps).mean(dim=0), [merged])
        return detector_postprocess(merged, *size)

    def _look_at(self, image: Tensor, view: View, merged: Instances, size: tuple[int, int]) -> Instances:
        """Masks and keypoints that a view gives on the boxes of `merged`, which are in pixels of an image of `size`."""
        given = Instances((view.height, view.width))
        given.pred_boxes = Boxes(view.of_boxes(merged.pred_boxes.tensor, size))
        given.pred_classes = merged.pred_classes
        return self.model.inference([{"image": view.of_image(image)}], [given], do_postprocess=False)[0]

    def _merge(self, boxes: list[Tensor], found: list[Instances], size: tuple[int, int]) -> Instances:
        """One set of detections from those of all views, whose boxes are in pixels of an image of `size`."""
        boxes = torch.cat(boxes)
        scores = torch.cat([f.scores for f in found])
        classes = torch.cat([f.pred_classes for f in found])
        keep = batched_nms(boxes, scores, classes, self.nms_thresh)[: self.detections_per_image]
        merged = Instances(size)
        merged.pred_boxes, merged.scores, merged.pred_classes = Boxes(boxes[keep]), scores[keep], classes[keep]
        return merged
