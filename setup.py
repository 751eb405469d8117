"""Packaging. The version lives in `projects_maskrcnn/__init__.py`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="projects_maskrcnn",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "projects_maskrcnn/__init__.py").read_text())[1],
    description="Mask R-CNN as a Detectron2 project, with an embedded framework where Detectron2 is absent",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["projects_maskrcnn", "projects_maskrcnn.*"]),
    install_requires=[
        "torch>=2.10",
        "fvcore",
        "iopath",
        "pycocotools>=2.0.8",
        "opencv-python-headless",
        "numpy",
        "pillow",
        "shapely>=2",
        "matplotlib",
        "tabulate",
        "tensorboard",
        "termcolor",
        "tqdm",
    ],
    extras_require={"test": ["pytest", "ruff"], "cityscapes": ["cityscapesscripts"]},
)
