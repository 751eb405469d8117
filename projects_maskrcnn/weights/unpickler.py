"""A pickle reader that can build numpy arrays and plain containers, and nothing else.

A pickle is a program: it may name any importable function and call it. This reader knows a fixed table of names, and
what it finds under them are our own builders, which a pickle can call but not change. Anything else ends the reading
before it is looked up.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, NoReturn

import numpy as np


class RefusedError(Exception):
    """A pickle asks for more than arrays and plain containers; the message names what."""


class _Builder:
    """A function that a pickle can call, and not change."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise RefusedError("a state for one of numpy's functions")


class _DType:
    """Stands for `numpy.dtype`: of numbers, booleans and strings."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufcSU]\d+", code):
            raise RefusedError(f"numpy arrays of {'Python objects' if str(code).startswith('O') else f'type {code!r}'}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """Stands for `numpy.ndarray`: starts empty, and takes its content once."""

    def __new__(cls) -> "_Array":
        return super().__new__(cls, 0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        *_, shape, kind, fortran, content = state
        super().__setstate__((1, shape, _checked(kind), fortran, _bytes(content)))


class _OrderedDict(OrderedDict):
    """Its items alone, not the attributes that a pickle may give it."""

    def __setstate__(self, state: Any) -> None:
        pass


def _checked(kind: Any) -> np.dtype:
    if not isinstance(kind, _DType):
        raise RefusedError(f"an array whose type is {kind!r}")
    return kind.dtype


def _bytes(content: Any) -> bytes:
    if isinstance(content, str):  # Python 2's bytes
        return content.encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise RefusedError(f"an array of the bytes {content!r}")
    return bytes(content)


@_Builder
def _reconstruct(array_type: type, shape: tuple, code: Any) -> _Array:
    return _Array()


@_Builder
def _scalar(kind: _DType, content: bytes | str) -> np.generic:
    return np.frombuffer(_bytes(content), _checked(kind))[0]


@_Builder
def _frombuffer(buffer: Any, kind: _DType, shape: tuple, order: str = "C") -> np.ndarray:
    return np.frombuffer(buffer, _checked(kind)).reshape(shape, order=order)


@_Builder
def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


NUMPY: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},  # numpy 1 and 2
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}
"""By the name in a pickle, what numpy's arrays and scalars are built with instead of numpy's own functions."""


@_Builder
def _no_bytes() -> bytes:
    return b""


# Before protocol 3 there were no bytes: empty ones are a call of their type, others of _codecs.encode.
_KNOWN = {
    "collections.OrderedDict": _OrderedDict,
    "__builtin__.bytes": _no_bytes,
    **NUMPY,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[f"{module}.{name}"]
        except KeyError:
            raise RefusedError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise RefusedError(f"the persistent object {pid!r}")


def load(file: IO[bytes]) -> Any:
    """The arrays, numbers, strings and containers that a pickle holds, of Python 2 as well.

    Raises:
        RefusedError: it asks for more. Nothing of what it asked for was looked up or run.
        Exception: it is damaged; the pickle module's own errors.
    """
    return _Unpickler(file, encoding="latin1").load()
