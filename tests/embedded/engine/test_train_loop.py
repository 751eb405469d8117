"""The training loop."""

import itertools
import math

import pytest
import torch
from torch import nn

from projects_maskrcnn.embedded.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from projects_maskrcnn.embedded.utils import comm
from projects_maskrcnn.embedded.utils.events import EventStorage


class Distance(nn.Module):
    """Two losses, |w - x|^2 and |w|."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, x):
        return {"loss_distance": ((self.w - x) ** 2).sum(), "loss_size": self.w.abs().sum()}


BATCHES = [torch.tensor([3.0, 4.0]), torch.tensor([-1.0, 0.5]), torch.tensor([0.0, 7.0])]


class Record(HookBase):
    def __init__(self):
        self.calls = []

    def before_train(self):
        self.calls.append("before_train")

    def after_train(self):
        self.calls.append(f"after_train {self.trainer.iter}")

    def before_step(self):
        self.calls.append(f"before {self.trainer.iter}")

    def after_backward(self):
        self.calls.append("backward")

    def after_step(self):
        self.calls.append(f"after {self.trainer.storage.iter}")


def build(trainer=SimpleTrainer, batches=BATCHES, **kwargs):
    model = Distance()
    return trainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), **kwargs)


@pytest.mark.parametrize("zero_grad_before_forward", [False, True])
def test_equals_plain_torch(zero_grad_before_forward):
    trainer = build(zero_grad_before_forward=zero_grad_before_forward)
    trainer.train(0, 3)

    model = Distance()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for x in BATCHES:
        loss = sum(model(x).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert torch.equal(trainer.model.w, model.w)
    assert [value for value, _ in trainer.storage.history("total_loss").values()] == pytest.approx(losses)
    assert trainer.storage.history("loss_size").values()[0] == (3.0, 0)


def test_hooks_are_called_in_order():
    trainer, hook = build(), Record()
    trainer.register_hooks([None, hook])
    trainer.train(4, 6)
    assert hook.calls == [
        "before_train", "before 4", "backward", "after 4", "before 5", "backward", "after 5", "after_train 6",
    ]  # fmt: skip


def test_nothing_to_do_is_a_complete_run():
    trainer, hook = build(), Record()
    trainer.register_hooks([hook])
    trainer.train(6, 6)
    assert hook.calls == ["before_train", "after_train 6"]


def test_an_error_still_ends_the_training_and_goes_on():
    trainer, hook = build(batches=BATCHES[:1]), Record()
    trainer.register_hooks([hook])
    with pytest.raises(StopIteration):
        trainer.train(0, 5)
    assert hook.calls[-2:] == ["before 1", "after_train 1"]


def test_metrics_are_gathered_by_period():
    trainer = build(batches=itertools.cycle(BATCHES), gather_metric_period=2)
    trainer.train(0, 5)
    assert [iteration for _, iteration in trainer.storage.history("total_loss").values()] == [1, 3]


def test_metrics_are_means_and_the_slowest_data_time(monkeypatch):
    monkeypatch.setattr(comm, "gather", lambda data: [data, {"loss_a": 5.0, "loss_b": 3.0, "data_time": 9.0}])
    with EventStorage() as storage:
        SimpleTrainer.write_metrics({"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.0)}, 3.0, 0)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    expected = {"loss_a": 3.0, "loss_b": 2.5, "total_loss": 5.5, "data_time": 9.0, "rank_data_time": 3.0}
    assert latest == pytest.approx(expected)


def test_a_loss_that_is_not_finite():
    trainer = build(batches=[BATCHES[0], torch.tensor([math.inf, 0.0])])
    with pytest.raises(FloatingPointError, match="iteration 1: loss_distance inf, loss_size .*SOLVER.CLIP_GRADIENTS"):
        trainer.train(0, 2)
    assert trainer.model.w.isfinite().all()


def test_a_model_in_eval_mode():
    trainer = build()
    trainer.model.eval()
    with pytest.raises(RuntimeError, match="eval mode"):
        trainer.train(0, 1)


def test_a_single_loss_is_the_total():
    class One(Distance):
        def forward(self, x):
            return super().forward(x)["loss_distance"]

    model = One()
    trainer = SimpleTrainer(model, BATCHES, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.train(0, 1)
    assert trainer.storage.latest()["total_loss"] == (4 + 36, 0)


class Counting(HookBase):
    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


def test_state():
    trainer = build()
    trainer.register_hooks([Counting(3), Record(), Counting(4)])
    trainer.train(0, 2)
    state = trainer.state_dict()
    assert (state["iteration"], state["hooks"]) == (2, {"Counting": {"count": 3}, "Counting.1": {"count": 4}})

    other, hooks = build(), [Counting(), Counting()]
    other.register_hooks(hooks)
    other.load_state_dict(state)
    assert other.iter == 2 and [hook.count for hook in hooks] == [3, 4]
    (momentum,) = (s["momentum_buffer"] for s in other.optimizer.state.values())
    assert torch.equal(momentum, *[s["momentum_buffer"] for s in trainer.optimizer.state.values()])
    build().load_state_dict(state)  # hooks that are gone are reported, no error


@pytest.mark.parametrize("shapes", [[(2,), (1,)], [(3,)]], ids=["number", "shape"])
def test_a_state_of_another_model(shapes):
    trainer = build()
    trainer.train(0, 1)
    other = nn.ParameterList(torch.zeros(shape) for shape in shapes)
    resumed = SimpleTrainer(other, BATCHES, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9))
    with pytest.raises(ValueError, match="checkpoint to resume from is of a model with other parameters.*OUTPUT_DIR"):
        resumed.load_state_dict(trainer.state_dict())


def test_the_base_class_has_no_step():
    with pytest.raises(NotImplementedError):
        TrainerBase().train(0, 1)


class Linear(nn.Linear):
    def forward(self, x):
        out = super().forward(x)
        self.dtype = out.dtype
        return {"loss": out.float().square().mean()}


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_mixed_precision(precision):
    torch.manual_seed(0)
    model = Linear(4, 2)
    x = torch.randn(8, 4)
    before = model(x)["loss"].item()
    trainer = AMPTrainer(model, itertools.repeat(x), torch.optim.SGD(model.parameters(), lr=0.1), precision=precision)
    trainer.train(0, 5)
    assert model.dtype == torch.bfloat16  # of float16 and bfloat16, the one for CPUs
    assert model.weight.dtype == torch.float32
    assert trainer.storage.latest()["total_loss"][0] < before
    trainer.load_state_dict(trainer.state_dict())


def test_the_loss_scale_grows_and_is_kept():
    def build(init_scale):
        model = Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=2)
        return AMPTrainer(model, itertools.repeat(torch.ones(1, 4)), optimizer, grad_scaler=scaler)

    trainer = build(8.0)
    trainer.train(0, 4)
    assert trainer.grad_scaler.get_scale() == 8 * 2 * 2  # doubled after every second step
    resumed = build(1.0)
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.grad_scaler.get_scale() == 32
