"""Checkpoints that are tensors only when read, and never half written."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from ...weights import CheckpointError, load_for, local_file
from ...weights.files import replaced
from ..utils import comm
from ..utils.file_io import PathManager

PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


class DetectionCheckpointer(Checkpointer):
    """fvcore's `Checkpointer` with safe files. Stands for Detectron2's `DetectionCheckpointer`.

    - Reads tensors and plain values only: loading a file never runs its code.
    - Reads what `weights.read_weights` does, from a path or a URL, under the names of this model where they fit.
    - Writes under a temporary name and renames, so that an interruption leaves the last checkpoint whole.
    - Writes on the main process alone.

    Args:
        model: a module; `DistributedDataParallel` is looked through.
        save_dir: the folder of the checkpoints; empty to save none.
        save_to_disk: whether this process saves; by default, whether it is the main one.
        checkpointables: further objects with ``state_dict`` and ``load_state_dict``, saved under their names.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``{save_dir}/{name}.pth``, and its name into ``{save_dir}/last_checkpoint``.

        Args:
            name: the file's name without its suffix.
            kwargs: further values to save, such as ``iteration``.

        Raises:
            TypeError: something to save is neither tensor nor plain value, and could not be read back.
            OSError: the file cannot be written; the checkpoints of before are untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **_plain({**states, **kwargs})}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        try:
            with replaced(path) as unfinished, unfinished.open("wb") as f:
                torch.save(data, f)
        except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a full disk
            raise OSError(
                f"{path} cannot be written ({error}). Is the disk full? The checkpoints of before are untouched: "
                "--resume goes on from the last one"
            ) from error
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Makes `last_filename_basename`, a file of the folder, the one to resume from."""
        with replaced(os.path.join(self.save_dir, "last_checkpoint")) as unfinished:
            unfinished.write_text(last_filename_basename)

    def load(self, path: str | os.PathLike, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads the model, and the checkpointables that the file has.

        Parameters that the file lacks, has besides, or has in other shapes (heads for another number of
        classes) are left as they are and reported.

        Args:
            path: a path or a URL; empty to load nothing.
            checkpointables: the names of those to load; None for all.

        Returns:
            what the file holds besides.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: the file holds no weights, or none that fit the model.
        """
        return super().load(local_file(path, self.path_manager), checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resumes from the last checkpoint of the folder, or else loads the model alone from `path`.

        Raises:
            FileNotFoundError: the last checkpoint is recorded, but missing.
            CheckpointError: it is damaged.
        """
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=resume)
        last = self.get_checkpoint_file()
        record = os.path.join(self.save_dir, "last_checkpoint")
        others = sorted(os.path.basename(file) for file in self.get_all_checkpoint_files() if file != last)
        others = f"Write {' or '.join(others)} into {record}, or delete" if others else "Delete"
        remedy = f"{others} {record} to start anew."
        if not os.path.isfile(last):
            raise FileNotFoundError(f"{record} names {os.path.basename(last)!r}, which is not in that folder. {remedy}")
        try:
            return super().resume_or_load(path, resume=True)
        except CheckpointError as error:
            raise CheckpointError(f"Cannot resume from the last checkpoint. {remedy} {error}") from error

    def _load_file(self, f: str) -> dict[str, Any]:
        return load_for(self.model, f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        # Old Detectron2 checkpoints hold the anchors, which are computed now.
        unexpected = [key for key in incompatible.unexpected_keys if "anchor_generator.cell_anchors" not in key]
        return incompatible._replace(unexpected_keys=unexpected)


def _plain(value: Any, name: str = "") -> Any:
    """`value` in tensors, plain values and plain containers, which a ``weights_only`` load reads."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, torch.Tensor) or type(value) in PLAIN_TYPES:
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold: its state must be of tensors, "
        "numbers, strings, lists, tuples and dictionaries"
    )
