"""Fixtures that several test modules share."""

import importlib
import os
from pathlib import Path

import pytest
import torch

from projects_maskrcnn.ops import native as native_operators

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def is_release_06() -> bool:
    """Whether there is a Detectron2, and it is the release 0.6: the main branch, years later, has its number still."""
    try:
        return not hasattr(importlib.import_module("detectron2.data.transforms"), "RandomResize")
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images (`data/`) and of Detectron2's own figures (`parity/`), or a skip."""
    folder = Path(os.environ.get("MASKRCNN_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder} (MASKRCNN_SHARED names another place)")
    return folder


@pytest.fixture(scope="session")
def native():
    """The compiled operators, `torch.ops.maskrcnn`, or a skip."""
    if "cpu" not in native_operators.DEVICES:
        pytest.skip("the native operators are not built")
    return torch.ops.maskrcnn


@pytest.fixture(params=["native", "reference"])
def implementation(request, monkeypatch) -> str:
    """What serves the functions of `projects_maskrcnn.ops` in this test."""
    if request.param == "native":
        request.getfixturevalue("native")
    else:
        monkeypatch.setattr(native_operators, "DEVICES", frozenset())
    return request.param
