"""The registry of box heads."""

from torch import nn

from ...config import CfgNode
from ...layers import ShapeSpec
from ...utils.registry import Registry

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
"""Classes that take a config and the `ShapeSpec` of a pooled RoI."""


def build_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The head that `MODEL.ROI_BOX_HEAD.NAME` names."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)
