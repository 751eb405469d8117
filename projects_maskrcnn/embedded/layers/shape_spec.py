"""The shape of a feature map, as far as it is known when a network is built."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Channels, height, width and stride of a feature map. Stands for Detectron2's `ShapeSpec`."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
