"""PASCAL VOC's annotations to dataset dicts."""

import logging
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import partial

from ...structures import BoxMode
from ...utils.file_io import PathManager
from ..catalog import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

# fmt: off
CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_image_ids(dirname: str, split: str) -> list[str]:
    """The ids of a split's images, in its order.

    Raises:
        FileNotFoundError: there is no such split.
    """
    path = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
    if not PathManager.isfile(path):
        raise FileNotFoundError(
            f"There is no {path}. PASCAL VOC is looked for in the folders VOC2007/ and VOC2012/ below the one that the "
            "environment variable DETECTRON2_DATASETS names"
        )
    with PathManager.open(path) as file:
        return [line.split()[0] for line in file if line.strip()]


def read_voc_annotation(path: str) -> dict:
    """The content of one XML file.

    Returns:
        `height` and `width`, and `objects`: dicts of `name`, `difficult` (bool) and `bbox`, x0, y0, x1, y1 as they are
        written: 1-based pixels, the last ones included.

    Raises:
        ValueError: the file is no annotation, or declares a document type, as no annotation does: entities can make
            a small file fill the memory.
    """
    with PathManager.open(path, "rb") as file:
        content = file.read()
    try:
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise ValueError("it declares a document type")
        root = ElementTree.fromstring(content)
        return {
            "height": int(root.find("size/height").text),
            "width": int(root.find("size/width").text),
            "objects": [
                {
                    "name": item.find("name").text.strip(),
                    "difficult": item.findtext("difficult", "0").strip() == "1",
                    "bbox": [float(item.find(f"bndbox/{corner}").text) for corner in CORNERS],
                }
                for item in root.findall("object")
            ],
        }
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no annotation of PASCAL VOC: {error}") from error


def load_voc_instances(dirname: str, split: str, class_names: Sequence[str]) -> list[dict]:
    """Load a split; objects that are marked difficult are loaded like the others.

    Args:
        dirname: with the folders "Annotations", "ImageSets" and "JPEGImages".
        split: such as "trainval", a file in ImageSets/Main.
        class_names: in the order of their ids.

    Returns:
        One dict an image (see `load_coco_json`), with boxes XYXY_ABS: the pixel that is numbered 1 begins at 0.

    Raises:
        ValueError: an annotation file is damaged, or has an object of another class.
    """
    records = []
    for image_id in read_image_ids(dirname, split):
        path = os.path.join(dirname, "Annotations", f"{image_id}.xml")
        content = read_voc_annotation(path)
        annotations = []
        for item in content["objects"]:
            if item["name"] not in class_names:
                raise ValueError(f"{path} has an object of class {item['name']!r}; known are {', '.join(class_names)}")
            x0, y0, x1, y1 = item["bbox"]
            annotations.append(
                {
                    "category_id": list(class_names).index(item["name"]),
                    "bbox": [x0 - 1, y0 - 1, x1, y1],
                    "bbox_mode": BoxMode.XYXY_ABS,
                }
            )
        records.append(
            {
                "file_name": os.path.join(dirname, "JPEGImages", f"{image_id}.jpg"),
                "image_id": image_id,
                "height": content["height"],
                "width": content["width"],
                "annotations": annotations,
            }
        )
    logger.info("Loaded %d images from %s, split %s", len(records), dirname, split)
    return records


def register_pascal_voc(
    name: str, dirname: str, split: str, year: int, class_names: Sequence[str] = CLASS_NAMES
) -> None:
    """Register a split of VOC `year` under `name`; see `load_voc_instances`."""
    DatasetCatalog.register(name, partial(load_voc_instances, dirname, split, class_names))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)
