"""Which ground truth a box belongs to (Faster R-CNN, section 3.1.2)."""

import torch
from torch import Tensor


class Matcher:
    """Labels boxes by their best overlap with a ground truth. Stands for Detectron2's `Matcher`.

    Args:
        thresholds: increasing overlaps that separate the labels.
        labels: one more than thresholds; -1 ignored, 0 background, 1 foreground.
        allow_low_quality_matches: each ground truth also gets the boxes that overlap it most, however little.

    Raises:
        ValueError: thresholds do not increase, or labels are too many, too few or unknown.
    """

    def __init__(self, thresholds: list[float], labels: list[int], allow_low_quality_matches: bool = False) -> None:
        if list(thresholds) != sorted(thresholds) or len(labels) != len(thresholds) + 1:
            raise ValueError(f"need increasing thresholds and one label more, got {thresholds} and {labels}")
        if not set(labels) <= {-1, 0, 1}:
            raise ValueError(f"labels must be -1, 0 or 1, got {labels}")
        self.thresholds = list(thresholds)
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The best ground truth (N,) int64 and the label (N,) int8 of each of N boxes, from (M, N) overlaps >= 0."""
        num_boxes = match_quality_matrix.shape[1]
        if match_quality_matrix.numel() == 0:
            matches = match_quality_matrix.new_zeros(num_boxes, dtype=torch.int64)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)
        best, matches = match_quality_matrix.max(dim=0)
        edges = best.new_tensor(self.thresholds)
        labels = best.new_tensor(self.labels, dtype=torch.int8)[torch.bucketize(best, edges, right=True)]
        if self.allow_low_quality_matches:
            best_of_gt = match_quality_matrix.amax(dim=1, keepdim=True)
            labels[(match_quality_matrix == best_of_gt).any(dim=0)] = 1
        return matches, labels
