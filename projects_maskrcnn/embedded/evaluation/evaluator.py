"""What an evaluator is, and the loop that runs a model under one."""

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..utils import comm
from ..utils.logger import log_every_n_seconds

logger = logging.getLogger(__name__)

WARMUP_BATCHES = 5  # the first batches are slow (allocators, caches) and left out of the timings
LOG_PERIOD = 5  # seconds


class DatasetEvaluator:
    """Turns what a model predicts into metrics. Stands for Detectron2's `DatasetEvaluator`."""

    def reset(self) -> None:
        """Forgets all predictions, before a round of evaluation."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes in a batch: the model's input dicts and its output dicts, one pair an image."""

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The metrics of all batches, ``{task: {metric: score}}``; None or empty beside the main process."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one; the union of their results. Stands for Detectron2's `DatasetEvaluators`."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self._evaluators = evaluators

    def reset(self) -> None:
        """Resets each."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Gives the batch to each."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The results of all, in their order.

        Raises:
            ValueError: two of them have results for the same task.
        """
        results = OrderedDict()
        for evaluator in self._evaluators:
            for task, scores in (evaluator.evaluate() or {}).items():
                if task in results:
                    raise ValueError(f"two evaluators have results for {task!r}: give them different tasks")
                results[task] = scores
        return results


class _Stopwatch:
    """Seconds spent in each part of the loop since the warm-up."""

    PARTS = ("Dataloading", "Inference", "Eval")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.batches = 0
        self.seconds = dict.fromkeys(self.PARTS, 0.0)
        self.start = self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Counts the time since the last lap as `part`."""
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now

    @property
    def total(self) -> float:
        return self.last - self.start

    def per_batch(self, seconds: float) -> float:
        return seconds / max(self.batches, 1)


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable,
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], None]] | None = None,
) -> dict[str, Any]:
    """Runs a model over a dataset under an evaluator. Stands for Detectron2's `inference_on_dataset`.

    Progress, its ETA and the speed are logged; the timings leave out the first batches.

    Args:
        model: maps a batch to outputs; a module is put in eval mode meanwhile.
        data_loader: batches, and their number as its length.
        evaluator: one, several, or None to measure the speed alone.
        callbacks: functions without arguments to call ``on_start``, ``before_inference``, ``after_inference``
            (both each batch) and ``on_end``.

    Returns:
        the evaluator's results; empty on processes other than the main one.
    """
    callbacks = callbacks or {}

    def call(event: str) -> None:
        if event in callbacks:
            callbacks[event]()

    if evaluator is None or isinstance(evaluator, Sequence):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()

    total = len(data_loader)
    logger.info("Start inference on %d batches", total)
    warmup = max(min(WARMUP_BATCHES, total - 1), 0)
    with inference_context(model) if isinstance(model, nn.Module) else nullcontext(), torch.no_grad():
        call("on_start")
        watch = _Stopwatch()
        for index, inputs in enumerate(data_loader):
            if index == warmup:
                watch.restart()
            watch.lap("Dataloading")
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            watch.lap("Inference")
            evaluator.process(inputs, outputs)
            watch.lap("Eval")
            watch.batches += 1
            if index >= 2 * warmup or watch.per_batch(watch.total) > LOG_PERIOD:
                _log_progress(watch, index + 1, total)
        call("on_end")

    devices = comm.get_world_size()
    for name, seconds in (("", watch.total), (" pure compute", watch.seconds["Inference"])):
        logger.info(
            "Total inference%s time: %s (%.6f s / iter per device, on %d devices)",
            name, datetime.timedelta(seconds=int(seconds)), watch.per_batch(seconds), devices,
        )  # fmt: skip
    return evaluator.evaluate() or {}


def _log_progress(watch: _Stopwatch, done: int, total: int) -> None:
    parts = {**watch.seconds, "Total": watch.total}
    speeds = " ".join(f"{part}: {watch.per_batch(seconds):.4f} s/iter." for part, seconds in parts.items())
    eta = datetime.timedelta(seconds=int(watch.per_batch(watch.total) * (total - done)))
    log_every_n_seconds(logging.INFO, f"Inference done {done}/{total}. {speeds} ETA={eta}", n=LOG_PERIOD, name=__name__)


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Puts the model in eval mode, and back into its former mode at the end, also after an error."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
