"""Transforms that fvcore does not have: by Pillow and OpenCV, with the pixel values of Detectron2.

Coordinates are (x, y) in pixels, with (0, 0) the corner, not the centre, of the first pixel.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform, TransformList
from PIL import Image
from torch.nn import functional as F

BILINEAR = Image.Resampling.BILINEAR
NEAREST = Image.Resampling.NEAREST
TORCH_MODES = {
    NEAREST: {"mode": "nearest"},
    BILINEAR: {"mode": "bilinear", "align_corners": False},
    Image.Resampling.BICUBIC: {"mode": "bicubic", "align_corners": False},
}


def with_pillow(image: np.ndarray, func: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply a function of Pillow images to an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""
    if image.ndim == 3 and image.shape[2] == 1:
        return with_pillow(image[:, :, 0], func)[:, :, None]
    return np.asarray(func(Image.fromarray(image)))


class ResizeTransform(Transform):
    """Resize: by Pillow where the image is uint8 (which filters when it shrinks), else by torch.

    Args:
        h, w: size of the image.
        new_h, new_w: size to give it.
        interp: a Pillow resampling filter; bilinear by default.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        interp = BILINEAR if interp is None else interp
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(f"{self} cannot resize an image of height and width {img.shape[:2]}")
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return with_pillow(img, lambda image: image.resize((self.new_w, self.new_h), interp))
        channels_last = torch.from_numpy(np.ascontiguousarray(img)).reshape(1, self.h, self.w, -1)
        resized = F.interpolate(channels_last.permute(0, 3, 1, 2), (self.new_h, self.new_w), **TORCH_MODES[interp])
        return resized[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords * np.array([self.new_w / self.w, self.new_h / self.h], dtype=_float_type(coords))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=NEAREST)

    def inverse(self) -> Transform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class ExtentTransform(Transform):
    """Cut a rectangle out of the image, which may reach beyond it, and scale it to a size.

    Args:
        src_rect: x0, y0, x1, y1 in pixels of the image.
        output_size: height and width of the result.
        interp: a Pillow resampling filter.
        fill: value of the pixels from outside the image.
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = BILINEAR,
        fill: int = 0,
    ) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        def extent(image: Image.Image) -> Image.Image:
            resample = self.interp if interp is None else interp
            size = self.output_size[::-1]
            return image.transform(size, Image.Transform.EXTENT, self.src_rect, resample, fillcolor=fill(image))

        def fill(image: Image.Image) -> int | tuple[int, ...]:
            bands = len(image.getbands())
            return self.fill if bands == 1 else (self.fill,) * bands

        return with_pillow(img, extent)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        x0, y0, x1, y1 = self.src_rect
        h, w = self.output_size
        dtype = _float_type(coords)
        return (coords - np.array([x0, y0], dtype)) * np.array([w / (x1 - x0), h / (y1 - y0)], dtype)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=NEAREST)


class RotationTransform(Transform):
    """Rotate counter-clockwise.

    Args:
        h, w: size of the image.
        angle: degrees.
        expand: make the result large enough for the whole rotated image; else it keeps the image's size.
        center: (x, y) of the fixed point, by default the middle. Without effect where `expand`.
        interp: an OpenCV interpolation, by default linear.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        super().__init__()
        center = (w / 2, h / 2) if center is None else center
        interp = cv2.INTER_LINEAR if interp is None else interp
        self._set_attributes(locals())
        cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
        self.bound_w = int(np.rint(h * sin + w * cos)) if expand else w
        self.bound_h = int(np.rint(h * cos + w * sin)) if expand else h
        self.rm_coords = self._matrix(0.0)
        # OpenCV puts the origin in the centre of the first pixel.
        self.rm_image = self._matrix(-0.5)

    def _matrix(self, offset: float) -> np.ndarray:
        """(2, 3) affine matrix, for an origin that is `-offset` pixels inside the corner of the image."""
        matrix = cv2.getRotationMatrix2D((self.center[0] + offset, self.center[1] + offset), self.angle, 1)
        if self.expand:
            middle = np.array([self.w / 2 + offset, self.h / 2 + offset, 1.0])
            new_middle = np.array([self.bound_w / 2 + offset, self.bound_h / 2 + offset])
            matrix[:, 2] += new_middle - matrix @ middle
        return matrix

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if self.angle % 360 == 0 or img.size == 0:
            return img
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(f"{self} cannot rotate an image of height and width {img.shape[:2]}")
        interp = self.interp if interp is None else interp
        rotated = cv2.warpAffine(np.ascontiguousarray(img), self.rm_image, (self.bound_w, self.bound_h), flags=interp)
        return rotated.reshape(self.bound_h, self.bound_w, *img.shape[2:])

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=float)
        if self.angle % 360 == 0:
            return coords
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> Transform:
        """Rotate back, and crop to the size of before.

        Raises:
            NotImplementedError: not `expand`, which loses the corners.
        """
        if not self.expand:
            raise NotImplementedError("A rotation that does not expand the image has no inverse")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        x0, y0 = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        return TransformList([back, CropTransform(x0, y0, self.w, self.h)])


class ColorTransform(Transform):
    """Any change of colours that leaves every pixel in its place.

    Args:
        op: from an image array to an image array of the same size.
    """

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]) -> None:
        if not callable(op):
            raise TypeError(f"{type(self).__name__}: op is a function, not a {type(op).__name__}")
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """`ColorTransform` by a function of Pillow images."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return with_pillow(img, self.op)


def _float_type(coords: np.ndarray) -> np.dtype:
    """float32 stays float32; everything else, integers too, is computed in float64."""
    return np.dtype(np.float32 if np.asarray(coords).dtype == np.float32 else np.float64)
