"""Loading, registering and writing COCO files: against pycocotools, on real and on tiny files."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO

from projects_maskrcnn.embedded.data import DatasetCatalog, MetadataCatalog
from projects_maskrcnn.embedded.data.datasets import (
    CocoFormatError,
    builtin_meta,
    convert_to_coco_dict,
    convert_to_coco_json,
    load_coco_json,
    register_coco_instances,
)
from projects_maskrcnn.embedded.structures import BoxMode


@pytest.fixture
def name(request):
    """The name of a dataset that does not outlive the test."""
    name = f"coco_test_{request.node.name}"
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


@pytest.fixture
def write(tmp_path):
    """Writes a file of two images, 5 and 2, with the given annotations; returns the loader's two paths."""
    (tmp_path / "images").mkdir()

    def write(*annotations, **content):
        defaults = {"image_id": 5, "category_id": 30, "iscrowd": 0, "area": 12.0, "bbox": [1, 2, 3, 4]}
        coco = {
            "images": [
                {"id": 5, "file_name": "five.png", "height": 20, "width": 30},
                {"id": 2, "file_name": "sub/two.png", "height": 8, "width": 9},
            ],
            "categories": [{"id": 30, "name": "cat"}, {"id": 10, "name": "dog"}],
            "annotations": [defaults | {"id": i} | anno for i, anno in enumerate(annotations, 1)],
        }
        (tmp_path / "x.json").write_text(json.dumps(coco | content))
        return str(tmp_path / "x.json"), str(tmp_path / "images")

    return write


def pycoco(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.parametrize("file", ["instances_train", "instances_val", "person_keypoints_val"])
def test_coco_tiny_as_pycocotools_reads_it(shared, name, file):
    folder = shared / "data" / "coco_tiny"
    json_file = folder / "annotations" / f"{file}.json"
    dicts = load_coco_json(json_file, folder / "images", name, extra_annotation_keys=["id", "area"])
    coco = pycoco(json_file)
    ids = sorted(coco.getCatIds())
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == [coco.cats[i]["name"] for i in ids]
    assert metadata.thing_dataset_id_to_contiguous_id == {i: n for n, i in enumerate(ids)}
    assert [d["image_id"] for d in dicts] == sorted(coco.getImgIds())
    assert {type(a.get("segmentation")) for d in dicts for a in d["annotations"]} >= {list, dict}
    for record in dicts:
        image = coco.imgs[record["image_id"]]
        assert (record["height"], record["width"]) == (image["height"], image["width"])
        assert record["file_name"] == str(folder / "images" / image["file_name"])
        expected = coco.imgToAnns[record["image_id"]]
        assert [a["id"] for a in record["annotations"]] == [a["id"] for a in expected]
        for ours, theirs in zip(record["annotations"], expected, strict=True):
            assert ours["bbox"] == theirs["bbox"] and ours["bbox_mode"] == BoxMode.XYWH_ABS
            assert (ours["iscrowd"], ours["area"]) == (theirs["iscrowd"], theirs["area"])
            assert ours["category_id"] == ids.index(theirs["category_id"])
            segmentation = ours["segmentation"]
            if isinstance(segmentation, dict):
                np.testing.assert_array_equal(mask_util.decode(segmentation), coco.annToMask(theirs))
            else:
                assert segmentation == theirs["segmentation"]
            if "keypoints" in theirs:
                offset = np.array(ours["keypoints"]) - theirs["keypoints"]
                assert (offset.reshape(-1, 3) == [0.5, 0.5, 0]).all()


def test_ids_names_and_order(write, name, caplog):
    with caplog.at_level(logging.WARNING):
        two, five = load_coco_json(*write({}, {"category_id": 10}, {"iscrowd": 1}), name.replace("coco", "own"))
    assert (two["image_id"], five["image_id"]) == (2, 5)
    assert two["file_name"].endswith("images/sub/two.png") and two["annotations"] == []
    assert [a["category_id"] for a in five["annotations"]] == [1, 0, 1]
    assert [a["iscrowd"] for a in five["annotations"]] == [0, 0, 1]
    assert "category ids are not 1 to 2; they are mapped" in caplog.text
    MetadataCatalog.remove(name.replace("coco", "own"))


def test_without_a_name_ids_stay(write):
    _, five = load_coco_json(*write({}, {"category_id": 10}))
    assert [a["category_id"] for a in five["annotations"]] == [30, 10]
    assert "segmentation" not in five["annotations"][0] and "id" not in five["annotations"][0]


def test_uncompressed_rle(write):
    rle = {"size": [20, 30], "counts": [45, 10, 545]}
    annotation = load_coco_json(*write({"segmentation": rle}))[1]["annotations"][0]
    mask = np.zeros(600, dtype=np.uint8)
    mask[45:55] = 1
    np.testing.assert_array_equal(mask_util.decode(annotation["segmentation"]), mask.reshape(30, 20).T)


def test_boxes_without_area_are_left_out(write, caplog):
    flat = [{"bbox": [1, 1, 0, 5]}, {}, {"bbox": [1, 1, 5, -1]}]
    with caplog.at_level(logging.WARNING):
        _, five = load_coco_json(*write(*flat))
    assert [a["bbox"] for a in five["annotations"]] == [[1, 2, 3, 4]]
    assert "x.json: left out 2 annotations with a box of no area: 1, 3" in caplog.text


def test_degenerate_polygons_are_left_out(write, caplog):
    triangle, line, odd = [0, 0, 5, 0, 5, 5], [0, 0, 5, 5], [0, 0, 5, 0, 5, 5, 3]
    with caplog.at_level(logging.WARNING):
        _, five = load_coco_json(*write({"segmentation": [line, triangle, odd]}, {"segmentation": [line]}))
    assert [a["segmentation"] for a in five["annotations"]] == [[triangle]]
    assert "left out 1 annotations with no polygon of three points or more: 2" in caplog.text


def test_missing_files_are_named_with_the_remedy(write, tmp_path, monkeypatch, name):
    json_file, images = write({})
    monkeypatch.setenv("DETECTRON2_DATASETS", "/else/where")
    with pytest.raises(FileNotFoundError, match=f"'{name}'.*file .*y.json.*DETECTRON2_DATASETS.*/else/where"):
        load_coco_json(str(tmp_path / "y.json"), images, name)
    with pytest.raises(FileNotFoundError, match="folder .*nowhere.*DETECTRON2_DATASETS"):
        load_coco_json(json_file, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", [b"{'a': 1}", b"", b"\xff\xd8\xff\xe0"])
def test_not_json(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CocoFormatError, match="x.json is not JSON"):
        load_coco_json(str(tmp_path / "x.json"), str(tmp_path))


def test_invalid_coco(write):
    with pytest.raises(CocoFormatError, match="(?s)x.json.*2 problems.*annotation 1.*annotation 2"):
        load_coco_json(*write({"image_id": 6}, {"bbox": [1]}))


def test_register(write, name):
    json_file, images = write({})
    register_coco_instances(name, {"colour": 3}, json_file, images)
    register_coco_instances(name, {"colour": 3}, json_file, images)  # once more, the same
    metadata = MetadataCatalog.get(name)
    assert (metadata.json_file, metadata.image_root) == (json_file, images)
    assert (metadata.evaluator_type, metadata.colour) == ("coco", 3)
    assert not hasattr(metadata, "thing_classes")
    assert len(DatasetCatalog.get(name)) == 2
    assert metadata.thing_classes == ["dog", "cat"]
    with pytest.raises(AssertionError, match="json_file"):
        register_coco_instances(name, {}, "other.json", images)


def registered(name, dicts, **metadata):
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(**metadata)


def test_converted_dataset_reads_back(shared, name, tmp_path):
    folder = shared / "data" / "coco_tiny"
    register_coco_instances(name, {}, folder / "annotations" / "person_keypoints_val.json", folder / "images")
    original = DatasetCatalog.get(name)
    convert_to_coco_json(name, str(tmp_path / "new" / "x.json"))
    again = load_coco_json(str(tmp_path / "new" / "x.json"), "")
    assert [d["image_id"] for d in again] == [d["image_id"] for d in original]
    real = pycoco(folder / "annotations" / "person_keypoints_val.json")
    written = pycoco(tmp_path / "new" / "x.json")
    for a, b in zip(original, again, strict=True):
        assert a["file_name"] == b["file_name"]
        for x, y in zip(a["annotations"], b["annotations"], strict=True):
            np.testing.assert_allclose(x["bbox"], y["bbox"], atol=1e-3)
            assert x["keypoints"] == y["keypoints"] and x["segmentation"] == y["segmentation"]
            assert y["category_id"] == 1 and x["category_id"] == 0  # the ids of the file are restored

    def numbers(coco, image, key):  # of crowds COCO's own area is not that of their mask
        return sorted(a[key] for a in coco.imgToAnns[image] if not a["iscrowd"])

    for image in real.imgs:
        np.testing.assert_allclose(numbers(written, image, "area"), numbers(real, image, "area"), rtol=1e-5)
        assert numbers(written, image, "num_keypoints") == numbers(real, image, "num_keypoints")


def test_convert_box_modes_areas_and_rle(name):
    mask = np.zeros((10, 12), dtype=np.uint8, order="F")
    mask[2:5, 3:8] = 1
    annotations = [
        {"bbox": np.array([1.0, 2.0, 4.5, 6.0]), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
        {"bbox": [3, 2, 5, 3], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": True}
        | {"segmentation": mask_util.encode(mask)},
    ]
    registered(
        name,
        [{"file_name": "a", "width": 12, "height": 10, "annotations": annotations}],
        thing_classes=["p", "q"],
    )
    coco = json.loads(json.dumps(convert_to_coco_dict(name)))
    first, second = coco["annotations"]
    assert first["bbox"] == [1.0, 2.0, 3.5, 4.0] and first["area"] == 14.0 and first["category_id"] == 1
    assert second["area"] == 15.0 and second["iscrowd"] == 1 and second["image_id"] == coco["images"][0]["id"] == 0
    np.testing.assert_array_equal(mask_util.decode(second["segmentation"]), mask)
    assert [first["id"], second["id"]] == [1, 2]
    assert coco["categories"] == [{"id": 0, "name": "p"}, {"id": 1, "name": "q"}]


def test_convert_leaves_the_dataset_alone(name):
    annotation = {
        "bbox": [0, 0, 2, 2],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "keypoints": [1.5, 1.5, 2],
    }
    registered(name, [{"file_name": "a", "width": 9, "height": 9, "annotations": [annotation]}], thing_classes=["p"])
    for _ in range(2):
        assert convert_to_coco_dict(name)["annotations"][0]["keypoints"] == [1.0, 1.0, 2]


def test_converted_file_is_kept(name, tmp_path, caplog):
    registered(name, [], thing_classes=["p"])
    file = tmp_path / "x.json"
    file.write_text("kept")
    with caplog.at_level(logging.WARNING):
        convert_to_coco_json(name, str(file))
    assert file.read_text() == "kept" and "delete it" in caplog.text
    convert_to_coco_json(name, str(file), allow_cached=False)
    assert json.loads(file.read_text())["annotations"] == []


def test_an_interrupted_conversion_leaves_what_was_there(name, tmp_path, monkeypatch):
    registered(name, [], thing_classes=["p"])
    file = tmp_path / "x.json"
    file.write_text("as it was")

    def half(content, file):
        file.write("half")
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", half)
    with pytest.raises(OSError, match="disk full"):
        convert_to_coco_json(name, str(file), allow_cached=False)
    assert file.read_text() == "as it was" and {p.name for p in tmp_path.iterdir()} <= {"x.json", "x.json.lock"}


def test_builtin_names_and_places():
    for name, json_file, image_root in [
        ("coco_2017_train", "coco/annotations/instances_train2017.json", "coco/train2017"),
        ("coco_2017_val_100", "coco/annotations/instances_val2017_100.json", "coco/val2017"),
        ("coco_2014_minival", "coco/annotations/instances_minival2014.json", "coco/val2014"),
        ("coco_2017_test-dev", "coco/annotations/image_info_test-dev2017.json", "coco/test2017"),
        ("keypoints_coco_2017_val", "coco/annotations/person_keypoints_val2017.json", "coco/val2017"),
    ]:
        metadata = MetadataCatalog.get(name)
        assert name in DatasetCatalog.list() and metadata.evaluator_type == "coco"
        assert metadata.json_file.endswith(json_file) and metadata.image_root.endswith(image_root)
    for split in ("train", "val", "test"):
        metadata = MetadataCatalog.get(f"cityscapes_fine_instance_seg_{split}")
        assert metadata.evaluator_type == "cityscapes_instance" and len(metadata.thing_classes) == 8
        assert metadata.gt_dir.rstrip("/").endswith(f"cityscapes/gtFine/{split}")


def test_builtin_root_comes_from_the_environment(tmp_path):
    code = (
        "from projects_maskrcnn.embedded.data import MetadataCatalog as M;"
        "print(M.get('coco_2017_val').json_file, M.get('cityscapes_fine_instance_seg_val').image_dir)"
    )
    environment = os.environ | {"DETECTRON2_DATASETS": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.split() == [
        f"{tmp_path}/coco/annotations/instances_val2017.json",
        f"{tmp_path}/cityscapes/leftImg8bit/val",
    ]


def test_builtin_classes_are_cocos(shared):
    coco = pycoco(shared / "data" / "coco_tiny" / "annotations" / "instances_val.json")
    people = pycoco(shared / "data" / "coco_tiny" / "annotations" / "person_keypoints_val.json").cats[1]
    metadata = builtin_meta.builtin_metadata("coco")
    ids = sorted(coco.cats)
    assert metadata["thing_classes"] == [coco.cats[i]["name"] for i in ids]
    assert metadata["thing_dataset_id_to_contiguous_id"] == {i: n for n, i in enumerate(ids)}
    assert list(builtin_meta.COCO_PERSON_KEYPOINT_NAMES) == people["keypoints"]
    rules = {frozenset(rule[:2]) for rule in builtin_meta.KEYPOINT_CONNECTION_RULES}
    assert {name for rule in rules for name in rule} == set(people["keypoints"])


def test_builtin_colors_differ():
    colors = builtin_meta.builtin_metadata("coco")["thing_colors"]
    assert len({tuple(c) for c in colors}) == 80 and all(0 <= v <= 255 for c in colors for v in c)
    with pytest.raises(KeyError, match="lvis"):
        builtin_meta.builtin_metadata("lvis")
