"""Masks of instances: as bitmaps, as polygons, and as predicted within RoIs."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

from ...ops import masks_to_rle, paste_masks, roi_align
from .boxes import Boxes
from .instances import Deferred


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """(height, width) bool: the union of polygons, by COCO's rasteriser.

    Args:
        polygons: each (2V,), x0, y0, x1, y1, ... in pixels of the bitmap.
    """
    if not polygons:  # which the COCO API refuses
        return np.zeros((height, width), dtype=bool)
    rles = mask_util.frPyObjects(polygons, height, width)
    return mask_util.decode(mask_util.merge(rles)).astype(bool)


def rasterize_polygons_within_box(polygons: list[np.ndarray], box: np.ndarray, mask_size: int) -> torch.Tensor:
    """(mask_size, mask_size) bool: what `box` shows of the union of polygons.

    Args:
        polygons: each (2V,), x0, y0, x1, y1, ... in pixels of the image.
        box: (4,), x0, y0, x1, y1 in pixels of the image.
    """
    scale = mask_size / np.maximum(box[2:] - box[:2], 0.1)
    moved = [((polygon.reshape(-1, 2) - box[:2]) * scale).reshape(-1) for polygon in polygons]
    return torch.from_numpy(polygons_to_bitmask(moved, mask_size, mask_size))


class BitMasks:
    """Masks of N instances of one image as bitmaps: `tensor` is (N, H, W) bool."""

    def __init__(self, tensor: torch.Tensor | np.ndarray) -> None:
        tensor = torch.as_tensor(tensor).to(torch.bool)
        if tensor.dim() != 3:
            raise ValueError(f"bitmaps have shape (N, H, W), not {tuple(tensor.shape)}")
        self.tensor = tensor
        self.image_size = tensor.shape[1:]

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        return BitMasks(self.tensor.to(*args, **kwargs))

    def nonempty(self) -> torch.Tensor:
        """(N,) bool: which masks have a pixel."""
        return self.tensor.flatten(start_dim=1).any(dim=1)

    def get_bounding_boxes(self) -> Boxes:
        """The tightest boxes, zero for a mask without a pixel."""
        columns, rows = self.tensor.any(dim=1), self.tensor.any(dim=2)
        (x0, x1), (y0, y1) = _first_and_end(columns), _first_and_end(rows)
        return Boxes(torch.stack((x0, y0, x1, y1), dim=1) * self.nonempty()[:, None])

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """(N, mask_size, mask_size) bool: what each of `boxes` shows of its mask, by RoIAlign.

        Args:
            boxes: (N, 4), one a mask, x0, y0, x1, y1 in pixels of the bitmaps.
        """
        _check_one_box_each(self, boxes)
        indices = torch.arange(len(boxes), device=self.device, dtype=torch.float32)
        rois = torch.cat((indices[:, None], boxes.to(indices)), dim=1)
        masks = self.tensor[:, None].float()
        return roi_align(masks, rois, (mask_size, mask_size), 1.0, 0, True)[:, 0] >= 0.5

    @staticmethod
    def from_polygon_masks(
        polygon_masks: "PolygonMasks | list[list[np.ndarray]]", height: int, width: int
    ) -> "BitMasks":
        """Rasterise polygons on an image of `height` by `width` pixels."""
        masks = [torch.from_numpy(polygons_to_bitmask(polygons, height, width)) for polygons in polygon_masks]
        return BitMasks(torch.stack(masks) if masks else torch.empty(0, height, width))

    @staticmethod
    def cat(bitmasks_list: Sequence["BitMasks"]) -> "BitMasks":
        """All masks of `bitmasks_list`, which is not empty."""
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list]))

    def __getitem__(self, item: Any) -> "BitMasks":
        """The masks at an int (one mask), slice, integer or bool tensor; they may share this one's memory."""
        return BitMasks(self.tensor[item][None] if isinstance(item, int) else self.tensor[item])

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield each mask as a bool tensor (H, W)."""
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"


class PolygonMasks:
    """Masks of N instances of one image as polygons.

    Attributes:
        polygons: for each instance a list of polygons, whose union is its mask; each polygon is a float64
            array (2V,), x0, y0, x1, y1, ... in pixels of the image. They stay on the CPU.
    """

    def __init__(self, polygons: list[list[torch.Tensor | np.ndarray | Sequence[float]]]) -> None:
        """
        Raises:
            ValueError: this is no list of lists, or a polygon has fewer than 3 points or half a one.
        """
        if not isinstance(polygons, list) or not all(isinstance(instance, list) for instance in polygons):
            raise ValueError("PolygonMasks takes a list of instances, each of them a list of polygons")
        self.polygons = [[_as_array(polygon) for polygon in instance] for instance in polygons]
        for i, instance in enumerate(self.polygons):
            for polygon in instance:
                if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
                    raise ValueError(f"instance {i}: a polygon has 3 or more points x0, y0, x1, y1, ..., not {polygon}")

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """Itself: polygons stay on the CPU."""
        return self

    def nonempty(self) -> torch.Tensor:
        """(N,) bool: which instances have a polygon."""
        return torch.tensor([len(instance) > 0 for instance in self.polygons], dtype=torch.bool)

    def area(self) -> torch.Tensor:
        """(N,) float64: the sum of each instance's polygons' areas, in square pixels."""
        areas = [sum(map(_polygon_area, instance)) for instance in self.polygons]
        return torch.tensor(areas, dtype=torch.float64)

    def get_bounding_boxes(self) -> Boxes:
        """The tightest boxes, zero for an instance without a polygon."""
        boxes = np.zeros((len(self), 4))
        for box, instance in zip(boxes, self.polygons, strict=True):
            if instance:
                points = np.concatenate(instance).reshape(-1, 2)
                box[:2], box[2:] = points.min(axis=0), points.max(axis=0)
        return Boxes(boxes)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """(N, mask_size, mask_size) bool, on the device of `boxes`: what each of `boxes` shows of its mask.

        Args:
            boxes: (N, 4), one a mask, x0, y0, x1, y1 in pixels of the image.
        """
        _check_one_box_each(self, boxes)
        crops = torch.empty(len(self), mask_size, mask_size, dtype=torch.bool)
        for crop, polygons, box in zip(crops, self.polygons, boxes.cpu().numpy(), strict=True):
            crop.copy_(rasterize_polygons_within_box(polygons, box, mask_size))
        return crops.to(boxes.device)

    @staticmethod
    def cat(polymasks_list: Sequence["PolygonMasks"]) -> "PolygonMasks":
        """All masks of `polymasks_list`."""
        return PolygonMasks(list(itertools.chain.from_iterable(polymasks_list)))

    def __getitem__(self, item: int | slice | list[int] | np.ndarray | torch.Tensor) -> "PolygonMasks":
        """The masks at an int (one mask), slice, list, integer or bool array or tensor."""
        if isinstance(item, torch.Tensor):
            item = item.cpu().numpy()
        return PolygonMasks([self.polygons[i] for i in np.arange(len(self))[item].reshape(-1)])

    def __len__(self) -> int:
        return len(self.polygons)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield the list of polygons of each instance."""
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"


class ROIMasks:
    """Masks of N instances, each relative to its RoI: `tensor` is (N, M, M), probabilities."""

    def __init__(self, tensor: torch.Tensor) -> None:
        if tensor.dim() != 3:
            raise ValueError(f"masks of RoIs have shape (N, M, M), not {tuple(tensor.shape)}")
        self.tensor = tensor

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, device: torch.device | str) -> "ROIMasks":
        return ROIMasks(self.tensor.to(device))

    def to_bitmasks(self, boxes: Boxes, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """Paste each mask into its box on an image of `height` by `width` pixels, and threshold it.

        Args:
            boxes: the N RoIs, in pixels of the image.
        """
        return BitMasks(paste_masks(self.tensor, boxes.tensor, (height, width), threshold))

    def __getitem__(self, item: Any) -> "ROIMasks":
        """The masks at a slice, integer or bool tensor; they may share this one's memory."""
        return ROIMasks(self.tensor[item])

    def __len__(self) -> int:
        return len(self.tensor)

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)})"


class PastedMasks(Deferred):
    """Masks of RoIs on an image, pasted when they are read. COCO's encoding needs no pasting.

    Args:
        masks: (N, M, M) probabilities.
        boxes: the N RoIs, (N, 4) corners in pixels of the image.
        image_size: (height, width).
        threshold: a pixel belongs to the mask from this probability on.
    """

    def __init__(
        self, masks: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], threshold: float = 0.5
    ) -> None:
        self.masks = masks
        self.boxes = boxes
        self.image_size = image_size
        self.threshold = threshold

    def make(self) -> torch.Tensor:
        """(N, height, width) bool."""
        return paste_masks(self.masks, self.boxes, self.image_size, self.threshold)

    def rle(self) -> list[dict[str, Any]]:
        """COCO's compressed run-length encoding of each mask."""
        return masks_to_rle(self.masks, self.boxes, self.image_size, self.threshold)

    def to(self, *args: Any, **kwargs: Any) -> "PastedMasks":
        return self._with(self.masks.to(*args, **kwargs), self.boxes.to(*args, **kwargs))

    def __getitem__(self, item: Any) -> "PastedMasks":
        return self._with(self.masks[item], self.boxes[item])

    def __len__(self) -> int:
        return len(self.masks)

    @staticmethod
    def cat(parts: Sequence["PastedMasks"]) -> "PastedMasks":
        """Those of one image."""
        return parts[0]._with(torch.cat([p.masks for p in parts]), torch.cat([p.boxes for p in parts]))

    def __repr__(self) -> str:
        return f"PastedMasks(num_instances={len(self)}, image_size={self.image_size})"

    def _with(self, masks: torch.Tensor, boxes: torch.Tensor) -> "PastedMasks":
        return PastedMasks(masks, boxes, self.image_size, self.threshold)


def _as_array(polygon: torch.Tensor | np.ndarray | Sequence[float]) -> np.ndarray:
    return np.asarray(polygon.cpu() if isinstance(polygon, torch.Tensor) else polygon, dtype=np.float64)


def _polygon_area(polygon: np.ndarray) -> float:
    """By the shoelace formula."""
    x, y = polygon[0::2], polygon[1::2]
    return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def _first_and_end(flags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of (N, L) bool: the index of its first true entry, and one more than that of its last."""
    first = flags.int().argmax(dim=1)
    return first, flags.shape[1] - flags.flip(1).int().argmax(dim=1)


def _check_one_box_each(masks: BitMasks | PolygonMasks, boxes: torch.Tensor) -> None:
    if len(boxes) != len(masks):
        raise ValueError(f"crop_and_resize takes one box a mask: {len(boxes)} boxes for {len(masks)} masks")
