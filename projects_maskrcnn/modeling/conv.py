"""The convolution that heads are made of."""

from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

from ..framework import Conv2d, get_norm


def conv3x3_relu(in_channels: int, out_channels: int, norm: str = "") -> Conv2d:
    """A 3x3 convolution, normalised and rectified, that keeps the size; with He's initial weights."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=nn.ReLU(),
    )
    c2_msra_fill(conv)
    return conv
