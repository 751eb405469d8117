"""Datasets by name, one's own COCO files, and models that fit them."""

import json
import logging

import pytest

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.data import resolve_num_classes, shapes, use_coco_files
from projects_maskrcnn.framework import DatasetCatalog, MetadataCatalog, get_cfg


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    return cfg


@pytest.fixture
def coco(tmp_path):
    """A function that writes a COCO JSON of some categories and returns it and its image folder."""

    def write(name: str, *categories: str):
        content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 10 * i, "name": c} for i, c in enumerate(categories, start=1)],
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        return str(path), str(tmp_path)

    return write


def test_known_names():
    names = set(DatasetCatalog.list())
    assert {f"{d}_{s}" for d in ("shapes", "shapes_keypoints", "nuclei") for s in ("train", "val")} <= names
    assert MetadataCatalog.get("shapes_val").thing_classes == list(shapes.CLASSES)
    assert MetadataCatalog.get("shapes_keypoints_train").keypoint_names == list(shapes.KEYPOINTS)


def test_own_files_become_the_datasets(cfg, coco):
    cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.TRAIN_IMAGES = coco("cells", "red", "white", "platelet")
    cfg.DATASETS.TEST_JSON, cfg.DATASETS.TEST_IMAGES = coco("held_out", "red", "white", "platelet")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = -1
    for _ in range(2):  # a second run in one process
        use_coco_files(cfg)
    resolve_num_classes(cfg)
    assert cfg.DATASETS.TRAIN == ("cells_train",) and cfg.DATASETS.TEST == ("held_out_test",)
    assert MetadataCatalog.get("cells_train").json_file == cfg.DATASETS.TRAIN_JSON
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"TRAIN_JSON": "x.json"}, ValueError, "DATASETS.TRAIN_IMAGES is not: set both"),
        ({"TEST_IMAGES": "x"}, ValueError, "DATASETS.TEST_JSON is not: set both"),
        ({"TEST_JSON": "/no/x.json", "TEST_IMAGES": "/"}, FileNotFoundError, "DATASETS.TEST_JSON.*/no/x.json"),
        ({"TRAIN_JSON": __file__, "TRAIN_IMAGES": "/no/x"}, FileNotFoundError, "DATASETS.TRAIN_IMAGES.*/no/x"),
    ],
)
def test_own_files_that_are_not_there(cfg, keys, error, message):
    for key, value in keys.items():
        cfg.DATASETS[key] = value
    with pytest.raises(error, match=message):
        use_coco_files(cfg)


def test_another_number_of_classes_is_an_error_that_says_which(cfg):
    cfg.DATASETS.TEST = ("shapes_val",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    with pytest.raises(ValueError, match="shapes_val has 6 classes, but the model has 80.*NUM_CLASSES 6"):
        resolve_num_classes(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"  # it has no classes
    resolve_num_classes(cfg)


@pytest.mark.parametrize(
    ("test_classes", "message"),
    [
        (["white", "red"], "class 1 of dataset cells_train is 'red', but of held_out_test 'white': both need the same"),
        (["red"], "dataset cells_train has 2 classes, but held_out_test 1: both need the same categories"),
    ],
)
def test_all_datasets_have_the_same_classes(cfg, coco, test_classes, message):
    cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.TRAIN_IMAGES = coco("cells", "red", "white")
    cfg.DATASETS.TEST_JSON, cfg.DATASETS.TEST_IMAGES = coco("held_out", *test_classes)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = -1
    use_coco_files(cfg)
    with pytest.raises(ValueError, match=message):
        resolve_num_classes(cfg)


def test_encoded_masks_are_no_polygons(cfg, tmp_path):
    annotation = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
    encoded, drawn = {"size": [4, 4], "counts": [0, 2, 14]}, [[0, 0, 2, 0, 2, 2]]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 4, "width": 4}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {**annotation, "id": 1, "segmentation": drawn},
            {**annotation, "id": 2, "segmentation": encoded, "iscrowd": 1},  # left out of training
            {**annotation, "id": 3, "segmentation": encoded},
        ],
    }
    path = tmp_path / "cells.json"
    path.write_text(json.dumps(content))
    cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.TRAIN_IMAGES, cfg.MODEL.MASK_ON = str(path), str(tmp_path), True
    with pytest.raises(ValueError, match="annotation 3 is an RLE, but .* polygon: set INPUT.MASK_FORMAT bitmask"):
        use_coco_files(cfg)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    use_coco_files(cfg)
    cfg.INPUT.MASK_FORMAT, cfg.MODEL.MASK_ON = "polygon", False
    use_coco_files(cfg)


def test_keypoints_must_fit(cfg):
    cfg.MODEL.KEYPOINT_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = -1
    cfg.DATASETS.TRAIN = ("shapes_keypoints_train",)
    with pytest.raises(ValueError, match="6 keypoints, but the model has 17.*NUM_KEYPOINTS 6"):
        resolve_num_classes(cfg)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 6
    resolve_num_classes(cfg)
    cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES = ("shapes_train",), -1
    with pytest.raises(ValueError, match="shapes_train has no keypoints"):
        resolve_num_classes(cfg)


def test_unknown_names_get_a_guess(cfg):
    cfg.DATASETS.TRAIN = ("shape_train",)
    with pytest.raises(KeyError, match="shape_train.*shapes_train"):
        resolve_num_classes(cfg)


def test_a_missing_builtin_says_where_it_should_be(cfg):
    cfg.DATASETS.TRAIN = ("nuclei_train",)
    MetadataCatalog.get("nuclei_train")
    if MetadataCatalog.get("nuclei_train").get("thing_classes"):
        pytest.skip("nuclei was loaded before")
    with pytest.raises(FileNotFoundError, match="instances_train.json.*DETECTRON2_DATASETS"):
        resolve_num_classes(cfg)


def test_a_file_that_is_no_coco_json(cfg, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{")
    cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.TRAIN_IMAGES = str(path), str(tmp_path)
    with pytest.raises(ValueError, match="broken.json is no COCO JSON"):
        use_coco_files(cfg)


@pytest.mark.parametrize(
    ("names", "pairs", "warnings"),
    [
        (["nose", "left_eye", "right_eye", "left_out"], [("left_eye", "right_eye")], 0),
        (["tip", "base"], [], 1),
    ],
)
def test_keypoints_of_own_files(cfg, tmp_path, caplog, names, pairs, warnings):
    path = tmp_path / "birds.json"
    categories = [{"id": 3, "name": "bird", "keypoints": names, "skeleton": []}]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.TRAIN_IMAGES = str(path), str(tmp_path)
    cfg.MODEL.KEYPOINT_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = -1, len(names)
    logging.getLogger("projects_maskrcnn").propagate = True
    use_coco_files(cfg)
    resolve_num_classes(cfg)
    metadata = MetadataCatalog.get("birds_train")
    assert (metadata.keypoint_names, metadata.keypoint_flip_map) == (names, pairs)
    assert len([r for r in caplog.records if "RANDOM_FLIP" in r.getMessage()]) == warnings
