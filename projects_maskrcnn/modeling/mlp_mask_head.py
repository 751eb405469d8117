"""The mask branch as a multi-layer perceptron, which the paper's table 2e holds against the convolutional one."""

from math import prod

from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn

from ..framework import ROI_MASK_HEAD_REGISTRY, CfgNode, Linear, ShapeSpec, configurable
from .mask_head import LossType, MaskHead


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNMLPMaskHead(MaskHead):
    """Fully connected layers, the last one to masks of twice the RoI's resolution, as the convolutional head gives.

    Args:
        input_shape: of a pooled RoI.
        fc_dims: width of each hidden layer.
        num_classes, loss_type, loss_weight: see `MaskHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        fc_dims: list[int],
        loss_type: LossType = "sigmoid",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(num_classes, loss_type, loss_weight)
        size = prod((input_shape.channels, input_shape.height, input_shape.width))
        self.flatten = nn.Flatten()
        for index, dim in enumerate(fc_dims, start=1):
            fc = Linear(size, dim)
            c2_xavier_fill(fc)
            self.add_module(f"mask_fc{index}", fc)
            self.add_module(f"mask_fc_relu{index}", nn.ReLU())
            size = dim
        output_shape = (self.num_masks, 2 * input_shape.height, 2 * input_shape.width)
        self.predictor = Linear(size, prod(output_shape))
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)
        self.unflatten = nn.Unflatten(1, output_shape)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_MASK_HEAD
        return {"input_shape": input_shape, "fc_dims": [head.FC_DIM] * head.NUM_FC, **cls.output_of(cfg)}
