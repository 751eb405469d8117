"""The default dataset: scenes of shapes on textured grounds, drawn by rule, in COCO's format.

    python -m projects_maskrcnn.data.shapes --output datasets/shapes

Six classes: discs, squares, triangles, stars (concave), rings (with a hole), and stick figures with keypoints. Shapes
hide each other and are cut by the border; a few scenes are empty, a few have a crowd. Equal arguments give equal files.

COCO's sigmas are those of its 17 keypoints; for these six, `shapes_keypoints_*` is evaluated with
`TEST.KEYPOINT_OKS_SIGMAS: [0.05, 0.08, 0.06, 0.06, 0.06, 0.06]`.
"""

import argparse
import json
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from iopath.common.file_io import file_lock
from numpy.random import Generator
from pycocotools import mask as mask_api

logger = logging.getLogger(__name__)

VERSION = 2
"""Changes when the same arguments would give other files."""

MARKER = "complete.json"
"""File of a finished dataset that holds its version, sizes and seed."""

SIZE = 128
CLASSES = ("disc", "square", "triangle", "star", "ring", "figure")
FIGURE = CLASSES.index("figure")
KEYPOINTS = ("head", "hip", "left_hand", "right_hand", "left_foot", "right_foot")
FLIP_MAP = (("left_hand", "right_hand"), ("left_foot", "right_foot"))
SKELETON = (
    ("head", "hip"),
    ("head", "left_hand"),
    ("head", "right_hand"),
    ("hip", "left_foot"),
    ("hip", "right_foot"),
)

_SHIFT = 4  # fillPoly takes coordinates in 1/16 pixels
_SMALLEST, _LARGEST = 14, 96  # diameter in pixels
_MIN_VISIBLE_SHARE, _MIN_VISIBLE_PIXELS = 0.2, 12
_EMPTY_SHARE, _CROWD_SHARE = 0.03, 0.04


def _polygon(mask: np.ndarray, points: np.ndarray, value: int = 1) -> None:
    # the outermost 1/16 of a pixel on either side does not matter: cell centres are at whole coordinates
    fixed = np.round((points - 0.5) * 2**_SHIFT).astype(np.int32)
    cv2.fillPoly(mask, [fixed], value, lineType=cv2.LINE_8, shift=_SHIFT)


def _regular(corners: int, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    turns = angle + 2 * np.pi * np.arange(corners) / corners
    return centre + radius * np.stack([np.cos(turns), np.sin(turns)], 1)


def _draw_disc(mask: np.ndarray, centre: np.ndarray, radius: float, angle: float, rng: Generator) -> None:
    squeeze = np.array([1.0, rng.uniform(0.75, 1.0)])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    _polygon(mask, centre + (_regular(48, np.zeros(2), radius, 0) * squeeze) @ turn.T)


def _draw_square(mask: np.ndarray, centre: np.ndarray, radius: float, angle: float, rng: Generator) -> None:
    _polygon(mask, _regular(4, centre, radius, angle))


def _draw_triangle(mask: np.ndarray, centre: np.ndarray, radius: float, angle: float, rng: Generator) -> None:
    _polygon(mask, _regular(3, centre, radius, angle))


def _draw_star(mask: np.ndarray, centre: np.ndarray, radius: float, angle: float, rng: Generator) -> None:
    inner = radius * rng.uniform(0.38, 0.5)
    points = np.empty((10, 2))
    points[0::2] = _regular(5, centre, radius, angle)
    points[1::2] = _regular(5, centre, inner, angle + np.pi / 5)
    _polygon(mask, points)


def _draw_ring(mask: np.ndarray, centre: np.ndarray, radius: float, angle: float, rng: Generator) -> None:
    _polygon(mask, _regular(48, centre, radius, angle))
    _polygon(mask, _regular(48, centre, radius * rng.uniform(0.45, 0.6), angle), value=0)


def _draw_figure(mask: np.ndarray, centre: np.ndarray, radius: float, angle: float, rng: Generator) -> np.ndarray:
    """As the others; returns the (6, 2) keypoints. The figure faces us: its left hand is on our right."""
    lean = (angle / np.pi - 1) * 0.6  # upright within 35 degrees, so that left and right can be told
    arms, legs = rng.uniform(-0.5, 0.9, 2), rng.uniform(0.2, 0.65, 2)
    head, neck, hip = np.array([0, -0.78]), np.array([0, -0.5]), np.array([0, 0.15])
    hands = [neck + 0.62 * np.array([side * math.cos(a), math.sin(a)]) for side, a in zip((1, -1), arms, strict=True)]
    feet = [hip + 0.85 * np.array([side * math.sin(a), math.cos(a)]) for side, a in zip((1, -1), legs, strict=True)]
    turn = np.array([[math.cos(lean), -math.sin(lean)], [math.sin(lean), math.cos(lean)]])

    def place(point: np.ndarray) -> np.ndarray:
        return centre + radius * (turn @ point)

    def limb(start: np.ndarray, end: np.ndarray, width: float) -> None:
        start, end = place(start), place(end)
        along = (end - start) / max(np.linalg.norm(end - start), 1e-6)
        side = np.array([-along[1], along[0]]) * max(width * radius, 1.0)
        start, end = start - along * 0.5, end + along * 0.5
        _polygon(mask, np.stack([start - side, start + side, end + side, end - side]))

    limb(neck, hip, 0.17)
    for hand in hands:
        limb(neck, hand, 0.1)
    for foot in feet:
        limb(hip, foot, 0.12)
    _polygon(mask, _regular(32, place(head), max(0.24 * radius, 1.5), 0))
    return np.stack([place(point) for point in (head, hip, *hands, *feet)])


_DRAW: dict[str, Callable] = {
    "disc": _draw_disc,
    "square": _draw_square,
    "triangle": _draw_triangle,
    "star": _draw_star,
    "ring": _draw_ring,
    "figure": _draw_figure,
}


def _texture(shape: tuple[int, int], colour: np.ndarray, rng: Generator) -> np.ndarray:
    """(height, width, 3) float32 around `colour`: waves, blotches or stripes, and grain."""
    height, width = shape
    blotches = rng.integers(-128, 128, (rng.integers(3, 9), rng.integers(3, 9))).astype(np.float32)
    pattern = cv2.resize(blotches, (width, height), interpolation=cv2.INTER_LINEAR) / 128
    if rng.random() < 0.3:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 16)
        pattern = pattern / 2 + np.sign(np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)) / 2
    grain = rng.integers(-10, 11, (height, width, 1))
    return (colour + pattern[..., None] * rng.uniform(8, 28) + grain).astype(np.float32)


def _colours(rng: Generator) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
    """The ground's colour, and a source of objects' colours that stand out from it a little."""
    ground = rng.uniform(40, 215, 3)

    def colour() -> np.ndarray:
        while True:
            candidate = rng.uniform(20, 235, 3)
            if np.abs(candidate - ground).max() > 50:
                return candidate

    return ground, colour


def draw_scene(rng: Generator) -> tuple[np.ndarray, list[dict]]:
    """One scene: its image (height, width, 3), BGR uint8, and its objects.

    Returns:
        image, and for each object `category` (index into `CLASSES`), `mask` (height, width) uint8 of what is seen of
        it, `iscrowd`, and for figures `keypoints` (6, 3) int, COCO's column, row and visibility.
    """
    height = width = SIZE
    ground, colour = _colours(rng)
    image = _texture((height, width), ground, rng)
    owner = np.full((height, width), -1, np.int32)
    objects: list[dict] = []

    def add(category: int, centre: np.ndarray, radius: float, paint: np.ndarray) -> dict:
        margin = int(radius) + 2  # draw beyond the border too, to know how much of the object is cut off
        mask = np.zeros((height + 2 * margin, width + 2 * margin), np.uint8)
        keypoints = _DRAW[CLASSES[category]](mask, centre + margin, radius, rng.uniform(0, 2 * np.pi), rng)
        full_area = int(mask.sum())
        mask = mask[margin:-margin, margin:-margin]
        shade = 1 - 0.35 * cv2.GaussianBlur(1.0 - mask.astype(np.float32), (3, 3), 0)[..., None]
        image[mask > 0] = (_texture((height, width), paint, rng) * shade)[mask > 0]
        owner[mask > 0] = len(objects)
        entry = {"category": category, "full_area": full_area, "iscrowd": 0}
        if keypoints is not None:
            entry["keypoints"] = keypoints - margin
        objects.append(entry)
        return entry

    if rng.random() >= _EMPTY_SHARE:
        if rng.random() < _CROWD_SHARE:
            category, middle = int(rng.integers(FIGURE)), rng.uniform(0.3, 0.7, 2) * (width, height)
            paint, first = colour(), len(objects)
            for _ in range(rng.integers(14, 24)):
                add(category, middle + rng.normal(0, 14, 2), rng.uniform(4, 6), paint)
            for entry in objects[first:]:
                entry["iscrowd"] = 1
        for _ in range(rng.integers(1, 6)):
            diameter = math.exp(rng.uniform(math.log(_SMALLEST), math.log(_LARGEST)))
            category = int(rng.integers(len(CLASSES)))
            if category == FIGURE:
                diameter = max(diameter, 32)
            add(category, rng.uniform(0.05, 0.95, 2) * (width, height), diameter / 2, colour())

    image = np.clip(image, 0, 255).astype(np.uint8)
    return image, _visible_objects(objects, owner)


def _visible_objects(objects: list[dict], owner: np.ndarray) -> list[dict]:
    """The objects that enough is seen of, with their masks; the members of a crowd become one region."""
    visible, crowd = [], []
    for index, entry in enumerate(objects):
        mask = (owner == index).astype(np.uint8)
        if entry["iscrowd"]:
            crowd.append((entry["category"], mask))
            continue
        area = int(mask.sum())
        if area < _MIN_VISIBLE_PIXELS or area < _MIN_VISIBLE_SHARE * entry["full_area"]:
            continue
        kept = {"category": entry["category"], "mask": mask, "iscrowd": 0}
        if "keypoints" in entry:
            kept["keypoints"] = _keypoint_visibility(entry["keypoints"], owner, index)
        visible.append(kept)
    if crowd:
        union = np.maximum.reduce([mask for _, mask in crowd])
        if union.any():
            visible.append({"category": crowd[0][0], "mask": union, "iscrowd": 1})
    return visible


def _keypoint_visibility(points: np.ndarray, owner: np.ndarray, index: int) -> np.ndarray:
    """(K, 3): COCO's 2 where the figure itself is seen, 1 where something hides it, 0 beyond the border."""
    height, width = owner.shape
    rows = np.zeros((len(points), 3), dtype=int)
    for row, (x, y) in zip(rows, points, strict=True):
        if 0 <= x < width and 0 <= y < height:
            near = owner[max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2]
            row[:] = int(x), int(y), 2 if (near == index).any() else 1
    return rows


def _annotation(entry: dict) -> dict:
    rle = mask_api.encode(np.asfortranarray(entry["mask"]))
    x, y, width, height = (int(v) for v in mask_api.toBbox(rle))
    return {
        "category_id": entry["category"] + 1,
        "bbox": [x, y, width, height],
        "area": int(mask_api.area(rle)),
        "segmentation": {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode()},
        "iscrowd": entry["iscrowd"],
    }


def write_split(folder: Path, split: str, num_images: int, seed: int) -> None:
    """Write `images/<split>/*.png` and `annotations/{instances,keypoints}_<split>.json` under `folder`."""
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, instances, figures = [], [], []
    for index in range(num_images):
        image, objects = draw_scene(np.random.default_rng([seed, index]))
        file_name = f"{index:06d}.png"
        _, png = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
        (folder / "images" / split / file_name).write_bytes(png)
        images.append({"id": index + 1, "file_name": file_name, "height": image.shape[0], "width": image.shape[1]})
        for entry in objects:
            annotation = {"id": len(instances) + 1, "image_id": index + 1, **_annotation(entry)}
            instances.append(annotation)
            if "keypoints" in entry:
                points = entry["keypoints"]
                figures.append(
                    {
                        **annotation,
                        "category_id": 1,
                        "keypoints": points.flatten().tolist(),
                        "num_keypoints": int((points[:, 2] > 0).sum()),
                    }
                )
    info = {"description": f"shapes, version {VERSION}, {split}, seed {seed}"}
    categories = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
    skeleton = [[KEYPOINTS.index(a) + 1, KEYPOINTS.index(b) + 1] for a, b in SKELETON]
    figure = {
        "id": 1,
        "name": "figure",
        "supercategory": "shape",
        "keypoints": KEYPOINTS,
        "skeleton": skeleton,
    }
    for kind, annotations, classes in (
        ("instances", instances, categories),
        ("keypoints", figures, [figure]),
    ):
        content = {
            "info": info,
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": classes,
        }
        (folder / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))


def _marker(folder: Path) -> dict:
    """What the dataset in `folder` was made from; empty where there is no finished one."""
    path = folder / MARKER
    return json.loads(path.read_text()) if path.is_file() else {}


def ensure(folder: Path) -> None:
    """Write the dataset to `folder` unless one of this version is there, of whatever size and seed."""
    if _marker(folder).get("version") != VERSION:
        generate(folder)


def generate(folder: Path, num_train: int = 2000, num_val: int = 200, seed: int = 0) -> None:
    """Write the dataset to `folder`, whole or not at all, in place of one from other arguments or another version.

    Several processes may call this at once: one of them draws, the others wait for it.

    Raises:
        FileExistsError: `folder` holds something else than a dataset of shapes.
    """
    wanted = {"version": VERSION, "train": num_train, "val": num_val, "seed": seed}
    with file_lock(str(folder.with_name(f".{folder.name}"))):
        present = _marker(folder)
        if present == wanted:
            return
        if folder.exists() and not present and any(folder.iterdir()):
            raise FileExistsError(
                f"{folder} is not empty, and holds no dataset of shapes (there is no {MARKER}): "
                "name another folder, or move away what is there"
            )
        logger.info("Drawing the shapes dataset (%d + %d scenes) into %s", num_train, num_val, folder)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            new = Path(scratch) / "new"
            write_split(new, "train", num_train, 2 * seed)
            write_split(new, "val", num_val, 2 * seed + 1)
            (new / MARKER).write_text(json.dumps(wanted))
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            new.rename(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw the shapes dataset.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=2000, help="training scenes")
    parser.add_argument("--val", type=int, default=200, help="validation scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        generate(args.output.resolve(), args.train, args.val, args.seed)
    except OSError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
