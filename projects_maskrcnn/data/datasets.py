"""The datasets that the project knows by name, and one's own COCO files."""

import difflib
import json
import logging
import os
from functools import partial
from pathlib import Path

from ..coco_check import check_coco
from ..framework import CfgNode, DatasetCatalog, MetadataCatalog, load_coco_json, register_coco_instances
from . import shapes

logger = logging.getLogger(__name__)


def datasets_root() -> Path:
    """Where datasets lie: `DETECTRON2_DATASETS`, or `datasets` in the working folder."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_datasets() -> None:
    """Register `shapes_{train,val}`, `shapes_keypoints_{train,val}` and `nuclei_{train,val}`."""
    folder, nuclei = datasets_root() / "shapes", datasets_root() / "nuclei"
    for split in ("train", "val"):
        for prefix, kind, classes in (
            ("shapes", "instances", shapes.CLASSES),
            ("shapes_keypoints", "keypoints", ["figure"]),
        ):
            name = f"{prefix}_{split}"
            json_file = folder / "annotations" / f"{kind}_{split}.json"
            images = folder / "images" / split
            DatasetCatalog.register(name, partial(_load_shapes, name, folder, json_file, images))
            MetadataCatalog.get(name).set(
                thing_classes=list(classes),
                json_file=str(json_file),
                image_root=str(images),
                evaluator_type="coco",
            )
        MetadataCatalog.get(f"shapes_keypoints_{split}").set(
            keypoint_names=list(shapes.KEYPOINTS),
            keypoint_flip_map=list(shapes.FLIP_MAP),
            keypoint_connection_rules=[(a, b, (255, 180, 40)) for a, b in shapes.SKELETON],
        )
        register_coco_instances(
            f"nuclei_{split}",
            {},
            str(nuclei / "annotations" / f"instances_{split}.json"),
            str(nuclei / "images"),
        )


def _load_shapes(name: str, folder: Path, json_file: Path, images: Path) -> list[dict]:
    shapes.ensure(folder)
    return load_coco_json(str(json_file), str(images), name)


def use_coco_files(cfg: CfgNode) -> None:
    """Register the COCO files that `DATASETS.TRAIN_JSON` ... name, and make them the config's datasets.

    Classes and keypoints have the JSON's names; a mirrored image exchanges keypoints `left_` x and `right_` x.

    Raises:
        ValueError: a JSON without its image folder, or the reverse, one that is not valid COCO (see `check_coco`), or
            masks to train on that are not in `INPUT.MASK_FORMAT`.
        FileNotFoundError: a path does not exist.
    """
    for split in ("TRAIN", "TEST"):
        json_file, images = cfg.DATASETS[f"{split}_JSON"], cfg.DATASETS[f"{split}_IMAGES"]
        if not json_file and not images:
            continue
        if not json_file or not images:
            given, missing = ("JSON", "IMAGES") if json_file else ("IMAGES", "JSON")
            raise ValueError(f"DATASETS.{split}_{given} is set, DATASETS.{split}_{missing} is not: set both")
        if not Path(json_file).is_file():
            raise FileNotFoundError(f"DATASETS.{split}_JSON: there is no file {json_file}")
        if not Path(images).is_dir():
            raise FileNotFoundError(f"DATASETS.{split}_IMAGES: there is no folder {images}")
        name = f"{Path(json_file).stem}_{split.lower()}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        coco = _read(json_file)
        if split == "TRAIN" and cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
            _check_polygons(coco, json_file)
        categories = _categories(coco)
        metadata = {"thing_classes": [c["name"] for c in categories], **_keypoint_metadata(name, categories)}
        register_coco_instances(name, metadata, json_file, images)
        cfg.DATASETS[split] = (name,)


def _read(json_file: str) -> dict:
    """A dataset's JSON, all of which is checked, on either framework."""
    try:
        coco = json.loads(Path(json_file).read_text())
    except ValueError as error:  # also a file that is not text
        raise ValueError(f"{json_file} is no COCO JSON: {error}") from error
    check_coco(coco, json_file)
    return coco


def _categories(coco: dict) -> list[dict]:
    """By increasing id."""
    return sorted(coco["categories"], key=lambda c: c["id"])


def _check_polygons(coco: dict, json_file: str) -> None:
    for annotation in coco.get("annotations", []):
        if isinstance(annotation.get("segmentation"), dict) and not annotation["iscrowd"]:
            raise ValueError(
                f"{json_file}: the mask of annotation {annotation['id']} is an RLE, but INPUT.MASK_FORMAT is polygon: "
                "set INPUT.MASK_FORMAT bitmask"
            )


def _keypoint_metadata(name: str, categories: list[dict]) -> dict:
    """Names and mirror pairs of the keypoints that a category has, if any."""
    names = next((c["keypoints"] for c in categories if c.get("keypoints")), None)
    if names is None:
        return {}
    pairs = [(left, left.replace("left", "right")) for left in names if "left" in left]
    pairs = [pair for pair in pairs if pair[1] in names]
    if not pairs:
        logger.warning(
            "Dataset %s: no left_ and right_ among the keypoints %s, so that a mirrored image keeps them as they are. "
            "If they have sides, rename them, or set INPUT.RANDOM_FLIP none",
            name,
            ", ".join(names),
        )
    return {"keypoint_names": list(names), "keypoint_flip_map": pairs}


def resolve_num_classes(cfg: CfgNode) -> None:
    """Take `MODEL.ROI_HEADS.NUM_CLASSES` from the data where it is negative; else hold it against the data.

    Raises:
        ValueError: datasets differ in their classes, or have another number of them, or of keypoints, than the model.
        KeyError: a dataset is not registered.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    classes = {name: thing_classes(name) for name in names}
    heads = cfg.MODEL.ROI_HEADS
    if heads.NUM_CLASSES < 0:
        if not names:
            raise ValueError("MODEL.ROI_HEADS.NUM_CLASSES is not set, and DATASETS.TRAIN and TEST name no data")
        heads.NUM_CLASSES = len(classes[names[0]])
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        return
    for name in names:
        _check_same_classes(names[0], classes[names[0]], name, classes[name])
        count = len(classes[name])
        if count != heads.NUM_CLASSES:
            raise ValueError(
                f"dataset {name} has {count} classes, but the model has {heads.NUM_CLASSES}: set "
                f"MODEL.ROI_HEADS.NUM_CLASSES {count}, or leave it unset to take it from the data"
            )
        if cfg.MODEL.KEYPOINT_ON:
            _check_keypoints(cfg, name)


def _check_same_classes(first: str, of_first: list[str], name: str, classes: list[str]) -> None:
    """A class is known by its place, so that other names, or the same in another order, would be scored as these."""
    remedy = "both need the same categories, in the same order of their ids"
    if len(classes) != len(of_first):
        raise ValueError(f"dataset {first} has {len(of_first)} classes, but {name} {len(classes)}: {remedy}")
    for number, (a, b) in enumerate(zip(of_first, classes, strict=True), start=1):
        if a != b:
            raise ValueError(f"class {number} of dataset {first} is {a!r}, but of {name} {b!r}: {remedy}")


def _check_keypoints(cfg: CfgNode, name: str) -> None:
    keypoints = MetadataCatalog.get(name).get("keypoint_names")
    wanted = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if not keypoints:
        raise ValueError(
            f"MODEL.KEYPOINT_ON is set, but dataset {name} has no keypoints: choose another dataset, set "
            f"MODEL.KEYPOINT_ON False, or give the dataset's metadata keypoint_names and keypoint_flip_map"
        )
    if len(keypoints) != wanted:
        raise ValueError(
            f"dataset {name} has {len(keypoints)} keypoints, but the model has {wanted}: set "
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {len(keypoints)}"
        )


def thing_classes(name: str) -> list[str]:
    """The names of a dataset's classes, from its metadata or its JSON.

    Raises:
        KeyError: the dataset is not registered.
        FileNotFoundError: it has no JSON where it should be.
    """
    if name not in DatasetCatalog.list():
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f"did you mean {' or '.join(near)}" if near else f"known are {', '.join(sorted(DatasetCatalog.list()))}"
        raise KeyError(
            f"dataset {name!r} is not registered: {hint}. For COCO files of your own set DATASETS.TRAIN_JSON and "
            "TRAIN_IMAGES, DATASETS.TEST_JSON and TEST_IMAGES"
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes"):
        return metadata.thing_classes
    json_file = metadata.get("json_file")
    if json_file is None:
        DatasetCatalog.get(name)
        return metadata.thing_classes
    if not Path(json_file).is_file():
        raise FileNotFoundError(
            f"dataset {name}: there is no file {json_file}. Put it there, or set DETECTRON2_DATASETS (now "
            f"{datasets_root()}) to the folder that holds your datasets"
        )
    return json_classes(json_file)


def json_classes(json_file: str) -> list[str]:
    """The names of a COCO JSON's classes, by increasing id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid COCO.
    """
    return [c["name"] for c in _categories(_read(json_file))]
