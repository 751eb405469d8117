"""The base of residual blocks."""

from torch import nn

from .batch_norm import FrozenBatchNorm2d


class CNNBlockBase(nn.Module):
    """A block that takes one feature map to another. Stands for Detectron2's `CNNBlockBase`.

    Args:
        in_channels, out_channels: of the maps.
        stride: input pixels per output pixel.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Take the block's parameters out of training, and its batch norms' statistics with them."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self
