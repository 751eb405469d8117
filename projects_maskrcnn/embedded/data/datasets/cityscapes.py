"""Cityscapes' instance annotations to dataset dicts."""

import glob
import json
import logging
import multiprocessing
import os

import numpy as np

from ...structures import BoxMode
from ...utils import comm
from .builtin_meta import CITYSCAPES_THING_CLASSES

logger = logging.getLogger(__name__)


def load_cityscapes_instances(
    image_dir: str, gt_dir: str, from_json: bool = True, to_polygons: bool = True
) -> list[dict]:
    """Load the annotations of a split from its polygon files.

    Args:
        image_dir: folder of the images, for instance "cityscapes/leftImg8bit/train":
            CITY/NAME_leftImg8bit.png.
        gt_dir: folder of the annotations, "cityscapes/gtFine/train": CITY/NAME_gtFine_polygons.json.
        from_json, to_polygons: must be True: the label images (NAME_gtFine_instanceIds.png) are not read.

    Returns:
        One dict an image (see `load_coco_json`), with polygons and boxes XYXY_ABS; groups ("cargroup") are
        crowds.

    Raises:
        FileNotFoundError: there are no images, or one has no annotation file.
    """
    if not (from_json and to_polygons):
        raise NotImplementedError("Cityscapes is read from its polygon files: from_json and to_polygons must be True")
    images = sorted(glob.glob(os.path.join(image_dir, "*", "*_leftImg8bit.png")))
    if not images:
        raise FileNotFoundError(
            f"No images {image_dir}/CITY/*_leftImg8bit.png. Cityscapes is looked for in the folder cityscapes/ below "
            "the one that the environment variable DETECTRON2_DATASETS names"
        )
    files = []
    for image in images:
        name = os.path.relpath(image, image_dir).removesuffix("_leftImg8bit.png")
        files.append((image, os.path.join(gt_dir, f"{name}_gtFine_polygons.json")))
        if not os.path.isfile(files[-1][1]):
            raise FileNotFoundError(f"There is no annotation file {files[-1][1]} for the image {image}")
    # Resolving the overlaps takes tens of milliseconds an image.
    with multiprocessing.Pool(max(1, multiprocessing.cpu_count() // comm.get_world_size())) as pool:
        records = pool.starmap(_load_image, files)
    logger.info("Loaded %d images from %s", len(records), image_dir)
    return records


def _load_image(image_file: str, json_file: str) -> dict:
    from shapely.geometry import Polygon  # slow to import, and nothing else here needs it

    with open(json_file) as file:
        content = json.load(file)
    annotations = []
    in_front = Polygon()
    # The objects are painted in order, each over those before it: the last one is whole.
    for obj in reversed(content["objects"]):
        label = obj["label"].removesuffix("group")
        if "deleted" in obj or label == "license plate":  # part of the car that it is on
            continue
        # Vertices are pixel indices, and the official tools paint the pixels that they touch: hence half a
        # pixel to their centres, and half a pixel around.
        polygon = Polygon(np.asarray(obj["polygon"], dtype=float) + 0.5).buffer(0.5, quad_segs=4)
        visible = polygon.difference(in_front)
        if label in CITYSCAPES_THING_CLASSES and visible.is_empty:
            continue
        in_front = in_front.union(polygon)
        if label in CITYSCAPES_THING_CLASSES:
            parts = getattr(visible, "geoms", [visible])
            annotations.append(
                {
                    "iscrowd": int(label != obj["label"]),
                    "category_id": CITYSCAPES_THING_CLASSES.index(label),
                    "bbox": visible.bounds,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    # As in COCO's format, without the holes.
                    "segmentation": [np.ravel(part.exterior.coords).tolist() for part in parts],
                }
            )
    return {
        "file_name": image_file,
        "image_id": os.path.basename(image_file),
        "height": content["imgHeight"],
        "width": content["imgWidth"],
        "annotations": annotations,
    }
