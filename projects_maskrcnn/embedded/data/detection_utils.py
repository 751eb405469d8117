"""The steps from a dataset dict to a model's input: read, check, transform, collect into `Instances`."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from ..config import CfgNode
from ..structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks, polygons_to_bitmask
from ..utils.file_io import PathManager
from . import transforms as T
from .catalog import MetadataCatalog

logger = logging.getLogger(__name__)

# The turn that each value of EXIF's tag "Orientation" asks for.
EXIF_ORIENTATION = 0x0112
EXIF_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# ITU-R BT.601, analogue: Y in [0, 1], U and V around 0.
RGB_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])


class SizeMismatchError(ValueError):
    """An image is not of the size that its annotations say."""


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image, turned upright as its EXIF data ask.

    Args:
        file_name: its path.
        format: "BGR", "YUV-BT.601" or a mode of Pillow ("RGB", "L", ...); by default that of the file.

    Returns:
        (H, W, C) uint8, for "L" too; (H, W, 3) float with Y in [0, 1] for "YUV-BT.601".

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file does not decode.
    """
    if not PathManager.isfile(file_name):
        raise FileNotFoundError(f"There is no image {file_name}. Correct the image folder or the annotation file")
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
            return _to_array(_upright(image), format)
    except Exception as error:  # Pillow raises all sorts: OSError, SyntaxError, struct.error, ...
        raise OSError(
            f"Cannot decode image {file_name} ({type(error).__name__}: {error}). "
            "Replace the file, or remove it from the annotation file"
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = EXIF_TURNS.get(image.getexif().get(EXIF_ORIENTATION))
    except Exception:  # damaged EXIF data do not make the pixels unusable
        return image
    return image if turn is None else image.transpose(turn)


def _to_array(image: Image.Image, format: str | None) -> np.ndarray:
    if format is None:
        return np.asarray(image)
    if image.mode[0] in "IF":  # Pillow's modes of more than 8 bits, which it would clip to 255
        low, high = image.getextrema()
        if low < 0 or high > 255:
            raise ValueError(f"its values go from {low} to {high}, those of 8 bits to 255: scale them first")
    array = np.asarray(image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format))
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "YUV-BT.601":
        return (array / 255.0) @ RGB_TO_YUV.T
    return array[:, :, None] if array.ndim == 2 else array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """The inverse of `read_image`'s format.

    Args:
        image: (H, W, C) in that format.
        format: "BGR", "RGB", "L" or "YUV-BT.601".

    Returns:
        (H, W, 3) RGB in [0, 255]; uint8 for "RGB" and "L", else of the input's type.
    """
    image = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
    if format == "BGR":
        return image[:, :, ::-1]
    if format == "YUV-BT.601":
        return image @ YUV_TO_RGB.T * 255.0
    if format == "L":
        return np.repeat(image.astype(np.uint8), 3, axis=2)
    if format == "RGB":
        return image.astype(np.uint8)
    raise ValueError(f"Image format (INPUT.FORMAT) {format!r}: expected BGR, RGB, L or YUV-BT.601")


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare the image's size with the dict's "width" and "height"; set those that are not there.

    Raises:
        SizeMismatchError: they differ.
    """
    height, width = image.shape[:2]
    expected = dataset_dict.setdefault("width", width), dataset_dict.setdefault("height", height)
    if expected != (width, height):
        raise SizeMismatchError(
            f"Image {dataset_dict.get('file_name', '')} is {width} x {height} pixels (width x height), its "
            f"annotations say {expected[0]} x {expected[1]}. Correct the annotation file, or restore the "
            "original image"
        )


def transform_proposals(
    dataset_dict: dict,
    image_shape: tuple[int, int],
    transforms: T.Transform,
    *,
    proposal_topk: int,
    min_box_size: float = 0,
) -> None:
    """Replace the precomputed proposals of a dataset dict, if it has any, by `Instances` under "proposals".

    Args:
        dataset_dict: with "proposal_boxes" (N, 4) in "proposal_bbox_mode", by decreasing
            "proposal_objectness_logits"; the three are removed.
        image_shape: height and width of the transformed image.
        transforms: what was applied to the image.
        proposal_topk: how many to keep.
        min_box_size: proposals with a side of this or fewer pixels are left out.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    mode = dataset_dict.pop("proposal_bbox_mode")
    boxes = BoxMode.convert(dataset_dict.pop("proposal_boxes"), mode, BoxMode.XYXY_ABS)
    boxes = Boxes(transforms.apply_box(boxes))
    logits = torch.as_tensor(dataset_dict.pop("proposal_objectness_logits").astype("float32"))
    boxes.clip(image_shape)
    keep = boxes.nonempty(threshold=min_box_size)
    proposals = Instances(image_shape)
    proposals.proposal_boxes = boxes[keep][:proposal_topk]
    proposals.objectness_logits = logits[keep][:proposal_topk]
    dataset_dict["proposals"] = proposals


def transform_instance_annotations(
    annotation: dict,
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: Sequence[int] | None = None,
) -> dict:
    """Transform box, mask and keypoints of one instance, in place.

    Args:
        annotation: with "bbox" and "bbox_mode", and maybe "segmentation" (polygons or RLE) and "keypoints".
        transforms: what was applied to the image.
        image_size: height and width of the transformed image; the box is clipped to it.
        keypoint_hflip_indices: see `create_keypoint_hflip_indices`.

    Returns:
        The annotation: its box (4,) XYXY_ABS, polygons as flat arrays, an RLE as a mask (H, W) uint8,
        keypoints (K, 3).
    """
    if not isinstance(transforms, T.Transform):
        transforms = T.TransformList(list(transforms))
    height, width = image_size
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    box = transforms.apply_box(np.array([box], dtype=float))[0]
    annotation["bbox"] = np.clip(box, 0, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS

    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        polygons = [np.array(polygon, dtype=float).reshape(-1, 2) for polygon in segmentation]
        annotation["segmentation"] = [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    elif isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        if mask.shape != tuple(image_size):
            raise SizeMismatchError(
                f"An RLE of height and width {segmentation['size']} becomes {mask.shape} by the transforms "
                f"that make the image {tuple(image_size)}: the two were not of the same size"
            )
        annotation["segmentation"] = mask
    elif segmentation is not None:
        raise ValueError(
            f"A segmentation is a list of polygons or a COCO RLE (dict), not a {type(segmentation).__name__}"
        )
    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return annotation


def transform_keypoint_annotations(
    keypoints: Sequence[float],
    transforms: T.TransformList,
    image_size: tuple[int, int],
    keypoint_hflip_indices: Sequence[int] | None = None,
) -> np.ndarray:
    """Transform the keypoints of one instance; those that leave the image become unlabelled: (0, 0, 0).

    Args:
        keypoints: x, y, visibility of each, flat or (K, 3).
        transforms: what was applied to the image. Where it mirrors it, left and right change places.
        image_size: height and width of the transformed image.
        keypoint_hflip_indices: see `create_keypoint_hflip_indices`.

    Returns:
        (K, 3) float64.
    """
    keypoints = np.array(keypoints, dtype=float).reshape(-1, 3)
    visibility = keypoints[:, 2]
    xy = transforms.apply_coords(keypoints[:, :2].copy())
    inside = ((xy >= 0) & (xy <= image_size[::-1])).all(axis=1)
    keypoints = np.where((inside & (visibility > 0))[:, None], np.column_stack([xy, visibility]), 0.0)

    mirrored = sum(isinstance(t, T.HFlipTransform) for t in getattr(transforms, "transforms", [transforms])) % 2
    if not mirrored:
        return keypoints
    if keypoint_hflip_indices is None:
        raise ValueError(
            "Keypoints are mirrored, but not known to change places: set 'keypoint_flip_map' in the "
            "metadata of the dataset, or INPUT.RANDOM_FLIP to 'none'"
        )
    if len(keypoints) != len(keypoint_hflip_indices):
        raise ValueError(
            f"An annotation has {len(keypoints)} keypoints, the dataset's metadata 'keypoint_names' "
            f"{len(keypoint_hflip_indices)}"
        )
    return keypoints[np.asarray(keypoint_hflip_indices)]


def annotations_to_instances(annos: list[dict], image_size: tuple[int, int], mask_format: str = "polygon") -> Instances:
    """Collect the annotations of an image.

    Args:
        annos: see `transform_instance_annotations`.
        image_size: height and width in pixels.
        mask_format: "polygon" or "bitmask".

    Returns:
        `Instances` with gt_boxes (`Boxes`), gt_classes (int64) and, where the annotations have them, gt_masks
        (`PolygonMasks` or `BitMasks`) and gt_keypoints (`Keypoints`).

    Raises:
        ValueError: a mask is not of that format, or some annotations have masks (keypoints) and others none.
    """
    boxes = [BoxMode.convert(anno["bbox"], anno["bbox_mode"], BoxMode.XYXY_ABS) for anno in annos]
    target = Instances(tuple(image_size))
    target.gt_boxes = Boxes(np.stack(boxes) if boxes else np.zeros((0, 4)))
    target.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)
    if _all_have(annos, "segmentation", "give it one, or set MODEL.MASK_ON to False"):
        masks = [anno["segmentation"] for anno in annos]
        target.gt_masks = _polygon_masks(masks) if mask_format == "polygon" else _bit_masks(masks, image_size)
    if _all_have(annos, "keypoints", "give it x = y = visibility = 0 for each"):
        target.gt_keypoints = Keypoints(np.stack([np.reshape(anno["keypoints"], (-1, 3)) for anno in annos]))
    return target


def _all_have(annos: list[dict], key: str, remedy: str) -> bool:
    lacking = [number for number, anno in enumerate(annos) if key not in anno]
    if 0 < len(lacking) < len(annos):
        raise ValueError(f"Annotation {lacking[0]} (from 0) of the image has no {key!r}, others have: {remedy}")
    return bool(annos) and not lacking


def _polygon_masks(masks: list) -> PolygonMasks:
    for mask in masks:
        if not isinstance(mask, list):
            raise ValueError(
                "A segmentation is a run-length encoding or a bitmap, and cannot become a polygon: "
                "set INPUT.MASK_FORMAT to 'bitmask'"
            )
    return PolygonMasks(masks)


def _bit_masks(masks: list, image_size: tuple[int, int]) -> BitMasks:
    bitmaps = []
    for mask in masks:
        if isinstance(mask, list):
            mask = polygons_to_bitmask(mask, *image_size)
        elif isinstance(mask, dict):
            mask = mask_util.decode(mask)
        if not isinstance(mask, np.ndarray) or mask.shape != tuple(image_size):
            raise ValueError(
                "A segmentation is a list of polygons, a COCO RLE (dict) or an array of the image's size "
                f"{tuple(image_size)}, not {getattr(mask, 'shape', type(mask).__name__)}"
            )
        bitmaps.append(mask.astype(bool))
    return BitMasks(torch.from_numpy(np.stack(bitmaps)))


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Leave out instances of which nothing is left.

    Args:
        instances: with gt_boxes, and maybe gt_masks.
        by_box: by a box with a side of `box_threshold` pixels or less.
        by_mask: by an empty mask.
        box_threshold: in pixels.
        return_mask: also return what was kept, (N,) bool.
    """
    if not (by_box or by_mask):
        raise ValueError("filter_empty_instances: by_box or by_mask must be True")
    keep = torch.ones(len(instances), dtype=torch.bool, device=instances.gt_boxes.device)
    if by_box:
        keep &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]


def create_keypoint_hflip_indices(dataset_names: str | Sequence[str]) -> list[int]:
    """For each keypoint, the index of the one that takes its place when the image is mirrored.

    Read from the datasets' metadata "keypoint_names" and "keypoint_flip_map", on which they must agree.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    check_metadata_consistency("keypoint_names", names)
    check_metadata_consistency("keypoint_flip_map", names)
    metadata = MetadataCatalog.get(names[0])
    partner = dict(metadata.keypoint_flip_map)
    partner |= {right: left for left, right in partner.items()}
    keypoints = list(metadata.keypoint_names)
    return [keypoints.index(partner.get(name, name)) for name in keypoints]


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Check that the datasets' metadata agree.

    Raises:
        AttributeError: one does not have `key`.
        ValueError: two differ; the message names them.
    """
    values: list[Any] = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, value in zip(dataset_names, values, strict=True):
        if value != values[0]:
            raise ValueError(
                f"Datasets {dataset_names[0]!r} and {name!r} have different metadata {key!r}, and cannot "
                f"be used together: {values[0]} and {value}"
            )


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict
) -> T.CropTransform:
    """A random crop that contains the middle of an instance's box.

    Args:
        crop_size, image_size: height and width in pixels.
        instance: its annotation.
    """
    size, crop = np.array(image_size), np.array(crop_size)
    x0, y0, x1, y1 = BoxMode.convert(list(instance["bbox"]), instance["bbox_mode"], BoxMode.XYXY_ABS)
    middle = np.array([y0 + y1, x0 + x1]) / 2
    if (size < crop).any():
        raise ValueError(f"A crop of height and width {tuple(crop_size)} does not fit in {tuple(image_size)}")
    if (size < middle).any():
        raise ValueError(f"The middle of box {instance['bbox']} is outside the image, {tuple(image_size)}")
    least = np.maximum(np.floor(middle).astype(int) - crop, 0)
    greatest = np.minimum(size - crop, np.ceil(middle).astype(int))
    top = np.random.randint(least[0], greatest[0] + 1)
    left = np.random.randint(least[1], greatest[1] + 1)
    return T.CropTransform(left, top, int(crop[1]), int(crop[0]))


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The default augmentations: resizing and, in training, mirroring, as INPUT says."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP is 'none', 'horizontal' or 'vertical', not {flip!r}")
    if not cfg.INPUT.MIN_SIZE_TRAIN:
        raise ValueError("INPUT.MIN_SIZE_TRAIN is empty: name one size or more, in pixels")
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    if flip == "none":
        return [resize]
    return [resize, T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]
