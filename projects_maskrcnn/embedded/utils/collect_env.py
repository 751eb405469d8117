"""What a bug report needs to know of the machine. Stands for `detectron2.utils.collect_env`."""

import importlib.metadata
import os
import platform
import sys

import torch
from tabulate import tabulate

PACKAGES = ("numpy", "fvcore", "iopath", "pycocotools", "opencv-python-headless", "pillow")


def collect_env_info() -> str:
    """A table of versions, processor and accelerators."""
    rows = [
        ("platform", f"{platform.platform()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"),
        ("Python", sys.version.replace("\n", "")),
        ("framework", "embedded"),
        ("torch", torch.__version__),
        ("DETECTRON2_DATASETS", os.environ.get("DETECTRON2_DATASETS", "datasets (default)")),
    ]
    for package in PACKAGES:
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((package, "not installed under this name"))
    for index in range(torch.cuda.device_count()):
        rows.append((f"GPU {index}", torch.cuda.get_device_name(index)))
    if not torch.cuda.is_available():
        rows.append(("GPU", "none"))
    return tabulate(rows)
