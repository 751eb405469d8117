"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: str | os.PathLike) -> Iterator[Path]:
    """A new file beside `path`, whose folder is made, that takes its place when the block ends without an error.

    Until then `path` is as it was. Several processes may write it at once: the last to end leaves its file. A process
    that is killed leaves ``{path}.unfinished-*``.

    Yields:
        the path to write to, which is removed after an error.

    Raises:
        OSError: the folder cannot be made, or the file not be put on the disk or in its place.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not by the process id, which processes on two machines, or in two containers, may share
    unfinished = path.with_name(f"{path.name}.unfinished-{secrets.token_hex(8)}")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())  # else a machine that goes down may keep the new name and not the content
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
