"""Axis-aligned boxes and what they have in common.

Coordinates are continuous: a pixel in column x and row y covers [x, x + 1) by [y, y + 1). So a box's width is
x1 - x0, and the box of a whole image is (0, 0, width, height).
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import torch

RawBoxes = TypeVar("RawBoxes", list, tuple, np.ndarray, torch.Tensor)


class BoxMode(IntEnum):
    """How four numbers make a box. The values are part of the dataset format."""

    XYXY_ABS = 0
    """x0, y0, x1, y1 in pixels."""
    XYWH_ABS = 1
    """x0, y0, width, height in pixels."""
    XYXY_REL = 2
    """x0, y0, x1, y1 as fractions of the image's size."""
    XYWH_REL = 3
    """x0, y0, width, height as fractions of the image's size."""

    @staticmethod
    def convert(box: RawBoxes, from_mode: "BoxMode", to_mode: "BoxMode") -> RawBoxes:
        """Convert between `XYXY_ABS` and `XYWH_ABS`.

        Args:
            box: a list or tuple of 4 numbers, or an array or tensor (N, 4).

        Returns:
            The same type, in new memory unless the modes are equal. Floats in a list come out with float32's
            precision.

        Raises:
            ValueError: a list of another length.
            NotImplementedError: a relative mode, since that takes the image's size.
        """
        if from_mode == to_mode:
            return box
        modes = BoxMode(from_mode), BoxMode(to_mode)
        if BoxMode.XYXY_REL in modes or BoxMode.XYWH_REL in modes:
            raise NotImplementedError(
                f"BoxMode.convert from {modes[0].name} to {modes[1].name}: "
                "scale relative boxes by the image's width and height yourself"
            )
        if isinstance(box, (list, tuple)):
            if len(box) != 4:
                raise ValueError(f"a box has 4 numbers, not {len(box)}: {box}")
            return type(box)(BoxMode.convert(torch.tensor(box), from_mode, to_mode).tolist())
        box = box.clone() if isinstance(box, torch.Tensor) else np.array(box)
        if to_mode == BoxMode.XYXY_ABS:
            box[..., 2:] += box[..., :2]
        else:
            box[..., 2:] -= box[..., :2]
        return box


class Boxes:
    """N boxes of one image: `tensor` is (N, 4) float32, each row x0, y0, x1, y1 in pixels."""

    def __init__(self, tensor: torch.Tensor | np.ndarray | Sequence[Sequence[float]]) -> None:
        tensor = torch.as_tensor(tensor, dtype=torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise ValueError(f"boxes have shape (N, 4), not {tuple(tensor.shape)}")
        self.tensor = tensor

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def clone(self) -> "Boxes":
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> "Boxes":
        """The same boxes on `device`; they stay float32."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> torch.Tensor:
        """(N,), in square pixels."""
        width, height = (self.tensor[:, 2:] - self.tensor[:, :2]).unbind(dim=1)
        return width * height

    def clip(self, box_size: tuple[int, int]) -> None:
        """Limit x to [0, width] and y to [0, height], in place.

        Args:
            box_size: height, width.

        Raises:
            ValueError: a coordinate is infinite or NaN.
        """
        if not torch.isfinite(self.tensor).all():
            raise ValueError("boxes with infinite or NaN coordinates cannot be clipped: has training diverged?")
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((x, y), dim=2).flatten(start_dim=1)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """(N,) bool: which boxes are wider and higher than `threshold` pixels."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """(N,) bool: which boxes reach out of (0, 0, width, height) by less than `boundary_threshold` pixels.

        Args:
            box_size: height, width.
            boundary_threshold: at the left and upper border boxes may also reach out by exactly this much.
        """
        height, width = box_size
        upper = self.tensor.new_tensor([width, height]) + boundary_threshold
        return ((self.tensor[:, :2] >= -boundary_threshold) & (self.tensor[:, 2:] < upper)).all(dim=1)

    def get_centers(self) -> torch.Tensor:
        """(N, 2): x, y."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply x and y coordinates, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: Sequence["Boxes"]) -> "Boxes":
        """All boxes of `boxes_list`, in new memory; none for an empty list."""
        return cls(torch.cat([boxes.tensor for boxes in boxes_list]) if boxes_list else torch.empty(0, 4))

    def __getitem__(self, item: Any) -> "Boxes":
        """The boxes at an int (one box), slice, integer or bool tensor; they may share this one's memory."""
        return Boxes(self.tensor[item].reshape(1, 4) if isinstance(item, int) else self.tensor[item])

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield each box as a tensor (4,)."""
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M): the area, in square pixels, that each of N boxes shares with each of M."""
    upper = torch.minimum(boxes1.tensor[:, None, 2:], boxes2.tensor[:, 2:])
    lower = torch.maximum(boxes1.tensor[:, None, :2], boxes2.tensor[:, :2])
    return (upper - lower).clamp(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M): intersection over union, 0 where there is no intersection."""
    shared = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - shared
    return torch.where(shared > 0, shared / union, 0)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M): intersection over the area of the second box, 0 where there is no intersection."""
    shared = pairwise_intersection(boxes1, boxes2)
    return torch.where(shared > 0, shared / boxes2.area(), 0)
