"""ResNets against the published numbers of parameters, plain torch, and what the config's keys mean."""

import pytest
import torch
import torch.nn.functional as F

from projects_maskrcnn.framework import ShapeSpec
from projects_maskrcnn.modeling import build_maskrcnn_resnet_backbone
from projects_maskrcnn.modeling.resnet import BasicBlock, BottleneckBlock

IMAGE = ShapeSpec(channels=3)
STAGES = ("res2", "res3", "res4", "res5")


@pytest.fixture
def resnet(config):
    def resnet(depth, *options):
        shared = ("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.OUT_FEATURES", STAGES)
        wide = ("MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth < 50 else 256)
        return build_maskrcnn_resnet_backbone(config("fpn", *shared, *wide, *options), IMAGE)

    return resnet


@pytest.mark.parametrize(
    ("depth", "options", "classifier_width", "parameters"),
    [  # torchvision's counts, of which the classifier of 1000 classes is taken off
        (18, (), 512, 11689512),
        (34, (), 512, 21797672),
        (50, (), 2048, 25557032),
        (101, (), 2048, 44549160),
        (152, (), 2048, 60192808),
        (50, ("MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4), 2048, 25028904),
        (101, ("MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 8), 2048, 88791336),
    ],
)
def test_number_of_parameters(resnet, depth, options, classifier_width, parameters):
    with torch.device("meta"):
        model = resnet(depth, *options)
    assert sum(p.numel() for p in model.parameters()) == parameters - 1000 * (classifier_width + 1)


@pytest.mark.parametrize(("depth", "dilation", "strides"), [(18, 1, (4, 8, 16, 32)), (50, 2, (4, 8, 16, 16))])
def test_maps_have_the_shapes_that_are_told(resnet, depth, dilation, strides):
    model = resnet(depth, "MODEL.RESNETS.RES5_DILATION", dilation).eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 64, 96))
    first = 64 if depth == 18 else 256
    for name, stride, width in zip(STAGES, strides, (1, 2, 4, 8), strict=True):
        assert maps[name].shape == (2, first * width, 64 // stride, 96 // stride)
        shape = model.output_shape()[name]
        assert (shape.channels, shape.stride) == (first * width, stride)


def test_only_what_is_asked_for_is_built(config):
    cfg = config("c4")  # its OUT_FEATURES are res4
    model = build_maskrcnn_resnet_backbone(cfg, IMAGE)
    assert set(model(torch.zeros(1, 3, 32, 32))) == {"res4"} == set(model.output_shape())
    assert not any(name.startswith("res5") for name, _ in model.named_parameters())


def _conv(x, conv, **kwargs):
    """What a conv and a batch norm in evaluation make of x, in float64."""
    norm = conv.norm.double()
    x = F.conv2d(x, conv.weight.double(), **kwargs)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def _with_statistics(block):
    for name, tensor in block.state_dict().items():
        if ".norm." in name and tensor.is_floating_point():
            tensor.copy_(1 + torch.rand(tensor.shape))
    return block.eval()


@pytest.mark.parametrize("stride_in_1x1", [True, False])
@pytest.mark.parametrize("dilation", [1, 2])
def test_bottleneck(stride_in_1x1, dilation):
    torch.manual_seed(0)
    options = {"bottleneck_channels": 8, "stride": 2, "num_groups": 4, "dilation": dilation}
    block = _with_statistics(BottleneckBlock(6, 16, stride_in_1x1=stride_in_1x1, **options))
    x = torch.randn(2, 6, 9, 11)
    strides = (2, 1) if stride_in_1x1 else (1, 2)
    y = _conv(x.double(), block.conv1, stride=strides[0]).relu()
    y = _conv(y, block.conv2, stride=strides[1], padding=dilation, dilation=dilation, groups=4).relu()
    y = _conv(y, block.conv3) + _conv(x.double(), block.shortcut, stride=2)
    torch.testing.assert_close(block.float()(x).double(), y.relu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("in_channels", "stride"), [(8, 1), (6, 2)])
def test_basic_block(in_channels, stride):
    torch.manual_seed(0)
    block = _with_statistics(BasicBlock(in_channels, 8, stride=stride))
    x = torch.randn(2, in_channels, 9, 11)
    y = _conv(_conv(x.double(), block.conv1, stride=stride, padding=1).relu(), block.conv2, padding=1)
    same = in_channels == 8
    assert (block.shortcut is None) == same
    y = y + (x.double() if same else _conv(x.double(), block.shortcut, stride=stride))
    torch.testing.assert_close(block.float()(x).double(), y.relu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("freeze_at", [0, 1, 3, 5])
def test_frozen_stages_do_not_learn(resnet, freeze_at):
    model = resnet(18, "MODEL.BACKBONE.FREEZE_AT", freeze_at).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model(torch.randn(2, 3, 64, 64))
    frozen = ("stem", *STAGES)[:freeze_at]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(frozen))
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):  # batch norms that learn follow the batch
            assert torch.equal(tensor, before[name]) == name.startswith(frozen)


def test_stages_are_frozen_later(resnet):
    model = resnet(18, "MODEL.BACKBONE.FREEZE_AT", 0)
    assert model.freeze(3) is model
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2", "res3"}


@pytest.mark.parametrize(("norm", "buffers"), [("FrozenBN", 4), ("BN", 3), ("GN", 0), ("SyncBN", 3)])
def test_norms(resnet, norm, buffers):
    model = resnet(18, "MODEL.RESNETS.NORM", norm)
    assert len(list(model.stem.buffers())) == buffers
    assert model.eval()(torch.zeros(1, 3, 32, 32))["res5"].shape == (1, 512, 1, 1)


@pytest.mark.parametrize(
    ("depth", "key", "value"),
    [
        (20, "DEPTH", 20),
        (18, "RES2_OUT_CHANNELS", 256),
        (34, "NUM_GROUPS", 32),
        (18, "RES5_DILATION", 2),
        (50, "OUT_FEATURES", ("res1",)),
        (50, "OUT_FEATURES", ()),
        (50, "DEFORM_ON_PER_STAGE", [False, False, True, True]),
    ],
)
def test_errors_name_the_key(resnet, depth, key, value):
    with pytest.raises((ValueError, NotImplementedError), match=f"MODEL.RESNETS.{key}"):
        resnet(depth, f"MODEL.RESNETS.{key}", value)
