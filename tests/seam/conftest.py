"""The two frameworks side by side in one process, and the comparison of what they return."""

import importlib

import numpy as np
import pytest
import torch


class Framework:
    """The modules of a framework, by their path: `f("structures").Boxes`."""

    def __init__(self, package):
        self.package = package

    def __call__(self, path):
        return importlib.import_module(f"{self.package}.{path}")


FRAMEWORKS = Framework("projects_maskrcnn.embedded"), Framework("detectron2")


def plain(value):
    """A result as nested dictionaries and lists of arrays and plain values."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if hasattr(value, "get_fields"):
        return {"size": value.image_size, **{name: plain(v) for name, v in value.get_fields().items()}}
    if hasattr(value, "tensor"):
        return plain(value.tensor)
    if hasattr(value, "polygons"):
        return plain(value.polygons)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def check(ours, theirs, where):
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            check(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            check(*pair, f"{where}/{i}")
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, where
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=where)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-9, nan_ok=True), where
    else:
        assert ours == theirs, where


@pytest.fixture
def assert_same():
    """A function that compares two results, of whatever nesting, up to rounding; tensors also by dtype and shape."""
    return lambda ours, theirs: check(plain(ours), plain(theirs), "result")


@pytest.fixture
def assert_both_do_the_same(assert_same):
    """A function that runs `case(framework)` on both frameworks from the same seed and compares the results."""

    def compare(case, seed):
        results = []
        for framework in FRAMEWORKS:
            torch.manual_seed(seed)
            np.random.seed(seed)
            results.append(case(framework))
        assert_same(*results)

    return compare
