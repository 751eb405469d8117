"""Weights files of every format, told apart by their content."""

import json
import os
import re
import zipfile
from typing import Any

import numpy as np
import torch
from iopath.common.file_io import PathManager
from torch import Tensor

from . import unpickler

REMEDY = "Give MODEL.WEIGHTS a .pth, .pkl or .safetensors file of tensors by name, or of such under the key 'model'."
DETECTRON2_ZOO = "https://dl.fbaipublicfiles.com/detectron2/"
LEGACY_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""What `torch.save` wrote first before it wrote zip files: a pickled magic number."""


class CheckpointError(ValueError):
    """A file without weights for the model; the message names the file, what was found and the remedy."""


def local_file(path: str | os.PathLike | None, path_manager: PathManager) -> str:
    """The path of a file on this machine with what `path`, or the URL, holds; "" for none.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a folder, or a URL that cannot be fetched.
    """
    # Detectron2's configs mark by a query the files whose names are to be completed, which is found out here.
    path = os.fspath(path or "").removesuffix("?matching_heuristics=True")
    if not path:
        return ""
    try:
        local = path_manager.get_local_path(path)
    except (OSError, AssertionError) as error:  # iopath asserts that what it fetched is not empty
        url = path.replace("detectron2://", DETECTRON2_ZOO, 1)
        raise CheckpointError(
            f"{url} cannot be fetched ({error}). Fetch it yourself, and set MODEL.WEIGHTS to the file's path"
        ) from error
    if os.path.isdir(local):
        raise CheckpointError(f"{path} is a folder, not a weights file. {REMEDY}")
    if not os.path.isfile(local):
        raise FileNotFoundError(f"The weights file {path} does not exist. {REMEDY}")
    return local


def read_weights(path: str) -> dict[str, Any]:
    """What a weights file holds: tensors by name under ``model``, and the rest as it is.

    Formats: safetensors, `torch.save`'s (its zip files and what it wrote before), and pickles: Detectron2's model zoo,
    Caffe2's Detectron, pycls. No code in the file is run.

    Raises:
        CheckpointError: the file is of no such format, damaged, asks for code, or holds no weights.
    """
    content = _read(path)
    if isinstance(content, dict) and "blobs" in content:  # Caffe2's Detectron
        content = {"model": content["blobs"]}
    elif isinstance(content, dict) and "model_state" in content:  # pycls
        content = {"model": content["model_state"]}
    elif isinstance(content, dict) and "model" not in content:
        content = {"model": content}
    found = content["model"] if isinstance(content, dict) else content
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor | np.ndarray) for v in found.values()):
        raise CheckpointError(f"{path} holds no weights, but {_describe_value(found)}. {REMEDY}")
    if not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{path} holds tensors without names. {REMEDY}")
    for name, value in found.items():  # in place: a state_dict carries the versions of its modules
        if isinstance(value, np.ndarray):
            found[name] = _tensor(path, name, value)
    if all(name.startswith("module.") for name in found):  # DistributedDataParallel's
        content["model"] = {name.removeprefix("module."): value for name, value in found.items()}
    return content


def _tensor(path: str, name: str, array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise CheckpointError(f"{path}: {name} is an array of {array.dtype}, which torch has not. {REMEDY}") from error


def _read(path: str) -> Any:
    with open(path, "rb") as file:
        head = file.read(64)
    try:
        if head.startswith((b"PK", LEGACY_TORCH)):
            numpy = [(build, name) for name, build in unpickler.NUMPY.items()]
            with torch.serialization.safe_globals(numpy), open(path, "rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        if _is_safetensors(path, head):
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
                by_ending = (file.metadata() or {}).get("matching_heuristics") == "True"  # as write_weights says it
                return {"model": weights, "matching_heuristics": by_ending}
        if head[:1] in (b"\x80", b"(", b"}", b"]", b"c"):  # how pickles start, the text ones of Python 2 too
            with open(path, "rb") as file:
                return unpickler.load(file)
    except unpickler.RefusedError as error:
        raise _refusal(path, str(error)) from error
    except Exception as error:  # whatever damaged data makes of a reader
        asked = re.search(r"(?:Unsupported global: |unsupported )GLOBAL (\S+)", str(error))  # torch's words
        if asked:
            raise _refusal(path, asked[1]) from error
        raise CheckpointError(f"{path} is not a weights file: {_describe(path)}. {REMEDY}") from error
    raise CheckpointError(f"{path} is not a weights file: {_describe(path)}. {REMEDY}")


def _refusal(path: str, asked: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is refused: it asks for {asked}, and weights files hold tensors, numbers, strings and plain "
        "containers only. Nothing of it was run. Where you trust it, load it by its own program, save its state_dict, "
        "and give MODEL.WEIGHTS that."
    )


def _is_safetensors(path: str, head: bytes) -> bool:
    """Whether the file starts with the length of a JSON header and that header, which is the format's definition."""
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > os.path.getsize(path) - 8:
        return False
    with open(path, "rb") as file:
        file.seek(8)
        try:
            return isinstance(json.loads(file.read(length)), dict)
        except ValueError:
            return False


def _describe(path: str) -> str:
    """What a file that cannot be read is, by its first bytes."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        head = f.read(64)
    if size == 0:
        return "it is empty"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page (a download that was answered with one?)"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer (git lfs pull fetches the file itself)"
    if head.startswith(b"PK"):
        whole = zipfile.is_zipfile(path)
        return "it holds other things than torch.save's, or is damaged" if whole else f"it is cut short at {size} bytes"
    if head[8:9] == b"{":
        return f"it is a damaged safetensors file, or one cut short at {size} bytes"
    if head.startswith(b"\x80"):
        return "it is a damaged pickle"
    return f"its {size} bytes start with {head[:16]!r}"


def _describe_value(value: Any) -> str:
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    if not value:
        return "an empty dictionary"
    others = [f"{k!r}: {type(v).__name__}" for k, v in value.items() if not isinstance(v, Tensor | np.ndarray)]
    return f"a dictionary with {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}"
