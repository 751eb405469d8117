"""Learning-rate schedules: a warm-up before any fvcore schedule, and a schedule's hold on an optimizer."""

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler


class WarmupParamScheduler(CompositeParamScheduler):
    """`scheduler`, its first part replaced by a warm-up. Stands for Detectron2's `WarmupParamScheduler`.

    Args:
        scheduler: the schedule after the warm-up; as every fvcore schedule, a function of the part of the
            training that is done, in [0, 1].
        warmup_factor: the warm-up starts at this multiple of the schedule's first value.
        warmup_length: the part of the training, in [0, 1], that is warm-up.
        warmup_method: ``"linear"`` rises to the schedule's value at the warm-up's end; ``"constant"`` stays.
        rescale_interval: squeeze the whole schedule into what the warm-up leaves of the training, instead of
            cutting off its beginning.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "linear":
            warmup = LinearParamScheduler(start, scheduler(0.0 if rescale_interval else warmup_length))
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(f"warmup_method={warmup_method!r}: expected 'linear' or 'constant'")
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Multiplies each group's initial learning rate by one schedule. Stands for Detectron2's `LRMultiplier`.

    PyTorch's word "epoch" means "iteration" here: `step` is called once an iteration.

    Args:
        optimizer: its groups may have different learning rates; their ratios stay.
        multiplier: the schedule.
        max_iter: iterations of the whole training, which the schedule's [0, 1] stands for.
        last_iter: the last iteration done; -1 for none.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ) -> None:
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be an fvcore ParamScheduler, not {type(multiplier).__name__}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict:
        """The initial rates and the iteration; the schedule itself is a pure function."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        """The rate of each parameter group at the current iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]
