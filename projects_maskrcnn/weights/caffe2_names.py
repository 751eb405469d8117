"""Caffe2's names: of the first Detectron's models and of the ImageNet ones that Detectron2 starts from.

A blob is called after its layer and its role, ``res2_0_branch2a_bn_s``. Layers get the end of their name in Detectron2,
``res2.0.conv1.norm.weight``, which `fitting.match` completes.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

ROLES = {
    "w": "weight",
    "b": "bias",
    "bn_s": "norm.weight",
    "bn_gamma": "norm.weight",
    "bn_b": "norm.bias",
    "bn_beta": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_running_mean": "norm.running_mean",
    "bn_riv": "norm.running_var",
    "bn_running_var": "norm.running_var",
    "gn_s": "norm.weight",
    "gn_b": "norm.bias",
}
"""How blob names end, and what Detectron2 calls that."""

LAYERS = {
    r"(?:res_)?conv1": "stem.conv1",
    r"res(\d)_(\d+)_branch1": r"res\1.\2.shortcut",
    r"res(\d)_(\d+)_branch2a": r"res\1.\2.conv1",
    r"res(\d)_(\d+)_branch2b": r"res\1.\2.conv2",
    r"res(\d)_(\d+)_branch2c": r"res\1.\2.conv3",
    r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?": r"fpn_lateral\1",
    r"fpn_res(\d)_\d+_sum": r"fpn_output\1",
    # p2's RPN head is every level's
    r"conv_rpn(?:_fpn2)?": "proposal_generator.rpn_head.conv",
    r"rpn_cls_logits(?:_fpn2)?": "proposal_generator.rpn_head.objectness_logits",
    r"rpn_bbox_pred(?:_fpn2)?": "proposal_generator.rpn_head.anchor_deltas",
    r"head_conv(\d)": r"box_head.conv\1",
    r"fc6": "box_head.fc1",
    r"fc7": "box_head.fc2",
    r"cls_score": "box_predictor.cls_score",
    r"bbox_pred": "box_predictor.bbox_pred",
    r"_\[mask\]_fcn(\d)": r"mask_head.mask_fcn\1",
    r"conv5_mask": "mask_head.deconv",
    r"mask_fcn_logits": "mask_head.predictor",
    r"conv_fcn(\d)": r"roi_heads.keypoint_head.conv_fcn\1",
    r"kps_score_lowres": "roi_heads.keypoint_head.score_lowres",
}
"""Patterns of layer names, and what Detectron2 calls them."""

_BLOB = re.compile(f"(.+?)_({'|'.join(sorted(ROLES, key=len, reverse=True))})")
_LAYERS = [(re.compile(pattern), name) for pattern, name in LAYERS.items()]


def is_caffe2(names: Iterable[str]) -> bool:
    """Whether the names are Caffe2's, which have no dots."""
    names = list(names)
    return any(name.endswith("_w") for name in names) and not any("." in name for name in names)


def rename(blob: str) -> str:
    """The end of the name that Detectron2 has for a blob; unknown layers keep theirs."""
    parts = _BLOB.fullmatch(blob)
    if parts is None:
        return blob
    layer, role = parts[1], ROLES[parts[2]]
    for pattern, name in _LAYERS:
        if found := pattern.fullmatch(layer):
            return f"{found.expand(name)}.{role}"
    return f"{layer}.{role}"


def from_caffe2(blobs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under Detectron2's names, for its classes, where the background comes last and has no box nor mask."""
    named = {rename(blob): value for blob, value in blobs.items() if not blob.endswith("_momentum")}
    return background_last(named)


def background_last(weights: dict[str, Tensor], classes: Tensor | None = None) -> dict[str, Tensor]:
    """Heads whose class 0 is the background, for classes that count from 0 and a background after them.

    Args:
        weights: by Detectron2's names, or their ends.
        classes: the rows, from 1 on, to keep, in order; all by default.
    """

    def rows(value: Tensor, per_class: int = 1) -> Tensor:
        by_class = value.unflatten(0, (-1, per_class))
        return by_class[1:] if classes is None else by_class[classes]

    changed = dict(weights)
    for name, value in weights.items():
        layer = name.rpartition(".")[0]
        if layer.endswith("box_predictor.cls_score"):
            changed[name] = torch.cat([rows(value).flatten(0, 1), value[:1]])
        elif layer.endswith("box_predictor.bbox_pred"):
            changed[name] = rows(value, 4).flatten(0, 1)
        elif layer.endswith("mask_head.predictor"):
            changed[name] = rows(value).flatten(0, 1)
    return changed
