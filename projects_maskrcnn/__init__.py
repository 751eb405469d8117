"""Mask R-CNN as a Detectron2 project.

Importing this package registers its backbones, RoI heads and datasets with the framework in use.
"""

from . import data as _data  # registers datasets
from . import modeling as _modeling  # registers backbones and heads
from .config import add_maskrcnn_config
from .modeling import replace_poolers

__version__ = "0.1.0"
