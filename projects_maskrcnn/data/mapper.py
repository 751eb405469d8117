"""A mapper that a damaged image or annotation does not stop."""

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

MAX_DAMAGED = 100
"""Different samples that may fail in one process; more of them are no accident."""

MAX_AT_FIRST = 10
"""The same before any that does not."""

BLACK = 64
"""Sides of the image in place of a damaged one, in pixels: its true size may be what is wrong."""


class RobustMapper:
    """Maps a sample as `mapper` does, and goes on where that fails, with an error in the log that names the sample.

    In training a damaged sample gives None, and the framework takes another. In testing it gives a black image, on
    which whatever is detected is wrong: the image counts against the result, never for it.

    Args:
        mapper: takes a dataset dictionary to a model's input.
        is_train: whether samples may be left out.
    """

    def __init__(self, mapper: Callable[[dict], dict], is_train: bool) -> None:
        self.mapper = mapper
        self.is_train = is_train
        self.damaged: set[str] = set()
        self.limit = MAX_AT_FIRST

    def __call__(self, dataset_dict: dict) -> dict | None:
        """The model's input, or None in training for a damaged sample.

        Raises:
            RuntimeError: more than `MAX_DAMAGED` samples are damaged, or the first `MAX_AT_FIRST` and no other yet.
        """
        try:
            mapped = self.mapper(dataset_dict)
        except Exception as error:
            self._report(dataset_dict, error)
        else:
            self.limit = MAX_DAMAGED
            return mapped
        return None if self.is_train else {**dataset_dict, "image": torch.zeros(3, BLACK, BLACK, dtype=torch.uint8)}

    def _report(self, dataset_dict: dict, error: Exception) -> None:
        name = str(dataset_dict.get("file_name", dataset_dict.get("image_id")))
        if name not in self.damaged:
            self.damaged.add(name)
            consequence = "It is left out" if self.is_train else "It is evaluated as a black image"
            logger.error(
                "Cannot use %s (image id %s): %s: %s. %s; repair or remove it.",
                name,
                dataset_dict.get("image_id"),
                type(error).__name__,
                str(error).rstrip("."),
                consequence,
            )
        if len(self.damaged) > self.limit:
            raise RuntimeError(
                f"more than {self.limit} samples cannot be used, the last one {name}: "
                f"{type(error).__name__}: {error}. See the log for the others"
            ) from error
