"""Hooks of a trainer. Stands for `detectron2.engine.hooks`."""

import logging
import math
import operator
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from ..evaluation.testing import flatten_results_dict
from ..solver import LRMultiplier
from ..solver.build import DIVERGENCE_REMEDY
from ..utils import comm
from ..utils.env import seed_all_rng
from ..utils.events import EventStorage, EventWriter
from .train_loop import HookBase

logger = logging.getLogger(__name__)


class CallbackHook(HookBase):
    """Calls functions of the trainer."""

    def __init__(
        self,
        *,
        before_train: Callable | None = None,
        after_train: Callable | None = None,
        before_step: Callable | None = None,
        after_step: Callable | None = None,
    ) -> None:
        self._callbacks = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, event: str) -> None:
        if self._callbacks[event]:
            self._callbacks[event](self.trainer)

    def before_train(self) -> None:
        self._call("before_train")

    def after_train(self) -> None:
        self._call("after_train")

    def before_step(self) -> None:
        self._call("before_step")

    def after_step(self) -> None:
        self._call("after_step")


class SeedIteration(HookBase):
    """Seeds every step from the run's seed, the process and the iteration, so that a resumed run repeats them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        sequence = np.random.SeedSequence((self._seed, comm.get_rank(), self.trainer.iter))
        seed_all_rng(int(sequence.generate_state(1)[0]))


class IterationTimer(HookBase):
    """Puts `time`, the seconds of a step without those of hooks, into the event storage, and logs the sums.

    Args:
        warmup_iter: first steps that do not count, since they are slow.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        total = time.perf_counter() - self._start_time
        stepping = self._total_timer.seconds()
        num_iter = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if num_iter > 0 and stepping > 0:
            logger.info(
                "Overall training speed: %d iterations in %s (%.4f s / it)",
                num_iter,
                timedelta(seconds=int(stepping)),
                stepping / num_iter,
            )
        logger.info(
            "Total training time: %s (%s on hooks)",
            timedelta(seconds=int(total)),
            timedelta(seconds=int(total - stepping)),
        )

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        if self.trainer.iter - self.trainer.start_iter + 1 >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()


class PeriodicWriter(HookBase):
    """Lets writers write every `period` iterations and at the end, and closes them."""

    def __init__(self, writers: Iterable[EventWriter], period: int = 20) -> None:
        self._writers = list(writers)
        self._period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0 or self.trainer.iter == self.trainer.max_iter - 1:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's `PeriodicCheckpointer` as a hook. The checkpoint of a model that has diverged is not written."""

    def before_train(self) -> None:
        if self.period < 1:
            raise ValueError(f"SOLVER.CHECKPOINT_PERIOD is {self.period}: a number of iterations, 1 or more")
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Save a checkpoint where one is due.

        Raises:
            FloatingPointError: a weight is not finite; what would be resumed from stays the checkpoint before.
        """
        iteration = self.trainer.iter
        if (iteration + 1) % self.period == 0 or iteration >= self.max_iter - 1:
            state = self.checkpointer.model.state_dict()
            broken = [name for name, value in state.items() if not value.isfinite().all()]
            if broken:
                raise FloatingPointError(
                    f"{broken[0]} is infinite or NaN after iteration {iteration}, which is not written. "
                    f"{DIVERGENCE_REMEDY}"
                )
        self.step(iteration)


class BestCheckpointer(HookBase):
    """Saves `<file_prefix>.pth` whenever a metric is better than ever before.

    Args:
        eval_period: iterations between evaluations.
        val_metric: name of a scalar in the event storage, such as "segm/AP".
        mode: whether "max" or "min" is better.
    """

    state_name = "embedded.BestCheckpointer"  # Detectron2's keeps no state, and fails on one that has its name

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: Literal["max", "min"] = "max",
        file_prefix: str = "model_best",
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', not {mode!r}")
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = val_metric
        self._better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _check(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self._metric, (None, None))
        if value is None:
            logger.warning("There is no %r in the event storage: no best checkpoint is kept", self._metric)
        elif math.isfinite(value) and (self.best_metric is None or self._better(value, self.best_metric)):
            self.best_metric, self.best_iter = value, iteration
            self._checkpointer.save(self._file_prefix, iteration=iteration)
            logger.info("Saved the best model so far: %s %.5f at iteration %d", self._metric, value, iteration)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._check()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._check()

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]


class LRScheduler(HookBase):
    """Steps a learning-rate schedule after each iteration, and puts `lr` into the event storage.

    Args:
        optimizer: by default the trainer's.
        scheduler: by default the trainer's; fvcore's schedules multiply the optimizer's learning rates.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None = None, scheduler: Any | None = None) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self) -> Any:
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._shown_group = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """The group whose rate stands for all: the one with the most parameters.

        Where each group has one parameter, the first with the most frequent rate.
        """
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(max(rates, key=rates.count))

    def after_step(self) -> None:
        rate = self._optimizer.param_groups[self._shown_group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        # an fvcore schedule is a function of the iteration
        return {} if isinstance(self.scheduler, ParamScheduler) else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not isinstance(self.scheduler, ParamScheduler):
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every `eval_period` iterations and after training.

    Args:
        eval_period: 0 for no evaluation during training.
        eval_function: returns nested dictionaries of numbers.
        eval_after_train: evaluate the final model too.
    """

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], Mapping[str, Any]],
        eval_after_train: bool = True,
    ) -> None:
        self._period = eval_period
        self._function = eval_function
        self._eval_after_train = eval_after_train

    def _evaluate(self) -> None:
        results = self._function()
        if results:
            self.trainer.storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        comm.synchronize()  # the others may have waited for the main process's evaluation

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._evaluate()

    def after_train(self) -> None:
        if self._eval_after_train and self.trainer.iter >= self.trainer.max_iter:
            self._evaluate()
        self._function = None  # it may hold the trainer


class PreciseBN(HookBase):
    """Replaces batch norms' running averages by true averages over `num_iter` batches, before each evaluation.

    Args:
        period: iterations between updates; 0 for one after training alone.
        data_loader: gives batches; not the one that is trained on. It is iterated anew each time, so that
            the averages of a resumed run are those of an uninterrupted one.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable, num_iter: int) -> None:
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._period = period
        self._disabled = not get_bn_modules(model)
        if self._disabled:
            logger.info("TEST.PRECISE_BN does nothing: the model has no batch norms in training mode")

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self.update_stats()

    def update_stats(self) -> None:
        """Update the statistics of the batch norms in training mode."""
        if self._disabled:
            return
        with EventStorage():  # the losses of these batches belong to no step
            update_bn_stats(self._model, self._data_loader, self._num_iter)


class TorchProfiler(HookBase):
    """Profiles the iterations for which `enable_predicate(trainer)` is true, one file each in `output_dir`."""

    def __init__(self, enable_predicate: Callable[[Any], bool], output_dir: str) -> None:
        self._enable_predicate = enable_predicate
        self._output_dir = output_dir
        self._profiler: torch.profiler.profile | None = None

    def before_step(self) -> None:
        if self._enable_predicate(self.trainer):
            self._profiler = torch.profiler.profile()
            self._profiler.__enter__()

    def after_step(self) -> None:
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        os.makedirs(self._output_dir, exist_ok=True)
        trace = os.path.join(self._output_dir, f"profiler_iter{self.trainer.iter}.json")
        self._profiler.export_chrome_trace(trace)
        self._profiler = None
        logger.info("Wrote a profile of iteration %d to %s", self.trainer.iter, trace)
