"""Convolutions with norm and activation, and functions that mind empty input: against plain torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from projects_maskrcnn.embedded.layers import (
    Conv2d,
    ConvTranspose2d,
    Linear,
    ShapeSpec,
    cat,
    cross_entropy,
    get_norm,
    interpolate,
    move_device_like,
    nonzero_tuple,
)


@pytest.mark.parametrize("norm", ["", "BN", "GN"])
@pytest.mark.parametrize("activation", [None, F.relu, nn.Sigmoid()])
def test_conv_then_norm_then_activation(norm, activation):
    conv = Conv2d(3, 32, 3, stride=2, padding=1, bias=not norm, norm=get_norm(norm, 32), activation=activation)
    x = torch.randn(2, 3, 9, 8)
    expected = F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
    if norm == "BN":
        expected = F.batch_norm(expected, None, None, training=True)
    elif norm == "GN":
        expected = F.group_norm(expected, 32)
    assert torch.allclose(conv(x), activation(expected) if activation else expected, atol=1e-5)


def test_names_of_a_convs_parameters():
    conv = Conv2d(3, 8, 1, norm=get_norm("BN", 8), activation=F.relu)
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(conv.state_dict()) == {"weight", "bias", "norm.weight", "norm.bias", *statistics}


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (Conv2d(3, 4, 3, stride=2, padding=1, norm=nn.GroupNorm(2, 4), activation=F.relu), (3, 9, 8), (4, 5, 4)),
        (ConvTranspose2d(3, 4, 2, stride=2), (3, 7, 7), (4, 14, 14)),
        (Linear(6, 4), (6,), (4,)),
    ],
)
def test_an_empty_batch_has_a_shape_and_a_gradient(layer, shape, expected):
    x = torch.zeros(0, *shape, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, *expected)
    y.sum().backward()
    assert x.grad.shape == x.shape and not layer.weight.grad.any()


def test_interpolate_is_torchs():
    x = torch.randn(2, 3, 4, 5)
    doubled = interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(doubled, F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
    assert interpolate(x[:0], size=(7, 7)).shape == (0, 3, 7, 7)


def test_cat():
    a, b = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
    assert cat([a]) is a
    assert cat((a, b)).tolist() == [[1, 2], [3, 4]] and cat([a, b], dim=1).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_is_torchs(reduction):
    logits, target = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, -100])
    weight = torch.tensor([1.0, 2.0, 0.5])
    options = {"reduction": reduction, "weight": weight, "label_smoothing": 0.1}
    assert torch.equal(cross_entropy(logits, target, **options), F.cross_entropy(logits, target, **options))


@pytest.mark.parametrize(("reduction", "shape"), [("mean", ()), ("sum", ()), ("none", (0,))])
def test_cross_entropy_of_nothing(reduction, shape):
    loss = cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), reduction=reduction)
    assert loss.shape == shape and loss.sum() == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 1], [2, 0]], ([0, 1], [1, 0])),
        ([0, 0], ([],)),
        ([True, False, True], ([0, 2],)),
        (5, ([0],)),
        (0, ([],)),
    ],
)
def test_nonzero_tuple(values, expected):
    found = nonzero_tuple(torch.tensor(values))
    assert isinstance(found, tuple) and tuple(i.tolist() for i in found) == expected
    assert all(i.dtype == torch.int64 for i in found)


def test_move_device_like():
    assert move_device_like(torch.zeros(2), torch.zeros(1, device="meta")).device.type == "meta"
    here = torch.zeros(2)
    assert move_device_like(here, torch.zeros(1)) is here


def test_shape_spec():
    assert ShapeSpec(256, stride=4) == ShapeSpec(channels=256, height=None, width=None, stride=4)
    assert ShapeSpec() == ShapeSpec(None, None, None, None)
    assert ShapeSpec(1, 2, 3, 4) != ShapeSpec(1, 3, 2, 4)
