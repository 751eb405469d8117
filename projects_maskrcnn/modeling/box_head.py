"""The head that classes and boxes are predicted from (Faster R-CNN; paper, figure 4, right)."""

from math import prod

from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from ..framework import ROI_BOX_HEAD_REGISTRY, CfgNode, Linear, ShapeSpec, configurable
from .conv import conv3x3_relu


@ROI_BOX_HEAD_REGISTRY.register()
class MaskRCNNBoxHead(nn.Sequential):
    """3x3 convs, then fully connected layers. Stands for Detectron2's `FastRCNNConvFCHead`.

    Args:
        input_shape: of a pooled RoI.
        conv_dims: channels of each conv.
        fc_dims: width of each fully connected layer.
        conv_norm: after each conv, "" for none.
        dropout: probability that a fully connected layer's output is dropped in training, as VGG-16's are.

    Raises:
        ValueError: there is no layer.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dims: list[int],
        fc_dims: list[int],
        conv_norm: str = "",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not conv_dims and not fc_dims:
            raise ValueError("MODEL.ROI_BOX_HEAD has neither convs (NUM_CONV) nor fully connected layers (NUM_FC)")
        size = (input_shape.channels, input_shape.height, input_shape.width)
        for index, dim in enumerate(conv_dims, start=1):
            self.add_module(f"conv{index}", conv3x3_relu(size[0], dim, conv_norm))
            size = (dim, *size[1:])
        for index, dim in enumerate(fc_dims, start=1):
            if index == 1:
                self.add_module("flatten", nn.Flatten())
            fc = Linear(prod(size), dim)
            c2_xavier_fill(fc)
            self.add_module(f"fc{index}", fc)
            self.add_module(f"fc_relu{index}", nn.ReLU())
            if dropout:
                self.add_module(f"fc_dropout{index}", nn.Dropout(dropout))
            size = (dim,)
        self._output_size = size

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "conv_norm": head.NORM,
            "dropout": head.DROPOUT,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(R, fc_dims[-1]), or a map where there are convs alone, of pooled features (R, C, height, width)."""
        return super().forward(x)

    @property
    def output_shape(self) -> ShapeSpec:
        """Of one RoI: channels, and height and width where there are convs alone."""
        channels, *sides = self._output_size
        return ShapeSpec(channels, *sides)
