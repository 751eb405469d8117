"""Masks of boxes to masks of images."""

from operator import index
from typing import Any

from torch import Tensor

from .native import check_tensors, operators


def paste_masks(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Resize each mask into its box on an image-sized canvas.

    Args:
        masks: (N, h, w) probabilities.
        boxes: (N, 4) corners x0, y0, x1, y1 in pixels of the image.
        image_size: (height, width) of the image.
        threshold: a pixel belongs to the mask from this probability on. Negative: no decision is made.

    Returns:
        (N, height, width), bool; or, with a negative threshold, uint8 probabilities times 255.

    Raises:
        TypeError, ValueError, RuntimeError: shapes, dtypes or devices do not fit, or the threshold is NaN.
    """
    check_tensors(masks=masks, boxes=boxes)
    if threshold != threshold:
        raise ValueError("threshold is NaN: give a number, negative for no decision")
    return operators(masks.device).paste_masks(masks.detach(), boxes.detach(), *_sides(image_size), threshold)


def masks_to_rle(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """COCO's run-length encoding of `paste_masks`, made on the CPU without the image-sized masks.

    Returns:
        for each mask what pycocotools' `encode` gives: ``size`` [height, width] and ``counts`` as bytes.

    Raises:
        TypeError, ValueError, RuntimeError: the threshold is negative or NaN, or shapes or dtypes do not fit.
    """
    check_tensors(masks=masks, boxes=boxes)
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}: 0 or more is needed to tell an object from the rest")
    masks, boxes = masks.detach().cpu(), boxes.detach().cpu()
    height, width = _sides(image_size)
    text, offsets = operators(masks.device).masks_to_rle(masks, boxes, height, width, threshold)
    text, offsets = text.numpy().tobytes(), offsets.tolist()
    return [
        {"size": [height, width], "counts": text[begin:end]}
        for begin, end in zip(offsets[:-1], offsets[1:], strict=True)
    ]


def _sides(image_size: tuple[int, int]) -> tuple[int, int]:
    if len(image_size) != 2:
        raise ValueError(f"image_size must be (height, width), got {tuple(image_size)}")
    return index(image_size[0]), index(image_size[1])
