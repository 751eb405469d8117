"""Masks of boxes to masks of images."""

from typing import Any

from torch import Tensor

from .native import check_one_device, operators


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
        ValueError, RuntimeError: shapes, dtypes or devices do not fit.
    """
    check_one_device(masks=masks, boxes=boxes)
    return operators(masks.device).paste_masks(masks.detach(), boxes.detach(), *image_size, threshold)


def masks_to_rle(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """COCO's run-length encoding of `paste_masks`, made on the CPU without the image-sized masks.

    Returns:
        for each mask what pycocotools' `encode` gives: ``size`` [height, width] and ``counts`` as bytes.

    Raises:
        ValueError, RuntimeError: the threshold is negative or NaN, or shapes or dtypes do not fit.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}: 0 or more is needed to tell an object from the rest")
    masks, boxes = masks.detach().cpu(), boxes.detach().cpu()
    text, offsets = operators(masks.device).masks_to_rle(masks, boxes, *image_size, threshold)
    text, offsets = text.numpy().tobytes(), offsets.tolist()
    return [
        {"size": list(image_size), "counts": text[begin:end]}
        for begin, end in zip(offsets[:-1], offsets[1:], strict=True)
    ]
