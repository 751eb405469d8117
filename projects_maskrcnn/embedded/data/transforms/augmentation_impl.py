"""The augmentations. Stand for Detectron2's of the same names and parameters.

Each draws from numpy's global generator the numbers that Detectron2's draws, in the same order.
"""

import sys

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from ...structures import Boxes, pairwise_iou
from .augmentation import Augmentation, SupportsTransform, as_augmentation
from .transform import ExtentTransform, ResizeTransform, RotationTransform

BILINEAR = Image.Resampling.BILINEAR


class RandomApply(Augmentation):
    """Apply a transform or augmentation with a probability.

    Args:
        tfm_or_aug: what to apply.
        prob: in [0, 1].
    """

    def __init__(self, tfm_or_aug: Transform | Augmentation, prob: float = 0.5) -> None:
        if not 0.0 <= prob <= 1.0:
            raise ValueError(f"RandomApply: prob is in [0, 1], not {prob}")
        self.aug = as_augmentation(tfm_or_aug)
        self.prob = prob

    def __call__(self, aug_input: SupportsTransform) -> Transform:
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()

    def __repr__(self) -> str:
        return f"RandomApply({self.aug!r}, prob={self.prob})"


class RandomFlip(Augmentation):
    """Mirror with a probability, either left-right or top-bottom."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if horizontal == vertical:
            raise ValueError("RandomFlip: either horizontal or vertical is True; for both use two of them")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        h, w = image.shape[:2]
        return HFlipTransform(w) if self.horizontal else VFlipTransform(h)


class Resize(Augmentation):
    """Resize to a size.

    Args:
        shape: (h, w), or one number for both.
        interp: a Pillow resampling filter.
    """

    def __init__(self, shape: int | tuple[int, int], interp: int = BILINEAR) -> None:
        shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class RandomResize(Augmentation):
    """Resize to one of several sizes.

    Args:
        shape_list: of (h, w).
        interp: a Pillow resampling filter.
    """

    def __init__(self, shape_list: list[tuple[int, int]], interp: int = BILINEAR) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        shape = self.shape_list[np.random.randint(len(self.shape_list))]
        return ResizeTransform(*image.shape[:2], *shape, self.interp)


class ResizeShortestEdge(Augmentation):
    """Give the shorter side a length, or less so that the longer stays within `max_size`.

    Args:
        short_edge_length: the lengths to choose from, in pixels; 0 leaves the image as it is.
        max_size: bound of the longer side.
        sample_style: "range": `short_edge_length` is (least, greatest). "choice": it lists them.
        interp: a Pillow resampling filter.
    """

    def __init__(
        self,
        short_edge_length: int | tuple[int, ...] | list[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = BILINEAR,
    ) -> None:
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        if sample_style not in ("range", "choice"):
            raise ValueError(
                f"ResizeShortestEdge (INPUT.MIN_SIZE_TRAIN_SAMPLING): sample_style is 'range' or 'choice', "
                f"not {sample_style!r}"
            )
        if sample_style == "range" and len(short_edge_length) != 2:
            raise ValueError(
                "ResizeShortestEdge (INPUT.MIN_SIZE_TRAIN): for a 'range' give two lengths, the "
                f"least and the greatest, not {short_edge_length}"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        if self.sample_style == "range":
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        return ResizeTransform(h, w, *self.get_output_shape(h, w, int(size), self.max_size), self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """The new height and width of an image of height `oldh` and width `oldw`."""
        scale = short_edge_length / min(oldh, oldw)
        # The shorter side is exact: scale times it may differ in the last bit, and the rounding below with it.
        newh, neww = (short_edge_length, scale * oldw) if oldh < oldw else (scale * oldh, short_edge_length)
        if max(newh, neww) > max_size:
            scale = max_size / max(newh, neww)
            newh, neww = newh * scale, neww * scale
        return max(1, int(newh + 0.5)), max(1, int(neww + 0.5))


class ResizeScale(Augmentation):
    """Fit the image into a box of random scale, keeping its aspect ratio: one half of large-scale jittering.

    Args:
        min_scale, max_scale: range of the scale.
        target_height, target_width: the box at scale 1, in pixels.
        interp: a Pillow resampling filter.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = BILINEAR,
    ) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        size = np.array(image.shape[:2])
        box = np.multiply((self.target_height, self.target_width), np.random.uniform(self.min_scale, self.max_scale))
        new_h, new_w = np.round(size * (box / size).min()).astype(int).tolist()
        return ResizeTransform(*image.shape[:2], new_h, new_w, self.interp)


class RandomRotation(Augmentation):
    """Rotate counter-clockwise.

    Args:
        angle: degrees: one angle, or those to choose from.
        expand: see `RotationTransform`.
        center: the fixed points to choose from, (x, y) relative to the image: (0, 0) is its upper left
            corner, (1, 1) its lower right. By default the middle.
        sample_style: "range": `angle` is (least, greatest) and `center` two opposite corners of a rectangle.
            "choice": they list what to choose from.
        interp: an OpenCV interpolation.
    """

    def __init__(
        self,
        angle: float | list[float],
        expand: bool = True,
        center: list | tuple | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise ValueError(f"RandomRotation: sample_style is 'range' or 'choice', not {sample_style!r}")
        if isinstance(angle, (int, float)):
            angle = (angle, angle)
        if center is not None and isinstance(center[0], (int, float)):
            center = (center, center)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        center = None
        if self.sample_style == "range":
            angle = np.random.uniform(*self.angle)
            if self.center is not None:
                (x0, y0), (x1, y1) = self.center
                center = np.random.uniform(x0, x1), np.random.uniform(y0, y1)
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = self.center[np.random.randint(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        if center is not None:
            center = (w * center[0], h * center[1])
        return RotationTransform(h, w, angle, expand=self.expand, center=center, interp=self.interp)


class FixedSizeCrop(Augmentation):
    """Crop at random to a size, and pad on the right and below: the other half of large-scale jittering.

    Args:
        crop_size: (h, w) in pixels.
        pad: pad an image that is smaller; else it stays smaller.
        pad_value, seg_pad_value: the padding of the image, and of a segmentation.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        h, w = image.shape[:2]
        room = np.maximum(np.subtract((h, w), self.crop_size), 0)
        y0, x0 = np.round(room * np.random.uniform(0.0, 1.0)).astype(int).tolist()
        crop_h, crop_w = self.crop_size
        transforms = [CropTransform(x0, y0, crop_w, crop_h, w, h)]
        if self.pad:
            kept_h, kept_w = min(h, crop_h), min(w, crop_w)
            transforms.append(
                PadTransform(0, 0, crop_w - kept_w, crop_h - kept_h, kept_w, kept_h, self.pad_value, self.seg_pad_value)
            )
        return TransformList(transforms)


class RandomCrop(Augmentation):
    """Crop a random rectangle.

    Args:
        crop_type, crop_size: for an image of h x w pixels,
            "relative": a crop of (h * crop_size[0], w * crop_size[1]);
            "relative_range": the same, with factors drawn from [crop_size[0], 1] and [crop_size[1], 1];
            "absolute": crop_size itself, (height, width), or less where the image is smaller;
            "absolute_range": height and width each drawn from crop_size, (least, greatest), within the image.
    """

    def __init__(self, crop_type: str, crop_size: tuple[float, float]) -> None:
        types = ("relative_range", "relative", "absolute", "absolute_range")
        if crop_type not in types:
            raise ValueError(f"RandomCrop (INPUT.CROP.TYPE): crop_type is one of {types}, not {crop_type!r}")
        low, high = crop_size
        if crop_type.startswith("relative") and not (0 < low <= 1 and 0 < high <= 1):
            raise ValueError(f"RandomCrop (INPUT.CROP.SIZE): {crop_type} sizes are in (0, 1], not {crop_size}")
        if crop_type == "absolute_range" and low > high:
            raise ValueError(f"RandomCrop (INPUT.CROP.SIZE): {crop_size} is not (least, greatest)")
        self._init({"crop_type": crop_type, "crop_size": crop_size})

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((h, w))
        y0 = np.random.randint(h - crop_h + 1)
        x0 = np.random.randint(w - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a crop of an image of this height and width, in pixels."""
        h, w = image_size
        if self.crop_type == "absolute":
            return min(self.crop_size[0], h), min(self.crop_size[1], w)
        if self.crop_type == "absolute_range":
            low, high = self.crop_size
            crop_h = np.random.randint(min(h, low), min(h, high) + 1)
            return crop_h, np.random.randint(min(w, low), min(w, high) + 1)
        factors = np.asarray(self.crop_size, dtype=np.float32)
        if self.crop_type == "relative_range":
            factors = factors + np.random.rand(2) * (1 - factors)
        return int(h * factors[0] + 0.5), int(w * factors[1] + 0.5)


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """`RandomCrop`, drawn up to ten times until no category of the segmentation fills too much of it.

    Args:
        crop_type, crop_size: as of `RandomCrop`.
        single_category_max_area: the part of the crop that a category may fill; 1.0 allows everything.
        ignored_category: a label that does not count.
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: tuple[float, float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self._init(locals())

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        for _ in range(10):
            crop = self.crop_aug.get_transform(sem_seg)
            labels, areas = np.unique(crop.apply_segmentation(sem_seg), return_counts=True)
            areas = areas[labels != self.ignored_category]
            if len(areas) > 1 and areas.max() < areas.sum() * self.single_category_max_area:
                break
        return crop


class RandomExtent(Augmentation):
    """Cut out a rectangle of random size and place, black where it reaches beyond the image.

    Args:
        scale_range: least and greatest size of the rectangle, relative to the image.
        shift_range: (x, y): greatest distance of the two middles, times two, relative to the image.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        size = np.array(image.shape[1::-1])
        half = 0.5 * size * np.random.uniform(*self.scale_range)
        middle = 0.5 * size + np.multiply(self.shift_range, size) * (np.random.rand(2) - 0.5)
        (x0, y0), (x1, y1) = (middle - half).tolist(), (middle + half).tolist()
        return ExtentTransform(src_rect=(x0, y0, x1, y1), output_size=(int(y1 - y0), int(x1 - x0)))


class RandomContrast(Augmentation):
    """Blend with the image's mean value, at a random intensity: below 1 less contrast, above 1 more."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        w = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=image.mean(), src_weight=1 - w, dst_weight=w)


class RandomBrightness(Augmentation):
    """Multiply by a random intensity: below 1 darker, above 1 brighter."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        w = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=0, src_weight=1 - w, dst_weight=w)


class RandomSaturation(Augmentation):
    """Blend an RGB image with its grey version (BT.601), at a random intensity (1 changes nothing)."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        _check_rgb(self, image)
        w = np.random.uniform(self.intensity_min, self.intensity_max)
        grey = image.dot([0.299, 0.587, 0.114])[:, :, None]
        return BlendTransform(src_image=grey, src_weight=1 - w, dst_weight=w)


class RandomLighting(Augmentation):
    """Shift the colours of an RGB image along the principal components of ImageNet's (AlexNet, section 4.1).

    Args:
        scale: standard deviation of the weight of each component.
    """

    eigen_vecs = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def __init__(self, scale: float) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        _check_rgb(self, image)
        weights = np.random.normal(scale=self.scale, size=3)
        shift = self.eigen_vecs.dot(weights * self.eigen_vals)
        return BlendTransform(src_image=shift, src_weight=1.0, dst_weight=1.0)


class MinIoURandomCrop(Augmentation):
    """Crop so that every box keeps at least a random IoU with the crop (SSD, arXiv 1512.02325, section 2.2).

    Args:
        min_ious: the least IoUs to choose from, besides "no crop" and "any crop".
        min_crop_size: least height and width of a crop, relative to the image.
        mode_trials: how often to choose an IoU before giving up, without a crop.
        crop_trials: how many crops to try for each.
    """

    def __init__(
        self,
        min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        if boxes is None:
            return NoOpTransform()
        for _ in range(self.mode_trials):
            min_iou = np.random.choice((1, *self.min_ious, 0))
            if min_iou == 1:
                break
            for _ in range(self.crop_trials):
                crop = self._draw(*image.shape[:2], boxes.reshape(-1, 4), min_iou)
                if crop is not None:
                    return crop
        return NoOpTransform()

    def _draw(self, h: int, w: int, boxes: np.ndarray, min_iou: float) -> CropTransform | None:
        """A crop of an image of h x w pixels, or None where the one drawn will not do."""
        new_w = np.random.uniform(self.min_crop_size * w, w)
        new_h = np.random.uniform(self.min_crop_size * h, h)
        if not 0.5 <= new_h / new_w <= 2:
            return None
        left, top = np.random.uniform(0, w - new_w), np.random.uniform(0, h - new_h)
        patch = np.array([int(left), int(top), int(left + new_w), int(top + new_h)])
        if (patch[2:] == patch[:2]).any():
            return None
        if len(boxes):
            if pairwise_iou(Boxes(patch[None]), Boxes(boxes)).min() < min_iou:
                return None
            middles = (boxes[:, :2] + boxes[:, 2:]) / 2
            if not ((middles > patch[:2]) & (middles < patch[2:])).all(axis=1).any():
                return None
        return CropTransform(int(left), int(top), int(new_w), int(new_h))


def _check_rgb(augmentation: Augmentation, image: np.ndarray) -> None:
    if image.shape[-1] != 3:
        raise ValueError(f"{type(augmentation).__name__} works on images (H, W, 3), not on {image.shape}")
