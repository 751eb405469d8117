"""Registers COCO, Cityscapes and PASCAL VOC under Detectron2's names, below `DETECTRON2_DATASETS` (`datasets`)."""

import functools
import os

from ..catalog import DatasetCatalog, MetadataCatalog
from .builtin_meta import builtin_metadata
from .cityscapes import load_cityscapes_instances
from .coco import register_coco_instances
from .pascal_voc import register_pascal_voc

# name: (image folder, annotation file)
COCO_INSTANCES = {
    "coco_2014_train": ("train2014", "instances_train2014"),
    "coco_2014_val": ("val2014", "instances_val2014"),
    "coco_2014_minival": ("val2014", "instances_minival2014"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014"),
    "coco_2017_train": ("train2017", "instances_train2017"),
    "coco_2017_val": ("val2017", "instances_val2017"),
    "coco_2017_test": ("test2017", "image_info_test2017"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100"),
}
COCO_KEYPOINTS = {
    "keypoints_coco_2014_train": ("train2014", "person_keypoints_train2014"),
    "keypoints_coco_2014_val": ("val2014", "person_keypoints_val2014"),
    "keypoints_coco_2014_minival": ("val2014", "person_keypoints_minival2014"),
    "keypoints_coco_2014_valminusminival": ("val2014", "person_keypoints_valminusminival2014"),
    "keypoints_coco_2017_train": ("train2017", "person_keypoints_train2017"),
    "keypoints_coco_2017_val": ("val2017", "person_keypoints_val2017"),
    "keypoints_coco_2017_val_100": ("val2017", "person_keypoints_val2017_100"),
}


def register_all_coco(root: str) -> None:
    """Register COCO's instance and keypoint datasets, in `root`/coco."""
    for metadata, datasets in (("coco", COCO_INSTANCES), ("coco_person", COCO_KEYPOINTS)):
        for name, (images, annotations) in datasets.items():
            register_coco_instances(
                name,
                builtin_metadata(metadata),
                os.path.join(root, "coco/annotations", f"{annotations}.json"),
                os.path.join(root, "coco", images),
            )


def register_all_cityscapes(root: str) -> None:
    """Register Cityscapes' fine instance annotations, in `root`/cityscapes."""
    for split in ("train", "val", "test"):
        name = f"cityscapes_fine_instance_seg_{split}"
        image_dir = os.path.join(root, "cityscapes/leftImg8bit", split)
        gt_dir = os.path.join(root, "cityscapes/gtFine", split)
        DatasetCatalog.register(name, functools.partial(load_cityscapes_instances, image_dir, gt_dir))
        MetadataCatalog.get(name).set(
            image_dir=image_dir,
            gt_dir=gt_dir,
            evaluator_type="cityscapes_instance",
            **builtin_metadata("cityscapes"),
        )


def register_all_pascal_voc(root: str) -> None:
    """Register the splits of VOC 2007 and 2012 whose annotations are public, in `root`/VOC2007 and `root`/VOC2012."""
    for year, splits in ((2007, ("trainval", "train", "val", "test")), (2012, ("trainval", "train", "val"))):
        for split in splits:
            name = f"voc_{year}_{split}"
            register_pascal_voc(name, os.path.join(root, f"VOC{year}"), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_root)
register_all_cityscapes(_root)
register_all_pascal_voc(_root)
