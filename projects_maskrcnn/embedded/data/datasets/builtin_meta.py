"""What is known about COCO and Cityscapes: classes, keypoints, and colours to draw them in."""

from typing import Any

from ...utils.colormap import palette_color


def _color(number: int) -> list[int]:
    """The RGB colour, 0 to 255, of a number."""
    return [round(255 * c) for c in palette_color(number)]


# fmt: off
_COCO_CLASSES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck",
    9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench",
    16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear",
    24: "zebra", 25: "giraffe", 27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase",
    34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat",
    40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle",
    46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut",
    61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet",
    72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone", 78: "microwave",
    79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase",
    87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}

COCO_PERSON_KEYPOINT_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)
# fmt: on

COCO_CATEGORIES = [
    {"id": i, "name": name, "isthing": 1, "color": _color(number)}
    for number, (i, name) in enumerate(_COCO_CLASSES.items())
]

# The pairs that change places when the image is mirrored.
COCO_PERSON_KEYPOINT_FLIP_MAP = tuple(
    (name, name.replace("left", "right")) for name in COCO_PERSON_KEYPOINT_NAMES if name.startswith("left")
)

# The pairs to join by a line when a person is drawn, and the line's colour.
KEYPOINT_CONNECTION_RULES = [
    (first, second, tuple(_color(number)))
    for number, (first, second) in enumerate(
        [
            ("left_ear", "left_eye"),
            ("right_ear", "right_eye"),
            ("left_eye", "nose"),
            ("nose", "right_eye"),
            ("left_shoulder", "right_shoulder"),
            ("left_shoulder", "left_elbow"),
            ("right_shoulder", "right_elbow"),
            ("left_elbow", "left_wrist"),
            ("right_elbow", "right_wrist"),
            ("left_hip", "right_hip"),
            ("left_hip", "left_knee"),
            ("right_hip", "right_knee"),
            ("left_knee", "left_ankle"),
            ("right_knee", "right_ankle"),
        ]
    )
]

CITYSCAPES_THING_CLASSES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


def builtin_metadata(dataset_name: str) -> dict[str, Any]:
    """The metadata common to the datasets of a kind: "coco", "coco_person" or "cityscapes"."""
    if dataset_name == "coco":
        return {
            "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(COCO_CATEGORIES)},
            "thing_classes": [c["name"] for c in COCO_CATEGORIES],
            "thing_colors": [c["color"] for c in COCO_CATEGORIES],
        }
    if dataset_name == "coco_person":
        return {
            "thing_classes": ["person"],
            "keypoint_names": COCO_PERSON_KEYPOINT_NAMES,
            "keypoint_flip_map": COCO_PERSON_KEYPOINT_FLIP_MAP,
            "keypoint_connection_rules": KEYPOINT_CONNECTION_RULES,
        }
    if dataset_name == "cityscapes":
        return {"thing_classes": list(CITYSCAPES_THING_CLASSES)}
    raise KeyError(f"No builtin metadata for {dataset_name!r}: there are coco, coco_person and cityscapes")
