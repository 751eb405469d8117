"""The compiled operators, `torch.ops.maskrcnn`: loading them, and what PyTorch has to know beside their kernels.

C++ holds the schemas and the kernels. Here are the shapes that they return, for `torch.compile` and `torch.export`, and
the derivatives.
"""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.library import Library, get_ctx, register_autograd, register_fake

from . import reference

LIBRARY = Path(__file__).with_name("libmaskrcnn.so")
logger = logging.getLogger(__name__)


def _load() -> frozenset[str]:
    """The types of devices that the operators are built for; none where they are not built.

    Raises:
        ImportError: the library is there, but does not load.
    """
    if not LIBRARY.is_file():
        return frozenset()
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        raise ImportError(
            f"the native operators in {LIBRARY} do not load with torch {torch.__version__}: {error}. "
            "They need torch >= 2.10. Build them again with `pip install --force-reinstall --no-deps .`, or remove the "
            "file to use the slower PyTorch reference"
        ) from error
    _register_fakes()
    _register_derivatives()
    kernels = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(device for device, key in kernels.items() if has_kernel("maskrcnn::roi_average", key))


def operators(device: torch.device) -> Any:
    """`torch.ops.maskrcnn` where it is built for `device`; otherwise `reference`, with functions of the same names."""
    if device.type in DEVICES:
        return torch.ops.maskrcnn
    _say_that_the_reference_serves(device.type)
    return reference


def check_tensors(**given: Tensor | Sequence[Tensor]) -> None:
    """Hold what is given by its name, a tensor or several, to be tensors on one device.

    PyTorch takes an operator with one tensor on `meta` for one whose result is not wanted, and would return memory as
    it is.

    Raises:
        TypeError: something is no tensor.
        ValueError: they are on several devices.
    """
    devices = {}
    for name, tensors in given.items():
        for tensor in tensors if isinstance(tensors, list | tuple) else (tensors,):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be of tensors, not of {type(tensor).__name__}")
            devices.setdefault(tensor.device, name)
    if len(devices) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise ValueError(f"all tensors must be on one device; got {places}")


@functools.cache
def _say_that_the_reference_serves(device_type: str) -> None:
    missing = f"built without {device_type} kernels" if DEVICES else "not built"
    logger.warning(
        "The native operators are %s: the slower PyTorch reference serves. To build them: `pip install .`, with a C++ "
        "compiler, and a CUDA toolkit for the GPU.",
        missing,
    )


def _empty_map(like: Tensor, size: tuple, channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.stride(1) == 1


def _register_fakes() -> None:
    @register_fake("maskrcnn::roi_average")
    def average(features, boxes, boxes_per_image, scales, bins_y, bins_x, *options):
        size = (boxes.shape[0], features[0].shape[1], bins_y, bins_x)
        return _empty_map(features[0], size, _is_channels_last(features[0]))

    @register_fake("maskrcnn::roi_max")
    def _(features, *arguments):
        out = average(features, *arguments)
        return out, _empty_map(out, out.shape, _is_channels_last(features[0]), torch.int32)

    @register_fake("maskrcnn::roi_average_backward")
    def average_backward(grad, boxes, boxes_per_image, scales, num_images, heights, widths, *options):
        sizes = [(num_images, grad.shape[1], *size) for size in zip(heights, widths, strict=True)]
        return [_empty_map(grad, size, channels_last=options[-1]) for size in sizes]

    @register_fake("maskrcnn::roi_max_backward")
    def _(grad, argmax, *arguments):
        return average_backward(grad, *arguments)

    @register_fake("maskrcnn::nms")
    def _(boxes, scores, groups, iou_threshold):
        kept = get_ctx().new_dynamic_size()
        return boxes.new_empty(kept, dtype=torch.int64)

    @register_fake("maskrcnn::paste_masks")
    def _(masks, boxes, height, width, threshold):
        dtype = torch.bool if threshold >= 0 else torch.uint8
        return masks.new_empty(masks.shape[0], height, width, dtype=dtype)

    @register_fake("maskrcnn::masks_to_rle")
    def _(masks, boxes, height, width, threshold):
        length = get_ctx().new_dynamic_size()
        return masks.new_empty(length, dtype=torch.uint8), masks.new_empty(masks.shape[0] + 1, dtype=torch.int64)


class _Pooling(Function):
    """An average or a maximum, differentiable in its features.

    `register_autograd` would do, but takes a quarter of a millisecond for an operator with a list of tensors, longer
    than a GPU takes to pool. So the features come last, one by one.
    """

    @staticmethod
    def forward(ctx: Any, name: str, arguments: tuple, *features: Tensor) -> Any:
        boxes, ctx.boxes_per_image, ctx.scales, _, _, *ctx.options = arguments
        ctx.gradient = getattr(torch.ops.maskrcnn, f"{name}_backward").default
        ctx.sizes = [x.shape for x in features]
        ctx.channels_last = _is_channels_last(features[0])
        output = _below_autograd(getattr(torch.ops.maskrcnn, name).default, features, *arguments)
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(output[1])
            ctx.save_for_backward(boxes, output[1])
        else:
            ctx.save_for_backward(boxes)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple:
        boxes, *argmax = ctx.saved_tensors
        arguments = (
            grad, *argmax, boxes, ctx.boxes_per_image, ctx.scales, ctx.sizes[0][0],
            [size[2] for size in ctx.sizes], [size[3] for size in ctx.sizes], *ctx.options, ctx.channels_last,
        )  # fmt: skip
        twice = torch.is_grad_enabled()  # which PyTorch then has to know, so as to refuse
        grads = ctx.gradient(*arguments) if twice else _below_autograd(ctx.gradient, *arguments)
        return None, None, *grads


def _pool(name: str, features: list[Tensor], *arguments: Any) -> Any:
    """What PyTorch calls for an operator where a gradient may be wanted."""
    forward_mode = forward_ad._current_level >= 0  # which `_Pooling` has not, so that PyTorch refuses
    if forward_mode or (torch.is_grad_enabled() and any(x.requires_grad for x in features)):
        return _Pooling.apply(name, arguments, *features)
    return _below_autograd(getattr(torch.ops.maskrcnn, name).default, features, *arguments)


def _below_autograd(op: Any, *arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def _register_derivatives() -> None:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("the RoI operators have no second derivative: take the gradient without create_graph=True")

    for name in ("roi_average", "roi_max"):
        AUTOGRAD.impl(name, functools.partial(_pool, name), "Autograd")
        register_autograd(f"maskrcnn::{name}_backward", refuse)


AUTOGRAD = Library("maskrcnn", "IMPL")
"""Holds the derivatives, for as long as it lives."""

DEVICES = _load()
