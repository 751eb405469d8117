"""The operators in plain PyTorch: what the compiled ones must agree with, and what serves where they are not built.

The functions have the names and arguments of `torch.ops.maskrcnn`; the faces beside this file explain them.

RoIAlign (paper, section 3) averages bilinear samples in each bin of an RoI. A bilinear sample is the product of a
weight along y and one along x, and so is the average over a bin's grid of samples. So a bin is a sum over a small
rectangle of cells whose weights factor: ``out[i, j] = sum over cells (y, x) of Wy[i, y] * Wx[j, x] * F[y, x]``.
`_axis_weights` gives one factor, `_bins` lists the cells of every bin, and `_WeightedRowSum` adds them up, for any
number of feature maps at once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_masks, check_nms, check_rois

ROUND_NOTHING, ROUND_ROI, ROUND_BINS = 0, 1, 2
"""What is rounded to whole cells: nothing in RoIAlign, the RoI in RoIWarp, RoI and bins in RoIPool."""

NMS_BLOCK = 128
"""Boxes that `nms` decides on together. It changes nothing but the time."""


def roi_average(
    features: Sequence[Tensor],
    boxes: Tensor,
    boxes_per_image: Sequence[int],
    scales: Sequence[float],
    bins_y: int,
    bins_x: int,
    sampling_ratio: int,
    aligned: bool,
    rounding: int,
    canonical_box_size: float,
    canonical_level: int,
) -> Tensor:
    """The mean of each bin's samples.

    Args:
        features: maps (N, C, H_l, W_l), finest first.
        boxes: (R, 4) corners with `boxes_per_image` counts, or (R, 5) with the image's index first.
        rounding: `ROUND_NOTHING`, `ROUND_ROI` or `ROUND_BINS`.

    Returns:
        (R, C, bins_y, bins_x).
    """
    check_rois(features, boxes, boxes_per_image, scales, bins_y, bins_x, sampling_ratio, canonical_box_size)
    image, boxes, level = _locate(features, boxes, boxes_per_image, scales, canonical_box_size, canonical_level)
    num_images, channels = features[0].shape[:2]
    # Maps are laid out as rows of channels, one row a cell: all cells of the first level, then of the next.
    shapes = torch.tensor([x.shape[2:] for x in features], device=boxes.device)
    cells = shapes.prod(1)
    first_row = num_images * (cells.cumsum(0) - cells)
    edges = _edges(features, boxes, scales, level)
    height, width = shapes[level].unbind(1)
    y = _axis_weights(_axis_samples(edges[:, 1::2], bins_y, height, sampling_ratio, aligned, rounding), height)
    x = _axis_weights(_axis_samples(edges[:, 0::2], bins_x, width, sampling_ratio, aligned, rounding), width)
    index, weights, offsets = _bins(y, x, first_row[level] + image * cells[level], width)
    sums = _WeightedRowSum.apply(index, weights, offsets, *features)
    return sums.view(len(image), bins_y, bins_x, channels).permute(0, 3, 1, 2).to(features[0].dtype)


def roi_max(
    features: Sequence[Tensor],
    boxes: Tensor,
    boxes_per_image: Sequence[int],
    scales: Sequence[float],
    bins_y: int,
    bins_x: int,
    sampling_ratio: int,
    aligned: bool,
    rounding: int,
    canonical_box_size: float,
    canonical_level: int,
) -> tuple[Tensor, Tensor]:
    """The greatest of each bin's samples, or zero where it has none; of equal ones the first counts.

    Returns:
        (R, C, bins_y, bins_x), and for each of its elements the number of the sample, int32: in rows from the bin's
        upper left, or -1 where the greatest is the zero that a sample off the map counts as.
    """
    check_rois(features, boxes, boxes_per_image, scales, bins_y, bins_x, sampling_ratio, canonical_box_size)
    image, boxes, level = _locate(features, boxes, boxes_per_image, scales, canonical_box_size, canonical_level)
    edges = _edges(features, boxes, scales, level)
    outputs, numbers = [], []
    for i, n, corners in zip(level.tolist(), image.tolist(), edges[:, None], strict=True):
        x = features[i][n].to(edges.dtype)
        length = torch.tensor(x.shape[1:], device=x.device)[:, None]
        y_samples = _axis_samples(corners[:, 1::2], bins_y, length[0], sampling_ratio, aligned, rounding)
        x_samples = _axis_samples(corners[:, 0::2], bins_x, length[1], sampling_ratio, aligned, rounding)
        value = _interpolate(_interpolate(x, 1, y_samples), 3, x_samples).permute(0, 1, 3, 2, 4).flatten(3)
        asked = (y_samples.asked[0, :, None, :, None] & x_samples.asked[0, None, :, None, :]).flatten(2)
        on_map = (y_samples.on_map[0, :, None, :, None] & x_samples.on_map[0, None, :, None, :]).flatten(2)
        best, at = value.where(on_map, 0).where(asked, -torch.inf).max(3)
        found = on_map.expand_as(value).gather(3, at[..., None])[..., 0]
        row, column = at // x_samples.low.shape[2], at % x_samples.low.shape[2]
        outputs.append(best.where(asked.any(2), 0))
        numbers.append((row * x_samples.asked[0].sum(1) + column).where(found, -1))
    if not outputs:
        empty = features[0].new_empty(0, features[0].shape[1], bins_y, bins_x)
        return empty + sum(x.sum() * 0 for x in features), empty.int()
    return torch.stack(outputs).to(features[0].dtype), torch.stack(numbers).int()


def _locate(
    features: Sequence[Tensor],
    boxes: Tensor,
    boxes_per_image: Sequence[int],
    scales: Sequence[float],
    canonical_box_size: float,
    canonical_level: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(R,) the image of each box, (R, 4) its corners, (R,) the map that it is on."""
    num_images = features[0].shape[0]
    if boxes.shape[1] == 5:
        image, boxes = boxes[:, 0].long(), boxes[:, 1:]
        if len(image) and not 0 <= image.min() <= image.max() < num_images:
            raise ValueError(f"image index of an RoI is out of range: features hold {num_images} images")
    else:
        counts = torch.tensor(boxes_per_image, dtype=torch.int64, device=boxes.device)
        image = torch.arange(num_images, device=boxes.device).repeat_interleave(counts)
    if len(scales) == 1:
        return image, boxes, torch.zeros_like(image)
    return image, boxes, assign_levels(boxes, scales, canonical_box_size, canonical_level)


def assign_levels(boxes: Tensor, scales: Sequence[float], canonical_box_size: float, canonical_level: int) -> Tensor:
    """(R,) index into the levels for (R, 4) boxes: floor(canonical_level + log2(sqrt(area) / canonical_box_size))."""
    finest = round(-torch.log2(torch.tensor(scales[0])).item())
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(canonical_level + torch.log2(size / canonical_box_size + 1e-8))
    level = level.nan_to_num(finest).clamp(finest, finest + len(scales) - 1)
    return level.long() - finest


def _edges(features: Sequence[Tensor], boxes: Tensor, scales: Sequence[float], level: Tensor) -> Tensor:
    """(R, 4) corners in cells of the map that each box is on."""
    dtype = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    return boxes.to(dtype) * torch.tensor(scales, dtype=dtype, device=boxes.device)[level, None]


class _Samples(NamedTuple):
    """The samples of R RoIs along one axis, (R, bins, as many as the fullest bin has)."""

    low: Tensor
    """The cell at or before the sample."""
    high: Tensor
    """The next cell, or the same at the map's end."""
    fraction: Tensor
    """How far it lies from low to high."""
    asked: Tensor
    """Whether the bin has a sample of this number."""
    on_map: Tensor
    """Whether it also lies on the map, or less than a cell off."""
    count: Tensor
    """(R, bins or 1, 1) samples of a bin."""


def _axis_samples(
    edges: Tensor, bins: int, length: Tensor, sampling_ratio: int, aligned: bool, rounding: int
) -> _Samples:
    """Where the samples of each RoI lie along one axis.

    Args:
        edges: (R, 2) start and end of each RoI, in cells.
        length: (R,) cells of the map that each RoI is on.
    """
    finite = edges.isfinite().all(1)
    edges = edges.where(finite[:, None], 0)
    if rounding != ROUND_NOTHING:  # halves away from zero
        rest = edges - edges.trunc()
        edges = edges.trunc() + rest.sign() * (rest.abs() >= 0.5)
    if aligned and rounding != ROUND_BINS:
        edges = edges - 0.5
    start, end = edges.unbind(1)
    size = end - start + (1 if rounding == ROUND_BINS else 0)
    if not aligned or rounding != ROUND_NOTHING:
        size = size.clamp(min=1)
    finite = (finite & size.isfinite())[:, None, None]
    start, size, length = (t[:, None, None] for t in (start, size.where(finite[:, 0, 0], 1) / bins, length))
    longest = int(length.max()) if len(edges) else 0
    bin_number = torch.arange(bins, device=edges.device)[:, None]
    if rounding == ROUND_BINS:  # the samples are the bin's cells
        first = (start + (bin_number * size).floor()).clamp(min=0).minimum(length)
        last = (start + ((bin_number + 1) * size).ceil()).clamp(min=0).minimum(length)
        count = (last - first).clamp(min=0) * finite
        number = torch.arange(longest, device=edges.device)
        asked = (number < count).expand(len(edges), bins, longest)
        low = torch.where(asked, first + number, 0).long()
        return _Samples(low, low, torch.zeros_like(low, dtype=edges.dtype), asked, asked, count)
    count = (torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.ceil().clamp(min=0)) * finite
    # A bin far larger than the map has more samples than memory. Those on the map suffice: half a cell or more apart.
    most = max(2 * longest + 8, sampling_ratio)
    start = start + bin_number * size
    first = torch.where(count > most, ((-1 - start) * count / size).floor() - 1, 0).clamp(min=0)
    most = int(count.clamp(min=1, max=most).max()) if len(edges) else 1
    number = first + torch.arange(most, device=edges.device)
    at = start + (number + 0.5) * size / count
    asked = number < count
    on_map = asked & (at >= -1) & (at <= length)
    at = at.where(on_map, 0).clamp(min=0).minimum(length - 1)
    low = at.floor()
    return _Samples(low.long(), (low + 1).minimum(length - 1).long(), at - low, asked.expand_as(at), on_map, count)


def _axis_weights(samples: _Samples, length: Tensor) -> Tensor:
    """(R, bins, longest length) weight of each cell in the mean of each bin, along one axis."""
    share = samples.on_map / samples.count.clamp(min=1)
    weights = share.new_zeros(*samples.low.shape[:2], int(length.max()) if len(length) else 0)
    weights.scatter_add_(2, samples.low, (1 - samples.fraction) * share)
    weights.scatter_add_(2, samples.high, samples.fraction * share)
    return weights


def _interpolate(x: Tensor, axis: int, samples: _Samples) -> Tensor:
    """`x` at the samples of one RoI along `axis`, which gives way to two: bins and samples."""
    low, high = (x.index_select(axis, cells[0].flatten()) for cells in (samples.low, samples.high))
    fraction = samples.fraction[0].flatten().view(-1, *[1] * (x.dim() - axis - 1))
    return (low * (1 - fraction) + high * fraction).unflatten(axis, samples.low.shape[1:])


def _bins(y_weights: Tensor, x_weights: Tensor, first_row: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cells of all bins, as flat lists: row of features, weight, and (bins,) where each bin's cells begin.

    Args:
        y_weights, x_weights: (R, bins, cells), from `_axis_weights`.
        first_row: (R,) row of the first cell of the map that each RoI is on.
        width: (R,) of that map.
    """
    y_used, x_used = y_weights != 0, x_weights != 0
    y_count, x_count = y_used.sum(2), x_used.sum(2)
    y_first, x_first = (c.flatten().cumsum(0).view_as(c) - c for c in (y_count, x_count))
    count = y_count[:, :, None] * x_count[:, None, :]
    offsets = count.flatten().cumsum(0) - count.flatten()

    def of_cell(per_bin: Tensor) -> Tensor:
        return per_bin.expand_as(count).flatten().repeat_interleave(count.flatten())

    columns = of_cell(x_count[:, None, :])
    within = torch.arange(len(columns), device=count.device) - of_cell(offsets.view_as(count))
    row = within // columns
    y = of_cell(y_first[:, :, None]) + row
    x = of_cell(x_first[:, None, :]) + within - row * columns
    y_row = first_row[:, None, None] + torch.arange(y_used.shape[2], device=count.device) * width[:, None, None]
    index = y_row.expand_as(y_used)[y_used][y] + x_used.nonzero()[:, 2][x]
    return index, y_weights[y_used][y] * x_weights[x_used][x], offsets


class _WeightedRowSum(torch.autograd.Function):
    """Sums of weighted cells: bag b adds `weights[k] * rows[index[k]]` for k from `offsets[b]` on, up to the next bag.

    The rows are the cells of all feature maps. Their gradient is the same kind of sum with rows and bags exchanged:
    each row gathers from its bags in a fixed order, so it is the same in every run.
    """

    @staticmethod
    def forward(ctx: Any, index: Tensor, weights: Tensor, offsets: Tensor, *features: Tensor) -> Tensor:
        ctx.save_for_backward(index, weights, offsets)
        ctx.like = [(x.shape, x.dtype) for x in features]
        rows = weights.new_empty(sum(x[:, 0].numel() for x in features), features[0].shape[1])
        for part, x in zip(rows.split([x[:, 0].numel() for x in features]), features, strict=True):
            part.view(len(x), *x.shape[2:], x.shape[1]).copy_(x.permute(0, 2, 3, 1))
        return _bag_sum(rows, index, weights, offsets)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, weights, offsets = ctx.saved_tensors
        cells = [shape[0] * shape[2] * shape[3] for shape, _ in ctx.like]
        count = offsets.diff(append=offsets.new_tensor([len(index)]))
        bag = torch.arange(len(offsets), device=index.device).repeat_interleave(count)
        index, by_row = index.sort(stable=True)
        starts = torch.searchsorted(index, torch.arange(sum(cells), device=index.device))
        rows = _bag_sum(grad.contiguous(), bag[by_row], weights[by_row], starts)
        grads = [
            part.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2).to(dtype)
            for part, (shape, dtype) in zip(rows.split(cells), ctx.like, strict=True)
        ]
        return None, None, None, *grads


def _bag_sum(rows: Tensor, index: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    if not len(index):
        return rows.new_zeros(len(offsets), rows.shape[1])
    return F.embedding_bag(index, rows, offsets, mode="sum", per_sample_weights=weights)


def nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression, of each group of boxes (N, 4) by itself where there are `groups` (N,).

    Returns:
        int64 indices of the kept boxes, by decreasing score; of equal scores the first comes first.
    """
    check_nms(boxes, scores, groups, iou_threshold)
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    if groups is None:
        return _nms(boxes, scores, iou_threshold)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in groups.unique().tolist():
        members = (groups == group).nonzero().squeeze(1)
        kept[members[_nms(boxes[members], scores[members], iou_threshold)]] = True
    kept = kept.nonzero().squeeze(1)
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    kept = []
    while len(order):  # the best boxes that are left judge themselves in turn, then all others at once
        best = order[:NMS_BLOCK]
        suppresses = _iou(boxes[best], boxes[order]).double() > iou_threshold
        alive = _greedy(suppresses[:, : len(best)])
        kept.append(best[alive])
        order = order[len(best) :][~suppresses[alive, len(best) :].any(0)]
    return torch.cat(kept) if kept else order


def _greedy(suppresses: Tensor) -> Tensor:
    """(N,) bool: the boxes that no earlier one of them suppresses, given (N, N) whether i would suppress j."""
    matrix = suppresses.cpu().numpy()
    alive = torch.ones(len(matrix), dtype=torch.bool)
    view = alive.numpy()
    for i in range(len(matrix)):
        if view[i]:
            view[i + 1 :] &= ~matrix[i, i + 1 :]
    return alive.to(suppresses.device)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) intersection over union of boxes (N, 4) and (M, 4), NaN where neither has an area."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.T.contiguous()[..., None], b.T.contiguous()
    width = torch.minimum(ax1, bx1).sub_(torch.maximum(ax0, bx0)).clamp_(min=0)
    overlap = torch.minimum(ay1, by1).sub_(torch.maximum(ay0, by0)).clamp_(min=0).mul_(width)
    return overlap / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0)).sub_(overlap)


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Masks (N, h, w) resized into boxes (N, 4): (N, height, width), bool, or uint8 for a negative threshold."""
    check_masks(masks, boxes, height, width)
    pasted = torch.zeros(
        len(masks), height, width, dtype=torch.bool if threshold >= 0 else torch.uint8, device=masks.device
    )
    outer = torch.cat([boxes[:, :2].floor() - 1, boxes[:, 2:].ceil() + 1], 1).nan_to_num(0)
    limit = torch.tensor([width, height, width, height], dtype=outer.dtype, device=outer.device)
    outer = torch.minimum(outer.clamp(min=0), limit).long().tolist()
    for n, (left, top, right, bottom) in enumerate(outer):
        if right <= left or bottom <= top:
            continue
        x0, y0, x1, y1 = boxes[n].float()
        x = (torch.arange(left, right, device=masks.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom, device=masks.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
        grid = grid.where(grid.isfinite(), -2.0)  # off the mask, so zero
        soft = F.grid_sample(masks[None, None, n].float(), grid[None], align_corners=False)[0, 0]
        region = pasted[n, top:bottom, left:right]
        region.copy_(soft >= threshold if threshold >= 0 else (soft * 255).to(torch.uint8))
    return pasted


def masks_to_rle(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> tuple[Tensor, Tensor]:
    """The bytes of COCO's encoding of all masks, uint8, and (N + 1,) where in them each begins, int64."""
    texts = [encode(mask) for mask in paste_masks(masks, boxes, height, width, threshold)]
    offsets = torch.tensor([0, *map(len, texts)]).cumsum(0)
    return torch.tensor(list(b"".join(texts)), dtype=torch.uint8), offsets


def encode(mask: Tensor) -> bytes:
    """COCO's string for a mask (H, W) bool, column by column.

    It holds the lengths of alternating runs, the first one off the mask. Each from the fourth on is given as its
    difference from the one two before; then five bits at a time, least first, in characters from '0' on, where the
    sixth bit says that there are more to come.
    """
    pixels = mask.T.flatten()
    change = F.pad(pixels, (1, 0)).int().diff().nonzero()[:, 0]
    lengths = torch.cat([change.new_zeros(1), change, change.new_full((1,), len(pixels))]).diff().tolist()
    text = bytearray()
    for i, length in enumerate(lengths):
        rest = length - lengths[i - 2] if i > 2 else length
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text.append(48 + (bits | 32 if more else bits))
    return bytes(text)
