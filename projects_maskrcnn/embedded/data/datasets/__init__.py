"""Datasets: loaders by format, and the builtin names, registered on import."""

from ....coco_check import CocoFormatError
from . import builtin as _builtin  # only registration
from .cityscapes import load_cityscapes_instances
from .coco import convert_to_coco_dict, convert_to_coco_json, load_coco_json, register_coco_instances
from .pascal_voc import load_voc_instances, register_pascal_voc
