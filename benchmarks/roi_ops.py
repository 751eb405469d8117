"""Times the operators against torchvision's and Detectron2's, side by side in one process; prints Markdown tables.

python benchmarks/roi_ops.py                          # RoIAlign, NMS and masks on the CPU, 1 and 4 threads
python benchmarks/roi_ops.py --device cuda --dtype float32 float16
python benchmarks/roi_ops.py --workloads "FPN inference" --threads 4 --repeats 20

Peers are timed where they are installed. A figure is the median of interleaved runs, in milliseconds; a ratio is the
peer's median over ours. torchvision pools each level by itself, of boxes that are assigned to levels beforehand, which
is not timed. Detectron2's `ROIPooler` and ours do the whole job.
"""

import argparse
import importlib.util
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from projects_maskrcnn import ops
from projects_maskrcnn.ops.reference import assign_levels

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
IMAGE = (800, 1333)
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
LAYOUTS = {CONTIGUOUS: "NCHW", LAST: "channels_last"}
CUDA_CALLS = 10
"""In a row, as in training, where the CPU prepares a call while the GPU works on the one before."""


@dataclass
class Workload:
    """RoIs on the feature maps of images of 800 x 1333 pixels, padded to a multiple of 32."""

    num_images: int
    boxes_per_image: int
    strides: tuple[int, ...]
    channels: int
    bins: int

    def maps(self, dtype: torch.dtype, device: str, layout: torch.memory_format) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        sizes = [tuple(-(-side // 32) * 32 // stride for side in IMAGE) for stride in self.strides]
        maps = [torch.randn(self.num_images, self.channels, *size, generator=generator) for size in sizes]
        return [x.to(device, dtype).contiguous(memory_format=layout) for x in maps]

    def boxes(self, device: str) -> list[Tensor]:
        """Of sides from 16 to 512 pixels, log-uniform, anywhere on the image."""
        generator = torch.Generator().manual_seed(1)
        height, width = IMAGE
        result = []
        for _ in range(self.num_images):
            size = 16 * 32 ** torch.rand(self.boxes_per_image, 2, generator=generator)
            centre = torch.rand(self.boxes_per_image, 2, generator=generator) * torch.tensor([width, height])
            boxes = torch.cat([centre - size / 2, centre + size / 2], 1)
            result.append(boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2)).float().to(device))
        return result

    @property
    def scales(self) -> list[float]:
        return [1 / stride for stride in self.strides]


WORKLOADS = {
    "FPN inference, 1000 boxes, 7 x 7 x 256": Workload(1, 1000, (4, 8, 16, 32), 256, 7),
    "FPN training, 2 x 512 boxes, 7 x 7 x 256": Workload(2, 512, (4, 8, 16, 32), 256, 7),
    "FPN masks, 128 boxes, 14 x 14 x 256": Workload(2, 64, (4, 8, 16, 32), 256, 14),
    "C4, 300 boxes, 14 x 14 x 1024": Workload(1, 300, (16,), 1024, 14),
    "C4, 300 boxes, 7 x 7 x 1024": Workload(1, 300, (16,), 1024, 7),
}


def medians(functions: dict[str, Callable[[], object]], device: str, repeats: int, seconds: float) -> dict[str, float]:
    """Median milliseconds of each function; slow ones are run less often, to end within `seconds` or so.

    Each round begins with another one. A quick one is run once more before it is timed, as in training, where it finds
    the memory that it has just let go of.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for name, function in functions.items():  # to warm up
        times[name].append(_milliseconds(function, device))
    budget = {name: max(2, min(repeats, int(seconds * 1e3 / max(first[0], 1e-3)))) for name, first in times.items()}
    for round_number in range(repeats):
        first = round_number % len(functions)
        for name in [*functions][first:] + [*functions][:first]:
            if round_number < budget[name]:
                if times[name][0] < 1e3:
                    functions[name]()
                times[name].append(_milliseconds(functions[name], device))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _milliseconds(function: Callable[[], object], device: str) -> float:
    if device != "cuda":
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) * 1e3
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(CUDA_CALLS):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / CUDA_CALLS


def forward_and_backward(function: Callable[..., Tensor], maps: list[Tensor], grad: Tensor) -> Callable[[], None]:
    """A run that also computes the gradient of the maps."""
    inputs = [x.detach().requires_grad_() for x in maps]

    def run() -> None:
        torch.autograd.grad(function(inputs), inputs, grad)

    return run


def per_level_torchvision(workload: Workload, boxes: list[Tensor], sampling_ratio: int) -> Callable[..., Tensor]:
    """torchvision's roi_align on each level, of the boxes that belong there."""
    from torchvision.ops import roi_align

    indexed = torch.cat([torch.nn.functional.pad(b, (1, 0), value=i) for i, b in enumerate(boxes)])
    if len(workload.scales) > 1:
        level = assign_levels(indexed[:, 1:], workload.scales, 224, 4)
        rois = [indexed[level == i] for i in range(len(workload.scales))]
    else:
        rois = [indexed]

    def pool(maps: list[Tensor]) -> Tensor:
        parts = zip(maps, rois, workload.scales, strict=True)
        return torch.cat([roi_align(x, r, workload.bins, s, sampling_ratio, True) for x, r, s in parts])

    return pool


def detectron2_pooler(workload: Workload, boxes: list[Tensor], sampling_ratio: int) -> Callable[..., Tensor]:
    """Detectron2's own pooler."""
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    pooler = ROIPooler(workload.bins, workload.scales, sampling_ratio, "ROIAlignV2")
    lists = [Boxes(b) for b in boxes]
    return lambda maps: pooler(list(maps), lists)


def our_pooler(workload: Workload, boxes: list[Tensor], sampling_ratio: int) -> Callable[..., Tensor]:
    """All levels in one call."""
    return lambda maps: ops.roi_align(maps, boxes, workload.bins, workload.scales, sampling_ratio)


def time_roi_align(args: argparse.Namespace) -> None:
    """Forward, and forward with backward, of every workload."""
    for dtype_name in args.dtype:
        dtype = getattr(torch, dtype_name)
        print(f"\n### RoIAlign, {dtype_name}, {_where(args)}\n")
        print("| workload | sampling ratio | pass | torchvision | Detectron2 | ours NCHW | ours channels_last |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, workload in WORKLOADS.items():
            if not any(part in name for part in args.workloads):
                continue
            boxes = workload.boxes(args.device)
            for sampling_ratio in args.sampling_ratios:
                _time_workload(args, name, workload, dtype, boxes, sampling_ratio)


def _time_workload(
    args: argparse.Namespace,
    name: str,
    workload: Workload,
    dtype: torch.dtype,
    boxes: list[Tensor],
    sampling_ratio: int,
) -> None:
    makers = {"ours": our_pooler}
    if HAS_TORCHVISION and dtype != torch.bfloat16:  # which torchvision does not have
        makers["torchvision"] = per_level_torchvision
        if HAS_DETECTRON2:
            makers["Detectron2"] = detectron2_pooler
    runs: dict[str, dict[str, Callable[[], object]]] = {"forward": {}, "forward + backward": {}}
    for peer, maker in makers.items():
        pool = maker(workload, boxes, sampling_ratio)
        for layout in LAYOUTS if peer == "ours" else [CONTIGUOUS]:
            maps = workload.maps(dtype, args.device, layout)
            size = (workload.num_images * workload.boxes_per_image, workload.channels, workload.bins, workload.bins)
            grad = torch.ones(size, dtype=dtype, device=args.device).contiguous(memory_format=layout)
            key = f"ours {LAYOUTS[layout]}" if peer == "ours" else peer
            runs["forward"][key] = lambda pool=pool, maps=maps: pool(maps)
            runs["forward + backward"][key] = forward_and_backward(pool, maps, grad)
    for what, functions in runs.items():
        with torch.set_grad_enabled(what != "forward"):
            found = medians(functions, args.device, args.repeats, args.seconds)
        cells = [f"{found[peer]:.3g}" if peer in found else "-" for peer in ("torchvision", "Detectron2")]
        cells += [_with_ratios(found, f"ours {layout}") for layout in LAYOUTS.values()]
        print(f"| {name} | {sampling_ratio or 'adaptive'} | {what} | {' | '.join(cells)} |", flush=True)


def _with_ratios(found: dict[str, float], ours: str) -> str:
    ratios = [f"{found[peer] / found[ours]:.1f}x" for peer in ("torchvision", "Detectron2") if peer in found]
    return f"{found[ours]:.3g}" + (f" ({', '.join(ratios)})" if ratios else "")


def time_nms(args: argparse.Namespace) -> None:
    """Suppression of as many proposals as an RPN at five levels gives."""
    generator = torch.Generator().manual_seed(0)
    count = 12_000
    print(f"\n### NMS of {count} boxes, {_where(args)}\n")
    print("| boxes | IoU threshold | kept | torchvision | ours |\n| --- | --- | --- | --- | --- |")
    size = 16 * 32 ** torch.rand(count, 2, generator=generator)
    spread = torch.rand(count, 2, generator=generator) * torch.tensor([1333.0, 800.0])
    objects = spread[torch.randint(60, (count,), generator=generator)]
    clustered = objects + torch.randn(count, 2, generator=generator) * size / 6
    scores = torch.rand(count, generator=generator).to(args.device)
    for name, centre in {"around 60 objects": clustered, "anywhere": spread}.items():
        boxes = torch.cat([centre - size / 2, centre + size / 2], 1).to(args.device)
        for threshold in (0.5, 0.7):
            functions = {"ours": lambda b=boxes, t=threshold: ops.nms(b, scores, t)}
            if HAS_TORCHVISION:
                from torchvision.ops import nms

                functions["torchvision"] = lambda b=boxes, t=threshold: nms(b, scores, t)
            found = medians(functions, args.device, args.repeats, args.seconds)
            kept = len(ops.nms(boxes, scores, threshold))
            peer = f"{found['torchvision']:.3g}" if HAS_TORCHVISION else "-"
            print(f"| {name} | {threshold} | {kept} | {peer} | {_with_ratios(found, 'ours')} |", flush=True)


def time_masks(args: argparse.Namespace) -> None:
    """Masks of 100 detections to COCO's encoding, by way of bitmaps and straight."""
    import numpy as np
    from pycocotools import mask as coco

    height, width, count = 800, 1066, 100
    generator = torch.Generator().manual_seed(0)
    size = 16 * 32 ** torch.rand(count, 2, generator=generator)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([centre - size / 2, centre + size / 2], 1)
    coarse = torch.rand(count, 1, 5, 5, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (28, 28), mode="bicubic")[:, 0].clamp(0, 1)  # blobs
    masks, boxes = masks.to(args.device), boxes.to(args.device)

    def encode(bitmaps: Tensor) -> list[bytes]:
        arrays = [np.array(m[:, :, None], order="F", dtype="uint8") for m in bitmaps.cpu()]  # as Detectron2's evaluator
        return [coco.encode(a)[0]["counts"] for a in arrays]

    functions: dict[str, Callable[[], object]] = {
        "ours": lambda: ops.masks_to_rle(masks, boxes, (height, width)),
        "ours by bitmaps": lambda: encode(ops.paste_masks(masks, boxes, (height, width))),
    }
    if HAS_DETECTRON2:
        from detectron2.layers.mask_ops import paste_masks_in_image

        functions["Detectron2"] = lambda: encode(paste_masks_in_image(masks, boxes, (height, width)))
        if args.device == "cpu":  # a GPU's grid_sample may round a pixel the other way
            assert functions["Detectron2"]() == [rle["counts"] for rle in functions["ours"]()]
    found = medians(functions, args.device, args.repeats, args.seconds)
    print(f"\n### {count} masks of 28 x 28 to COCO's encoding, image of {height} x {width}, {_where(args)}\n")
    print("| Detectron2's paste + pycocotools | our paste + pycocotools | ours, without bitmaps |\n| --- | --- | --- |")
    peer = f"{found['Detectron2']:.3g}" if HAS_DETECTRON2 else "-"
    print(f"| {peer} | {_with_ratios(found, 'ours by bitmaps')} | {_with_ratios(found, 'ours')} |", flush=True)


def _where(args: argparse.Namespace) -> str:
    if args.device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def describe_machine() -> str:
    """The processor and the versions that the figures are of."""
    try:
        text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        processor = f"{fields['Model name'].strip()}, {fields['CPU(s)'].strip()} CPUs"
    except (OSError, KeyError, subprocess.CalledProcessError):
        processor = platform.processor() or platform.machine()
    versions = [f"torch {torch.__version__}"]
    if HAS_TORCHVISION:
        import torchvision

        versions.append(f"torchvision {torchvision.__version__}")
    return f"{processor}; {', '.join(versions)}; {torch.ops.maskrcnn.cpu_capability()} kernels"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[4, 1], help="CPU threads, one table each")
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--sampling-ratios", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--workloads", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=5, help="at most, for each figure")
    args = parser.parse_args()
    print(describe_machine())
    for threads in args.threads if args.device == "cpu" else [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        time_roi_align(args)
        time_nms(args)
        time_masks(args)


if __name__ == "__main__":
    main()
