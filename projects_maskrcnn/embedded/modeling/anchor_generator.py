"""Anchors: boxes of fixed sizes and shapes at every cell of a feature map (Faster R-CNN, section 3.1.1)."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..config import CfgNode, configurable
from ..layers import ShapeSpec
from ..structures import Boxes
from ..utils.registry import Registry

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")


class BufferList(nn.Module):
    """Tensors that move with the module and stay out of its checkpoints."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        super().__init__()
        for index, buffer in enumerate(buffers):
            self.register_buffer(str(index), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._buffers.values())


def _per_level(values: Sequence, num_features: int, name: str) -> list[Sequence[float]]:
    """One list of numbers for each feature map, from one for each, one for all, or bare numbers for all."""
    if not isinstance(values[0], Sequence):
        values = [values]
    if len(values) == 1:
        return list(values) * num_features
    if len(values) != num_features:
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.{name} has {len(values)} lists for {num_features} feature maps: give one for "
            "each map, or a single one for all"
        )
    return list(values)


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Stands for Detectron2's `DefaultAnchorGenerator`.

    Args:
        sizes: side lengths in input pixels, for each feature map; an anchor's area is the square of its size.
        aspect_ratios: height over width, for each feature map.
        strides: input pixels between cells of each feature map.
        offset: where in a cell its anchors are centred, 0 for its corner, 0.5 for its middle.

    Raises:
        ValueError: `offset` is not in [0, 1), or there are lists for another number of feature maps.
    """

    box_dim: int = 4

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence,
        aspect_ratios: Sequence,
        strides: Sequence[int],
        offset: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise ValueError(f"MODEL.ANCHOR_GENERATOR.OFFSET is {offset}; it must lie in [0, 1)")
        self.strides = list(strides)
        self.offset = offset
        sizes = _per_level(sizes, len(self.strides), "SIZES")
        aspect_ratios = _per_level(aspect_ratios, len(self.strides), "ASPECT_RATIOS")
        self.cell_anchors = BufferList(
            [self.generate_cell_anchors(s, a) for s, a in zip(sizes, aspect_ratios, strict=True)]
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        return {
            "sizes": cfg.MODEL.ANCHOR_GENERATOR.SIZES,
            "aspect_ratios": cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        }

    @property
    def num_anchors(self) -> list[int]:
        """Anchors per cell of each feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    num_cell_anchors = num_anchors

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
    ) -> Tensor:
        """(len(sizes) * len(aspect_ratios), 4) anchors x0, y0, x1, y1 around the origin, sizes outermost."""
        anchors = []
        for size in sizes:
            for ratio in aspect_ratios:
                width = math.sqrt(size**2.0 / ratio)
                height = ratio * width
                anchors.append([-width / 2, -height / 2, width / 2, height / 2])
        return torch.tensor(anchors, device="cpu")

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """For each feature map (N, C, H, W) the H * W * A anchors, cell by cell in rows."""
        return [
            Boxes((_cell_origins(feature, stride, self.offset)[:, None] + anchors).reshape(-1, 4))
            for feature, stride, anchors in zip(features, self.strides, self.cell_anchors, strict=True)
        ]


def _cell_origins(feature: Tensor, stride: int, offset: float) -> Tensor:
    """(H * W, 4): x, y, x, y of each cell's anchor centre in input pixels."""
    height, width = feature.shape[-2:]
    x = torch.arange(width, device=feature.device, dtype=torch.float32) * stride + offset * stride
    y = torch.arange(height, device=feature.device, dtype=torch.float32) * stride + offset * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, x, y], -1).view(-1, 4)


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """The anchor generator that `MODEL.ANCHOR_GENERATOR.NAME` names, for feature maps of these shapes."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
