"""The hooks of a trainer."""

import json
import random
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn

from projects_maskrcnn.embedded.checkpoint import DetectionCheckpointer
from projects_maskrcnn.embedded.engine import TrainerBase, hooks
from projects_maskrcnn.embedded.utils import comm
from projects_maskrcnn.embedded.utils.events import get_event_storage


class Steps(TrainerBase):
    """A training of nothing but hooks; `step(trainer)` stands for a step."""

    def __init__(self, *used, step=lambda trainer: None):
        super().__init__()
        self.register_hooks(used)
        self.step = step
        self.model = nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def run_step(self):
        self.step(self)


def test_callbacks():
    calls = []
    names = ("before_train", "after_train", "before_step", "after_step")
    hook = hooks.CallbackHook(**{name: lambda trainer, name=name: calls.append((name, trainer.iter)) for name in names})
    Steps(hook, hooks.CallbackHook()).train(0, 1)
    assert calls == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_a_step_draws_the_same_whenever_it_runs():
    def draws(seed, start):
        seen = {}

        def step(trainer):
            seen[trainer.iter] = (random.random(), np.random.rand(), torch.rand(()).item())

        Steps(hooks.SeedIteration(seed), step=step).train(start, 5)
        return seen

    whole, late = draws(1, 0), draws(1, 3)
    assert late == {3: whole[3], 4: whole[4]}
    assert len({draw for step in whole.values() for draw in step}) == 15
    assert draws(2, 4)[4] != whole[4]


def test_processes_draw_differently(monkeypatch):
    def draw():
        drawn = []
        Steps(hooks.SeedIteration(1), step=lambda trainer: drawn.append(torch.rand(()).item())).train(0, 1)
        return drawn

    first = draw()
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    assert draw() != first


def test_timer_counts_no_hooks_and_no_warmup(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(hooks.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr("fvcore.common.timer.perf_counter", lambda: clock[0])

    def pass_time(seconds):
        clock[0] += seconds

    slow_hook = hooks.CallbackHook(after_step=lambda trainer: pass_time(100))
    trainer = Steps(hooks.IterationTimer(warmup_iter=2), slow_hook, step=lambda trainer: pass_time(2 + trainer.iter))
    log = Mock()
    monkeypatch.setattr(hooks.logger, "info", log)
    trainer.train(0, 4)
    assert trainer.storage.history("time").values() == [(3.0, 1), (4.0, 2), (5.0, 3)]
    speed, total = (call.args[0] % call.args[1:] for call in log.call_args_list)
    assert speed == "Overall training speed: 3 iterations in 0:00:12 (4.0000 s / it)"
    assert total == "Total training time: 0:06:52 (0:06:40 on hooks)"  # since the end of the warm-up


def test_writers_write_by_period_at_the_end_and_after_an_error():
    writer = Mock()
    Steps(hooks.PeriodicWriter([writer], period=3)).train(0, 7)
    assert [name for name, *_ in writer.method_calls] == ["write"] * 4 + ["close"]  # after 3, 6, 7, and training

    writer.reset_mock()
    with pytest.raises(ZeroDivisionError):
        Steps(hooks.PeriodicWriter([writer], period=3), step=lambda trainer: 1 / 0).train(0, 7)
    assert [name for name, *_ in writer.method_calls] == ["write", "close"]


def test_checkpoints_by_period_and_at_the_end(tmp_path):
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
    Steps(hooks.PeriodicCheckpointer(checkpointer, 2)).train(0, 5)
    assert {path.name for path in tmp_path.glob("*.pth")} == {
        "model_0000001.pth", "model_0000003.pth", "model_final.pth",
    }  # fmt: skip
    assert torch.load(tmp_path / "model_0000003.pth")["iteration"] == 3


def test_weights_that_are_not_finite_are_not_what_is_resumed_from(tmp_path):
    def step(trainer):
        if trainer.iter == 3:
            model.bias.data.fill_(float("nan"))

    model = nn.Linear(1, 1)
    hook = hooks.PeriodicCheckpointer(DetectionCheckpointer(model, str(tmp_path)), 2)
    with pytest.raises(FloatingPointError, match="bias is infinite or NaN after iteration 3.*SOLVER.BASE_LR"):
        Steps(hook, step=step).train(0, 6)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (tmp_path / "model_0000003.pth").exists()


def test_a_checkpoint_period_of_zero():
    with pytest.raises(ValueError, match="SOLVER.CHECKPOINT_PERIOD is 0"):
        Steps(hooks.PeriodicCheckpointer(Mock(), 0)).train(0, 1)


@pytest.mark.parametrize(("mode", "saved"), [("max", [1, 5]), ("min", [1, 3])])
def test_best_checkpoint(mode, saved):
    values = iter([0.5, 0.2, 0.7, float("nan")])
    checkpointer = Mock()
    best = hooks.BestCheckpointer(2, checkpointer, "segm/AP", mode)
    trainer = Steps(hooks.EvalHook(2, lambda: {"segm": {"AP": next(values)}}), best)
    trainer.train(0, 8)
    assert [call.kwargs["iteration"] for call in checkpointer.save.call_args_list] == saved

    state = trainer.state_dict()
    assert "BestCheckpointer" not in state["hooks"]  # Detectron2's would fail on it
    resumed = hooks.BestCheckpointer(2, checkpointer, "segm/AP", mode)
    Steps(resumed).load_state_dict(state)
    assert (resumed.best_metric, resumed.best_iter) == ({"max": 0.7, "min": 0.2}[mode], saved[-1])


def test_best_checkpoint_of_an_unknown_kind():
    with pytest.raises(ValueError, match="'biggest'"):
        hooks.BestCheckpointer(1, Mock(), "AP", "biggest")


def test_lr_is_put_before_it_changes():
    hook = hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))
    trainer = Steps(hook, step=lambda trainer: trainer.optimizer.step())
    trainer.train(0, 4)
    assert [value for value, _ in trainer.storage.history("lr").values()] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert trainer.state_dict()["hooks"]["LRScheduler"]["last_epoch"] == 4


@pytest.mark.parametrize(
    ("groups", "shown"),
    [([(1, 0.1), (3, 0.2), (2, 0.1)], 1), ([(1, 0.3), (1, 0.1), (1, 0.1)], 1), ([(2, 0.3), (2, 0.1)], 0)],
)
def test_the_group_whose_lr_is_shown(groups, shown):
    parameters = [{"params": [nn.Parameter(torch.zeros(1)) for _ in range(n)], "lr": lr} for n, lr in groups]
    assert hooks.LRScheduler.get_best_param_group_id(torch.optim.SGD(parameters)) == shown


def test_evaluation_by_period_and_once_at_the_end():
    calls = []

    def evaluate():
        calls.append(trainer.iter)
        return {"bbox": {"AP": 10.0 * len(calls)}, "other": 1}

    trainer = Steps(hooks.EvalHook(2, evaluate))
    trainer.train(0, 6)
    assert calls == [1, 3, 6]
    assert trainer.storage.history("bbox/AP").values() == [(10.0, 1), (20.0, 3), (30.0, 6)]
    assert trainer.storage.latest()["other"] == (1.0, 6)


@pytest.mark.parametrize("period, after_train, expected", [(0, True, 1), (0, False, 0), (3, False, 1)])
def test_evaluation_can_be_left_out(period, after_train, expected):
    evaluate = Mock(return_value={})
    Steps(hooks.EvalHook(period, evaluate, eval_after_train=after_train)).train(0, 6)
    assert evaluate.call_count == expected


def test_no_evaluation_after_a_last_step_that_failed():
    evaluate = Mock(return_value={})

    def step(trainer):
        assert trainer.iter < 2

    with pytest.raises(AssertionError):
        Steps(hooks.EvalHook(0, evaluate), step=step).train(0, 3)
    evaluate.assert_not_called()


def test_precise_bn():
    model = nn.BatchNorm1d(2)
    batches = [torch.tensor([[0.0, 10.0], [2.0, 30.0]]), torch.tensor([[4.0, 0.0], [6.0, 0.0]])]
    Steps(hooks.PreciseBN(2, model, batches, 2)).train(0, 3)
    samples = torch.cat(batches).double().numpy()
    assert model.running_mean.tolist() == pytest.approx(samples.mean(0))
    assert model.running_var.tolist() == pytest.approx(samples.var(0))

    class Logging(nn.BatchNorm1d):
        def forward(self, x):
            get_event_storage().put_scalar("loss_of_no_step", x.sum().item())
            return super().forward(x)

    trainer = Steps(hooks.PreciseBN(0, Logging(2), batches, 2))
    trainer.train(0, 1)
    assert "loss_of_no_step" not in trainer.storage.latest()

    no_batch_norm = nn.Linear(2, 2)
    Steps(hooks.PreciseBN(1, no_batch_norm, [], 2)).train(0, 1)


def test_profiler(tmp_path):
    hook = hooks.TorchProfiler(lambda trainer: trainer.iter == 1, str(tmp_path))
    Steps(hook, step=lambda trainer: torch.ones(3) + 1).train(0, 3)
    (trace,) = tmp_path.iterdir()
    assert "iter1" in trace.name
    assert "aten::add" in {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
