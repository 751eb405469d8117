"""Cityscapes' polygon files, painted by Pillow as the official tools do."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image, ImageDraw

from projects_maskrcnn.embedded.data.datasets import load_cityscapes_instances

OBJECTS = [
    {"label": "road", "polygon": [[0, 20], [59, 20], [59, 39], [0, 39]]},
    {"label": "car", "polygon": [[5, 5], [30, 5], [30, 25], [5, 25]]},
    {"label": "license plate", "polygon": [[10, 10], [15, 10], [15, 12], [10, 12]]},
    {"label": "person", "polygon": [[2, 2], [4, 2], [4, 4], [2, 4]]},  # hidden by the sign
    {"label": "pole", "polygon": [[15, 0], [18, 0], [18, 39], [15, 39]]},  # parts the car
    {"label": "traffic sign", "polygon": [[0, 0], [6, 0], [6, 6], [0, 6]]},
    {"label": "bicyclegroup", "polygon": [[40, 10], [55, 10], [55, 30]]},
    {"label": "rider", "polygon": [[40, 10], [55, 10], [55, 30]], "deleted": 1},
]


@pytest.fixture
def folders(tmp_path):
    images, annotations = tmp_path / "leftImg8bit" / "train", tmp_path / "gtFine" / "train"
    for folder in (images, annotations):
        (folder / "ulm").mkdir(parents=True)
    for name in ("ulm_000001", "ulm_000000"):
        Image.new("RGB", (60, 40)).save(images / "ulm" / f"{name}_leftImg8bit.png")
        content = {"imgHeight": 40, "imgWidth": 60, "objects": OBJECTS}
        (annotations / "ulm" / f"{name}_gtFine_polygons.json").write_text(json.dumps(content))
    return images, annotations


def painted(number):
    """The pixels that remain of an object when all are painted in order, plates and deleted ones aside."""
    canvas = Image.new("L", (60, 40))
    for i, obj in enumerate(OBJECTS):
        if "deleted" not in obj and obj["label"] != "license plate":
            ImageDraw.Draw(canvas).polygon([tuple(p) for p in obj["polygon"]], fill=i + 1)
    return np.asarray(canvas) == number + 1


def test_instances_are_what_remains_visible(folders):
    pytest.importorskip("shapely")
    records = load_cityscapes_instances(*map(str, folders))
    assert [r["image_id"] for r in records] == ["ulm_000000_leftImg8bit.png", "ulm_000001_leftImg8bit.png"]
    record = records[0]
    assert (record["height"], record["width"]) == (40, 60)
    by_class = {a["category_id"]: a for a in record["annotations"]}
    assert sorted(by_class) == [2, 7] and len(record["annotations"]) == 2  # car and bicycle
    assert (by_class[2]["iscrowd"], by_class[7]["iscrowd"]) == (0, 1)
    assert len(by_class[2]["segmentation"]) == 2
    for category, number in ((2, 1), (7, 6)):
        annotation = by_class[category]
        mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], 40, 60)))
        expected = painted(number)
        iou = (mask & expected).sum() / (mask | expected).sum()
        assert iou > 0.95
        rows, columns = expected.nonzero()
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(annotation["bbox"], tight, atol=1.0)


def test_missing_files_are_named(folders, tmp_path):
    images, annotations = map(str, folders)
    with pytest.raises(FileNotFoundError, match="No images .*nowhere.*DETECTRON2_DATASETS"):
        load_cityscapes_instances(str(tmp_path / "nowhere"), annotations)
    with pytest.raises(FileNotFoundError, match="no annotation file .*ulm_000000_gtFine_polygons.json"):
        load_cityscapes_instances(images, str(tmp_path))


@pytest.mark.parametrize("arguments", [{"from_json": False}, {"to_polygons": False}])
def test_label_images_are_not_read(folders, arguments):
    with pytest.raises(NotImplementedError, match="from_json and to_polygons must be True"):
        load_cityscapes_instances(*map(str, folders), **arguments)
