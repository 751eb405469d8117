"""Layers of torch with a normalisation and an activation of their own, and functions that mind empty input."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ConvTranspose2d = nn.ConvTranspose2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` followed by `norm` and `activation`. Stands for Detectron2's `Conv2d`."""

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat` that does not copy a single tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any) -> Tensor:
    """`torch.nn.functional.cross_entropy` whose mean over no samples is zero, with a gradient, instead of NaN."""
    if target.numel() == 0 and reduction == "mean":
        return input.sum() * 0.0
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """`torch.nonzero(as_tuple=True)`, also for a tensor without dimensions."""
    return x.reshape(x.shape or (1,)).nonzero(as_tuple=True)


def move_device_like(src: Tensor, dst: Tensor) -> Tensor:
    """`src` on the device of `dst`."""
    return src.to(dst.device)
