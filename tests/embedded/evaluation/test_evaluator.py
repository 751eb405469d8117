"""The inference loop, and several evaluators as one."""

import pytest
import torch
from torch import nn

from projects_maskrcnn.embedded.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)
from projects_maskrcnn.embedded.evaluation import evaluator as evaluator_module


class Sum(DatasetEvaluator):
    def __init__(self, task):
        self.task = task

    def reset(self):
        self.total = 0

    def process(self, inputs, outputs):
        self.total += sum(outputs)

    def evaluate(self):
        return {self.task: {"sum": self.total}}


class Nothing(DatasetEvaluator):
    def evaluate(self):
        return None


class Double(nn.Module):
    def forward(self, inputs):
        assert not self.training and not torch.is_grad_enabled()
        return [2 * x for x in inputs]


BATCHES = [[i, i + 1] for i in range(12)]  # doubled, they sum up to 2 * (66 + 78)


@pytest.mark.parametrize(
    "evaluator, expected",
    [
        (Sum("a"), {"a": {"sum": 288}}),
        ([Sum("b"), Nothing(), Sum("a")], {"b": {"sum": 288}, "a": {"sum": 288}}),
        (Nothing(), {}),
        (None, {}),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_inference_on_dataset(evaluator, expected, training):
    model = Double().train(training)
    for _ in range(2):  # the second round starts from nothing
        results = inference_on_dataset(model, BATCHES, evaluator)
        assert results == expected and list(results) == list(expected)
        assert model.training == training


def test_a_function_is_a_model_and_an_empty_dataset_is_one():
    assert inference_on_dataset(lambda batch: batch, BATCHES, Sum("a")) == {"a": {"sum": 144}}
    assert inference_on_dataset(lambda batch: batch, [], Sum("a")) == {"a": {"sum": 0}}


def test_progress_and_speed_are_logged(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(evaluator_module, "LOG_PERIOD", 0)
    inference_on_dataset(Double(), BATCHES, None)
    assert "Start inference on 12 batches" in caplog.text
    assert "/12. Dataloading: " in caplog.text and "ETA=0:00:00" in caplog.text
    assert "s / iter per device, on 1 devices" in caplog.text


def test_callbacks():
    calls = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: lambda name=name: calls.append(name) for name in names}
    inference_on_dataset(Double(), BATCHES[:2], None, callbacks=callbacks)
    assert calls == ["on_start", *["before_inference", "after_inference"] * 2, "on_end"]


def test_the_mode_is_restored_after_an_error():
    model = Double()
    with pytest.raises(KeyError), inference_context(model):
        assert not model.training
        raise KeyError
    assert model.training


def test_two_evaluators_of_one_task():
    evaluators = DatasetEvaluators([Sum("a"), Sum("a")])
    evaluators.reset()
    with pytest.raises(ValueError, match="'a'"):
        evaluators.evaluate()
