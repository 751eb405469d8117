"""What the operators refuse: for the reference in PyTorch, the checks of `csrc/tensors.h` in the same words."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LEVELS = 8
MAX_BINS = 2**15
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_rois(
    features: Sequence[Tensor],
    boxes: Tensor,
    boxes_per_image: Sequence[int],
    scales: Sequence[float],
    bins_y: int,
    bins_x: int,
    sampling_ratio: int,
    canonical_box_size: float,
) -> None:
    """Raise a RuntimeError where these are no arguments of `roi_average` and `roi_max`."""
    check = torch._check
    check(0 < len(features) == len(scales), lambda: f"features of {len(features)} levels, but scales of {len(scales)}")
    check(len(scales) <= MAX_LEVELS, lambda: f"scales must have 1 to {MAX_LEVELS} levels; got {len(scales)}")
    first = features[0]
    for x in features:
        check(x.dim() == 4, lambda x=x: f"features must have shape (N, C, H, W); got {_shape(x)}")
        check(
            x.shape[:2] == first.shape[:2],
            lambda x=x: (
                f"features of all levels must agree in images and channels; got {_shape(first)} and {_shape(x)}"
            ),
        )
        check(
            x.shape[2] > 0 and x.shape[3] > 0,
            lambda x=x: f"features must have a cell or more along each axis; got {x.shape[2]} x {x.shape[3]}",
        )
        check(x.dtype == first.dtype, lambda: "features of all levels must have one dtype")
    _check_dtypes(features=first)
    check(
        boxes.dim() == 2 and boxes.shape[1] in (4, 5),
        lambda: f"boxes must have shape (R, 4) or, with the image's index first, (R, 5); got {_shape(boxes)}",
    )
    if boxes.shape[1] == 4:
        check(
            len(boxes_per_image) == first.shape[0],
            lambda: f"features of {first.shape[0]} images, but boxes_per_image counts those of {len(boxes_per_image)}",
        )
        total = sum(boxes_per_image)
        check(total == len(boxes), lambda: f"boxes_per_image adds up to {total}, but there are {len(boxes)} boxes")
    for scale in scales:
        check(scale > 0 and math.isfinite(scale), lambda scale=scale: f"scales must be positive; got {scale}")
    check(
        0 < bins_y <= MAX_BINS and 0 < bins_x <= MAX_BINS,
        lambda: f"the output must have 1 to {MAX_BINS} bins along each axis; got {bins_y} x {bins_x}",
    )
    check(
        0 <= sampling_ratio <= MAX_BINS,
        lambda: f"sampling_ratio must be 0 (adaptive) to {MAX_BINS}; got {sampling_ratio}",
    )
    check(canonical_box_size > 0, lambda: f"canonical_box_size must be positive; got {canonical_box_size}")


def check_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float) -> None:
    """Raise a RuntimeError where these are no arguments of `nms`."""
    check = torch._check
    check(boxes.dim() == 2 and boxes.shape[1] == 4, lambda: f"boxes must have shape (N, 4); got {_shape(boxes)}")
    count = len(boxes)
    for name, of_box in {"scores": scores, **({} if groups is None else {"groups": groups})}.items():
        check(
            of_box.shape == (count,),
            lambda name=name, t=of_box: f"{name} must have shape ({count},), one for each box; got {_shape(t)}",
        )
    _check_dtypes(boxes=boxes, scores=scores)
    check(groups is None or groups.dtype == torch.int64, lambda: "groups must be int64")
    check(iou_threshold >= 0, lambda: f"iou_threshold must not be negative; got {iou_threshold}")


def check_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> None:
    """Raise a RuntimeError where these are no arguments of `paste_masks` and `masks_to_rle`."""
    check = torch._check
    check(masks.dim() == 3, lambda: f"masks must have shape (N, h, w); got {_shape(masks)}")
    count = len(masks)
    check(count == 0 or masks.numel() > 0, lambda: f"masks must have a cell or more; got {_shape(masks)}")
    check(
        boxes.shape == (count, 4),
        lambda: f"boxes must have shape ({count}, 4), one for each mask; got {_shape(boxes)}",
    )
    _check_dtypes(masks=masks, boxes=boxes)
    check(
        0 <= height < 2**31 and 0 <= width < 2**31,
        lambda: f"the image's height and width must be from 0 to 2 ** 31 - 1; got {height} x {width}",
    )


def _check_dtypes(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        torch._check(tensor.dtype in DTYPES, lambda name=name: f"{name} must be float64, float32, float16 or bfloat16")


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
