"""A batch of images of several sizes."""

from collections.abc import Sequence
from typing import Any

import torch


class ImageList:
    """Images padded, below and to the right, to one size.

    Attributes:
        tensor: (N, C, H, W), or any number of dimensions between N and H.
        image_sizes: height and width of each image without its padding, in pixels.
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """The same images after `torch.Tensor.to`."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> torch.Tensor:
        """An image without its padding, (C, h, w)."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    @staticmethod
    def from_tensors(
        tensors: Sequence[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad images to the largest height and the largest width among them, or more.

        Args:
            tensors: each (C, h, w), or any number of dimensions before h.
            size_divisibility: make height and width multiples of this; FPN needs its largest stride.
            pad_value: of the padding.
            padding_constraints: what a backbone asks for: ``size_divisibility`` in place of the argument, and
                ``square_size``, the side of a square to pad to; 0 for none.

        Raises:
            ValueError: no images, of several numbers of channels, or larger than the square.
        """
        if not tensors or any(image.shape[:-2] != tensors[0].shape[:-2] for image in tensors):
            shapes = [tuple(image.shape) for image in tensors]
            raise ValueError(f"a batch takes one or more images that differ in height and width alone, not {shapes}")
        constraints = padding_constraints or {}
        divisor = max(constraints.get("size_divisibility", size_divisibility), 1)
        square = constraints.get("square_size", 0)

        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        largest = [max(side) for side in zip(*sizes, strict=True)]
        if square > 0:
            if max(largest) > square:
                raise ValueError(f"images of up to {max(largest)} pixels do not fit the square_size of {square}")
            largest = [square, square]
        padded = [-(-side // divisor) * divisor for side in largest]  # rounded up

        batch = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], *padded), pad_value)
        for slot, image, (height, width) in zip(batch, tensors, sizes, strict=True):
            slot[..., :height, :width] = image
        return ImageList(batch, sizes)
