"""Saving and loading models and the state of a training."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from .detection_checkpoint import CheckpointError, DetectionCheckpointer
