"""The CUDA kernels of `csrc/cuda/`, emulated on the CPU or on a GPU; and what builds them."""

import shutil
import subprocess
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

from projects_maskrcnn.ops import native as native_operators

OPERATORS = ("roi_average", "roi_average_backward", "roi_max", "roi_max_backward", "nms", "paste_masks")


@dataclass
class Kernels:
    """Operators of `ops`, for tensors on `device`."""

    ops: Any
    device: str


@pytest.fixture(scope="session")
def build_script(load_module, root) -> ModuleType:
    """`setup.py`, whose functions know how the native operators are compiled."""
    with mock.patch("setuptools.setup"):
        return load_module("build_script", root / "setup.py")


@pytest.fixture(scope="session")
def emulated_kernels(native, build_script, root, tmp_path_factory) -> Kernels:
    """The CUDA sources, compiled by a C++ compiler against `tests/csrc/cuda_emulation.h`."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("the emulation of CUDA needs g++ or clang++")
    torch_folder = build_script.torch_folder()
    sources = [s for s in sorted((root / build_script.CSRC / "cuda").glob("*.cu")) if s.name != "library.cu"]
    library = tmp_path_factory.mktemp("emulation") / "libemulated.so"
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"]
    command += [build_script.TORCH_ABI, f"-I{torch_folder / 'include'}", f"-I{root / 'tests/csrc'}", "-x", "c++"]
    command += [*map(str, sources), str(root / "tests/csrc/cuda_emulated_ops.cpp"), "-x", "none"]
    command += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    emulated = torch.library.Library("maskrcnn_emulated", "DEF")
    for name in OPERATORS:
        emulated.define(str(getattr(native, name).default._schema).removeprefix("maskrcnn::"))
    torch.ops.load_library(library)
    yield Kernels(torch.ops.maskrcnn_emulated, "cpu")
    emulated._destroy()


@pytest.fixture(params=["emulated", "cuda"])
def kernels(request) -> Kernels:
    """The CUDA kernels, emulated and on a GPU. They fill the outputs that they are given with NaN beforehand."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        if "cuda" not in native_operators.DEVICES:
            pytest.skip("the native operators are built without CUDA")
        found = Kernels(torch.ops.maskrcnn, "cuda")
    else:
        found = request.getfixturevalue("emulated_kernels")
    torch.use_deterministic_algorithms(True, warn_only=True)  # so new tensors are full of NaN
    yield found
    torch.use_deterministic_algorithms(False)
