"""The operations in plain PyTorch: what every faster implementation must agree with.

RoIAlign (paper, section 3) averages bilinear samples in each bin of an RoI. A bilinear sample is the product of a weight
along y and one along x, and so is the average over a bin's grid of samples. So a bin is a sum over a small rectangle of
cells whose weights factor: ``out[i, j] = sum over cells (y, x) of Wy[i, y] * Wx[j, x] * F[y, x]``. `_axis_weights` gives one
factor, `_bins` lists each bin's cells, and `_WeightedRowSum` adds them up, for any number of maps at once.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
    counts = torch.tensor([len(b) for b in boxes], device=rois.device)
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
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    num_images, channels = features[0].shape[:2]
    if len(image) and not 0 <= image.min() <= image.max() < num_images:
        raise ValueError(f"image index of an RoI is out of range: features hold {num_images} images")
    dtype = features[0].dtype
    compute_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    boxes = boxes.detach().to(compute_dtype)
    cells, offsets, weights, order, base = [], [], [], [], 0
    for index, (x, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        on_level = (level == index).nonzero().squeeze(1)
        y_weights = _axis_weights(boxes[on_level][:, 1::2], scale, height, x.shape[2], sampling_ratio, aligned)
        x_weights = _axis_weights(boxes[on_level][:, 0::2], scale, width, x.shape[3], sampling_ratio, aligned)
        cell, weight, count = _bins(y_weights, x_weights)
        first_cell = base + image[on_level] * x.shape[2] * x.shape[3]
        cells.append(cell + first_cell.repeat_interleave(count.view(len(on_level), height * width).sum(1)))
        weights.append(weight)
        offsets.append(count)
        order.append(on_level)
        base += num_images * x.shape[2] * x.shape[3]
    rows = torch.cat([x.permute(0, 2, 3, 1).reshape(-1, channels) for x in features]).to(compute_dtype)
    count = torch.cat(offsets)
    sums = _WeightedRowSum.apply(rows, torch.cat(cells), count.cumsum(0) - count, torch.cat(weights))
    place = torch.empty_like(image)
    place[torch.cat(order)] = torch.arange(len(image), device=image.device)
    pooled = sums.view(-1, height, width, channels)[place]
    return pooled.permute(0, 3, 1, 2).to(dtype)


def _axis_weights(edges: Tensor, scale: float, bins: int, length: int, sampling_ratio: int, aligned: bool) -> Tensor:
    """(R, bins, length) weight of each cell along one axis in each bin of RoIs with `edges` (R, 2) in image pixels."""
    offset = 0.5 if aligned else 0.0
    edges = edges * scale - offset
    finite = edges.isfinite().all(1)
    start, end = edges.nan_to_num(0, 0, 0).unbind(1)
    extent = end - start if aligned else (end - start).clamp(min=1.0)
    bin_size = extent / bins
    samples = torch.full_like(start, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil()
    weights = edges.new_zeros(len(edges), bins, length)
    for count in samples[samples > 0].unique().tolist():  # an empty RoI has no samples
        of_count = (samples == count).nonzero().squeeze(1)
        size = bin_size[of_count, None, None]
        bin_index = torch.arange(bins, device=edges.device).view(1, bins, 1)
        sample_index = torch.arange(int(count), device=edges.device)
        at = start[of_count, None, None] + bin_index * size + (sample_index + 0.5) * size / count
        inside = (at >= -1.0) & (at <= length)
        at = at.clamp(0, length - 1)
        low = at.floor()
        share = inside.to(at.dtype) / count
        part = edges.new_zeros(len(of_count), bins, length)
        part.scatter_add_(2, low.long(), (1 - (at - low)) * share)
        part.scatter_add_(2, (low.long() + 1).clamp(max=length - 1), (at - low) * share)
        weights[of_count] = part
    return weights * finite.to(weights.dtype)[:, None, None]


def _bins(y_weights: Tensor, x_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cells of each bin and their weights, as flat lists, and (R * height * width,) the number of cells of each bin.

    Args:
        y_weights, x_weights: (R, height, H) and (R, width, W), from `_axis_weights`.
    """
    map_width = x_weights.shape[2]
    (y_first, y_count), (x_first, x_count) = _span(y_weights), _span(x_weights)
    height, width = y_first.shape[1], x_first.shape[1]
    count = (y_count[:, :, None] * x_count[:, None, :]).flatten()
    of_bin = torch.arange(len(count), device=count.device).repeat_interleave(count)
    within = torch.arange(len(of_bin), device=count.device) - (count.cumsum(0) - count)[of_bin]
    y_bin = of_bin // width  # RoI and bin row
    x_bin = of_bin // (height * width) * width + of_bin % width  # RoI and bin column
    columns = x_count.flatten()[x_bin]
    row = within // columns
    y = y_first.flatten()[y_bin] + row
    x = x_first.flatten()[x_bin] + within - row * columns
    weight = y_weights.flatten()[y_bin * y_weights.shape[2] + y] * x_weights.flatten()[x_bin * map_width + x]
    return y * map_width + x, weight, count


def _span(weights: Tensor) -> tuple[Tensor, Tensor]:
    """First cell, and number of cells up to the last one, with a weight along the last dimension."""
    used = weights != 0
    first = used.byte().argmax(-1)
    last = weights.shape[-1] - 1 - used.flip(-1).byte().argmax(-1)
    return first, torch.where(used.any(-1), last - first + 1, 0)


class _WeightedRowSum(torch.autograd.Function):
    """Sums of weighted rows: bag b adds `weights[k] * rows[index[k]]` for k from `offsets[b]` on, up to the next bag.

    The gradient is the same sum with rows and bags exchanged: each row gathers from its bags in a fixed order.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(index, offsets, weights)
        ctx.num_rows = len(rows)
        return _bag_sum(rows, index, offsets, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        index, offsets, weights = ctx.saved_tensors
        bag = torch.zeros_like(index)
        starts = offsets[1:][offsets[1:] < len(index)]
        bag.index_add_(0, starts, torch.ones_like(starts))
        by_row = index.argsort(stable=True)
        count = torch.bincount(index, minlength=ctx.num_rows)
        return (
            _bag_sum(grad, bag.cumsum(0)[by_row], count.cumsum(0) - count, weights[by_row]),
            None,
            None,
            None,
        )


def _bag_sum(rows: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    if not len(index):
        return rows.new_zeros(len(offsets), rows.shape[1])
    return F.embedding_bag(index, rows.contiguous(), offsets, mode="sum", per_sample_weights=weights)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (N, 4) corners x0, y0, x1, y1.
        scores: (N,).
        iou_threshold: a box goes when its IoU with a better kept one is above this.

    Returns:
        int64 indices of the kept boxes, by decreasing score.
    """
    order = scores.argsort(descending=True, stable=True)
    corners = boxes.detach()[order].cpu().numpy()
    x0, y0, x1, y1 = corners.T.copy()
    area = (x1 - x0) * (y1 - y0)
    alive = torch.ones(len(order), dtype=torch.bool).numpy()
    for i in range(len(order)):
        if not alive[i]:
            continue
        rest = slice(i + 1, None)
        width = (x1[rest].clip(max=x1[i]) - x0[rest].clip(min=x0[i])).clip(min=0)
        height = (y1[rest].clip(max=y1[i]) - y0[rest].clip(min=y0[i])).clip(min=0)
        overlap = width * height
        alive[rest] &= ~(overlap > iou_threshold * (area[i] + area[rest] - overlap))
    return order[torch.from_numpy(alive).to(order.device)]


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
        grid = grid.where(grid.isfinite(), 0.0)
        soft = F.grid_sample(masks[None, None, n].float(), grid[None], align_corners=False)[0, 0]
        region = pasted[n, top:bottom, left:right]
        region.copy_(soft >= threshold if threshold >= 0 else (soft * 255).to(torch.uint8))
    return pasted
