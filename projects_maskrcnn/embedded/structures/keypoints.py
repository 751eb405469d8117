"""Keypoints of instances, and heatmaps of where they are.

A heatmap has one channel a keypoint and covers a RoI with a grid of cells. Between continuous coordinates c
and discrete ones d, d = floor(c) and c = d + 0.5 (Heckbert, "What are the coordinates of a pixel?", 1990).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


class Keypoints:
    """Ground-truth keypoints of N instances: `tensor` is (N, K, 3) float32, each row x, y, visibility.

    x and y are pixels of the image. Visibility is COCO's: 0 not labelled, 1 labelled but hidden, 2 visible.
    """

    def __init__(self, keypoints: torch.Tensor | np.ndarray | Sequence) -> None:
        keypoints = torch.as_tensor(keypoints, dtype=torch.float32)
        if keypoints.dim() != 3 or keypoints.shape[2] != 3:
            raise ValueError(f"keypoints have shape (N, K, 3), not {tuple(keypoints.shape)}")
        self.tensor = keypoints

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, *args: Any, **kwargs: Any) -> "Keypoints":
        return Keypoints(self.tensor.to(*args, **kwargs))

    def to_heatmap(self, boxes: torch.Tensor, heatmap_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The cell of each keypoint in a heatmap over its instance's box: Mask R-CNN's target, section 5.

        Args:
            boxes: (N, 4), x0, y0, x1, y1 in pixels of the image.
            heatmap_size: cells along each side.

        Returns:
            (N, K) int64: row * heatmap_size + column, 0 where not valid; and
            (N, K) int64: 1 where the keypoint is labelled and in the box (its right and lower edge included).
        """
        xy = self.tensor[:, :, :2]
        lower, upper = boxes[:, None, :2], boxes[:, None, 2:]
        cell = ((xy - lower) * (heatmap_size / (upper - lower))).floor()
        cell = torch.where(xy == upper, heatmap_size - 1, cell)
        valid = ((cell >= 0) & (cell < heatmap_size)).all(dim=2) & (self.tensor[:, :, 2] > 0)
        column, row = torch.where(valid[:, :, None], cell, 0).long().unbind(dim=2)
        return row * heatmap_size + column, valid.long()

    def __getitem__(self, item: Any) -> "Keypoints":
        """The keypoints of the instances at an int (one instance), slice, integer or bool tensor."""
        return Keypoints(self.tensor[item][None] if isinstance(item, int) else self.tensor[item])

    def __len__(self) -> int:
        return len(self.tensor)

    def __repr__(self) -> str:
        return f"Keypoints(num_instances={len(self)})"

    @staticmethod
    def cat(keypoints_list: Sequence["Keypoints"]) -> "Keypoints":
        """The keypoints of all instances of `keypoints_list`, which is not empty."""
        return Keypoints(torch.cat([keypoints.tensor for keypoints in keypoints_list]))


@torch.no_grad()
def heatmaps_to_keypoints(maps: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    """The peak of each heatmap, once that is resized to its RoI's own resolution.

    Args:
        maps: (R, K, H, W), logits.
        rois: (R, 4), x0, y0, x1, y1 in pixels of the image.

    Returns:
        (R, K, 4): x, y in pixels of the image, the peak's logit, and its score: the exponential of the logit
        over the sum of those of the cells of `maps`, whose number does not depend on the RoI's size.
    """
    peaks = rois.new_zeros(*maps.shape[:2], 4)
    sizes = (rois[:, 2:] - rois[:, :2]).clamp(min=1)
    pixels = sizes.ceil()  # of the resized heatmap, which covers the RoI exactly
    # One by one: RoIs differ in size, and together their heatmaps could take gigabytes.
    for peak, heatmap, roi, (width, height), pixel in zip(
        peaks, maps, rois, pixels.int().tolist(), sizes / pixels, strict=True
    ):
        resized = F.interpolate(heatmap[None], size=(height, width), mode="bicubic", align_corners=False)[0]
        logit, at = resized.flatten(start_dim=1).max(dim=1)
        xy = torch.stack((at % width, at // width), dim=1) + 0.5
        peak[:, :2] = xy * pixel + roi[:2]
        peak[:, 2] = logit
        peak[:, 3] = 1 / (heatmap - logit[:, None, None]).exp().sum(dim=(1, 2))
    return peaks
