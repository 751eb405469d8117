"""What must hold of a COCO annotation file, checked on the parsed JSON before any image is read."""

import functools
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

LISTED = 10
FARTHEST = 100_000
"""Pixels: no image is so large, and a polygon that far out takes more memory to draw than there is."""

# The fields without which training or evaluation fails, and what each should hold.
ANNOTATION_FIELDS = {
    "id": "a number that no other annotation has",
    "image_id": "the 'id' of its image",
    "category_id": "the 'id' of its category",
    "bbox": "[x, y, width, height] in pixels",
    "area": "the area of its mask (or of its box) in pixels",
    "iscrowd": "0 for an object, 1 for a region full of objects",
}
IMAGE_FIELDS = {
    "id": "a number that no other image has",
    "file_name": "its path below the image folder",
    "height": "its height in pixels",
    "width": "its width in pixels",
}
ID_FIELDS = ("id", "image_id", "category_id")
CATEGORY_FIELDS = {"id": "a number that no other category has", "name": "the name of the class"}


class CocoFormatError(ValueError):
    """An annotation file is not valid COCO; the message lists the first problems, by id."""


def check_coco(coco: dict, json_file: str) -> None:
    """Check a parsed COCO instance or keypoint file, in one pass over its annotations.

    Args:
        coco: the JSON's content.
        json_file: its path, for the message.

    Raises:
        CocoFormatError: it has problems: fields missing, ids repeated or unknown, a box that is not four
            finite numbers, a segmentation that is neither polygons nor an RLE of its image's size, keypoints
            that are not triples, ...
    """
    if not isinstance(coco, dict) or not {"images", "categories"} <= coco.keys():
        found = f"an object with {sorted(coco)}" if isinstance(coco, dict) else f"a {type(coco).__name__}"
        raise CocoFormatError(
            f"{json_file} is not a COCO annotation file: it holds {found}, and not an object with 'images', "
            "'annotations' and 'categories'"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco.get(key, []), list):
            raise CocoFormatError(f"{json_file}: {key!r} is a {type(coco[key]).__name__}, not a list of objects")
    if not coco["categories"]:
        raise CocoFormatError(f"{json_file} has no 'categories': name the classes, [{{'id': 1, 'name': ...}}, ...]")
    # COCO 2014's minival files are known to repeat annotation ids.
    unique_annotations = "minival" not in os.path.basename(json_file)
    problems = _problems(coco, unique_annotations)
    first = list(itertools.islice(problems, LISTED))
    if first:
        count = len(first) + sum(1 for _ in problems)
        heading = "1 problem" if count == 1 else f"{count} problems"
        raise CocoFormatError(
            f"{json_file} is not valid COCO, {heading}:\n  " + "\n  ".join(first) + "\n  ..." * (count > len(first))
        )


def boxes_without_area(coco: dict) -> list:
    """The ids of the annotations whose box has no positive width and height, of a file that `check_coco` passed."""
    return [a["id"] for a in coco.get("annotations", []) if not (a["bbox"][2] > 0 and a["bbox"][3] > 0)]


def _problems(coco: dict, unique_annotations: bool) -> Iterator[str]:
    unusable = list(
        itertools.chain(
            _entry_problems("image", coco["images"], IMAGE_FIELDS, _image_problems),
            _entry_problems("category", coco["categories"], CATEGORY_FIELDS, _category_problems),
        )
    )
    yield from unusable
    if unusable:
        return  # without images and categories, each annotation would be reported
    yield from _repeated("image", coco["images"])
    yield from _repeated("category", coco["categories"])
    sizes = {image["id"]: [image["height"], image["width"]] for image in coco["images"]}
    keypoints = {category["id"]: category.get("keypoints") for category in coco["categories"]}
    check = functools.partial(_annotation_problems, sizes=sizes, keypoints=keypoints)
    yield from _entry_problems("annotation", coco.get("annotations", []), ANNOTATION_FIELDS, check)
    if unique_annotations:
        yield from _repeated("annotation", coco.get("annotations", []))


def _entry_problems(
    kind: str, entries: list, fields: dict[str, str], problems: Callable[[dict], Iterable[str]]
) -> Iterator[str]:
    """What is wrong with each entry's fields and ids, or else what `problems` says of it."""
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            yield f"{kind} number {number} of the list is a {type(entry).__name__}, not an object"
            continue
        name = f"{kind} {entry['id']}" if "id" in entry else f"{kind} number {number} of the list"
        if not fields.keys() <= entry.keys():
            lacking = [f"'{field}' ({meaning})" for field, meaning in fields.items() if field not in entry]
            yield f"{name} lacks {', '.join(lacking)}: add it"
            continue
        strange = [i for i in ID_FIELDS if i in entry and not isinstance(entry[i], int | float | str)]
        if strange:
            yield from (f"{name}: {field!r} is {entry[field]!r}, not {fields[field]}" for field in strange)
        else:
            yield from (f"{name}: {problem}" for problem in problems(entry))


def _repeated(kind: str, entries: list) -> Iterator[str]:
    ids = [
        entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), int | float | str)
    ]
    if len({isinstance(i, str) for i in ids}) > 1:
        yield f"{kind} ids are numbers and text: make them all numbers"
    if len(set(ids)) < len(ids):
        yield from (f"{kind} id {i} is used {count} times" for i, count in Counter(ids).items() if count > 1)


def _image_problems(image: dict) -> Iterator[str]:
    if not image["file_name"] or not isinstance(image["file_name"], str):
        yield f"'file_name' is {image['file_name']!r}, not {IMAGE_FIELDS['file_name']}"
    for side in ("height", "width"):
        if not isinstance(image[side], int) or image[side] <= 0:
            yield f"{side!r} is {image[side]!r}, not a whole number of pixels"


def _category_problems(category: dict) -> Iterator[str]:
    if not isinstance(category["name"], str):
        yield f"'name' is {category['name']!r}, not {CATEGORY_FIELDS['name']}"
    names = category.get("keypoints") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        yield f"'keypoints' is {names!r}, not a list of their names"


def _annotation_problems(anno: dict, sizes: dict, keypoints: dict) -> Iterator[str]:
    size = sizes.get(anno["image_id"])
    if size is None:
        yield f"image_id {anno['image_id']!r} is the id of none of the images"
    if anno["category_id"] not in keypoints:
        yield f"category_id {anno['category_id']!r} is the id of none of the categories"
    if anno.get("ignore"):
        yield "'ignore' is not supported: set 'iscrowd' to 1, or remove the annotation"
    if anno["iscrowd"] not in (0, 1):
        yield f"'iscrowd' is {anno['iscrowd']!r}, not {ANNOTATION_FIELDS['iscrowd']}"
    if not (isinstance(anno["area"], int | float) and 0 <= anno["area"] < math.inf):
        yield f"'area' is {anno['area']!r}, not {ANNOTATION_FIELDS['area']}"
    if not _are_pixels(anno["bbox"]) or len(anno["bbox"]) != 4:
        yield f"bbox {anno['bbox']!r} is not [x, y, width, height] in pixels"
    yield from _keypoint_problems(anno, keypoints.get(anno["category_id"]))
    segmentation = anno.get("segmentation")
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) for polygon in segmentation):
            yield "segmentation is a list, but not of polygons [[x0, y0, x1, y1, x2, y2, ...], ...]"
        elif not all(map(_are_pixels, segmentation)):
            yield "segmentation has a polygon that is not of numbers [x0, y0, x1, y1, x2, y2, ...] in pixels"
    elif isinstance(segmentation, dict):
        yield from _rle_problems(segmentation, size)
    elif segmentation is not None:
        yield (
            f"segmentation is a {type(segmentation).__name__}, neither polygons [[x0, y0, x1, y1, ...], ...] "
            "nor an RLE {'size': [height, width], 'counts': ...}"
        )


def _are_pixels(values: Any) -> bool:
    """Whether `values` is a list, maybe an empty one, of numbers that can be coordinates."""
    if not values:
        return isinstance(values, list)
    try:
        # A NaN may pass as the least and the greatest, but not as the sum.
        return min(values) > -FARTHEST and max(values) < FARTHEST and not math.isnan(sum(values))
    except TypeError:  # no list, or not of numbers
        return False


def _keypoint_problems(anno: dict, names: list[str] | None) -> Iterator[str]:
    keypoints = anno.get("keypoints")
    if not keypoints:
        return
    if not _are_pixels(keypoints):
        yield "'keypoints' are not numbers x, y, visibility, x, y, visibility, ..."
    elif len(keypoints) % 3:
        yield f"{len(keypoints)} numbers in 'keypoints' are not triples x, y, visibility"
    elif names and len(keypoints) != 3 * len(names):
        yield f"{len(keypoints) // 3} keypoints, but its category has {len(names)}: unknown ones are 0, 0, 0"


def _rle_problems(rle: dict, size: list | None) -> Iterator[str]:
    if not {"size", "counts"} <= rle.keys() or not isinstance(rle["counts"], str | list):
        yield "segmentation is an object, but not an RLE {'size': [height, width], 'counts': ...}"
    elif size is not None and rle["size"] != size:
        yield f"segmentation is an RLE of height and width {rle['size']}, its image has {size}"
    elif size is not None:
        counts = rle["counts"] if isinstance(rle["counts"], list) else decompressed(rle["counts"])
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            yield "the counts of its RLE are not numbers of pixels, nor such numbers compressed by pycocotools"
        elif sum(counts) != math.prod(size):
            yield f"the counts of its RLE sum to {sum(counts)}, not to the {math.prod(size)} pixels it has"


def decompressed(counts: str) -> list[int]:
    """The counts that pycocotools compressed into a string; [-1] where it did not make the string.

    A number is written in base 32, lowest digit first, digits as characters from "0" on, 32 more where another one
    follows; 16 in the last digit makes it negative. From the fourth on, numbers are differences to the one two before.
    """
    numbers, value, bits = [], 0, 0
    for character in counts.encode():
        digit = character - ord("0")
        if not 0 <= digit < 64:
            return [-1]
        value |= digit % 32 << bits
        bits += 5
        if digit < 32:
            if digit & 16:
                value -= 1 << bits
            numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
            value = bits = 0
    return [-1] if bits else numbers
