"""Loading weights on either framework, from files of any origin, without running what is in them."""

import os
from typing import Any

from .framework import DetectionCheckpointer
from .weights import load_for, local_file


class MaskRCNNCheckpointer(DetectionCheckpointer):
    """The framework's checkpointer with our reader in front: Detectron2's runs the pickles that it loads.

    Reads what `weights.read_weights` does: Detectron2's, Caffe2's, pycls' and torchvision's weights.
    """

    def load(self, path: str | os.PathLike, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads the model from a path or a URL, and the checkpointables that the file has.

        Parameters that the file lacks, has besides, or has in other shapes (heads for another number of classes) are
        left as they are and reported.

        Args:
            path: empty to load nothing.
            checkpointables: the names of those to load; None for all.

        Returns:
            what the file holds besides.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: it cannot be fetched, is refused, or holds no weights that fit the model.
        """
        return super().load(local_file(path, self.path_manager), checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return load_for(self.model, filename)
