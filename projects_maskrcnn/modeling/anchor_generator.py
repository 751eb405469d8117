"""torchvision's anchors, which its weights need."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..framework import ANCHOR_GENERATOR_REGISTRY, Boxes, DefaultAnchorGenerator


@ANCHOR_GENERATOR_REGISTRY.register()
class MaskRCNNRoundedAnchorGenerator(DefaultAnchorGenerator):
    """Anchors of whole pixels, at whole pixels. Stands for torchvision's `AnchorGenerator`.

    Sides are rounded, and a map's cells lie as many pixels apart as the padded image has for each of them: 61 rather
    than 64 where an image of 800 pixels has 13 cells in p6. `OFFSET` has no effect.
    """

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """(len(sizes) * len(aspect_ratios), 4) anchors around the origin, rounded."""
        return super().generate_cell_anchors(sizes, aspect_ratios).round()

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """For each feature map (N, C, H, W), finest first, the H * W * A anchors, cell by cell in rows."""
        image_height, image_width = (self.strides[0] * side for side in features[0].shape[-2:])
        anchors = []
        for feature, around_origin in zip(features, self.cell_anchors, strict=True):
            height, width = feature.shape[-2:]
            y = torch.arange(height, device=feature.device) * (image_height // height)
            x = torch.arange(width, device=feature.device) * (image_width // width)
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack([x, y, x, y], -1).view(-1, 1, 4)
            anchors.append(Boxes((centres + around_origin).reshape(-1, 4)))
        return anchors
