"""Feature pyramid (Lin et al., 2017): maps of one width at strides 4 to 32, and a coarser one for proposals."""

import math
from typing import Literal

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from ..framework import BACKBONE_REGISTRY, Backbone, CfgNode, Conv2d, ShapeSpec, get_norm
from .features import shapes_of
from .resnet import build_maskrcnn_resnet_backbone


class LastLevelMaxPool(nn.Module):
    """One level more, such as p6: every other cell of the coarsest one.

    Args:
        in_feature: name of the coarsest map.
    """

    num_levels = 1

    def __init__(self, in_feature: str = "p5") -> None:
        super().__init__()
        self.in_feature = in_feature

    def forward(self, x: Tensor) -> list[Tensor]:
        """[(N, C, H / 2, W / 2)], rounded up, of the map (N, C, H, W)."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class FPN(Backbone):
    """Maps `p2` ... from a backbone's, finest first. Stands for Detectron2's `FPN`, with its parameter names.

    Args:
        bottom_up: gives the maps that the pyramid is built on.
        in_features: their names, finest first; each has twice the stride of the one before.
        out_channels: of every map of the pyramid.
        norm: after each conv, "" for none.
        top_block: makes further maps from its `in_feature`.
        fuse_type: "sum" or "avg" of a map and the coarser one.

    Raises:
        ValueError: `fuse_type` or a feature is unknown, or a stride is not twice the one before.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: Literal["sum", "avg"] = "sum",
    ) -> None:
        super().__init__()
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f"MODEL.FPN.FUSE_TYPE is {fuse_type!r}; it must be 'sum' or 'avg'")
        shapes = shapes_of(in_features, bottom_up.output_shape(), "MODEL.FPN.IN_FEATURES")
        strides = [s.stride for s in shapes]
        if any(b != 2 * a for a, b in zip(strides, strides[1:], strict=False)):
            raise ValueError(f"MODEL.FPN.IN_FEATURES {in_features} have strides {strides}: each must double")
        levels = [int(math.log2(stride)) for stride in strides]
        for level, shape in zip(levels, shapes, strict=True):
            for kind, in_channels, kernel in (("lateral", shape.channels, 1), ("output", out_channels, 3)):
                conv = Conv2d(
                    in_channels,
                    out_channels,
                    kernel_size=kernel,
                    padding=kernel // 2,
                    bias=norm == "",
                    norm=get_norm(norm, out_channels),
                )
                c2_xavier_fill(conv)
                self.add_module(f"fpn_{kind}{level}", conv)
        self.levels = levels
        self.bottom_up = bottom_up
        self.top_block = top_block
        self.in_features = list(in_features)
        self.fuse_type = fuse_type
        out_levels = levels + [levels[-1] + i + 1 for i in range(top_block.num_levels if top_block else 0)]
        self._out_features = [f"p{level}" for level in out_levels]
        self._out_feature_strides = {f"p{level}": 2**level for level in out_levels}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride that is merged into a finer map."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps `p2` ... by name, of images (N, C, H, W) whose sides are multiples of `size_divisibility`."""
        features = self.bottom_up(x)
        results, merged = {}, None
        for level, name in zip(reversed(self.levels), reversed(self.in_features), strict=True):
            lateral = getattr(self, f"fpn_lateral{level}")(features[name])
            if merged is None:
                merged = lateral
            else:
                merged = lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
                if self.fuse_type == "avg":
                    merged = merged / 2
            results[f"p{level}"] = getattr(self, f"fpn_output{level}")(merged)
        results = {name: results[name] for name in self._out_features if name in results}
        if self.top_block is not None:
            source = self.top_block.in_feature
            extra = self.top_block(results[source] if source in results else features[source])
            results.update(zip(self._out_features[len(self.levels) :], extra, strict=True))
        return results


@BACKBONE_REGISTRY.register()
def build_maskrcnn_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A ResNet with the feature pyramid that `MODEL.FPN` describes, and one level more: p6, where res5 is the last."""
    last = max(cfg.MODEL.FPN.IN_FEATURES, default="res5")
    return FPN(
        bottom_up=build_maskrcnn_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(last.replace("res", "p")),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
