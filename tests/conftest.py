"""Fixtures that several test modules share."""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from projects_maskrcnn.data import shapes
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
def after_release_06(is_release_06):
    """A skip on Detectron2's release 0.6: embedded has the names and parameters that the main branch got since."""
    if is_release_06:
        pytest.skip("this Detectron2 is the release 0.6 of 2021, older than the one that embedded follows")


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


@pytest.fixture
def operators(implementation) -> Any:
    """`torch.ops.maskrcnn`, and what stands for it where it is not built."""
    return native_operators.operators(torch.device("cpu"))


@pytest.fixture(scope="session")
def load_module():
    """A function from a name and the path of a Python file outside the package to its module."""

    def load_module(name: str, path: Path):
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load_module


@pytest.fixture(scope="session")
def train_net(load_module, root):
    """The command line's module."""
    return load_module("train_net", root / "train_net.py")


@pytest.fixture(scope="session")
def tiny() -> dict:
    """Config values with which two training steps and an evaluation of a large config take seconds."""
    return {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [16],
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 6,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "INPUT.MASK_FORMAT": "bitmask",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.STEPS": (1,),
        "SOLVER.MAX_ITER": 2,
        "TEST.DETECTIONS_PER_IMAGE": 5,
        "TEST.KEYPOINT_OKS_SIGMAS": [0.05] * 6,
        "SEED": 1,
    }


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A folder with `annotations/` and `images/` of a few scenes of shapes."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(folder, num_train=8, num_val=5)
    return folder
