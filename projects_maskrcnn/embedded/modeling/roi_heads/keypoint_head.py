"""The registry of keypoint heads."""

from torch import nn

from ...config import CfgNode
from ...layers import ShapeSpec
from ...utils.registry import Registry

ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")
"""Classes that take a config and the `ShapeSpec` of a pooled RoI."""


def build_keypoint_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The head that `MODEL.ROI_KEYPOINT_HEAD.NAME` names."""
    return ROI_KEYPOINT_HEAD_REGISTRY.get(cfg.MODEL.ROI_KEYPOINT_HEAD.NAME)(cfg, input_shape)
