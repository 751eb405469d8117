"""The training loop and its hooks. Stands for `detectron2.engine.train_loop`."""

import logging
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..solver.build import DIVERGENCE_REMEDY
from ..utils import comm
from ..utils.events import EventStorage, get_event_storage

logger = logging.getLogger(__name__)


class HookBase:
    """What happens around the steps of a trainer, which is `self.trainer`.

    ::

        hook.before_train()
        for iter in range(start_iter, max_iter):
            hook.before_step()
            trainer.run_step()
            hook.after_step()
        iter = max_iter
        hook.after_train()
    """

    trainer: "TrainerBase" = None
    state_name: str | None = None
    """What a checkpoint has its state under; None for the name of its class."""

    def before_train(self) -> None:
        """Before the first step."""

    def after_train(self) -> None:
        """After the last step, and after one that failed."""

    def before_step(self) -> None:
        """Before each step."""

    def after_backward(self) -> None:
        """Between backward pass and optimizer's step."""

    def after_step(self) -> None:
        """After each step."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep, or nothing."""
        return {}


class TrainerBase:
    """A loop over `run_step` with hooks. `iter`, `start_iter`, `max_iter` count steps; `storage` keeps numbers."""

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0
        self.max_iter = 0
        self.storage: EventStorage | None = None

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks, to run in this order. None is left out."""
        for hook in hooks:
            if hook is not None:
                hook.trainer = weakref.proxy(self)
                self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run steps `start_iter` to `max_iter` - 1. `after_train` runs whatever happens, so nothing is lost."""
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = max_iter  # hooks tell a complete run from a failed one by this
            except Exception:
                logger.exception("Exception during training, at iteration %d:", self.iter)
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """One step of training."""
        raise NotImplementedError

    def _named_hooks(self) -> Iterator[tuple[str, HookBase]]:
        """The hooks by `state_name`; from the second of a name on with their number, ``LRScheduler.1``."""
        seen: Counter[str] = Counter()
        for hook in self._hooks:
            name = hook.state_name or type(hook).__qualname__
            yield f"{name}.{seen[name]}" if seen[name] else name, hook
            seen[name] += 1

    def state_dict(self) -> dict[str, Any]:
        """The iteration and the hooks' states, for a checkpoint."""
        states = {name: hook.state_dict() for name, hook in self._named_hooks()}
        return {"iteration": self.iter, "hooks": {name: state for name, state in states.items() if state}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state of `state_dict`."""
        self.iter = state_dict["iteration"]
        hooks = dict(self._named_hooks())
        for name, state in state_dict.get("hooks", {}).items():
            if name in hooks:
                hooks[name].load_state_dict(state)
            else:
                logger.warning("The checkpoint has a state of hook %s, which this run does not have", name)


class SimpleTrainer(TrainerBase):
    """A step is: a batch, losses, gradients of their sum, the optimizer.

    Args:
        model: takes a batch and returns a loss, or losses by name, in training mode.
        data_loader: gives batches without end.
        gather_metric_period: with several processes, iterations between gathering their metrics.
        zero_grad_before_forward: clear gradients before the forward pass, not before the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
    ) -> None:
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self._iterator: Iterator | None = None

    @property
    def _data_loader_iter(self) -> Iterator:
        # made when it is needed: until then a resumed run can tell the loader where to start
        if self._iterator is None:
            self._iterator = iter(self.data_loader)
        return self._iterator

    def run_step(self) -> None:
        """One step of training.

        Raises:
            RuntimeError: the model is in eval mode, and would give no losses.
        """
        if not self.model.training:
            raise RuntimeError("the model was put in eval mode: put it back with model.train() after an evaluation")
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict = self._forward(data)
        losses = sum(loss_dict.values())
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(losses)
        self.after_backward()
        if (self.iter + 1) % self.gather_metric_period == 0:
            self.write_metrics(loss_dict, data_time, self.iter)
        self._update()

    def _forward(self, data: Any) -> dict[str, Tensor]:
        losses = self.model(data)
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _backward(self, losses: Tensor) -> None:
        losses.backward()

    def _update(self) -> None:
        self.optimizer.step()

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Put the losses, averaged over processes, and the slowest process's `data_time` into the event storage.

        Raises:
            FloatingPointError: the sum of the losses is not finite.
        """
        metrics = {name: value.detach().cpu().item() for name, value in loss_dict.items()}
        gathered = comm.gather({**metrics, "data_time": data_time})
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        storage.put_scalar("data_time", max(m.pop("data_time") for m in gathered), cur_iter=cur_iter)
        metrics = {name: float(np.mean([m[name] for m in gathered])) for name in gathered[0]}
        total = sum(metrics.values())
        if not np.isfinite(total):
            values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            raise FloatingPointError(
                f"Loss became infinite or NaN at iteration {cur_iter}: {values}. {DIVERGENCE_REMEDY}"
            )
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(metrics) > 1:
            storage.put_scalars(cur_iter=cur_iter, **metrics)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state of `state_dict`.

        Raises:
            ValueError: it is of a model, or an optimizer, with other parameters.
        """
        super().load_state_dict(state_dict)
        message = (
            "The checkpoint to resume from is of a model with other parameters: resume with the config of its run, "
            "or set another OUTPUT_DIR and load its weights alone by MODEL.WEIGHTS"
        )
        try:
            self.optimizer.load_state_dict(state_dict["optimizer"])
        except ValueError as error:  # another number of parameters
            raise ValueError(message) from error
        for parameter, state in self.optimizer.state.items():
            if any(isinstance(v, Tensor) and v.dim() and v.shape != parameter.shape for v in state.values()):
                raise ValueError(message)


class AMPTrainer(SimpleTrainer):
    """`SimpleTrainer` in mixed precision: the forward pass in `precision`, gradients scaled where they would underflow.

    Args:
        grad_scaler: one is made where none is given.
        precision: float16, or bfloat16.

    The others are those of `SimpleTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
    ) -> None:
        if isinstance(model, DataParallel) or (
            isinstance(model, DistributedDataParallel) and model.device_ids and len(model.device_ids) > 1
        ):
            raise ValueError("mixed precision needs one process a GPU: use launch(), not DataParallel")
        super().__init__(model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward)
        self._device = next(model.parameters()).device.type
        if self._device == "cpu" and precision == torch.float16:
            precision = torch.bfloat16  # what CPUs have kernels for
        self.precision = precision
        enabled = precision == torch.float16
        self.grad_scaler = grad_scaler or torch.amp.GradScaler(self._device, enabled=enabled)

    def _forward(self, data: Any) -> dict[str, Tensor]:
        with torch.autocast(self._device, dtype=self.precision):
            return super()._forward(data)

    def _backward(self, losses: Tensor) -> None:
        self.grad_scaler.scale(losses).backward()

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
