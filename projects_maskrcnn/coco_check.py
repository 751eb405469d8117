"""What must hold of a COCO annotation file, checked on the parsed JSON before any image is read."""

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator

__all__ = ["CocoFormatError", "boxes_without_area", "check_coco"]

LISTED = 10

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
            "'annotations' and 'categories'."
        )
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
    annotations = coco.get("annotations", [])
    incomplete = list(
        itertools.chain(
            _missing("image", coco["images"], IMAGE_FIELDS),
            _missing("category", coco["categories"], CATEGORY_FIELDS),
        )
    )
    yield from incomplete
    if incomplete:
        return  # without images and categories, each annotation would be reported
    yield from _repeated("image", coco["images"])
    yield from _repeated("category", coco["categories"])
    sizes = {image["id"]: [image["height"], image["width"]] for image in coco["images"]}
    categories = {category["id"] for category in coco["categories"]}
    complete = []
    for number, anno in enumerate(annotations):
        if isinstance(anno, dict) and ANNOTATION_FIELDS.keys() <= anno.keys():
            complete.append(anno)
            for problem in _annotation_problems(anno, sizes, categories):
                yield f"annotation {anno['id']}: {problem}"
        else:
            yield from _missing("annotation", [anno], ANNOTATION_FIELDS, number)
    if unique_annotations:
        yield from _repeated("annotation", complete)


def _missing(kind: str, entries: list, fields: dict[str, str], first_number: int = 0) -> Iterator[str]:
    for number, entry in enumerate(entries, first_number):
        if not isinstance(entry, dict):
            yield f"{kind} number {number} of the list is a {type(entry).__name__}, not an object"
        elif not fields.keys() <= entry.keys():
            name = f"{kind} {entry['id']}" if "id" in entry else f"{kind} number {number} of the list"
            lacking = [f"'{field}' ({meaning})" for field, meaning in fields.items() if field not in entry]
            yield f"{name} lacks {', '.join(lacking)}: add it"


def _repeated(kind: str, entries: list[dict]) -> Iterator[str]:
    if len({entry["id"] for entry in entries}) < len(entries):
        counts = Counter(entry["id"] for entry in entries)
        yield from (f"{kind} id {i} is used {count} times" for i, count in counts.items() if count > 1)


def _annotation_problems(anno: dict, sizes: dict, categories: set) -> Iterator[str]:
    size = sizes.get(anno["image_id"])
    if size is None:
        yield f"image_id {anno['image_id']!r} is the id of none of the images"
    if anno["category_id"] not in categories:
        yield f"category_id {anno['category_id']!r} is the id of none of the categories"
    if anno.get("ignore"):
        yield "'ignore' is not supported: set 'iscrowd' to 1, or remove the annotation"
    try:
        x, y, w, h = anno["bbox"]
        finite = math.isfinite(x + y + w + h)
    except (TypeError, ValueError):
        finite = False
    if not finite:
        yield f"bbox {anno['bbox']!r} is not [x, y, width, height] in pixels"
    keypoints = anno.get("keypoints")
    if keypoints and len(keypoints) % 3:
        yield f"{len(keypoints)} numbers in 'keypoints' are not triples x, y, visibility"
    segmentation = anno.get("segmentation")
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) for polygon in segmentation):
            yield "segmentation is a list, but not of polygons [[x0, y0, x1, y1, x2, y2, ...], ...]"
    elif isinstance(segmentation, dict):
        yield from _rle_problems(segmentation, size)
    elif segmentation is not None:
        yield (
            f"segmentation is a {type(segmentation).__name__}, neither polygons [[x0, y0, x1, y1, ...], ...] "
            "nor an RLE {'size': [height, width], 'counts': ...}"
        )


def _rle_problems(rle: dict, size: list | None) -> Iterator[str]:
    if not {"size", "counts"} <= rle.keys() or not isinstance(rle["counts"], str | list):
        yield "segmentation is an object, but not an RLE {'size': [height, width], 'counts': ...}"
    elif size is not None and rle["size"] != size:
        yield f"segmentation is an RLE of height and width {rle['size']}, its image has {size}"
    elif isinstance(rle["counts"], list) and sum(rle["counts"]) != math.prod(rle["size"]):
        yield f"the counts of its RLE sum to {sum(rle['counts'])}, not to the {math.prod(rle['size'])} pixels it has"
