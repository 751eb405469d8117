"""Weights files that are written: .pth, which Detectron2 itself loads, and .safetensors."""

from collections.abc import Callable
from pathlib import Path

import torch
from iopath.common.file_io import PathManager
from torch import Tensor

from .files import replaced
from .fitting import rename_known
from .reader import CheckpointError, local_file, read_weights

SUFFIXES = (".pth", ".safetensors")


def rewrite_weights(
    source: str,
    destination: Path,
    path_manager: PathManager,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda weights: weights,
) -> dict[str, Tensor]:
    """Write the weights of one file, under Detectron2's names and after `change`, to another, and return them.

    Args:
        source: a path, or a URL that `path_manager` knows.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the destination has another suffix than .pth and .safetensors, or is the source.
        CheckpointError: the source holds no weights, or is refused, or the destination cannot be written.
    """
    file = local_file(source, path_manager)
    if destination.suffix not in SUFFIXES:
        raise ValueError(f"{destination}: name a file that ends in one of {', '.join(SUFFIXES)}")
    if destination.is_file() and destination.samefile(file):
        raise ValueError(f"{destination} is the source itself, of which more than weights would be lost: name another")
    content = read_weights(file)
    weights, of_a_part = rename_known(content["model"])
    weights = change(weights)
    write_weights(destination, weights, by_ending=of_a_part or bool(content.get("matching_heuristics")))
    return weights


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
