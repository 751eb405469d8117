"""What the check of a COCO file accepts, and what it says of the rest."""

import copy

import numpy as np
import pycocotools.mask as mask_util
import pytest

from projects_maskrcnn.coco_check import (
    CocoFormatError,
    boxes_without_area,
    check_coco,
    decompressed,
)


@pytest.fixture
def coco():
    """A valid file with one of everything."""
    box = {"bbox": [1, 2, 3.5, 4], "area": 14.0}
    polygon = [[1, 2, 4.5, 2, 4.5, 6]]
    rle = {"size": [20, 30], "counts": [100, 20, 480]}
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 20, "width": 30}],
        "categories": [{"id": 3, "name": "cat", "keypoints": ["nose", "tail"]}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, **box, "segmentation": polygon},
            {"id": 2, "image_id": 7, "category_id": 3, "iscrowd": 1, **box, "segmentation": rle},
            {"id": 3, "image_id": 7, "category_id": 3, "iscrowd": 0, **box, "keypoints": [1, 2, 2, 0, 0, 0]},
            {
                "id": 4,
                "image_id": 7,
                "category_id": 3,
                "iscrowd": 0,
                **box,
                "segmentation": [],
                "keypoints": [],
            },
        ],
    }


def test_valid_files(coco):
    check_coco(coco, "x.json")
    mask = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (20, 30)), np.uint8)
    for compressed in mask_util.encode(mask), mask_util.encode(np.zeros_like(mask)), mask_util.encode(mask * 0 + 1):
        counts = compressed["counts"].decode()
        coco["annotations"][0]["segmentation"] = {"size": [20, 30], "counts": counts}
        check_coco(coco, "x.json")
    check_coco(coco, "x.json")
    del coco["annotations"]  # COCO's test sets
    check_coco(coco, "x.json")
    assert boxes_without_area(coco) == []


@pytest.mark.parametrize("first", [0, 1])
def test_counts_as_pycocotools_compresses_them(first):
    pixels = np.random.default_rng(0).random((40, 50)) < 0.1
    pixels[:, 20:30], pixels[0, 0] = True, first  # a long run, and two beginnings
    column_wise = np.concatenate([[False], pixels.T.reshape(-1)])
    edges = np.flatnonzero(np.diff(column_wise))
    expected = np.diff(np.concatenate([[0], edges, [pixels.size]])).tolist()
    counts = mask_util.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode()
    assert decompressed(counts) == expected and (expected[0] == 0) == first


@pytest.mark.parametrize(
    "field, value", [("area", 0), ("bbox", [99_999, 99_999, 0, 0]), ("segmentation", [[50_000, 2, 99_999, 2, 4, 6]])]
)
def test_what_is_unusual_but_valid(coco, field, value):
    coco["annotations"][0][field] = value
    check_coco(coco, "x.json")


@pytest.mark.parametrize(
    "where, field, value, message",
    [
        (0, "bbox", None, r"annotation 1 lacks 'bbox' \(\[x, y, width, height\]"),
        (1, "category_id", None, "annotation 2 lacks 'category_id'"),
        (0, "iscrowd", None, r"annotation 1 lacks 'iscrowd' \(0 for an object.*add it"),
        (0, "area", None, "annotation 1 lacks 'area'.*pixels.*add it"),
        (2, "image_id", None, "annotation 3 lacks 'image_id'"),
        (2, "id", None, "annotation number 2 of the list lacks 'id'"),
        (0, "image_id", 8, "annotation 1: image_id 8 is the id of none of the images"),
        (0, "category_id", "3", "annotation 1: category_id '3' is the id of none of the categories"),
        (3, "id", 1, "annotation id 1 is used 2 times"),
        (0, "ignore", 1, "annotation 1: 'ignore' is not supported: set 'iscrowd' to 1"),
        (0, "bbox", [1, 2, 3], r"annotation 1: bbox \[1, 2, 3\] is not"),
        (0, "bbox", [], "annotation 1: bbox"),
        (0, "bbox", [1, 2, "3", 4], "annotation 1: bbox"),
        (0, "bbox", [1, 2, float("nan"), 4], "annotation 1: bbox"),
        (0, "bbox", [1, float("inf"), 3, 4], "annotation 1: bbox"),
        (0, "bbox", 5, "annotation 1: bbox"),
        (0, "bbox", [-100_000, 0, 1, 1], "annotation 1: bbox"),
        (0, "bbox", 0, "annotation 1: bbox"),
        (0, "bbox", [0, 0, 10**400, 1], "annotation 1: bbox"),
        (0, "area", float("nan"), "annotation 1: 'area' is nan, not the area"),
        (0, "area", "14", "annotation 1: 'area' is '14', not the area"),
        (0, "iscrowd", 2, "annotation 1: 'iscrowd' is 2, not 0 for an object"),
        (0, "iscrowd", "no", "annotation 1: 'iscrowd' is 'no', not 0 for an object"),
        (0, "image_id", [7], r"annotation 1: 'image_id' is \[7\], not the 'id' of its image"),
        (0, "category_id", {}, "annotation 1: 'category_id' is {}, not the 'id' of its category"),
        (0, "segmentation", [[1, 2, float("nan"), 2, 4, 6]], "annotation 1: segmentation has a polygon"),
        (0, "segmentation", [[1, 2, 1e30, 2, 4, 6]], "annotation 1: segmentation has a polygon"),
        (0, "segmentation", [["1", "2", "4", "2", "4", "6"]], "annotation 1: segmentation has a polygon"),
        (0, "segmentation", [[[1, 2], [4, 2], [4, 6]]], "annotation 1: segmentation has a polygon"),
        (1, "segmentation", {"size": [20, 30], "counts": "1"}, "annotation 2: .*sum to 1, not to the 600"),
        (1, "segmentation", {"size": [20, 30], "counts": ""}, "annotation 2: .*sum to 0, not to the 600"),
        (1, "segmentation", {"size": [20, 30], "counts": "zz~~"}, "annotation 2: .*compressed by pycocotools"),
        (1, "segmentation", {"size": [20, 30], "counts": "P"}, "annotation 2: .*compressed by pycocotools"),
        (1, "segmentation", {"size": [20, 30], "counts": "\u2603"}, "annotation 2: .*compressed by pycocotools"),
        (1, "segmentation", {"size": [20, 30], "counts": [-5, 605]}, "annotation 2: .*not numbers of pixels"),
        (1, "segmentation", {"size": [20, 30], "counts": [1.5, 598.5]}, "annotation 2: .*not numbers of pixels"),
        (1, "segmentation", {"size": [20, 30], "counts": ["600"]}, "annotation 2: .*not numbers of pixels"),
        (2, "keypoints", "abc", "annotation 3: 'keypoints' are not numbers"),
        (2, "keypoints", [None, 1, 2], "annotation 3: 'keypoints' are not numbers"),
        (2, "keypoints", [float("nan"), 1, 2], "annotation 3: 'keypoints' are not numbers"),
        (2, "keypoints", [1, 1, 2], "annotation 3: 1 keypoints, but its category has 2"),
        (0, "segmentation", [1, 2, 3, 4, 5, 6], "annotation 1: segmentation is a list, but not of polygons"),
        (0, "segmentation", "mask.png", "annotation 1: segmentation is a str, neither polygons.*nor an RLE"),
        (0, "segmentation", {"counts": "abc"}, "annotation 1: segmentation is an object, but not an RLE"),
        (0, "segmentation", {"size": [20, 30], "counts": 7}, "annotation 1: .*not an RLE"),
        (
            1,
            "segmentation",
            {"size": [30, 20], "counts": "a"},
            r"annotation 2: .*\[30, 20\], its image has \[20, 30\]",
        ),
        (
            1,
            "segmentation",
            {"size": [20, 30], "counts": [7, 8]},
            "annotation 2: .*sum to 15, not to the 600",
        ),
        (2, "keypoints", [1, 2, 2, 5], "annotation 3: 4 numbers in 'keypoints'"),
    ],
)
def test_problem_of_an_annotation(coco, where, field, value, message):
    anno = coco["annotations"][where]
    if value is None:
        del anno[field]
    else:
        anno[field] = value
    with pytest.raises(CocoFormatError, match=f"(?s)some/x.json is not valid COCO, 1 problem:.*{message}"):
        check_coco(coco, "some/x.json")


@pytest.mark.parametrize(
    "entries, change, message",
    [
        ("images", lambda i: i.pop("width"), "image 7 lacks 'width'"),
        ("images", lambda i: i.pop("id"), "image number 0 of the list lacks 'id'"),
        ("categories", lambda c: c.pop("name"), "category 3 lacks 'name'"),
        ("images", lambda i: i.update(width=0), "image 7: 'width' is 0, not a whole number of pixels"),
        ("images", lambda i: i.update(height="20"), "image 7: 'height' is '20', not a whole number of pixels"),
        ("images", lambda i: i.update(file_name=None), "image 7: 'file_name' is None, not its path"),
        ("images", lambda i: i.update(id=[1]), r"image \[1\]: 'id' is \[1\], not a number that no other image has"),
        ("categories", lambda c: c.update(name=5), "category 3: 'name' is 5, not the name of the class"),
        ("categories", lambda c: c.update(keypoints=5), "category 3: 'keypoints' is 5, not a list of their names"),
    ],
)
def test_problem_of_images_and_categories(coco, entries, change, message):
    change(coco[entries][0])
    with pytest.raises(CocoFormatError, match=f"1 problem:\n  {message}"):
        check_coco(coco, "x.json")


def test_repeated_images_and_categories(coco):
    coco["images"] *= 2
    coco["categories"] *= 3
    with pytest.raises(CocoFormatError, match="(?s)2 problems.*image id 7 is used 2 .*category id 3 is used 3"):
        check_coco(coco, "x.json")


def test_ids_of_numbers_and_text(coco):
    coco["images"].append({**coco["images"][0], "id": "seven"})
    with pytest.raises(CocoFormatError, match="1 problem:\n  image ids are numbers and text"):
        check_coco(coco, "x.json")


def test_minival_may_repeat_annotation_ids(coco):
    coco["annotations"][1]["id"] = 1
    check_coco(coco, "annotations/instances_minival2014.json")
    with pytest.raises(CocoFormatError):
        check_coco(coco, "minival/instances.json")


@pytest.mark.parametrize(
    "content, found",
    [
        ([{"image_id": 1, "bbox": [], "score": 1.0}], "a list"),
        ({"info": {}, "images": []}, r"an object with \['images', 'info'\]"),
        ("text", "a str"),
    ],
)
def test_not_coco_at_all(content, found):
    with pytest.raises(CocoFormatError, match=f"results.json is not a COCO annotation file: it holds {found}"):
        check_coco(content, "results.json")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_lists_that_are_none(coco, key):
    coco[key] = None
    with pytest.raises(CocoFormatError, match=f"x.json: '{key}' is a NoneType, not a list of objects"):
        check_coco(coco, "x.json")


def test_no_categories(coco):
    coco["categories"] = []
    with pytest.raises(CocoFormatError, match="x.json has no 'categories': name the classes"):
        check_coco(coco, "x.json")


def test_entries_that_are_no_objects(coco):
    coco["annotations"][1] = 5
    with pytest.raises(CocoFormatError, match="annotation number 1 of the list is a int"):
        check_coco(coco, "x.json")


def test_first_ten_of_many_problems(coco):
    anno = coco["annotations"][0]
    coco["annotations"] = [copy.deepcopy(anno) | {"id": i, "category_id": 9} for i in range(25)]
    with pytest.raises(CocoFormatError, match="25 problems") as error:
        check_coco(coco, "x.json")
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines[:10]] == [f"  annotation {i}" for i in range(10)]
    assert lines[10:] == ["  ..."]


@pytest.mark.parametrize("w, h, flat", [(0, 3, True), (3, 0, True), (-1, 3, True), (3, -2, True), (0.1, 0.1, False)])
def test_boxes_without_area(coco, w, h, flat):
    coco["annotations"][2]["bbox"] = [1, 1, w, h]
    check_coco(coco, "x.json")
    assert boxes_without_area(coco) == ([3] if flat else [])
