"""The optimizer and the learning-rate schedule."""

from .build import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler
