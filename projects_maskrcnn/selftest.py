"""Is this installation sound? `python -m projects_maskrcnn.selftest` says what is built, and checks each operator.

Every operator is compared with its reference in plain PyTorch on each device that it is built for, within seconds. The
exit status is 1 when one disagrees.
"""

import platform
import sys
from collections.abc import Iterator
from importlib import metadata

import torch
from torch import Tensor

from . import __version__
from .framework import FRAMEWORK
from .ops import masks_to_rle, native, reference
from .ops.reference import ROUND_BINS, ROUND_NOTHING, ROUND_ROI

PACKAGES = ("numpy", "fvcore", "iopath", "pycocotools", "opencv-python-headless")
ROI_LAYERS = {
    "roi_align": ("roi_average", ROUND_NOTHING),
    "roi_align, maximum": ("roi_max", ROUND_NOTHING),
    "roi_warp": ("roi_average", ROUND_ROI),
    "roi_pool": ("roi_max", ROUND_BINS),
}
SUMMED_IN = {torch.float64: torch.float64, torch.float32: torch.float32, torch.float16: torch.float32,
             torch.bfloat16: torch.float32}  # fmt: skip
IMAGE_SIZE = (96, 128)


def main() -> int:
    """Print the report; 1 where an operator disagrees with its reference, else 0."""
    print(f"projects_maskrcnn {__version__} on the {FRAMEWORK} framework, Python {platform.python_version()}")
    print(", ".join([f"torch {torch.__version__}", *(f"{name} {_version(name)}" for name in PACKAGES)]))
    built = sorted(native.DEVICES - {"meta"})
    if not built:
        print("The native operators are not built; the slower PyTorch reference serves.")
        return 0
    print(f"The native operators are built for {' and '.join(built)}; this CPU runs", end=" ")
    print(f"{torch.ops.maskrcnn.cpu_capability()} kernels.")
    sound = True
    for device in built:
        if device == "cuda" and not torch.cuda.is_available():
            print("cuda: no GPU to check on")
            continue
        for name, error in _errors(torch.device(device)):
            sound &= error is None
            print(f"{device}: {name}: {error or 'ok'}")
    return 0 if sound else 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(none)"


def _errors(device: torch.device) -> Iterator[tuple[str, str | None]]:
    """Each operator's name, and how it disagrees with its reference."""
    boxes = _boxes(60)
    for name, (operator, rounding) in ROI_LAYERS.items():
        for dtype in SUMMED_IN:
            yield f"{name}, {dtype}", _error_of_layer(operator, rounding, boxes, dtype, device)
    scores, groups = _random(60), torch.arange(60) % 3
    kept = torch.ops.maskrcnn.nms(boxes.to(device), scores.to(device), groups.to(device), 0.3).cpu()
    yield "nms", None if torch.equal(kept, reference.nms(boxes, scores, groups, 0.3)) else "other boxes are kept"
    masks = _random(60, 14, 14)
    pasted = torch.ops.maskrcnn.paste_masks(masks.to(device), boxes.to(device), *IMAGE_SIZE, 0.5).cpu()
    wrong = (pasted != reference.paste_masks(masks, boxes, *IMAGE_SIZE, 0.5)).sum().item()
    yield "paste_masks", None if wrong <= 2 else f"{wrong} pixels differ"  # at 0.5 rounding may decide
    rles = masks_to_rle(masks.to(device), boxes.to(device), IMAGE_SIZE)
    bitmaps = torch.ops.maskrcnn.paste_masks(masks, boxes, *IMAGE_SIZE, 0.5)
    same = [rle["counts"] for rle in rles] == [reference.encode(bitmap) for bitmap in bitmaps]
    yield "masks_to_rle", None if same else "the encoding differs from that of the bitmaps"


def _error_of_layer(
    operator: str, rounding: int, boxes: Tensor, dtype: torch.dtype, device: torch.device
) -> str | None:
    arguments = ([25, 35], [1 / 4, 1 / 8, 1 / 16], 7, 5, 0, True, rounding, 16.0, 3)
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = [(_random(2, 24, 32 >> i, 40 >> i) - 0.5).to(dtype) for i in range(3)]
        ours = [x.to(device, memory_format=layout).requires_grad_() for x in maps]
        theirs = [x.detach().to(SUMMED_IN[dtype], copy=True).requires_grad_() for x in maps]
        out = getattr(torch.ops.maskrcnn, operator)(ours, boxes.to(device), *arguments)
        expected = getattr(reference, operator)(theirs, boxes, *arguments)
        if operator == "roi_max":
            (out, _), (expected, _) = out, expected
        upstream = torch.cos(torch.arange(expected.numel())).view(expected.shape).to(dtype)
        out.backward(upstream.to(device))
        expected.backward(upstream.to(expected.dtype))
        pairs = [(out, expected), *((a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))]
        for what, (actual, wanted) in zip(("values", *["gradients"] * 3), pairs, strict=True):
            error = (actual.detach().cpu().to(wanted.dtype) - wanted).abs().max().item()
            if not error <= 8 * torch.finfo(dtype).eps * (1 + wanted.abs().max().item()):
                return f"{what} are off by {error:.2g} ({layout})"
    return None


def _boxes(count: int) -> Tensor:
    corner = _random(count, 2) * 120 - 15
    return torch.cat([corner, corner + 2 ** (2 + 5 * _random(count, 2))], 1)


def _random(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(sum(size)))


if __name__ == "__main__":
    sys.exit(main())
