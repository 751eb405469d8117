"""From the config's SOLVER keys to an optimizer and its learning-rate schedule."""

import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from ..config import CfgNode
from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

logger = logging.getLogger(__name__)

NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)

DIVERGENCE_REMEDY = (
    "Set SOLVER.CLIP_GRADIENTS.ENABLED True and --resume, which keeps the learning rate; or start anew with a lower "
    "SOLVER.BASE_LR or a longer SOLVER.WARMUP_ITERS"
)
"""What errors about losses, boxes or weights that are not finite advise."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD over the trainable parameters, as SOLVER says. Stands for Detectron2's `build_optimizer`."""
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    if not parameters:
        raise ValueError("the model has no trainable parameter: look at MODEL.BACKBONE.FREEZE_AT")
    optimizer = torch.optim.SGD(
        parameters,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        foreach=True,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer. Stands for Detectron2's `get_default_optimizer_params`.

    Args:
        model: its parameters that require a gradient are taken, each once.
        base_lr, weight_decay: of every parameter; None leaves it to the optimizer.
        weight_decay_norm: of the parameters of normalisation layers.
        bias_lr_factor, weight_decay_bias: of the parameters called ``bias``, also in normalisation layers.
        lr_factor_func: from a parameter's full name to a factor on `base_lr`, as for layer-wise decay.
        overrides: from a parameter's own name (``"bias"``) to values that have the last word.

    Returns:
        groups with ``params`` and, where set above, ``lr`` and ``weight_decay``: one for each set of values.

    Raises:
        ValueError: a factor of the learning rate without `base_lr`, or two rules for ``bias``.
    """
    overrides = dict(overrides or {})
    scales_bias = bias_lr_factor is not None and bias_lr_factor != 1.0
    if base_lr is None and (scales_bias or lr_factor_func is not None):
        raise ValueError("bias_lr_factor and lr_factor_func need base_lr")
    bias = {"lr": base_lr * bias_lr_factor} if scales_bias else {}
    if weight_decay_bias is not None:
        bias["weight_decay"] = weight_decay_bias
    if bias:
        if "bias" in overrides:
            raise ValueError("overrides['bias'] contradicts bias_lr_factor or weight_decay_bias: use one of them")
        overrides["bias"] = bias

    common = {key: value for key, value in (("lr", base_lr), ("weight_decay", weight_decay)) if value is not None}
    seen = set()
    groups = []
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            values = dict(common)
            if weight_decay_norm is not None and isinstance(module, NORM_LAYERS):
                values["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                values["lr"] *= lr_factor_func(f"{module_name}.{name}")
            groups.append({"params": [parameter], **values, **overrides.get(name, {})})
    return reduce_param_groups(groups)


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merges the groups that differ in ``params`` alone: optimizers are fast on few large groups."""
    merged: dict[tuple, dict[str, Any]] = {}
    for group in params:
        values = {key: value for key, value in group.items() if key != "params"}
        target = merged.setdefault(tuple(sorted(values.items())), {**values, "params": []})
        target["params"].extend(group["params"])
    return list(merged.values())


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer]
) -> torch.optim.Optimizer | Callable[..., torch.optim.Optimizer]:
    """Makes `optimizer` clip the gradients before each step, where SOLVER.CLIP_GRADIENTS.ENABLED.

    CLIP_TYPE ``value`` bounds each element, ``norm`` the norm of each parameter's gradient, ``full_model``
    the norm of all gradients together. With mixed precision this is after the loss scale is taken out.

    Args:
        cfg: the whole config.
        optimizer: an optimizer, or a class of them.

    Returns:
        the same optimizer; for a class, something to call like it.
    """
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if not clipping.ENABLED:
        return optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        return lambda *args, **kwargs: maybe_add_gradient_clipping(cfg, optimizer(*args, **kwargs))
    clip = _gradient_clipper(clipping.CLIP_TYPE, clipping.CLIP_VALUE, clipping.NORM_TYPE)
    optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: clip(
            list(itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups))
        )
    )
    return optimizer


def _gradient_clipper(clip_type: str, clip_value: float, norm_type: float) -> Callable[[Iterable[nn.Parameter]], None]:
    """The function that clips the gradients of a list of parameters in place."""

    def by_value(parameters: Iterable[nn.Parameter]) -> None:
        clip_grad_value_(parameters, clip_value)

    def by_norm(parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            clip_grad_norm_(parameter, clip_value, norm_type)

    def by_norm_of_all(parameters: Iterable[nn.Parameter]) -> None:
        clip_grad_norm_(parameters, clip_value, norm_type)

    clippers = {"value": by_value, "norm": by_norm, "full_model": by_norm_of_all}
    if clip_type not in clippers:
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE={clip_type!r}: expected one of {', '.join(clippers)}")
    return clippers[clip_type]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule that SOLVER names, after a warm-up. Stands for Detectron2's `build_lr_scheduler`.

    Raises:
        ValueError: a SOLVER key that makes no schedule; the message names it.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME not in SCHEDULES:
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME={solver.LR_SCHEDULER_NAME!r}: expected one of {', '.join(SCHEDULES)}"
        )
    if solver.MAX_ITER < 1:
        raise ValueError(f"SOLVER.MAX_ITER={solver.MAX_ITER}: expected at least one iteration")
    schedule = WarmupParamScheduler(
        SCHEDULES[solver.LR_SCHEDULER_NAME](solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _multi_step(solver: CfgNode) -> ParamScheduler:
    """Times GAMMA at each of STEPS."""
    if list(solver.STEPS) != sorted(set(solver.STEPS)) or any(step < 1 for step in solver.STEPS):
        raise ValueError(f"SOLVER.STEPS={tuple(solver.STEPS)}: expected rising iterations, each at least 1")
    steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
    if len(steps) < len(solver.STEPS):
        logger.warning("SOLVER.STEPS=%s: those not below SOLVER.MAX_ITER=%d are ignored", solver.STEPS, solver.MAX_ITER)
    values = [solver.GAMMA**k for k in range(len(steps) + 1)]
    return MultiStepParamScheduler(values, num_updates=solver.MAX_ITER, milestones=steps)


def _cosine(solver: CfgNode) -> ParamScheduler:
    """Half a cosine from BASE_LR to BASE_LR_END."""
    end = solver.BASE_LR_END / solver.BASE_LR
    if not 0 <= end <= 1:
        raise ValueError(
            f"SOLVER.BASE_LR_END={solver.BASE_LR_END}: expected between 0 and SOLVER.BASE_LR={solver.BASE_LR}"
        )
    return CosineParamScheduler(1, end)


class _FixedGamma(StepWithFixedGammaParamScheduler):
    """fvcore's schedule, which has no value for the very end of the training, with one."""

    def __call__(self, where: float) -> float:
        return super().__call__(min(where, 1 - 2 * self.WHERE_EPSILON))


def _fixed_gamma(solver: CfgNode) -> ParamScheduler:
    """Times GAMMA, NUM_DECAYS times, after equal parts of the training."""
    if solver.NUM_DECAYS < 1:
        raise ValueError(f"SOLVER.NUM_DECAYS={solver.NUM_DECAYS}: expected at least 1")
    return _FixedGamma(1.0, solver.NUM_DECAYS, solver.GAMMA, solver.MAX_ITER)


SCHEDULES = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _fixed_gamma,
}
