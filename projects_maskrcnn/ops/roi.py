"""RoI layers: features of a fixed size for boxes of any size.

RoIAlign (paper, section 3) rounds nothing: each bin takes the mean, or the greatest, of features interpolated at
regular points. RoIWarp rounds the box to whole cells of the feature map and interpolates all the same; RoIPool rounds
the bins too, and interpolates nothing (Table 2c).
"""

import functools
import math
from collections.abc import Sequence
from operator import index
from typing import Literal

import torch
from torch import Tensor

from .native import check_tensors, operators
from .reference import ROUND_BINS, ROUND_NOTHING, ROUND_ROI

Mode = Literal["average", "max"]


def check_pyramid(scales: Sequence[float]) -> None:
    """Hold the scales of feature maps over the network's input, finest first, against what picks a box's level.

    Raises:
        ValueError: they are not consecutive powers of two.
    """
    levels = [-math.log2(scale) if scale > 0 else math.nan for scale in scales]
    if levels[0] % 1 or levels != [levels[0] + i for i in range(len(levels))]:
        raise ValueError(f"strides {[1 / s for s in scales]} of the feature maps are not consecutive powers of two")


def roi_align(
    features: Tensor | Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    *,
    mode: Mode = "average",
    canonical_box_size: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """The features in each bin of each box, from one map or from the level of a pyramid that fits the box.

    Args:
        features: a map (N, C, H, W), or several, finest first, each of half the scale of the one before. Of any
            floating dtype and layout; half precision is summed in float32.
        boxes: for each of the N images a tensor (R_n, 4) of corners x0, y0, x1, y1 in pixels of the network's input; or
            one tensor (R, 5), with the image's index before the corners. They are taken in float32.
        output_size: (height, width) of the output in bins, or one number for both.
        spatial_scale: of the map over the network's input; for several maps the scale of each.
        sampling_ratio: samples per bin along each axis; 0 takes as many as the bin has cells, rounded up.
        aligned: pixel centres lie at half coordinates (Detectron2's ROIAlignV2). Otherwise at whole ones, and an RoI is
            at least one cell wide and high (ROIAlign).
        mode: what of a bin's samples is taken.
        canonical_box_size, canonical_level: a square box with this side, in pixels, belongs on the map of scale
            ``2 ** -canonical_level``, one twice as large on the next (FPN paper, equation 1).

    Returns:
        (R, C, height, width) in the dtype of `features`, channels_last where the first map is; the boxes of all images
        in order. Samples more than a cell outside the map count as zero, so does every sample of a box with a
        coordinate that is not finite. Differentiable once in `features`, the same bits in every run.

    Raises:
        TypeError, ValueError, RuntimeError: shapes, dtypes or devices do not fit, or an image index is out of range.
    """
    return _pool(
        features, boxes, output_size, spatial_scale, sampling_ratio, aligned, ROUND_NOTHING, mode,
        canonical_box_size, canonical_level,
    )  # fmt: skip


def roi_warp(
    features: Tensor | Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    *,
    mode: Mode = "average",
    canonical_box_size: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """`roi_align` of boxes whose corners are rounded to whole cells of the map, at least a cell wide and high.

    Stands for MNC's RoIWarp as the paper's Table 2c has it.
    """
    return _pool(
        features, boxes, output_size, spatial_scale, sampling_ratio, aligned, ROUND_ROI, mode,
        canonical_box_size, canonical_level,
    )  # fmt: skip


def roi_pool(
    features: Tensor | Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float | Sequence[float] = 1.0,
    *,
    canonical_box_size: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """The greatest feature in each bin, of boxes whose corners are rounded to the nearest cells (Fast R-CNN).

    Both these cells belong to the box, and bins are rounded outwards.

    Numerically torchvision's `roi_pool`. Arguments and output are those of `roi_align`.
    """
    return _pool(
        features, boxes, output_size, spatial_scale, 0, False, ROUND_BINS, "max", canonical_box_size, canonical_level
    )


def _indexed(boxes: Sequence[Tensor]) -> Tensor:
    """(R, 5): the image's index before the corners of its boxes, a tensor (R_n, 4) for each image."""
    return torch.cat([torch.nn.functional.pad(b.float(), (1, 0), value=i) for i, b in enumerate(boxes)])


def _pool(
    features: Tensor | Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float | Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    rounding: int,
    mode: Mode,
    canonical_box_size: float,
    canonical_level: int,
) -> Tensor:
    maps = [features] if isinstance(features, Tensor) else list(features)
    check_tensors(features=maps, boxes=boxes)
    scales = [float(spatial_scale)] if isinstance(spatial_scale, int | float) else [float(s) for s in spatial_scale]
    sizes = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
    if len(sizes) != 2:
        raise ValueError(f"output_size must be a number or (height, width), got {sizes}")
    bins_y, bins_x = map(index, sizes)
    if not maps or len(maps) != len(scales):
        raise ValueError(f"features of {len(maps)} levels, but spatial_scale of {len(scales)}")
    if len(scales) > 1:
        check_pyramid(scales)
    if mode not in ("average", "max"):
        raise ValueError(f"mode must be 'average' or 'max', got {mode!r}")
    if torch.jit.is_tracing() and not isinstance(boxes, Tensor):
        boxes = _indexed(boxes)  # a trace would keep the number of each image's boxes as it is now
    if isinstance(boxes, Tensor):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            raise ValueError(
                f"boxes of all images in one tensor must have shape (R, 5) of image index, x0, y0, x1, y1; "
                f"got {tuple(boxes.shape)}. Boxes without an index go in a list, a tensor for each image"
            )
        rois, counts = boxes, []
        if boxes.device.type == "cuda":  # where kernels cannot raise
            image = boxes[:, 0]
            torch._assert_async(
                ((image >= 0) & (image < maps[0].shape[0])).all(),
                "the image index of an RoI is out of range",
            )
    else:
        if len(boxes) != maps[0].shape[0]:
            raise ValueError(f"features of {maps[0].shape[0]} images, but boxes of {len(boxes)}")
        for b in boxes:
            if b.dim() != 2 or b.shape[1] != 4:
                raise ValueError(f"boxes of an image must have shape (R, 4) of x0, y0, x1, y1; got {tuple(b.shape)}")
        rois = torch.cat(list(boxes)) if boxes else maps[0].new_zeros(0, 4)
        counts = [len(b) for b in boxes]
    dtypes = {x.dtype for x in maps}
    if len(dtypes) > 1:  # under autocast
        dtype = functools.reduce(torch.promote_types, dtypes)
        maps = [x.to(dtype) for x in maps]
    ops = operators(maps[0].device)
    arguments = (
        maps, rois.detach().float(), counts, scales, bins_y, bins_x, index(sampling_ratio), aligned, rounding,
        float(canonical_box_size), index(canonical_level),
    )  # fmt: skip
    return ops.roi_average(*arguments) if mode == "average" else ops.roi_max(*arguments)[0]
