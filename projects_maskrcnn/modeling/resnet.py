"""ResNet (He et al., 2016) and ResNeXt (Xie et al., 2017) as backbones.

Parameter names are Detectron2's: `stem.conv1`, `res2.0.conv1`, `res2.0.shortcut`, each with a `norm`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ..framework import BACKBONE_REGISTRY, Backbone, CfgNode, CNNBlockBase, Conv2d, ShapeSpec, get_norm
from .non_local import insert_non_local

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Residual blocks of res2 to res5, by depth."""


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str, **kwargs: Any) -> Conv2d:
    """A conv without bias whose output keeps its size at stride 1, and a norm."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kwargs.get("dilation", 1) * (kernel_size // 2),
        bias=False,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )
    c2_msra_fill(conv)
    return conv


class Stem(CNNBlockBase):
    """7x7 conv and 3x3 max pooling, both of stride 2. Stands for Detectron2's `BasicStem`."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, stride=4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, H / 4, W / 4), rounded up, of images (N, C, H, W)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class _Residual(CNNBlockBase):
    """A block that adds its input, through a 1x1 conv where the shapes differ."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, stride)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else _conv(in_channels, out_channels, 1, norm, stride=stride)

    def _add(self, x: Tensor, residual: Tensor) -> Tensor:
        return F.relu_(residual + (x if self.shortcut is None else self.shortcut(x)))


class BasicBlock(_Residual):
    """Two 3x3 convs: the block of ResNet-18 and 34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, H / stride, W / stride), rounded up, of a map (N, C, H, W)."""
        return self._add(x, self.conv2(F.relu_(self.conv1(x))))


class BottleneckBlock(_Residual):
    """1x1, 3x3 and 1x1 convs: the block of ResNet-50 and deeper, and of ResNeXt.

    Args:
        bottleneck_channels: of the 3x3 conv.
        num_groups: of the 3x3 conv; more than one makes it ResNeXt's.
        stride_in_1x1: put the stride into the first conv, as the original ResNet does, not into the 3x3.
        dilation: of the 3x3 conv.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        self.conv2 = _conv(
            bottleneck_channels,
            bottleneck_channels,
            3,
            norm,
            stride=stride_3x3,
            groups=num_groups,
            dilation=dilation,
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, H / stride, W / stride), rounded up, of a map (N, C, H, W)."""
        return self._add(x, self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x))))))


def build_stage(cfg: CfgNode, stage: int, *, stride: int, dilation: int = 1) -> list[CNNBlockBase]:
    """The blocks of res`stage` (2 to 5) that the config's `MODEL.RESNETS` describes.

    Args:
        stride: of the first block; the others have 1.
        dilation: of all 3x3 convs.

    Raises:
        ValueError: a key does not fit the depth.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in BLOCKS:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}; known are {', '.join(map(str, BLOCKS))}")
    width = 2 ** (stage - 2)
    out_channels = resnets.RES2_OUT_CHANNELS * width
    options: dict[str, Any] = {"norm": resnets.NORM}
    if resnets.DEPTH < 50:
        block = BasicBlock
        stem = resnets.STEM_OUT_CHANNELS  # the first block of res2 adds the stem's output as it is
        for key, needed in (("RES2_OUT_CHANNELS", stem), ("RES5_DILATION", 1), ("NUM_GROUPS", 1)):
            if resnets[key] != needed:
                raise ValueError(f"MODEL.RESNETS.{key} is {resnets[key]}; ResNet-{resnets.DEPTH} needs {needed}")
    else:
        block = BottleneckBlock
        options.update(
            bottleneck_channels=resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * width,
            num_groups=resnets.NUM_GROUPS,
            stride_in_1x1=resnets.STRIDE_IN_1X1,
            dilation=dilation,
        )
    if any(resnets.DEFORM_ON_PER_STAGE):
        raise NotImplementedError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: these backbones have no deformable convs")
    in_channels = resnets.STEM_OUT_CHANNELS if stage == 2 else out_channels // 2
    blocks = [block(in_channels, out_channels, stride=stride, **options)]
    for _ in range(BLOCKS[resnets.DEPTH][stage - 2] - 1):
        blocks.append(block(out_channels, out_channels, **options))
    return blocks


class ResNet(Backbone):
    """A stem and stages `res2`, `res3` ... Stands for Detectron2's `ResNet` as a backbone.

    Args:
        stem: the first layers.
        stages: the blocks of each stage, from `res2` on.
        out_features: names of the stages whose outputs are wanted.
        freeze_at: the stem (1) and stages up to this one (2 for res2) are not trained.

    Raises:
        ValueError: `out_features` names none of the stages, or another.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        out_features: Sequence[str],
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stage_names = []
        self._out_feature_channels, self._out_feature_strides = {}, {}
        stride = stem.stride
        for number, blocks in enumerate(stages, start=2):
            name = f"res{number}"
            self.add_module(name, nn.Sequential(*blocks))
            self.stage_names.append(name)
            for block in blocks:
                stride *= block.stride
            self._out_feature_channels[name] = blocks[-1].out_channels
            self._out_feature_strides[name] = stride
        unknown = set(out_features) - set(self.stage_names)
        if unknown or not out_features:
            raise ValueError(
                f"MODEL.RESNETS.OUT_FEATURES is {list(out_features)}; choose from {', '.join(self.stage_names)}"
            )
        self._out_features = list(out_features)
        self.freeze(freeze_at)

    def freeze(self, freeze_at: int) -> "ResNet":
        """Stop training the stem (1) and stages up to this one (2 for res2); returns itself."""
        if freeze_at >= 1:
            self.stem.freeze()
        for name in self.stage_names[: max(freeze_at - 1, 0)]:
            for block in getattr(self, name):
                block.freeze()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by name, of images (N, C, H, W)."""
        outputs = {}
        if x.is_cuda or not torch.is_grad_enabled():
            # What convs and RoIAlign are fastest in, but not the gradients of convs on a CPU.
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_maskrcnn_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The ResNet that `MODEL.RESNETS` describes, with no more stages than `OUT_FEATURES` need."""
    resnets = cfg.MODEL.RESNETS
    stem = Stem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    numbers = {"res2": 2, "res3": 3, "res4": 4}
    last = max((numbers.get(name, 5) for name in resnets.OUT_FEATURES), default=5)
    stages = []
    for stage in range(2, last + 1):
        dilation = resnets.RES5_DILATION if stage == 5 else 1
        stride = 1 if stage == 2 or dilation > 1 else 2
        stages.append(build_stage(cfg, stage, stride=stride, dilation=dilation))
    resnet = ResNet(stem, stages, resnets.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT)
    if resnets.NON_LOCAL_RES4:
        if last < 4:
            raise ValueError(f"MODEL.RESNETS.NON_LOCAL_RES4, but OUT_FEATURES {resnets.OUT_FEATURES} need no res4")
        insert_non_local(resnet.res4, stages[2][-1].out_channels)
    return resnet
