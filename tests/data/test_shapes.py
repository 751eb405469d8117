"""The default dataset: its files agree with each other, and are the same every time."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api

from projects_maskrcnn.data import shapes

NUM_TRAIN, NUM_VAL = 210, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(path, NUM_TRAIN, NUM_VAL)
    return path


def read(folder, kind, split="train"):
    return json.loads((folder / "annotations" / f"{kind}_{split}.json").read_text())


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_bytes_every_time_and_others_for_another_seed(folder, tmp_path):
    shapes.generate(tmp_path / "again", NUM_TRAIN, NUM_VAL)
    shapes.generate(tmp_path / "other", NUM_TRAIN, NUM_VAL, seed=1)
    first, again, other = contents(folder), contents(tmp_path / "again"), contents(tmp_path / "other")
    assert first == again
    assert first.keys() == other.keys()
    images = [name for name in first if name.suffix == ".png"]
    assert len(images) == NUM_TRAIN + NUM_VAL
    assert not any(first[name] == other[name] for name in images)


def test_boxes_and_areas_are_those_of_the_masks(folder):
    content = read(folder, "instances")
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    assert len(content["annotations"]) > NUM_TRAIN
    for annotation in content["annotations"]:
        rle = annotation["segmentation"]
        mask = mask_api.decode({**rle, "counts": rle["counts"].encode()})
        assert mask.shape == sizes[annotation["image_id"]]
        rows, columns = np.nonzero(mask)
        x, y = columns.min(), rows.min()
        assert annotation["bbox"] == [x, y, columns.max() - x + 1, rows.max() - y + 1]
        assert annotation["area"] == mask.sum() >= 12 * (not annotation["iscrowd"])


def test_what_hides_an_object_is_not_the_object(folder):
    seen = {}
    for annotation in read(folder, "instances")["annotations"]:
        rle = annotation["segmentation"]
        mask = mask_api.decode({**rle, "counts": rle["counts"].encode()}).astype(int)
        seen[annotation["image_id"]] = seen.get(annotation["image_id"], 0) + mask
    assert max(total.max() for total in seen.values()) == 1


def test_scenes_have_all_that_coco_has(folder):
    content = read(folder, "instances")
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert tuple(names.values()) == shapes.CLASSES
    assert {names[a["category_id"]] for a in content["annotations"]} == set(shapes.CLASSES)
    assert any(a["iscrowd"] for a in content["annotations"])
    assert len({a["image_id"] for a in content["annotations"]}) < NUM_TRAIN  # some are empty
    areas = [a["area"] for a in content["annotations"]]
    assert min(areas) < 150 and max(areas) > 2500
    assert any(a["bbox"][0] == 0 for a in content["annotations"])  # cut by the border


def test_rings_have_holes(folder):
    content = read(folder, "instances")
    ring = shapes.CLASSES.index("ring") + 1
    holes = 0
    for annotation in (a for a in content["annotations"] if a["category_id"] == ring and not a["iscrowd"]):
        rle = annotation["segmentation"]
        mask = mask_api.decode({**rle, "counts": rle["counts"].encode()})
        _, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        holes += (hierarchy[0, :, 3] >= 0).any()
    assert holes > 5


def test_keypoints_belong_to_figures_that_the_instances_have_too(folder):
    instances, keypoints = read(folder, "instances"), read(folder, "keypoints")
    (category,) = keypoints["categories"]
    assert category["name"] == "figure" and tuple(category["keypoints"]) == shapes.KEYPOINTS
    same = {a["id"]: a for a in instances["annotations"]}
    visibilities = set()
    for annotation in keypoints["annotations"]:
        assert same[annotation["id"]]["category_id"] == shapes.FIGURE + 1
        assert same[annotation["id"]]["segmentation"] == annotation["segmentation"]
        assert all(isinstance(v, int) for v in annotation["keypoints"])
        points = np.array(annotation["keypoints"]).reshape(-1, 3)
        assert annotation["num_keypoints"] == (points[:, 2] > 0).sum()
        assert (points[points[:, 2] == 0] == 0).all()
        assert (points[:, :2] >= 0).all() and (points[:, :2] < shapes.SIZE).all()
        visibilities |= set(points[:, 2])
        mask = mask_api.decode({**annotation["segmentation"], "counts": annotation["segmentation"]["counts"].encode()})
        near = cv2.dilate(mask, np.ones((3, 3), np.uint8))
        for x, y, visibility in points:
            if visibility == 2:
                assert near[int(y), int(x)]
    assert visibilities == {0, 1, 2}


def test_flips_are_known_keypoints():
    assert {name for pair in (*shapes.FLIP_MAP, *shapes.SKELETON) for name in pair} == set(shapes.KEYPOINTS)


def test_a_complete_dataset_is_left_alone_and_another_version_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "shapes"
    shapes.generate(folder, 2, 1)
    extra = folder / "mine.txt"
    extra.touch()
    shapes.generate(folder, 2, 1)
    assert extra.exists()
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    shapes.generate(folder, 2, 1)
    assert not extra.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"shapes", ".shapes.lock"}


def test_a_dataset_of_another_size_serves_too(tmp_path):
    folder = tmp_path / "shapes"
    shapes.generate(folder, 2, 1, seed=5)
    before = contents(folder)
    shapes.ensure(folder)
    assert contents(folder) == before


def test_what_is_no_dataset_of_shapes_is_not_replaced(tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=f"{tmp_path}.*complete.json.*another folder"):
        shapes.generate(tmp_path, 2, 1)
    monkeypatch.setattr(sys, "argv", ["shapes", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as error:
        shapes.main()
    assert error.value.code == 1 and "another folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_of_several_callers_one_draws(tmp_path, monkeypatch):
    splits, write_split = [], shapes.write_split

    def slow_write_split(folder, split, *arguments):
        splits.append(split)
        time.sleep(0.1)  # the others arrive meanwhile
        write_split(folder, split, *arguments)

    monkeypatch.setattr(shapes, "write_split", slow_write_split)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: shapes.generate(tmp_path / "shapes", 2, 1), range(4)))
    assert splits == ["train", "val"]


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder, *arguments):
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "write_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.generate(tmp_path / "shapes", 2, 1)
    assert [p.name for p in tmp_path.iterdir()] == [".shapes.lock"]
