"""COCO annotation files to dataset dicts, and back."""

import datetime
import json
import logging
import os
from collections import defaultdict

import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock

from ....coco_check import CocoFormatError, boxes_without_area, check_coco
from ....weights.files import replaced
from ...structures import BoxMode, PolygonMasks
from ...utils.file_io import PathManager
from ..catalog import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)


def load_coco_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict]:
    """Load instance or keypoint annotations in COCO's format; the images themselves are not read.

    Boxes without area and masks without a polygon of three points or more are left out, with a warning.

    Args:
        json_file: the annotations.
        image_root: the folder below which the images are.
        dataset_name: if given, its metadata get "thing_classes" and "thing_dataset_id_to_contiguous_id", and
            category ids are mapped to 0, 1, ... in the order of the file's ids; else they stay.
        extra_annotation_keys: fields of an annotation to keep as they are.

    Returns:
        One dict an image, by increasing id: file_name, height, width, image_id, annotations. An annotation has
        iscrowd, bbox, bbox_mode (XYWH_ABS), category_id and, if present, segmentation (polygons or compressed RLE)
        and keypoints (x, y, visibility, ...; COCO's are pixel indices, here they are coordinates: 0.5 more).

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        CocoFormatError: the file is not valid COCO (see `check_coco`).
    """
    coco = _read_json(os.fspath(json_file), os.fspath(image_root), dataset_name)
    check_coco(coco, os.fspath(json_file))
    if dataset_name is None:
        contiguous = {category["id"]: category["id"] for category in coco["categories"]}
    else:
        contiguous = _set_classes(dataset_name, coco["categories"])

    annotations = defaultdict(list)
    without_area = boxes_without_area(coco)
    _warn_left_out(json_file, without_area, "a box of no area")
    without_area = set(without_area)
    without_mask = []
    for anno in coco.get("annotations", []):
        if anno["id"] in without_area:
            continue
        obj = {key: anno[key] for key in extra_annotation_keys or () if key in anno}
        obj |= {"iscrowd": anno["iscrowd"], "bbox": anno["bbox"], "bbox_mode": BoxMode.XYWH_ABS}
        obj["category_id"] = contiguous[anno["category_id"]]
        if anno.get("segmentation"):
            obj["segmentation"] = _segmentation(anno["segmentation"])
            if not obj["segmentation"]:
                without_mask.append(anno["id"])
                continue
        if anno.get("keypoints"):
            obj["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(anno["keypoints"])]
        annotations[anno["image_id"]].append(obj)
    _warn_left_out(json_file, without_mask, "no polygon of three points or more")

    images = sorted(coco["images"], key=lambda image: image["id"])
    logger.info("Loaded %d images in COCO format from %s", len(images), json_file)
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": annotations[image["id"]],
        }
        for image in images
    ]


def register_coco_instances(
    name: str, metadata: dict, json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a dataset in COCO's format; nothing is read before it is used.

    Args:
        name: to use in DATASETS.TRAIN and DATASETS.TEST.
        metadata: what else to note about it, for instance "keypoint_names" and "keypoint_flip_map".
        json_file, image_root: see `load_coco_json`.

    Raises:
        AssertionError: the name is registered with other files.
    """
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))


def convert_to_coco_dict(dataset_name: str) -> dict:
    """A registered dataset as the content of a COCO JSON, with the category ids that its metadata tell, or 0, 1, ...

    Its metadata must have "thing_classes". Annotation ids start with 1.
    """
    metadata = MetadataCatalog.get(dataset_name)
    classes = metadata.thing_classes
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(classes))}
    category_ids = {v: k for k, v in contiguous.items()}
    images, annotations = [], []
    for number, record in enumerate(DatasetCatalog.get(dataset_name)):
        image = {
            "id": record.get("image_id", number),
            "width": int(record["width"]),
            "height": int(record["height"]),
            "file_name": str(record["file_name"]),
        }
        images.append(image)
        for anno in record.get("annotations", []):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(category_ids[anno["category_id"]]),
                    **_coco_fields(anno),
                }
            )
    return {
        "info": {"date_created": str(datetime.datetime.now()), "description": f"Converted from {dataset_name}."},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category_ids[i], "name": name} for i, name in enumerate(classes)],
        "licenses": None,
    }


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write `convert_to_coco_dict(dataset_name)` to a file; several processes may do so at once.

    Args:
        dataset_name: a registered dataset.
        output_file: path of the JSON.
        allow_cached: leave a file that exists as it is.
    """
    PathManager.mkdirs(os.path.dirname(os.path.abspath(output_file)))
    with file_lock(output_file):
        if allow_cached and PathManager.exists(output_file):
            logger.warning("Using %s of an earlier run: delete it if dataset %r changed.", output_file, dataset_name)
            return
        coco = convert_to_coco_dict(dataset_name)
        with replaced(output_file) as unfinished, unfinished.open("w") as file:
            json.dump(coco, file)
    logger.info("Wrote %d annotations of %r to %s", len(coco["annotations"]), dataset_name, output_file)


def _read_json(json_file: str, image_root: str, dataset_name: str | None) -> object:
    dataset = f"Dataset {dataset_name!r}: " if dataset_name else ""
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    remedy = (
        "Correct the path that it was registered with; a builtin dataset is looked for below the folder that the "
        f"environment variable DETECTRON2_DATASETS names when the program starts (now {root!r})."
    )
    if not PathManager.isfile(json_file):
        raise FileNotFoundError(f"{dataset}there is no annotation file {json_file}. {remedy}")
    if image_root and not PathManager.isdir(image_root):
        raise FileNotFoundError(f"{dataset}there is no image folder {image_root}. {remedy}")
    with PathManager.open(json_file, "r") as file:
        try:
            return json.load(file)
        except ValueError as error:  # also a file that is not text
            raise CocoFormatError(f"{dataset}{json_file} is not JSON: {error}") from error


def _set_classes(dataset_name: str, categories: list[dict]) -> dict[int, int]:
    """Write the dataset's classes to its metadata; returns the contiguous id of each category id."""
    categories = sorted(categories, key=lambda category: category["id"])
    contiguous = {category["id"]: i for i, category in enumerate(categories)}
    if "coco" not in dataset_name and list(contiguous) != list(range(1, len(categories) + 1)):
        logger.warning("Dataset %r: its category ids are not 1 to %d; they are mapped.", dataset_name, len(categories))
    MetadataCatalog.get(dataset_name).set(
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id=contiguous,
    )
    return contiguous


def _segmentation(segmentation: list | dict) -> list | dict:
    """The polygons that enclose something, or a compressed RLE."""
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def _warn_left_out(json_file: str | os.PathLike, ids: list, reason: str) -> None:
    if ids:
        listed = ", ".join(map(str, ids[:10])) + ", ..." * (len(ids) > 10)
        logger.warning("%s: left out %d annotations with %s: %s", json_file, len(ids), reason, listed)


def _coco_fields(anno: dict) -> dict:
    """Box, area, crowd flag, mask and keypoints of an annotation in COCO's format, as JSON."""
    x, y, w, h = (float(v) for v in BoxMode.convert(list(anno["bbox"]), anno["bbox_mode"], BoxMode.XYWH_ABS))
    fields = {"bbox": [round(v, 3) for v in (x, y, w, h)], "area": w * h, "iscrowd": int(anno.get("iscrowd", 0))}
    segmentation = anno.get("segmentation")
    if isinstance(segmentation, list):
        fields["area"] = float(PolygonMasks([segmentation]).area()[0])
        fields["segmentation"] = [np.asarray(polygon).tolist() for polygon in segmentation]
    elif isinstance(segmentation, dict):
        fields["area"] = float(mask_util.area(segmentation))
        counts = segmentation["counts"]
        fields["segmentation"] = segmentation | {"counts": counts if isinstance(counts, str) else counts.decode()}
    elif segmentation is not None:
        raise TypeError(f"A segmentation is a list of polygons or an RLE, not a {type(segmentation).__name__}")
    if "keypoints" in anno:
        keypoints = list(anno["keypoints"])
        fields["keypoints"] = [v if i % 3 == 2 else v - 0.5 for i, v in enumerate(keypoints)]
        fields["num_keypoints"] = int(anno.get("num_keypoints", sum(v > 0 for v in keypoints[2::3])))
    return fields
