"""Weights files that are written: .pth, which Detectron2 itself loads, and .safetensors."""

from pathlib import Path

import torch
from torch import Tensor

from .files import replaced
from .reader import CheckpointError

SUFFIXES = (".pth", ".safetensors")


def check_destination(source: str, destination: Path) -> None:
    """Raise a ValueError where weights cannot be rewritten from a local `source` to `destination`."""
    if destination.suffix not in SUFFIXES:
        raise ValueError(f"{destination}: name a file that ends in one of {', '.join(SUFFIXES)}")
    if destination.is_file() and destination.samefile(source):
        raise ValueError(f"{destination} is the source itself, of which more than weights would be lost: name another")


def write_weights(path: Path, weights: dict[str, Tensor], *, by_ending: bool = False) -> None:
    """Write a weights file, whole or not at all.

    Args:
        path: a .safetensors file, or else one of `torch.save`.
        by_ending: some names are but the ends of a model's. The file says so by Detectron2's key `matching_heuristics`.

    Raises:
        CheckpointError: it cannot be written; a file that was there is as it was.
    """
    try:
        with replaced(path) as unfinished:
            if path.suffix == ".safetensors":
                from safetensors.torch import save_file

                # the format has neither tensors that share their memory nor other orders of it
                copies = {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
                save_file(copies, unfinished, {"matching_heuristics": str(by_ending)})
            else:
                torch.save({"model": weights, "matching_heuristics": by_ending}, unfinished)
    except Exception as error:  # a full disk is a RuntimeError of torch, and an own type of safetensors
        raise CheckpointError(f"{path} cannot be written ({error}): make room, or name another file") from error
