"""Masks of regions to masks of images. Stands for `detectron2.layers.mask_ops`."""

from typing import Any

from torch import Tensor

from ... import ops


def paste_masks_in_image(masks: Tensor, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Masks (N, M, M) resized into `boxes` (a `Boxes`, or (N, 4)) on images of `image_shape` (height, width).

    Returns:
        (N, height, width): bool, or uint8 probabilities times 255 where `threshold` is negative.
    """
    return ops.paste_masks(masks, getattr(boxes, "tensor", boxes), image_shape, threshold)
