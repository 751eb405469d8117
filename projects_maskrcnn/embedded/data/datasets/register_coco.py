"""`register_coco_instances` at the path where Detectron2's users import it from."""

from .coco import register_coco_instances  # noqa: F401
