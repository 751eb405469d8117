"""Parameter groups and gradient clipping."""

import pytest
import torch
from torch import nn

from projects_maskrcnn.embedded.config import get_cfg
from projects_maskrcnn.embedded.solver import build_optimizer, get_default_optimizer_params
from projects_maskrcnn.embedded.solver.build import maybe_add_gradient_clipping, reduce_param_groups


@pytest.fixture
def model():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Linear(2, 2))
    model[3].weight = model[0].bias  # shared, to be taken once
    model[2].weight.requires_grad = False
    return model


def by_name(model, groups):
    """From each parameter's name to the values of its group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    flat = [(names[p], {k: v for k, v in group.items() if k != "params"}) for group in groups for p in group["params"]]
    assert len(flat) == len(dict(flat)), "a parameter is in two groups"
    return dict(flat)


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({}, {}),
        ({"base_lr": 1.0, "weight_decay": 0.1}, {"*": {"lr": 1.0, "weight_decay": 0.1}}),
        ({"weight_decay_norm": 0.0}, {"1.weight": {"weight_decay": 0.0}, "1.bias": {"weight_decay": 0.0}}),
        (
            {"base_lr": 1.0, "bias_lr_factor": 2.0, "weight_decay_bias": 0.5, "weight_decay_norm": 0.0},
            {
                "*": {"lr": 1.0},
                "1.weight": {"lr": 1.0, "weight_decay": 0.0},
                **{f"{i}.bias": {"lr": 2.0, "weight_decay": 0.5} for i in range(4)},
            },
        ),
        ({"overrides": {"weight": {"lr": 3.0}}}, {"0.weight": {"lr": 3.0}, "1.weight": {"lr": 3.0}}),
        (
            {"base_lr": 1.0, "lr_factor_func": lambda name: 0.1 if name.startswith("0.") else 1.0},
            {"*": {"lr": 1.0}, "0.weight": {"lr": 0.1}, "0.bias": {"lr": 0.1}},
        ),
    ],
)
def test_groups(model, kwargs, expected):
    groups = get_default_optimizer_params(model, **kwargs)
    trained = ["0.weight", "0.bias", "1.weight", "1.bias", "2.bias", "3.bias"]
    everywhere = expected.get("*", {})
    assert by_name(model, groups) == {name: expected.get(name, everywhere) for name in trained}
    values = [str({k: v for k, v in group.items() if k != "params"}) for group in groups]
    assert len(set(values)) == len(values), "groups of equal values are merged"


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"bias_lr_factor": 2.0}, "base_lr"),
        ({"lr_factor_func": len}, "base_lr"),
        ({"weight_decay_bias": 0.0, "overrides": {"bias": {"lr": 1.0}}}, "overrides"),
    ],
)
def test_contradictions(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        get_default_optimizer_params(model, **kwargs)


def test_the_callers_overrides_stay_as_they_are(model):
    overrides = {"weight": {"lr": 3.0}}
    get_default_optimizer_params(model, base_lr=1.0, weight_decay_bias=0.5, overrides=overrides)
    assert overrides == {"weight": {"lr": 3.0}}


def test_reduce_param_groups():
    groups = [{"params": [1], "lr": 1}, {"params": [2], "lr": 2}, {"params": [3, 4], "lr": 1}]
    assert reduce_param_groups(groups) == [{"lr": 1, "params": [1, 3, 4]}, {"lr": 2, "params": [2]}]


def test_build_optimizer(model):
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.5
    cfg.SOLVER.NESTEROV = True
    cfg.SOLVER.WEIGHT_DECAY = 0.25
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.SGD
    decay = {name: values["weight_decay"] for name, values in by_name(model, optimizer.param_groups).items()}
    assert decay == {
        "0.weight": 0.25,
        "0.bias": 0.25,
        "1.weight": 0,
        "1.bias": 0,
        "2.bias": 0.25,
        "3.bias": 0.25,
    }
    assert all(g["lr"] == 0.5 and g["momentum"] == 0.9 and g["nesterov"] for g in optimizer.param_groups)


def test_build_optimizer_takes_the_biases_values(model):
    cfg = get_cfg()
    solver = cfg.SOLVER
    solver.BASE_LR, solver.MOMENTUM, solver.BIAS_LR_FACTOR = 0.5, 0.25, 2.0  # Faster R-CNN's rows double it
    solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_BIAS = 0.125, 0.0625
    groups = by_name(model, build_optimizer(cfg, model).param_groups)
    found = {name: (v["lr"], v["weight_decay"]) for name, v in groups.items()}
    weights = {"0.weight": (0.5, 0.125), "1.weight": (0.5, 0.0)}
    assert found == {**weights, **{f"{i}.bias": (1.0, 0.0625) for i in range(4)}}
    assert all(values["momentum"] == 0.25 for values in groups.values())


def test_a_frozen_model_is_refused(model):
    with pytest.raises(ValueError, match="FREEZE_AT"):
        build_optimizer(get_cfg(), model.requires_grad_(False))


@pytest.mark.parametrize("as_class", [False, True])
@pytest.mark.parametrize(
    "clip_type, expected",
    [  # the gradients are (6, 8) and (0, 24): norms 10 and 24, together 26
        ("value", [(5, 5), (0, 5)]),
        ("norm", [(3, 4), (0, 5)]),
        ("full_model", [(6 * 5 / 26, 8 * 5 / 26), (0, 24 * 5 / 26)]),
    ],
)
def test_gradient_clipping(clip_type, expected, as_class):
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 5.0
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    if as_class:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(parameters, lr=1.0)
    else:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD(parameters, lr=1.0))
    parameters[0].grad, parameters[1].grad = torch.tensor([6.0, 8.0]), torch.tensor([0.0, 24.0])
    optimizer.step()
    for parameter, step in zip(parameters, [*expected, (0, 0)], strict=True):  # the last one has no gradient
        torch.testing.assert_close(parameter.detach(), -torch.tensor(step, dtype=torch.float32))


@pytest.mark.parametrize(("clip_type", "expected"), [("norm", [(3, 4), (0, 4)]), ("full_model", [(1, 8 / 6), (0, 4)])])
def test_clipping_by_another_norm(clip_type, expected):
    cfg = get_cfg()
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE, clipping.NORM_TYPE = True, clip_type, 4.0, float("inf")
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD(parameters, lr=1.0))
    parameters[0].grad, parameters[1].grad = torch.tensor([6.0, 8.0]), torch.tensor([0.0, 24.0])
    optimizer.step()
    for parameter, step in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), -torch.tensor(step, dtype=torch.float32))


def test_clipping_off_and_unknown():
    cfg = get_cfg()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.param_groups[0]["params"][0].grad = torch.tensor([100.0])
    maybe_add_gradient_clipping(cfg, optimizer).step()
    assert optimizer.param_groups[0]["params"][0].item() == -100
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "both"
    with pytest.raises(ValueError, match="CLIP_TYPE='both'"):
        maybe_add_gradient_clipping(cfg, optimizer)
