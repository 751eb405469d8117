"""torchvision's models: `maskrcnn_resnet50_fpn`, `keypointrcnn_resnet50_fpn`, ResNets and ResNeXts.

What differs besides the names, and what becomes of it:

- Images are RGB from 0 to 1, normalised by ImageNet's mean and deviation. The first conv's weights are changed to fit
  the images that the model gets; its `MODEL.PIXEL_MEAN` must be the same colour, as Detectron2's default is.
- The background is class 0; COCO's classes are the ids 1 to 90, ten of which no image has. These are dropped, unless
  the model has 90 classes, so that each score is larger by what they took.
- The frozen batch norms of the detectors released as COCO_V1 add nothing to the variance, ours 1e-5, which is taken off
  it. Those of one trained from a backbone's weights alone add 1e-5, which its file does not tell: it is read as if they
  did not.
- Masks are pasted into the image by Detectron2's rule; torchvision's cuts the boxes to whole pixels first.
- RPN anchors are rounded, RoIAlign is not aligned, the stride is in the 3x3 conv: config keys, see `REQUIRED`.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .caffe2_names import background_last

logger = logging.getLogger(__name__)

REQUIRED = {
    "backbone": "MODEL.RESNETS.STRIDE_IN_1X1 False",
    "detector": (
        "MODEL.RESNETS.STRIDE_IN_1X1 False, MODEL.ANCHOR_GENERATOR.NAME MaskRCNNRoundedAnchorGenerator, and for each "
        "head POOLER_TYPE ROIAlign and POOLER_SAMPLING_RATIO 2 (configs/torchvision has them)"
    ),
}
"""Config keys that these weights were trained with and that differ from Detectron2's defaults."""

COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""The ids from 1 to 90 that no COCO category has."""

FROZEN_EPS = 1e-5
"""What Detectron2's batch norms add to the variance."""

RGB_MEAN = torch.tensor([0.485, 0.456, 0.406]) * 255
RGB_STD = torch.tensor([0.229, 0.224, 0.225]) * 255

NAMES = {
    r"conv1\.": "stem.conv1.",
    r"bn1\.": "stem.conv1.norm.",
    r"layer(\d)\.(\d+)\.conv(\d)\.": r"res{stage}.\2.conv\3.",
    r"layer(\d)\.(\d+)\.bn(\d)\.": r"res{stage}.\2.conv\3.norm.",
    r"layer(\d)\.(\d+)\.downsample\.0\.": r"res{stage}.\2.shortcut.",
    r"layer(\d)\.(\d+)\.downsample\.1\.": r"res{stage}.\2.shortcut.norm.",
}
"""How the names of a backbone's layers start, and what Detectron2 calls them; its stages count from 2."""

DETECTOR_NAMES = {
    # the optional 0 came with torchvision 0.13; released weights are from before
    r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?": r"backbone.fpn_lateral{level}.",
    r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?": r"backbone.fpn_output{level}.",
    r"rpn\.head\.conv\.(?:0\.0\.)?": "proposal_generator.rpn_head.conv.",
    r"rpn\.head\.cls_logits\.": "proposal_generator.rpn_head.objectness_logits.",
    r"rpn\.head\.bbox_pred\.": "proposal_generator.rpn_head.anchor_deltas.",
    r"roi_heads\.box_head\.fc6\.": "roi_heads.box_head.fc1.",
    r"roi_heads\.box_head\.fc7\.": "roi_heads.box_head.fc2.",
    r"roi_heads\.mask_head\.mask_fcn(\d)\.": r"roi_heads.mask_head.mask_fcn\1.",
    r"roi_heads\.mask_head\.(\d)\.0\.": r"roi_heads.mask_head.mask_fcn{number}.",
    r"roi_heads\.mask_predictor\.conv5_mask\.": "roi_heads.mask_head.deconv.",
    r"roi_heads\.mask_predictor\.mask_fcn_logits\.": "roi_heads.mask_head.predictor.",
    r"roi_heads\.keypoint_head\.(\d+)\.": r"roi_heads.keypoint_head.conv_fcn{layer}.",
    r"roi_heads\.keypoint_predictor\.kps_score_lowres\.": "roi_heads.keypoint_head.score_lowres.",
}
"""How the names of a detector's other layers start, and what Detectron2 calls them."""

_RULES = [(re.compile(pattern), name) for pattern, name in {**NAMES, **DETECTOR_NAMES}.items()]


@dataclass(frozen=True)
class InputFormat:
    """What a model's first conv gets: ``(image - mean) / std``, in the order of `channels`, such as "BGR".

    `mean` and `std` (C,) are of pixels from 0 to 255.
    """

    channels: str
    mean: Tensor
    std: Tensor


DEFAULT_INPUT = InputFormat("BGR", torch.tensor([103.530, 116.280, 123.675]), torch.ones(3))
"""Detectron2's defaults of `INPUT.FORMAT`, `MODEL.PIXEL_MEAN` and `MODEL.PIXEL_STD`."""


def is_torchvision(names: Iterable[str]) -> bool:
    """Whether the names are those of torchvision's ResNets, alone or in a detector."""
    return any(re.fullmatch(r"(backbone\.body\.)?layer1\.0\.bn1\.weight", name) for name in names)


def is_detector(names: Iterable[str]) -> bool:
    """Whether these names of torchvision's are those of a detector, not of a ResNet alone."""
    return any(name.startswith("backbone.body.") for name in names)


def rename(name: str) -> str:
    """Detectron2's name for a tensor, or its end for one of a backbone; unknown layers keep theirs."""
    prefix = "backbone.body."
    start, inside = ("backbone.bottom_up.", name[len(prefix) :]) if name.startswith(prefix) else ("", name)
    for pattern, replacement in _RULES:
        if found := pattern.match(inside):
            number = int(found[1]) if found.groups() else 0
            counted = replacement.format(stage=number + 1, level=number + 2, number=number + 1, layer=number // 2 + 1)
            return start + found.expand(counted) + inside[found.end() :]
    return name


def from_torchvision(
    weights: dict[str, Tensor], images: InputFormat = DEFAULT_INPUT, num_classes: int | None = None
) -> dict[str, Tensor]:
    """Weights under Detectron2's names, for the model's images and classes. Logs what config keys they need.

    Args:
        images: what the model's first conv gets.
        num_classes: of the model, background apart, where it has a box head.
    """
    detector = is_detector(weights)
    frozen = detector and not any(name.endswith("num_batches_tracked") for name in weights)
    named = {rename(name): value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    for name, value in named.items():
        if name.endswith("stem.conv1.weight") and value.shape[1] == len(images.channels):
            named[name] = fold(value, images)
        elif frozen and name.endswith("norm.running_var"):
            named[name] = value - FROZEN_EPS
    scores = weights.get("roi_heads.box_predictor.cls_score.weight")
    coco = scores is not None and len(scores) == 91 and num_classes != 90
    if scores is not None:
        kept = torch.tensor([i for i in range(1, len(scores)) if not coco or i not in COCO_GAPS])
        named = background_last(named, kept)
    logger.info(
        "Weights of torchvision: the first conv now takes %s images of mean %s and deviation %s%s. They need %s.",
        images.channels,
        [round(v, 3) for v in images.mean.tolist()],
        [round(v, 3) for v in images.std.tolist()],
        "; of COCO's 90 ids the 80 in use are kept" if coco else "",
        REQUIRED["detector" if detector else "backbone"],
    )
    return named


def is_built_otherwise(model: nn.Module, detector: bool) -> bool:
    """Whether a model surely lacks what `REQUIRED` says: by the stride of its first convs, and by its anchors."""
    for name, module in model.named_modules():
        # of a bottleneck block; the first conv of a basic block is 3x3, and has the stride
        if name.endswith("res3.0.conv1") and module.kernel_size == (1, 1) and module.stride != (1, 1):
            return True
        if detector and name.endswith("anchor_generator"):
            return any((anchors != anchors.round()).any() for anchors in module.cell_anchors)
    return False


def fold(weight: Tensor, images: InputFormat) -> Tensor:
    """A first conv for RGB of torchvision's normalisation as one for `images`. Exact: both pad with the mean."""
    order = ["RGB".index(channel) for channel in images.channels]
    mean, std = RGB_MEAN[order], RGB_STD[order]
    if not torch.allclose(images.mean.cpu(), mean, atol=0.01):
        logger.warning(
            "MODEL.PIXEL_MEAN is %s; torchvision's weights want %s in %s. Set it, or results suffer.",
            [round(v, 3) for v in images.mean.tolist()],
            [round(v, 3) for v in mean.tolist()],
            images.channels,
        )
    return weight[:, order] * (images.std.cpu() / std)[:, None, None]
