"""Datasets over lists: compact storage, mapping, and randomness by the position in the stream."""

import contextlib
import copy
import logging
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .samplers import StreamIndex

logger = logging.getLogger(__name__)


class DatasetFromList(Dataset):
    """A list as a dataset. Stands for Detectron2's class of that name.

    Args:
        lst: the elements.
        copy: give a deep copy of an element, so that its user may change it.
        serialize: keep the elements pickled in one tensor. Workers then share its memory; a list of Python
            objects would be copied into each of them, page by page, as their reference counts change.
            Elements are fresh copies in any case.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool = True) -> None:
        self._copy = copy
        self._serialize = serialize
        if serialize:
            pickled = [pickle.dumps(element, protocol=pickle.HIGHEST_PROTOCOL) for element in lst]
            self._ends = torch.tensor([len(p) for p in pickled], dtype=torch.int64).cumsum(0)
            self._bytes = torch.frombuffer(bytearray(b"".join(pickled) or b"\0"), dtype=torch.uint8)
        else:
            self._lst = lst

    def __len__(self) -> int:
        return len(self._ends if self._serialize else self._lst)

    def __getitem__(self, idx: int) -> Any:
        if not self._serialize:
            return copy.deepcopy(self._lst[idx]) if self._copy else self._lst[idx]
        if not -len(self) <= idx < len(self):
            raise IndexError(f"index {idx} of a dataset of {len(self)}")
        idx %= len(self)
        start = int(self._ends[idx - 1]) if idx else 0
        return pickle.loads(self._bytes[start : int(self._ends[idx])].numpy())


class MapDataset(Dataset):
    """A dataset with a function applied to its elements. Stands for Detectron2's, for map-style datasets.

    The function may return None for an element that cannot be used; another one, drawn by a generator seeded
    with the index, then takes its place.

    Args:
        dataset: map-style dataset, or list.
        map_func: the function. An error of its that does not name the image's file becomes a RuntimeError
            that does.

    Raises:
        RuntimeError: at an access, the function has returned None for every element.
    """

    def __init__(self, dataset: Dataset | list, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        tried: set[int] = set()
        current = int(idx)
        rng = random.Random(current)
        while True:
            sample = self._map(current)
            if sample is not None:
                return sample
            tried.add(current)
            if len(tried) == len(self):
                raise RuntimeError(f"None of the {len(self)} elements of the dataset can be used: the log says why")
            if len(tried) >= 3:
                logger.warning("%d elements could not be used in place of number %d.", len(tried), idx)
            while current in tried:
                current = rng.randrange(len(self))

    def _map(self, idx: int) -> Any:
        element = self._dataset[idx]
        try:
            return self._map_func(element)
        except Exception as error:
            name = element.get("file_name") if isinstance(element, dict) else None
            if name is None or str(name) in str(error):
                raise
            raise RuntimeError(f"Cannot map {name}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def seeded_rng(seed: int, position: int) -> Iterator[None]:
    """Within the context, `random`, numpy and torch (CPU) draw numbers that the two arguments determine.

    Their states of before are put back, so that the process's own randomness does not notice.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence((seed % 2**64, position)).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # Of the CPU generator alone: torch.manual_seed would reset those of the GPUs as well.
    torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class SeededDataset(Dataset):
    """A dataset each of whose accesses by a `StreamIndex` draws its random numbers from (seed, position).

    The training stream is then the same for any number of workers, and can be resumed at any position.
    """

    def __init__(self, dataset: Dataset | list, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: StreamIndex) -> Any:
        with seeded_rng(self._seed, idx.position):
            return self._dataset[idx]
