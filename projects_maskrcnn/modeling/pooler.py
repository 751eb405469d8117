"""RoI features of a fixed size, from one feature map or a pyramid, in our own heads or in the framework's."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..framework import Boxes, CfgNode, ROIAlign, ROIPooler, ShapeSpec
from ..ops import check_pyramid, roi_align, roi_pool, roi_warp

logger = logging.getLogger(__name__)


def _roi_pool(features: list[Tensor], boxes: list[Tensor], *args: Any, sampling_ratio: int, **kwargs: Any) -> Tensor:
    """`roi_pool`, which samples every cell whatever the sampling ratio."""
    return roi_pool(features, boxes, *args, **kwargs)


ROI_LAYERS: dict[str, Callable[..., Tensor]] = {
    "ROIAlignV2": partial(roi_align, aligned=True),
    "ROIAlign": partial(roi_align, aligned=False),
    "ROIAlignMax": partial(roi_align, mode="max"),
    "ROIWarp": roi_warp,
    "ROIWarpMax": partial(roi_warp, mode="max"),
    "ROIPool": _roi_pool,
}
"""What `POOLER_TYPE` may name: functions with the arguments of `roi_align`. Add your own."""


class MaskRCNNPooler(nn.Module):
    """Pools each box from the level that fits its size. Stands for Detectron2's `ROIPooler`.

    Args:
        output_size: (height, width) in bins, or one number for both.
        scales: of each feature map over the network's input, finest first.
        sampling_ratio: samples per bin along each axis, 0 to adapt.
        pooler_type: a key of `ROI_LAYERS`.
        canonical_box_size, canonical_level: a square box with this side, in pixels, belongs on the level of scale
            ``2 ** -canonical_level``.

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
        if pooler_type not in ROI_LAYERS:
            raise ValueError(f"POOLER_TYPE is {pooler_type!r}; known are {', '.join(ROI_LAYERS)}")
        check_pyramid(scales)
        self.output_size = output_size
        self.scales = list(scales)
        self.sampling_ratio = sampling_ratio
        self.pooler_type = pooler_type
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    @classmethod
    def of_head(cls, head: CfgNode, shapes: list[ShapeSpec], canonical_box_size: int = 224) -> "MaskRCNNPooler":
        """The pooler of a config node with `POOLER_RESOLUTION`, `POOLER_SAMPLING_RATIO` and `POOLER_TYPE`."""
        return cls(
            head.POOLER_RESOLUTION,
            [1.0 / shape.stride for shape in shapes],
            head.POOLER_SAMPLING_RATIO,
            head.POOLER_TYPE,
            canonical_box_size,
        )

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """(R, C, height, width) features of the boxes of all images, in order.

        Args:
            x: feature maps (N, C, H, W), finest first.
            box_lists: for each image its boxes, in pixels of the network's input.
        """
        return ROI_LAYERS[self.pooler_type](
            x,
            [boxes.tensor for boxes in box_lists],
            self.output_size,
            self.scales,
            sampling_ratio=self.sampling_ratio,
            canonical_box_size=self.canonical_box_size,
            canonical_level=self.canonical_level,
        )

    def extra_repr(self) -> str:
        return f"{self.pooler_type}, output_size={self.output_size}, scales={self.scales}"


def replace_poolers(model: nn.Module) -> nn.Module:
    """`model`, in which each of the framework's poolers is a `MaskRCNNPooler` with the same settings.

    It makes heads that are not ours, such as Detectron2's `CascadeROIHeads`, pool with our RoIAlign: the same features
    up to rounding. Poolers have no parameters, so that weights, optimizers and checkpoints stay as they are. Poolers
    that are not of RoIAlign, and those of a class derived from the framework's, are left alone.
    """
    replaced, left = 0, []
    for parent in list(model.modules()):
        for name, pooler in parent.named_children():
            if type(pooler) is ROIPooler and type(pooler.level_poolers[0]) is ROIAlign:
                setattr(parent, name, _like(pooler))
                replaced += 1
            elif isinstance(pooler, ROIPooler):
                left.append(f"{type(pooler).__name__} of {type(pooler.level_poolers[0]).__name__}")
    logger.info("Poolers replaced: %d; left as they are: %s", replaced, ", ".join(left) or "none")
    return model


def _like(pooler: ROIPooler) -> MaskRCNNPooler:
    align = pooler.level_poolers[0]
    return MaskRCNNPooler(
        pooler.output_size,
        [level.spatial_scale for level in pooler.level_poolers],
        align.sampling_ratio,
        "ROIAlignV2" if align.aligned else "ROIAlign",
        pooler.canonical_box_size,
        pooler.canonical_level,
    )
