"""What the project adds to the framework's data: datasets of its own, one's own COCO files, a mapper that goes on."""

from .datasets import register_datasets, resolve_num_classes, use_coco_files
from .mapper import RobustMapper

register_datasets()
