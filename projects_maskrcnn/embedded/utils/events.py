"""Numbers of a training run: where they are kept, and who writes them down. Stands for `detectron2.utils.events`."""

import itertools
import json
import logging
import resource
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
import torch
from fvcore.common.history_buffer import HistoryBuffer

from .file_io import PathManager

logger = logging.getLogger(__name__)

_storages: list["EventStorage"] = []


def has_event_storage() -> bool:
    """Whether the code runs inside `with EventStorage(...)`."""
    return bool(_storages)


def get_event_storage() -> "EventStorage":
    """The innermost `EventStorage` that is in use.

    Raises:
        RuntimeError: none is.
    """
    if not _storages:
        raise RuntimeError("no event storage is in use: run inside `with EventStorage(start_iter) as storage:`")
    return _storages[-1]


class EventStorage:
    """Scalars with their history, pictures and histograms, by name, at the iteration `iter`."""

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._latest: dict[str, tuple[float, int]] = {}
        self._smoothing_hints: dict[str, bool] = {}
        self._prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def __enter__(self) -> "EventStorage":
        _storages.append(self)
        return self

    def __exit__(self, *args: object) -> None:
        _storages.pop()

    def step(self) -> None:
        """Go on to the next iteration."""
        self.iter += 1

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add a number; `smoothing_hint` says that writers should show a median of the latest ones."""
        name = self._prefix + name
        iteration = self.iter if cur_iter is None else cur_iter
        value = float(value)
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(f"scalar {name!r} was put with another smoothing_hint before")
        self._history[name].update(value, iteration)
        self._latest[name] = (value, iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **scalars: float) -> None:
        """`put_scalar` of each keyword."""
        for name, value in scalars.items():
            self.put_scalar(name, value, smoothing_hint, cur_iter)

    def put_image(self, img_name: str, img_tensor: torch.Tensor | np.ndarray) -> None:
        """Add a picture (3, height, width), uint8, or float in [0, 1], RGB."""
        self._vis_data.append((img_name, img_tensor, self.iter))

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Add a histogram of the elements of a tensor."""
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        counts = torch.histc(hist_tensor.float(), bins=bins)
        edges = torch.linspace(low, high, bins + 1)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": hist_tensor.numel(),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float((hist_tensor**2).sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": counts.tolist(),
                "global_step": self.iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """All values of a scalar.

        Raises:
            KeyError: there is none of this name.
        """
        if name not in self._history:
            raise KeyError(f"no scalar {name!r} was put")
        return self._history[name]

    def histories(self) -> Mapping[str, HistoryBuffer]:
        """All values of all scalars."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """The latest value of each scalar, and its iteration."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As `latest`, a median of the last `window_size` iterations where the scalar asks for it."""
        return {
            name: (
                self._history[name].median(self.count_samples(name, window_size))
                if self._smoothing_hints[name]
                else value,
                iteration,
            )
            for name, (value, iteration) in self._latest.items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of a scalar lie in its last `window_size` iterations."""
        values = self._history[name].values()
        first = values[-1][1] - window_size + 1
        return sum(1 for _ in itertools.takewhile(lambda value: value[1] >= first, reversed(values)))

    def smoothing_hints(self) -> dict[str, bool]:
        """The hint of each scalar."""
        return self._smoothing_hints

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put `name/` before the names of all scalars put inside."""
        old, self._prefix = self._prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = old

    def clear_images(self) -> None:
        """Forget the pictures, which a writer has written."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms, which a writer has written."""
        self._histograms = []


class EventWriter:
    """Writes down what the event storage holds."""

    def write(self) -> None:
        """Write what is new."""
        raise NotImplementedError

    def close(self) -> None:
        """Release files."""


class JSONWriter(EventWriter):
    """Appends a JSON dictionary a line, for each iteration that has new scalars."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                lines[iteration][name] = value
        for iteration in sorted(lines):
            self._file.write(json.dumps({**lines[iteration], "iteration": iteration}, sort_keys=True) + "\n")
            self._last_write = iteration
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, pictures and histograms for TensorBoard."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        self._window_size = window_size
        self._arguments = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        # importing TensorBoard takes seconds, and most programs never write
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._arguments)

    def write(self) -> None:
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                newest = max(newest, iteration)
        self._last_write = newest
        for name, picture, iteration in storage._vis_data:
            self._writer.add_image(name, picture, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs a line: time left, iteration, losses, seconds an iteration and of them for data, learning rate, memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        self._max_iter = max_iter
        self._window_size = window_size

    def write(self) -> None:
        storage = get_event_storage()
        if self._max_iter is not None and storage.iter >= self._max_iter:
            return  # the training is over, and its last iteration has its line
        histories = storage.histories()
        parts = [f"iter: {storage.iter}"]
        if self._max_iter is not None and "time" in histories:
            seconds = histories["time"].median(1000) * (self._max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            parts.insert(0, f"eta: {timedelta(seconds=int(seconds))}")
        for mark in ("loss", "[metric]"):
            for name, history in list(histories.items()):
                if mark in name:
                    parts.append(f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}")
        if "time" in histories:
            parts.append(f"time: {histories['time'].global_avg():.4f}  last_time: {histories['time'].latest():.4f}")
        if "data_time" in histories:
            data_time = histories["data_time"]
            average = data_time.avg(storage.count_samples("data_time", self._window_size))
            parts.append(f"data_time: {average:.4f}  last_data_time: {data_time.latest():.4f}")
        if "lr" in histories:
            parts.append(f"lr: {histories['lr'].latest():.5g}")
        parts.append(f"max_mem: {_peak_memory() / 2**20:.0f}M")
        logger.info(" %s", "  ".join(parts))


def _peak_memory() -> float:
    """Bytes: of tensors on the GPU, or of the whole process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
