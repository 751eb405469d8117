"""Schedules against values computed by hand."""

import math

import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler, LinearParamScheduler

from projects_maskrcnn.embedded.config import get_cfg
from projects_maskrcnn.embedded.solver import LRMultiplier, WarmupParamScheduler, build_lr_scheduler


def config(**solver):
    cfg = get_cfg()
    for key, value in {
        "MAX_ITER": 30,
        "WARMUP_ITERS": 5,
        "WARMUP_FACTOR": 0.001,
        "BASE_LR": 5.0,
        **solver,
    }.items():
        setattr(cfg.SOLVER, key, value)
    return cfg


def sgd(lr=5.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler, iterations=30):
    """The learning rate of each iteration, and the one set after the last."""
    values = [scheduler.optimizer.param_groups[0]["lr"]]
    for _ in range(iterations):
        scheduler.optimizer.step()
        scheduler.step()
        values.append(scheduler.optimizer.param_groups[0]["lr"])
    return values


def cosine(i, end=0.0):
    return 5 * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * i / 30)))


WARMUP = [0.005, 1.004, 2.003, 3.002, 4.001]  # from 0.005 to 5 in five steps


@pytest.mark.parametrize(
    "solver, expected",
    [
        (
            {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (10, 15, 20)},
            WARMUP + [5.0] * 5 + [0.5] * 5 + [0.05] * 5 + [0.005] * 11,
        ),
        (
            {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (), "WARMUP_METHOD": "constant"},
            [0.005] * 5 + [5.0] * 26,
        ),
        (
            {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (3,), "WARMUP_ITERS": 0},
            [5.0] * 3 + [0.5] * 28,
        ),
        (
            {"LR_SCHEDULER_NAME": "WarmupCosineLR"},
            [0.005 + (cosine(5) - 0.005) * i / 5 for i in range(5)] + [cosine(i) for i in range(5, 31)],
        ),
        (
            {"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 0.5, "WARMUP_ITERS": 0},
            [cosine(i, end=0.1) for i in range(31)],
        ),
        (
            {"LR_SCHEDULER_NAME": "WarmupCosineLR", "RESCALE_INTERVAL": True},
            WARMUP + [cosine((i - 5) * 30 / 25) for i in range(5, 31)],
        ),
        (  # 30 iterations in 4 parts: at 7.5, 15 and 22.5
            {"LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "NUM_DECAYS": 3, "GAMMA": 0.1},
            WARMUP + [5.0] * 3 + [0.5] * 7 + [0.05] * 8 + [0.005] * 8,
        ),
    ],
)
def test_schedules(solver, expected):
    assert rates(build_lr_scheduler(config(**solver), sgd())) == pytest.approx(expected)


def test_a_warmup_longer_than_the_training():
    found = rates(build_lr_scheduler(config(STEPS=(), WARMUP_ITERS=60), sgd()))
    assert found == pytest.approx([0.005 + (5 - 0.005) * i / 30 for i in range(31)])


def test_groups_keep_their_ratio():
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 3.0)])
    scheduler = LRMultiplier(optimizer, LinearParamScheduler(0.5, 0.25), max_iter=10)
    assert scheduler.get_last_lr() == [0.5, 1.5]
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.25, 0.75])


def test_state_goes_on_where_it_stopped():
    whole = rates(build_lr_scheduler(config(), sgd()))
    first = build_lr_scheduler(config(), sgd())
    rates(first, 12)
    assert first.state_dict() == {"base_lrs": [5.0], "last_epoch": 12}
    second = build_lr_scheduler(config(), sgd())
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(second, 18) == whole[12:]


@pytest.mark.parametrize(
    "solver, key",
    [
        ({"LR_SCHEDULER_NAME": "Cosine"}, "SOLVER.LR_SCHEDULER_NAME='Cosine'"),
        ({"MAX_ITER": 0}, "SOLVER.MAX_ITER"),
        ({"STEPS": (20, 10)}, "SOLVER.STEPS"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 6.0}, "SOLVER.BASE_LR_END"),
        ({"LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "NUM_DECAYS": 0}, "SOLVER.NUM_DECAYS"),
        ({"WARMUP_METHOD": "square"}, "square"),
    ],
)
def test_what_makes_no_schedule_is_named(solver, key):
    with pytest.raises(ValueError, match=key):
        build_lr_scheduler(config(**solver), sgd())


def test_steps_after_the_end_are_ignored_with_a_warning(caplog):
    schedule = build_lr_scheduler(config(STEPS=(10, 30, 99)), sgd())
    assert rates(schedule)[-1] == pytest.approx(0.5)
    assert "SOLVER.STEPS" in caplog.text


def test_multiplier_must_be_a_schedule():
    with pytest.raises(ValueError, match="function"):
        LRMultiplier(sgd(), lambda where: 1.0, max_iter=10)


def test_warmup_over_any_schedule():
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), warmup_factor=0.5, warmup_length=0.5)
    assert schedule(0) == 0.5  # half of the cosine's 1
    assert schedule(0.25) == pytest.approx(0.5)  # and its 0.5 in the middle
    assert schedule(0.75) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
