"""Weights of other projects, and of parts of models, under the names of the model that is to load them."""

import logging
from collections import Counter
from os.path import basename
from typing import Any

import torch
from torch import Tensor, nn

from .caffe2_names import from_caffe2, is_caffe2
from .reader import REMEDY, CheckpointError, read_weights
from .torchvision_names import (
    DEFAULT_INPUT,
    REQUIRED,
    InputFormat,
    from_torchvision,
    is_built_otherwise,
    is_detector,
    is_torchvision,
)
from .vgg_names import from_vgg16, is_vgg16

logger = logging.getLogger(__name__)


def load_for(model: nn.Module, path: str) -> dict[str, Any]:
    """What a weights file holds, its tensors under `model`'s names where they fit.

    Args:
        path: a file on this machine; see `read_weights` for its formats.

    Returns:
        the tensors, under ``model``, and whatever else the file holds.

    Raises:
        CheckpointError: the file holds no weights, or none that fit.
    """
    content = read_weights(path)
    found = content["model"]
    content["model"] = fit(found, model, by_ending=bool(content.pop("matching_heuristics", False)))
    state = model.state_dict()
    if not content["model"].keys() & state.keys():
        raise CheckpointError(
            f"{path} holds the weights of another model: none of its tensors ({', '.join(list(found)[:3])} ...) "
            f"has a name of this model's ({', '.join(list(state)[:3])} ...). {REMEDY}"
        )
    if not any(name in state and value.shape == state[name].shape for name, value in content["model"].items()):
        raise CheckpointError(
            f"{path} holds the weights of another model: none has the shape that it has here. {REMEDY}"
        )
    logger.info("%s: %s", basename(path), _summary(content["model"], model))
    return content


def fit(weights: dict[str, Tensor], model: nn.Module, *, by_ending: bool = False) -> dict[str, Tensor]:
    """`weights` under `model`'s names; those that it has not keep theirs.

    Caffe2's and torchvision's names are recognised. Weights of a part of the model, such as a backbone, are found by
    how the model's names end: where `rename_known` knows but these ends, with `by_ending`, or where no name is the
    model's.

    Raises:
        CheckpointError: a tensor fits several places.
    """
    state = model.state_dict()
    if is_torchvision(weights):
        detector = is_detector(weights)
        if is_built_otherwise(model, detector):
            required = REQUIRED["detector" if detector else "backbone"]
            logger.warning("The model is not as torchvision's weights need it: results suffer. Set %s.", required)
    scores = state.get("roi_heads.box_predictor.cls_score.weight")
    weights, of_a_part = rename_known(weights, _input_format(model), None if scores is None else len(scores) - 1)
    by_ending = by_ending or of_a_part
    if by_ending or not weights.keys() & state.keys():
        weights = match(weights, state)
    return _with_statistics(weights, state)


def rename_known(
    weights: dict[str, Tensor], images: InputFormat = DEFAULT_INPUT, num_classes: int | None = None
) -> tuple[dict[str, Tensor], bool]:
    """Weights of Caffe2 and torchvision under Detectron2's names, and whether these are but the ends of names.

    Args:
        images: what the model's first conv gets.
        num_classes: of the model, background apart, where it is known.
    """
    if is_caffe2(weights):
        return from_caffe2(weights), True
    if is_torchvision(weights):
        return from_torchvision(weights, images, num_classes), not is_detector(weights)
    if is_vgg16(weights):
        return from_vgg16(weights, images), True
    return weights, False


def match(weights: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` under those names in `state` that end in theirs, at a dot; the longest name serves each.

    The rule is Detectron2's. What fits nothing keeps its name.

    Raises:
        CheckpointError: a tensor fits several places.
    """
    placed: dict[str, str] = {}  # the name in `weights` -> in `state`
    for name in state:
        parts = name.split(".")
        ending = next((e for i in range(len(parts)) if (e := ".".join(parts[i:])) in weights), None)
        if ending is None or (weights[ending].shape != state[name].shape and ending in placed):
            continue
        taken = placed.get(ending)
        if taken is not None and weights[ending].shape == state[taken].shape:
            raise CheckpointError(f"{ending} in the weights file fits both {taken} and {name}: give it its full name")
        placed[ending] = name
    return {placed.get(name, name): value for name, value in weights.items()}


def _with_statistics(weights: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds mean 0 and variance 1 to a batch norm saved as a scale and a bias alone, as Caffe2's are."""
    added = {}
    for name in state:
        layer, _, leaf = name.rpartition(".")
        known = [f"{layer}.{part}" in weights for part in ("weight", "bias", "running_mean", "running_var")]
        if leaf in ("running_mean", "running_var") and known == [True, True, False, False]:
            added[name] = torch.full_like(weights[f"{layer}.weight"], float(leaf == "running_var"))
    return {**weights, **added} if added else weights


def _input_format(model: nn.Module) -> InputFormat:
    """What a model says that its images are, or Detectron2's default."""
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if mean is None or std is None:
        return DEFAULT_INPUT
    return InputFormat(getattr(model, "input_format", None) or "BGR", mean.flatten(), std.flatten())


def _summary(weights: dict[str, Tensor], model: nn.Module) -> str:
    state = model.state_dict()
    loaded = [n for n, v in weights.items() if n in state and v.shape == state[n].shape]
    parts = Counter(".".join(name.split(".")[:2]) for name in loaded)
    return f"{len(loaded)} of the model's {len(state)} tensors: " + ", ".join(f"{p} {n}" for p, n in parts.items())
