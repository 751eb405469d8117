"""VGG-16 (Simonyan and Zisserman, 2015), the backbone of Fast and Faster R-CNN on PASCAL VOC."""

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor

from ..framework import BACKBONE_REGISTRY, Backbone, CfgNode, Conv2d, ShapeSpec

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and 3x3 convs of each stage; a 2x2 max pooling lies between two stages."""


class VGG16(Backbone):
    """The 13 convs of VGG-16, to a feature map `conv5_3` of stride 16. Parameters have the paper's names: `conv1_1` ...

    Its fully connected layers are the box head: `MaskRCNNBoxHead` with two of 4096 and dropout.

    Args:
        in_channels: of the images.
        freeze_at: the first so many stages are not trained; 2 in Fast R-CNN (section 4.5).
    """

    def __init__(self, in_channels: int = 3, freeze_at: int = 0) -> None:
        super().__init__()
        self.stage_names = []
        for stage, (channels, num_convs) in enumerate(STAGES, start=1):
            names = [f"conv{stage}_{i}" for i in range(1, num_convs + 1)]
            for name in names:
                conv = Conv2d(in_channels, channels, kernel_size=3, padding=1)
                c2_msra_fill(conv)
                conv.requires_grad_(stage > freeze_at)
                self.add_module(name, conv)
                in_channels = channels
            self.stage_names.append(names)
        self._out_features = ["conv5_3"]
        self._out_feature_channels = {"conv5_3": in_channels}
        self._out_feature_strides = {"conv5_3": 2 ** (len(STAGES) - 1)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """{"conv5_3": (N, 512, H / 16, W / 16)} of images (N, C, H, W)."""
        for stage, names in enumerate(self.stage_names):
            if stage:
                x = F.max_pool2d(x, kernel_size=2)
            for name in names:
                x = F.relu(getattr(self, name)(x))
        return {"conv5_3": x}


@BACKBONE_REGISTRY.register()
def build_maskrcnn_vgg_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VGG16:
    """VGG-16; `MODEL.BACKBONE.FREEZE_AT` stages are not trained."""
    return VGG16(input_shape.channels, cfg.MODEL.BACKBONE.FREEZE_AT)
