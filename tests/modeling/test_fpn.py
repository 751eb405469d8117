"""The feature pyramid against values worked out by hand and plain torch."""

import pytest
import torch
import torch.nn.functional as F

from projects_maskrcnn.framework import Backbone, ShapeSpec
from projects_maskrcnn.modeling import FPN, build_maskrcnn_resnet_fpn_backbone
from projects_maskrcnn.modeling.fpn import LastLevelMaxPool


class Maps(Backbone):
    """A backbone that passes on fixed maps."""

    def __init__(self, maps, strides):
        super().__init__()
        self.maps = maps
        self._out_features = list(maps)
        self._out_feature_channels = {name: m.shape[1] for name, m in maps.items()}
        self._out_feature_strides = dict(zip(maps, strides, strict=True))

    def forward(self, x):
        return self.maps


@pytest.fixture(scope="module")
def maps():
    generator = torch.Generator().manual_seed(0)
    return {f"res{i}": torch.randn(2, 3 + i, 64 >> i, 32 >> i, generator=generator) for i in (3, 4, 5)}


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
def test_levels(maps, fuse_type):
    torch.manual_seed(0)
    fpn = FPN(Maps(maps, (8, 16, 32)), list(maps), 4, top_block=LastLevelMaxPool(), fuse_type=fuse_type)
    share = 1.0 if fuse_type == "sum" else 0.5

    def conv(name, x):
        layer = getattr(fpn, name)
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    def doubled(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    m5 = conv("fpn_lateral5", maps["res5"])
    m4 = share * (conv("fpn_lateral4", maps["res4"]) + doubled(m5))
    m3 = share * (conv("fpn_lateral3", maps["res3"]) + doubled(m4))
    p5 = conv("fpn_output5", m5)
    expected = {"p3": conv("fpn_output3", m3), "p4": conv("fpn_output4", m4), "p5": p5, "p6": p5[:, :, ::2, ::2]}
    out = fpn(torch.zeros(2, 3, 64, 32))
    assert list(out) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value, rtol=1e-5, atol=1e-5)


def test_shapes_that_are_told(config):
    model = build_maskrcnn_resnet_fpn_backbone(config("fpn"), ShapeSpec(channels=3))
    out = model(torch.zeros(1, 3, 128, 64))
    assert list(out) == ["p2", "p3", "p4", "p5", "p6"]
    assert model.size_divisibility == 32
    for stride, (name, shape) in zip((4, 8, 16, 32, 64), model.output_shape().items(), strict=True):
        assert (shape.channels, shape.stride) == (16, stride)
        assert out[name].shape == (1, 16, 128 // stride, 64 // stride)


def test_a_norm_takes_the_place_of_the_bias(config):
    cfg = config("fpn", "MODEL.FPN.NORM", "BN")
    names = {name for name, _ in build_maskrcnn_resnet_fpn_backbone(cfg, ShapeSpec(channels=3)).named_parameters()}
    assert "fpn_lateral2.norm.weight" in names and "fpn_lateral2.bias" not in names


def test_errors_name_the_key(maps):
    with pytest.raises(ValueError, match="MODEL.FPN.FUSE_TYPE is 'max'"):
        FPN(Maps(maps, (8, 16, 32)), list(maps), 4, fuse_type="max")
    with pytest.raises(ValueError, match=r"MODEL.FPN.IN_FEATURES .* \[8, 16, 16\]"):
        FPN(Maps(maps, (8, 16, 16)), list(maps), 4)
