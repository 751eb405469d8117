"""The registry of backbones."""

from ...config import CfgNode
from ...layers import ShapeSpec
from ...utils.registry import Registry
from .backbone import Backbone

BACKBONE_REGISTRY = Registry("BACKBONE")
"""Functions or classes that take a config and the input's `ShapeSpec` and give a `Backbone`."""


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """The backbone that `MODEL.BACKBONE.NAME` names; the input has as many channels as `MODEL.PIXEL_MEAN`."""
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    if not isinstance(backbone, Backbone):
        raise TypeError(f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r} built {type(backbone)}, not a Backbone")
    return backbone
