"""Drawing predictions and annotations on images, with OpenCV (shapes) and Pillow (text)."""

import colorsys
import functools
import os
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import cv2
import matplotlib
import numpy as np
import pycocotools.mask as mask_util
import torch
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

from ..structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks
from .colormap import palette_color

KEYPOINT_THRESHOLD = 0.05  # keypoints of a lower score, or not labelled, are not drawn
SPINE = (("nose",), ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"))  # joined at their middles
SUBPIXEL_BITS = 4  # OpenCV draws at fixed-point coordinates with this many fractional bits


class ColorMode(Enum):
    """How instances are colored. Stands for Detectron2's `ColorMode`."""

    IMAGE = 0  # a color an instance, over the image
    SEGMENTATION = 1  # similar colors in a category (from thing_colors), more opaque
    IMAGE_BW = 2  # as IMAGE, but gray outside of the masks


MASK_OPACITY = {ColorMode.IMAGE: 0.5, ColorMode.SEGMENTATION: 0.75, ColorMode.IMAGE_BW: 0.25}


class VisImage:
    """An image to draw on. Stands for Detectron2's `VisImage`.

    Args:
        img: RGB (H, W, 3) from 0 to 255.
        scale: the drawing is this many times as large, so that small images get fine lines and legible text.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self.size = max(round(self.width * scale), 1), max(round(self.height * scale), 1)
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Begins anew with `img`, (H, W, 3)."""
        img = np.ascontiguousarray(np.clip(img, 0, 255), dtype=np.uint8)
        self.canvas = cv2.resize(img, self.size, interpolation=cv2.INTER_CUBIC) if self.scale != 1 else img.copy()

    def get_image(self) -> np.ndarray:
        """The drawing: RGB uint8 (H * scale, W * scale, 3)."""
        return self.canvas

    def save(self, filepath: str | os.PathLike) -> None:
        """Writes the drawing; the suffix gives the format."""
        Image.fromarray(self.canvas).save(filepath)


class Visualizer:
    """Draws boxes, masks, keypoints and labels on an image. Stands for Detectron2's `Visualizer`.

    All coordinates are continuous, in pixels of `img_rgb`; colors are matplotlib's (names, or RGB in [0, 1]).

    Args:
        img_rgb: (H, W, 3) from 0 to 255.
        metadata: a dataset's metadata or a mapping. Used: ``thing_classes``, ``thing_colors`` (RGB from 0 to
            255), ``keypoint_names``, ``keypoint_connection_rules`` (name, name, RGB from 0 to 255).
        scale: size of the drawing over that of the image.
        instance_mode: how instances are colored.
        font_size_scale: on the default size of the text.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = {} if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self.keypoint_threshold = KEYPOINT_THRESHOLD
        self._instance_mode = instance_mode
        side = np.sqrt(self.output.size[0] * self.output.size[1])
        self._line_width = max(round(side / 350), 1)
        self._font_size = max(side / 45, 11) * font_size_scale

    def get_output(self) -> VisImage:
        """The drawing so far."""
        return self.output

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draws a model's predictions.

        Args:
            predictions: any of ``pred_boxes``, ``pred_classes``, ``scores``, ``pred_masks`` (N, H, W) and
                ``pred_keypoints`` (N, K, 3), in pixels of the image.
            jittering: in `ColorMode.SEGMENTATION`, tell instances of a category apart by different tints.
        """
        fields = predictions.to("cpu").get_fields()
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        scores = fields["scores"].tolist() if "scores" in fields else None
        masks = fields.get("pred_masks")
        if self._instance_mode is ColorMode.IMAGE_BW:
            gray = cv2.cvtColor(cv2.cvtColor(self.img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            if masks is not None:
                covered = np.asarray(masks, dtype=bool).any(axis=0)
                gray[covered] = self.img[covered]
            self.output.reset_image(gray)
        return self.overlay_instances(
            boxes=fields.get("pred_boxes"),
            labels=self._labels(classes, scores, None, len(predictions)),
            masks=masks,
            keypoints=fields.get("pred_keypoints"),
            assigned_colors=self._class_colors(classes, jittering),
            alpha=MASK_OPACITY[self._instance_mode],
        )

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draws the annotations of an image, given in Detectron2's dataset format."""
        annotations = dic.get("annotations") or []
        if not annotations:
            return self.output
        classes = [a["category_id"] for a in annotations]
        return self.overlay_instances(
            boxes=np.array([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]),
            labels=self._labels(classes, None, [a.get("iscrowd", 0) for a in annotations], len(annotations)),
            masks=[a.get("segmentation") for a in annotations],
            keypoints=[np.reshape(a.get("keypoints", ()), (-1, 3)) for a in annotations],
            assigned_colors=self._class_colors(classes),
        )

    def overlay_instances(
        self,
        *,
        boxes: Boxes | np.ndarray | None = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Keypoints | np.ndarray | Sequence | None = None,
        assigned_colors: Sequence | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draws N instances, the large ones below the small ones.

        Args:
            boxes: (N, 4), x0 y0 x1 y1.
            labels: N texts. One that finds no free place beside its instance is left out.
            masks: `PolygonMasks`, `BitMasks`, a tensor (N, H, W), or N of: a list of polygons (x0, y0,
                x1, ...), a COCO RLE, an array (H, W), None.
            keypoints: (N, K, 3): x, y and score or visibility.
            assigned_colors: N colors; by default each instance gets its own.
            alpha: opacity of the masks.

        Raises:
            ValueError: the arguments are not equally many.
        """
        boxes = boxes.tensor.numpy() if isinstance(boxes, Boxes) else boxes
        keypoints = keypoints.tensor if isinstance(keypoints, Keypoints) else keypoints
        given = {
            "boxes": boxes,
            "labels": labels,
            "masks": masks,
            "keypoints": keypoints,
            "colors": assigned_colors,
        }
        counts = {name: len(values) for name, values in given.items() if values is not None}
        if len(set(counts.values())) > 1:
            raise ValueError(f"as many of each are needed, not {counts}")
        num_instances = max(counts.values(), default=0)
        colors = [palette_color(i) for i in range(num_instances)] if assigned_colors is None else assigned_colors
        coverages = [self._coverage(mask) for mask in _to_list(masks, num_instances)]

        areas = [c.sum() for c in coverages]
        if boxes is not None:
            boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        order = np.argsort(areas)[::-1] if num_instances else []
        for i in order:
            self._fill(coverages[i], to_rgb(colors[i]), alpha)
        for i in order:
            self._outline(coverages[i], _shade(colors[i], 0.25))
        if boxes is not None:
            for i in order:
                self.draw_box(boxes[i], alpha=0.85, edge_color=colors[i])
        if keypoints is not None:
            for i in order:
                self.draw_and_connect_keypoints(keypoints[i])
        if labels is not None:
            if boxes is None:
                boxes = [self._bounds(coverages[i], keypoints, i) for i in range(num_instances)]
            self._draw_labels(labels, boxes, colors, order)
        return self.output

    def draw_and_connect_keypoints(self, keypoints: np.ndarray | torch.Tensor) -> VisImage:
        """Draws an instance's keypoints (K, 3) and, where the metadata names them, its skeleton."""
        keypoints = np.asarray(keypoints, dtype=float)
        names = self.metadata.get("keypoint_names") or range(len(keypoints))
        visible = {
            name: (x, y)
            for name, (x, y, score) in zip(names, keypoints, strict=False)
            if score > self.keypoint_threshold
        }
        for first, second, color in self.metadata.get("keypoint_connection_rules") or ():
            if first in visible and second in visible:
                self._draw_bone(visible[first], visible[second], np.divide(color, 255))
        for first, second in zip(SPINE, SPINE[1:], strict=False):
            if all(name in visible for name in first + second):
                ends = [np.mean([visible[name] for name in joint], axis=0) for joint in (first, second)]
                self._draw_bone(*ends, "tomato")
        for position in visible.values():
            self.draw_circle(position, "white", radius=1.6 * self._line_width / self.output.scale)
            self.draw_circle(position, "crimson", radius=1.1 * self._line_width / self.output.scale)
        return self.output

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
    ) -> VisImage:
        """Writes `text` on a dark box that stays within the image.

        Args:
            text: the text.
            position: x, y of the box's top, at its left, center or right as `horizontal_alignment` says.
            font_size: in pixels of the drawing.
            color: made light enough to read.
            horizontal_alignment: ``"left"``, ``"center"`` or ``"right"``.
        """
        font = _font(round(font_size or self._font_size))
        width, height = _text_box(text, font)
        x, y = np.multiply(position, self.output.scale)
        x -= {"left": 0, "center": 0.5, "right": 1}[horizontal_alignment] * width
        self._put_text(text, font, self._within(x, y, width, height), color)
        return self.output

    def draw_box(self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Any = "g") -> VisImage:
        """Draws a box's edges; `box_coord` is x0, y0, x1, y1."""
        x0, y0, x1, y1 = box_coord
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        below = self.output.canvas.copy()
        self._draw_lines(corners, edge_color, closed=True)
        cv2.addWeighted(self.output.canvas, alpha, below, 1 - alpha, 0, dst=self.output.canvas)
        return self.output

    def draw_line(
        self, x_data: Sequence[float], y_data: Sequence[float], color: Any, *, linewidth: int | None = None
    ) -> VisImage:
        """Draws lines from point to point; `linewidth` in pixels of the drawing."""
        self._draw_lines(np.stack([x_data, y_data], axis=1), color, width=linewidth)
        return self.output

    def draw_circle(self, circle_coord: Sequence[float], color: Any, radius: float = 3) -> VisImage:
        """Draws a disk about x, y; `radius` in pixels of the image."""
        radius = round(radius * self.output.scale * 2**SUBPIXEL_BITS)
        center = self._fixed_point([circle_coord])[0].tolist()
        cv2.circle(self.output.canvas, center, radius, _rgb255(color), cv2.FILLED, cv2.LINE_AA, SUBPIXEL_BITS)
        return self.output

    def draw_polygon(self, segment: np.ndarray, color: Any, edge_color: Any = None, alpha: float = 0.5) -> VisImage:
        """Fills a polygon (N, 2) and draws its outline."""
        return self._draw_mask([np.asarray(segment)], color, edge_color, alpha)

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Fills a mask (H, W), draws its outline and, if given, a text in it."""
        mask = np.asarray(binary_mask).astype(np.uint8)
        self._draw_mask(mask, palette_color(0) if color is None else color, edge_color, alpha)
        if text is not None and mask.any():
            inside = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
            y, x = np.unravel_index(inside.argmax(), inside.shape)
            height = _text_box(text, _font(round(self._font_size)))[1] / self.output.scale
            self.draw_text(text, (x + 0.5, y + 0.5 - height / 2), color="w" if color is None else color)
        return self.output

    def _draw_mask(self, mask: Any, color: Any, edge_color: Any, alpha: float) -> VisImage:
        coverage = self._coverage(mask)
        self._fill(coverage, to_rgb(color), alpha)
        self._outline(coverage, _shade(color, 0.25) if edge_color is None else to_rgb(edge_color))
        return self.output

    def _coverage(self, mask: Any) -> np.ndarray:
        """How much of each pixel of the drawing a mask of any format covers: uint8, 255 for all."""
        width, height = self.output.size
        coverage = np.zeros((height, width), np.uint8)
        if mask is None:
            return coverage
        if isinstance(mask, Mapping):
            if isinstance(mask["counts"], list):
                mask = mask_util.frPyObjects(mask, *mask["size"])
            mask = mask_util.decode(mask)
        if isinstance(mask, list):
            for polygon in mask:
                one = np.zeros_like(coverage)
                points = self._fixed_point(np.reshape(polygon, (-1, 2)))
                cv2.fillPoly(one, [points], 255, cv2.LINE_AA, SUBPIXEL_BITS)
                np.maximum(coverage, one, out=coverage)
            return coverage
        mask = np.asarray(mask).astype(np.uint8) * 255
        if mask.shape != self.img.shape[:2]:
            raise ValueError(f"a mask of {mask.shape} pixels on an image of {self.img.shape[:2]}")
        coverage = cv2.resize(mask, self.output.size, interpolation=cv2.INTER_LINEAR)
        if self.output.scale > 1:  # rounds off the steps of the enlarged pixels
            coverage = cv2.GaussianBlur(coverage, (0, 0), 0.5 * self.output.scale)
        return coverage

    def _fill(self, coverage: np.ndarray, color: tuple, alpha: float) -> None:
        x, y, width, height = cv2.boundingRect(coverage)
        if width == 0:
            return
        part = self.output.canvas[y : y + height, x : x + width]
        weight = (coverage[y : y + height, x : x + width, None] / np.float32(255)) * np.float32(alpha)
        part[:] = np.rint(part * (1 - weight) + np.multiply(color, 255, dtype=np.float32) * weight)

    def _outline(self, coverage: np.ndarray, color: tuple) -> None:
        inside = (coverage > 127).astype(np.uint8)
        contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(self.output.canvas, contours, -1, _rgb255(color), self._line_width, cv2.LINE_AA)

    def _draw_bone(self, first: Sequence[float], second: Sequence[float], color: Any) -> None:
        self._draw_lines([first, second], "black", width=self._line_width + 2)
        self._draw_lines([first, second], color, width=self._line_width)

    def _draw_lines(self, points: Any, color: Any, closed: bool = False, width: int | None = None) -> None:
        points = [self._fixed_point(points)]
        width = width or self._line_width
        cv2.polylines(self.output.canvas, points, closed, _rgb255(color), width, cv2.LINE_AA, SUBPIXEL_BITS)

    def _fixed_point(self, points: Any) -> np.ndarray:
        """Points (N, 2) of the image as OpenCV's fixed-point pixel indices of the drawing."""
        indices = np.asarray(points, dtype=float) * self.output.scale - 0.5
        return np.rint(indices * 2**SUBPIXEL_BITS).astype(np.int32)

    def _bounds(self, coverage: np.ndarray, keypoints: Any, index: int) -> np.ndarray | None:
        """The box, in pixels of the image, around an instance that has none; None for one without extent."""
        if coverage.any():
            x, y, width, height = cv2.boundingRect(coverage)
            return np.array([x, y, x + width, y + height]) / self.output.scale
        points = np.zeros((0, 3)) if keypoints is None else np.asarray(keypoints[index], dtype=float)
        points = points[points[:, 2] > self.keypoint_threshold, :2]
        return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else None

    def _draw_labels(self, labels: Sequence[str], boxes: Sequence, colors: Sequence, order: Sequence[int]) -> None:
        """Writes each label at the first corner of its box where it hides no label and no center."""
        font = _font(round(self._font_size))
        scaled = {i: boxes[i] * self.output.scale for i in order if boxes[i] is not None}
        taken = [(i, _core(box, font.size)) for i, box in scaled.items()]
        for i, (x0, y0, x1, y1) in scaled.items():
            width, height = _text_box(labels[i], font)
            for x, y in ((x0, y0 - height), (x0, y0), (x0, y1), (x1 - width, y0 - height), (x1 - width, y1)):
                place = self._within(x, y, width, height)
                if not any(_overlap(place, other) for owner, other in taken if owner != i):
                    taken.append((None, place))
                    self._put_text(labels[i], font, place, colors[i])
                    break

    def _within(self, x: float, y: float, width: int, height: int) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of a text's box, moved into the drawing."""
        x = round(max(min(x, self.output.size[0] - width), 0))
        y = round(max(min(y, self.output.size[1] - height), 0))
        return x, y, x + width, y + height

    def _put_text(self, text: str, font: ImageFont.FreeTypeFont, place: tuple, color: Any) -> None:
        x0, y0, x1, y1 = place
        part = self.output.canvas[y0:y1, x0:x1]
        part[:] = part * 0.25
        image = Image.fromarray(part)
        padding = font.size // 5
        light = _rgb255(_shade(color, 0.7))
        ImageDraw.Draw(image).text((padding, padding // 2), text, fill=light, font=font)
        part[:] = np.asarray(image)

    def _class_colors(self, classes: list[int] | None, jittering: bool = True) -> list[tuple] | None:
        """In `ColorMode.SEGMENTATION` a color an instance by its category, else None."""
        if self._instance_mode is not ColorMode.SEGMENTATION or classes is None:
            return None
        given = self.metadata.get("thing_colors") or ()
        colors = [np.divide(given[c], 255) if c < len(given) else palette_color(c) for c in classes]
        tints = [((i * 0.618) % 1 - 0.5) * 0.6 if jittering else 0 for i in range(len(colors))]
        return [_shade(color, tint) for color, tint in zip(colors, tints, strict=True)]

    def _labels(
        self, classes: list[int] | None, scores: list[float] | None, crowds: list | None, num_instances: int
    ) -> list[str] | None:
        """``"person 98%"``, ``"person|crowd"``; None where there is nothing to say."""
        if classes is None and scores is None:
            return None
        names = self.metadata.get("thing_classes") or ()
        parts = [[] for _ in range(num_instances)]
        for i, part in enumerate(parts):
            if classes is not None:
                part.append(names[classes[i]] if classes[i] < len(names) else str(classes[i]))
            if scores is not None:
                part.append(f"{scores[i] * 100:.0f}%")
        crowds = crowds or [0] * num_instances
        return [" ".join(part) + ("|crowd" if crowd else "") for part, crowd in zip(parts, crowds, strict=True)]


def _to_list(masks: Any, num_instances: int) -> Sequence:
    """Masks of any kind as one mask an instance."""
    if masks is None:
        return [None] * num_instances
    if isinstance(masks, PolygonMasks):
        return masks.polygons
    if isinstance(masks, BitMasks):
        return masks.tensor.numpy()
    return masks


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own font, which has the letters of many languages."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _text_box(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height of the box around a line of text, in pixels of the drawing."""
    return round(font.getlength(text)) + 2 * (font.size // 5), sum(font.getmetrics()) + font.size // 5


def _core(box: np.ndarray, limit: float) -> tuple[float, float, float, float]:
    """The inner part of a box: half its size, and at most `limit`."""
    (x, y), (width, height) = (box[:2] + box[2:]) / 2, np.minimum((box[2:] - box[:2]) / 2, limit)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _rgb255(color: Any) -> tuple[int, int, int]:
    return tuple(round(channel * 255) for channel in to_rgb(color))


def _shade(color: Any, amount: float) -> tuple[float, float, float]:
    """A lighter color (towards white for 1), or a darker one (towards black for -1)."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(color))
    lightness += amount * (1 - lightness if amount > 0 else lightness)
    return colorsys.hls_to_rgb(hue, lightness, saturation)
