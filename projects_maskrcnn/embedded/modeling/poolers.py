"""Pooling from the level of a pyramid that fits each box. Stands for `detectron2.modeling.poolers`."""

from torch import Tensor, nn

from ...ops import check_pyramid, roi_align
from ..layers import ROIAlign
from ..structures import Boxes


class ROIPooler(nn.Module):
    """RoIAlign of each box on one of several feature maps, whose settings its `level_poolers` hold.

    Args:
        output_size: (height, width) in bins, or one number for both.
        scales: of each feature map over the network's input, finest first.
        sampling_ratio: samples per bin along each axis, 0 to adapt.
        pooler_type: "ROIAlignV2", or "ROIAlign" with its samples half a pixel off.
        canonical_box_size, canonical_level: a square box with this side, in pixels, belongs on the level of scale
            ``2 ** -canonical_level`` (FPN paper, equation 1).

    Raises:
        ValueError: `pooler_type` is unknown, or the scales are not consecutive powers of two.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        scales: list[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        if pooler_type not in ("ROIAlign", "ROIAlignV2"):
            raise ValueError(f"pooler type {pooler_type!r} is unknown; known are ROIAlign, ROIAlignV2")
        check_pyramid(scales)
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.level_poolers = nn.ModuleList(
            ROIAlign(self.output_size, scale, sampling_ratio, aligned=pooler_type == "ROIAlignV2") for scale in scales
        )
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """(R, C, height, width) features of the boxes of all images, in order.

        Args:
            x: feature maps (N, C, H, W), finest first.
            box_lists: for each image its boxes, in pixels of the network's input.
        """
        align = self.level_poolers[0]
        return roi_align(
            x,
            [boxes.tensor for boxes in box_lists],
            self.output_size,
            [level.spatial_scale for level in self.level_poolers],
            align.sampling_ratio,
            align.aligned,
            canonical_box_size=self.canonical_box_size,
            canonical_level=self.canonical_level,
        )
