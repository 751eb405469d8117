"""Files by path or URL."""

from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

from ...weights.reader import DETECTRON2_ZOO

PathManager = _PathManager()
"""Opens local paths and http(s)://, detectron2:// and OneDrive URLs, which it downloads to a cache once.

It is this framework's own, so that handlers registered by other libraries cannot clash with it.
"""


class Detectron2Handler(PathHandler):
    """Resolves ``detectron2://``, the address of Detectron2's model zoo, whose weights load here."""

    PREFIX = "detectron2://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return PathManager.open(self._url(path), mode, buffering=buffering, **kwargs)

    def _url(self, path: str) -> str:
        return DETECTRON2_ZOO + path.removeprefix(self.PREFIX)


for handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler()):
    PathManager.register_handler(handler)
