"""Non-local block (Wang et al., 2018): each position sees all others."""

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ..framework import Conv2d


class NonLocalBlock(nn.Module):
    """``x + w(softmax(theta(x)^T phi(x)) g(x))``: the embedded Gaussian of the paper, equation 6 and figure 2.

    `phi` and `g` are taken from every second row and column after max pooling (section 3.3). `w` starts at zero, so
    that a pretrained network computes what it did before.

    Args:
        channels: of the feature map; half as many inside.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta = Conv2d(channels, inner, kernel_size=1)
        self.phi = Conv2d(channels, inner, kernel_size=1)
        self.g = Conv2d(channels, inner, kernel_size=1)
        self.w = Conv2d(inner, channels, kernel_size=1)
        for conv in (self.theta, self.phi, self.g):
            c2_msra_fill(conv)
        nn.init.zeros_(self.w.weight)
        nn.init.zeros_(self.w.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape (N, C, H, W) of `x`."""

        def positions(features: Tensor) -> Tensor:
            return features.flatten(2).transpose(1, 2)

        coarse = F.max_pool2d(x, kernel_size=2, ceil_mode=True)  # before the 1x1 convs, which then cost a quarter
        query, key, value = positions(self.theta(x)), positions(self.phi(coarse)), positions(self.g(coarse))
        y = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.w(y.transpose(1, 2).unflatten(2, x.shape[2:]))


def insert_non_local(stage: nn.Sequential, channels: int) -> None:
    """Put a non-local block before the last block of a stage, whose blocks keep their parameters' names."""
    name, last = list(stage.named_children())[-1]
    del stage[-1]
    stage.add_module("non_local", NonLocalBlock(channels))
    stage.add_module(name, last)
