"""Seeds, and the description of the environment."""

import importlib.metadata
import random

import numpy as np
import torch

from projects_maskrcnn.embedded.utils.collect_env import collect_env_info
from projects_maskrcnn.embedded.utils.env import seed_all_rng


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_determines_all_generators():
    seed_all_rng(5)
    first = draw()
    seed_all_rng(6)
    assert all(a != b for a, b in zip(first, draw(), strict=True))
    seed_all_rng(5)
    assert draw() == first


def test_without_a_seed_runs_differ():
    seed_all_rng()
    first = draw()
    seed_all_rng()
    assert draw() != first


def test_environment():
    info = collect_env_info()
    for package in ("torch", "numpy", "fvcore", "pycocotools"):
        assert f"{importlib.metadata.version(package)}" in info and package in info
    assert ("GPU 0" in info) == torch.cuda.is_available()
