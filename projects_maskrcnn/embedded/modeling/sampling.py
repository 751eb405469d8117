"""The balanced sample of boxes that a loss is computed on."""

import torch
from torch import Tensor


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Random indices of positives, at most `positive_fraction` of `num_samples`, and of negatives to fill up.

    Stands for Detectron2's `subsample_labels`: equal generators give equal samples.

    Args:
        labels: (N,) where -1 is ignored and `bg_label` is negative.

    Returns:
        indices of positives, indices of negatives.
    """
    positive = ((labels != -1) & (labels != bg_label)).nonzero().squeeze(1)
    negative = (labels == bg_label).nonzero().squeeze(1)
    num_positive = min(len(positive), int(num_samples * positive_fraction))
    num_negative = min(len(negative), num_samples - num_positive)
    positive_order = torch.randperm(len(positive), device=positive.device)
    negative_order = torch.randperm(len(negative), device=negative.device)
    return positive[positive_order[:num_positive]], negative[negative_order[:num_negative]]
