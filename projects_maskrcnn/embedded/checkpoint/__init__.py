"""Saving and loading models and the state of a training."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from ...weights import CheckpointError
from .detection_checkpoint import DetectionCheckpointer
