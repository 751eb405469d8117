"""The operations in plain PyTorch: what every faster implementation must agree with.

RoIAlign (paper, section 3) averages bilinear samples in each bin of an RoI. A bilinear sample is the product of a
weight along y and one along x, and so is the average over a bin's grid of samples. So a bin is a sum over a small
rectangle of cells whose weights factor: ``out[i, j] = sum over cells (y, x) of Wy[i, y] * Wx[j, x] * F[y, x]``.
`_axis_weights` gives one factor, `_bins` lists the cells of every bin, and `_WeightedRowSum` adds them up, for any
number of feature maps at once.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NMS_BLOCK = 128
"""Boxes that `nms` decides on together. It changes nothing but the time."""


def roi_align(
    x: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Average features over the bins of each RoI, without rounding a coordinate.

    Args:
        x: (N, C, H, W) feature map of any floating dtype; half precision is summed in float32.
        rois: (R, 5) of image index and corners x0, y0, x1, y1, in pixels of the image that `x` is `spatial_scale` of.
        output_size: (height, width) of the output in bins, or one number for both.
        sampling_ratio: samples per bin along each axis; 0 takes as many as the bin has cells, rounded up.
        aligned: pixel centres lie at half coordinates (Detectron2's ROIAlignV2). Otherwise at whole ones, and an RoI is
            at least one cell wide and high (ROIAlign).

    Returns:
        (R, C, height, width) in the dtype of `x`. Samples more than a cell outside the map count as zero, so does every
        sample of an RoI with a coordinate that is not finite. Differentiable in `x`, deterministically.

    Raises:
        ValueError: shapes are wrong or an image index is out of range.
    """
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois must have shape (R, 5) of image index, x0, y0, x1, y1; got {tuple(rois.shape)}")
    image = rois[:, 0].long()
    level = torch.zeros_like(image)
    return _pool([x], [spatial_scale], image, level, rois[:, 1:], output_size, sampling_ratio, aligned)


def multilevel_roi_align(
    features: Sequence[Tensor],
    boxes: Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
    canonical_box_size: int = 224,
    canonical_level: int = 4,
) -> Tensor:
    """RoIAlign of each box on the level of a feature pyramid that fits its size (FPN paper, equation 1).

    Args:
        features: maps (N, C, H_l, W_l), finest first; the scale of level l is 2 ** -l of the image's.
        boxes: for each of the N images a tensor (R_n, 4) of corners x0, y0, x1, y1 in pixels of the network's input.
        spatial_scales: the scale of each map.
        canonical_box_size: the side, in pixels, of a square box that belongs on `canonical_level`.

    The other arguments are those of `roi_align`.

    Returns:
        (R, C, height, width), the boxes of all images in order.
    """
    if features[0].shape[0] != len(boxes):
        raise ValueError(f"features of {features[0].shape[0]} images, but boxes of {len(boxes)}")
    rois = torch.cat(list(boxes)) if boxes else features[0].new_zeros(0, 4)
    counts = torch.tensor([len(b) for b in boxes], dtype=torch.int64, device=rois.device)
    image = torch.arange(len(boxes), device=rois.device).repeat_interleave(counts)
    if len(features) == 1:
        level = torch.zeros_like(image)
    else:
        level = assign_levels(rois, spatial_scales, canonical_box_size, canonical_level)
    return _pool(features, spatial_scales, image, level, rois, output_size, sampling_ratio, aligned)


def assign_levels(
    boxes: Tensor, spatial_scales: Sequence[float], canonical_box_size: int, canonical_level: int
) -> Tensor:
    """(R,) index into the levels for (R, 4) boxes: floor(canonical_level + log2(sqrt(area) / canonical_box_size))."""
    finest = round(-torch.log2(torch.tensor(spatial_scales[0])).item())
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(canonical_level + torch.log2(size / canonical_box_size + 1e-8))
    level = level.nan_to_num(finest).clamp(finest, finest + len(spatial_scales) - 1)
    return level.long() - finest


def _pool(
    features: Sequence[Tensor],
    spatial_scales: Sequence[float],
    image: Tensor,
    level: Tensor,
    boxes: Tensor,
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of box r on `features[level[r]][image[r]]`. See `roi_align`."""
    bins_y, bins_x = (output_size, output_size) if isinstance(output_size, int) else output_size
    num_images, channels = features[0].shape[:2]
    if len(image) and not 0 <= image.min() <= image.max() < num_images:
        raise ValueError(f"image index of an RoI is out of range: features hold {num_images} images")
    dtype = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    # Maps are laid out as rows of channels, one row a cell: all cells of the first level, then of the next.
    shapes = torch.tensor([x.shape[2:] for x in features], device=boxes.device)
    cells = shapes.prod(1)
    first_row = num_images * (cells.cumsum(0) - cells)
    scale = torch.tensor(spatial_scales, dtype=dtype, device=boxes.device)
    edges = boxes.detach().to(dtype) * scale[level, None] - (0.5 if aligned else 0.0)
    height, width = shapes[level].unbind(1)
    y = _axis_weights(edges[:, 1::2], bins_y, height, sampling_ratio, aligned)
    x = _axis_weights(edges[:, 0::2], bins_x, width, sampling_ratio, aligned)
    index, weights, offsets = _bins(y, x, first_row[level] + image * cells[level], width)
    sums = _WeightedRowSum.apply(index, weights, offsets, *features)
    return sums.view(len(image), bins_y, bins_x, channels).permute(0, 3, 1, 2).to(features[0].dtype)


def _axis_weights(edges: Tensor, bins: int, length: Tensor, sampling_ratio: int, aligned: bool) -> Tensor:
    """(R, bins, longest length) weight of each cell in each bin, along one axis.

    Args:
        edges: (R, 2) start and end of each RoI, in cells.
        length: (R,) cells of the map that each RoI is on.
    """
    finite = edges.isfinite().all(1)
    start, end = edges.where(finite[:, None], 0).unbind(1)
    size = (end - start if aligned else (end - start).clamp(min=1.0)) / bins
    count = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.ceil().clamp(min=0)
    start, size, count, length = (t[:, None, None] for t in (start, size, count * finite, length))
    start = start + torch.arange(bins, device=edges.device)[:, None] * size
    longest = int(length.max()) if len(edges) else 0
    # A bin far larger than the map has more samples than memory. Those on the map suffice: half a cell or more apart.
    most = max(2 * longest + 8, sampling_ratio)
    first = torch.where(count > most, ((-1 - start) * count / size).floor() - 1, 0).clamp(min=0)
    sample = first + torch.arange(int(count.clamp(max=most).max()) if len(edges) else 0, device=edges.device)
    at = start + (sample + 0.5) * size / count
    on_map = (sample < count) & (at >= -1) & (at <= length)
    at = at.where(on_map, 0).clamp(min=0).minimum(length - 1)
    low = at.floor()
    share = on_map / count.clamp(min=1)
    weights = edges.new_zeros(len(edges), bins, longest)
    weights.scatter_add_(2, low.long(), (1 - (at - low)) * share)
    weights.scatter_add_(2, (low + 1).minimum(length - 1).long(), (at - low) * share)
    return weights


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


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (N, 4) corners x0, y0, x1, y1.
        scores: (N,).
        iou_threshold: a box goes when its IoU with a better kept one is above this.

    Returns:
        int64 indices of the kept boxes, by decreasing score; of equal scores the first comes first.
    """
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


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes of equal `idxs` (N,) alone: categories, or levels of a pyramid.

    Returns:
        int64 indices of the kept boxes, by decreasing score.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in idxs.unique().tolist():
        members = (idxs == group).nonzero().squeeze(1)
        kept[members[nms(boxes[members], scores[members], iou_threshold)]] = True
    kept = kept.nonzero().squeeze(1)
    return kept[scores[kept].argsort(descending=True, stable=True)]


def paste_masks(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Resize each mask into its box on an image-sized canvas.

    Args:
        masks: (N, h, w) probabilities.
        boxes: (N, 4) corners x0, y0, x1, y1 in pixels of the image.
        image_size: (height, width) of the image.
        threshold: a pixel belongs to the mask from this probability on. Negative: no decision is made.

    Returns:
        (N, height, width), bool; or, with a negative threshold, uint8 probabilities times 255.
    """
    height, width = image_size
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
