"""The interface of backbones."""

from abc import ABCMeta, abstractmethod

from torch import Tensor, nn

from ...layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network from images to named feature maps. Stands for Detectron2's `Backbone`.

    Subclasses set `_out_features` (names) and `_out_feature_channels`, `_out_feature_strides` (by name), or override
    `output_shape`.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by name, of images (N, C, H, W)."""

    @property
    def size_divisibility(self) -> int:
        """Height and width of images must be multiples of this; 0 where it does not matter."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further wishes for the padding of images; see `ImageList.from_tensors`."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
