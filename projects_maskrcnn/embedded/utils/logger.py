"""Logs to the terminal and to files. Stands for `detectron2.utils.logger`."""

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping

from tabulate import tabulate
from termcolor import colored

from .file_io import PathManager

PLAIN = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
COLOURED = colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s"


class _TerminalFormatter(logging.Formatter):
    """Green time and name; warnings and errors say so in colour. `root` is shortened to `abbreviation` in names."""

    def __init__(self, root: str, abbreviation: str, color: bool) -> None:
        super().__init__(COLOURED if color else PLAIN, datefmt="%m/%d %H:%M:%S")
        self._root, self._abbreviation, self._color = root, abbreviation, color

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        name = record.name
        if name.startswith(self._root):
            record.name = (self._abbreviation + name.removeprefix(self._root)).lstrip(".")
        text = super().formatMessage(record)
        record.name = name
        if self._color and record.levelno >= logging.WARNING:
            text = colored(record.levelname, "red", attrs=["blink"]) + " " + text
        return text


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "projects_maskrcnn",
    abbrev_name: str | None = None,
) -> logging.Logger:
    """The logger `name`, writing to the terminal (rank 0) and to a file. Calling it again adds nothing twice.

    Args:
        output: a file (`.txt` or `.log`), or a folder for `log.txt`. Ranks above 0 append their number.
        abbrev_name: stands for `name` on the terminal.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    present = {handler.get_name() for handler in logger.handlers}
    handlers: dict[str, logging.Handler] = {}
    if distributed_rank == 0 and "terminal" not in present:
        terminal = logging.StreamHandler(stream=sys.stdout)
        abbreviation = abbrev_name if abbrev_name is not None else name
        terminal.setFormatter(_TerminalFormatter(name, abbreviation, color))
        handlers["terminal"] = terminal
    if output:
        path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            path += f".rank{distributed_rank}"
        if path not in present:
            PathManager.mkdirs(os.path.dirname(path) or ".")
            file = logging.StreamHandler(PathManager.open(path, "a", buffering=1))
            file.setFormatter(logging.Formatter(PLAIN, datefmt="%m/%d %H:%M:%S"))
            handlers[path] = file
    for key, handler in handlers.items():
        handler.set_name(key)
        handler.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    return logger


_counts: Counter = Counter()
_last_times: dict[tuple, float] = {}


def _caller() -> tuple[tuple[str, int], str]:
    """(file, line) and module name of the function that called one of the functions below."""
    frame = sys._getframe(2)
    module = frame.f_globals["__name__"]
    # a script's own messages go where the package's go
    return (frame.f_code.co_filename, frame.f_lineno), "projects_maskrcnn" if module == "__main__" else module


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log no more than `n` times from one place (`key` "caller"), of one text ("message"), or both (a tuple)."""
    place, module = _caller()
    parts = {"caller": place, "message": msg}
    identity = tuple(parts[part] for part in ((key,) if isinstance(key, str) else key))
    _counts[identity] += 1
    if _counts[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every `n` calls from one place."""
    place, module = _caller()
    _counts[place] += 1
    if n == 1 or _counts[place] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log from one place no more often than every `n` seconds."""
    place, module = _caller()
    now = time.time()
    if place not in _last_times or now - _last_times[place] >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _last_times[place] = now


def create_small_table(small_dict: Mapping[str, float]) -> str:
    """A table of one row, keys above values."""
    return tabulate([list(small_dict.values())], headers=list(small_dict), tablefmt="pipe", floatfmt=".3f")
