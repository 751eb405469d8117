"""The CUDA operators against those of the CPU, and against the reference in float64; emulated, and on a GPU.

The CPU's operators take the same decisions (levels, rounding, which samples are on the map), so they agree to the last
digits even where a coordinate lies on an edge. They are given what the kernels sum in: float64, else float32.
"""

import itertools
import math

import pytest
import torch

from projects_maskrcnn.ops import reference

SCALES = [1 / 4, 1 / 8, 1 / 16]
SIZES = [(23, 31), (12, 16), (6, 8)]  # of the maps; the image is 92 x 124
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels last", "sliced", "sliced channels last", "unaligned", "expanded"]
CANONICAL = (56.0, 3)  # boxes of 28, 56, 112 pixels begin a level
# Options of an operator from the sampling ratio on.
ROI_ALIGN = (0, True, 0, *CANONICAL)
ROI_WARP = (0, True, 1, *CANONICAL)
ROI_POOL = (0, False, 2, *CANONICAL)
INF, NAN = math.inf, math.nan
ODD_BOXES = [
    [0, 0, 0, 0],
    [5, 5, 5, 9],  # no width
    [20, 10, 12, 4],  # inverted
    [-30, -20, -5, -6],  # outside
    [300, 10, 330, 40],
    [-40, -40, 200, 150],  # around the image
    [-14, -14, 14, 14],  # not aligned, with 1 x 1 samples in 7 x 7 bins: samples exactly at -1 and 0 cells
    [100, 68, 148, 116],  # samples exactly at the map's height and width
    [10, 10, 10.4, 10.3],  # within a cell
    [14, 10, 26, 22],  # rounded, it lies halfway between cells
    [3, NAN, 20, 30],
    [NAN, NAN, NAN, NAN],
    [3, 4, INF, 30],
    [-INF, -INF, INF, INF],
    [-5000, -5000, 5000, 5000],
    [-3e38, 5, 3e38, 60],
    [1e9, 1e9, 2e9, 2e9],
    [-16777216, -16777216, 16777216, 16777216],
]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def boxes_of(count, seed=0):
    """(count, 4) boxes of all levels, some over the image's edges."""
    corner, size = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed))
    corner = corner * torch.tensor([130.0, 100.0]) - 10
    return torch.cat([corner, corner + 4 + 150 * size**3], 1)


def laid_out(maps, layout):
    """`maps` (N, C, H, W) in a layout. Whoever reads beside them reads NaN."""
    if layout == "contiguous":
        return maps.contiguous()
    if layout == "channels last":
        return maps.contiguous(memory_format=torch.channels_last)
    if layout == "expanded":
        return maps[:, :1].expand_as(maps)
    n, c, h, w = maps.shape
    if layout == "unaligned":  # channels last, an element off
        frame = maps.new_full((maps.numel() + 2,), NAN)
        frame[1:-1] = maps.permute(0, 2, 3, 1).flatten()
        return frame[1:-1].view(n, h, w, c).permute(0, 3, 1, 2)
    frame = maps.new_full((n + 1, c, h + 3, w + 2), NAN)
    if layout == "sliced channels last":
        frame = frame.contiguous(memory_format=torch.channels_last)
    inside = frame[1:, :, 1 : 1 + h, 2:]
    inside.copy_(maps)
    return inside


class Case:
    """Feature maps, boxes and options, and what the CPU makes of them."""

    def __init__(
        self,
        cpu_ops,
        options=ROI_ALIGN,
        dtype=torch.float32,
        layout="channels last",
        channels=4,
        boxes=None,
        counts=None,
        bins=(7, 7),
        images=2,
        sizes=SIZES,
    ):
        self.cpu_ops = cpu_ops
        boxes = boxes_of(24) if boxes is None else torch.as_tensor(boxes, dtype=torch.float32)
        if counts is None:
            counts = [len(boxes) // images] * (images - 1) + [len(boxes) - len(boxes) // images * (images - 1)]
        self.rois = (boxes, [] if boxes.shape[1] == 5 else counts, SCALES[: len(sizes)])
        self.bins, self.options = bins, options
        self.maps = [numbers(images, channels, *size, seed=i).to(dtype) for i, size in enumerate(sizes)]
        self.layout = layout
        self.channels_last = layout in ("channels last", "sliced channels last", "unaligned")
        self.sizes = (images, [h for h, _ in sizes], [w for _, w in sizes])
        self.grad = numbers(len(boxes), channels, *bins, seed=9).to(dtype)
        self.sum_dtype = torch.promote_types(dtype, torch.float32)

    def run(self, mode, kernels=None):
        """The output and the gradients, by the kernels, or by the CPU in the dtype of the sums."""
        ops, device, dtype = self.cpu_ops, "cpu", self.sum_dtype
        if kernels is not None:
            ops, device, dtype = kernels.ops, kernels.device, self.grad.dtype
        features = [laid_out(x.to(device, dtype), self.layout) for x in self.maps]
        grad = self.grad.to(device, dtype)
        rois = (self.rois[0].to(device), *self.rois[1:])
        if mode == "mean":
            out = ops.roi_average(features, *rois, *self.bins, *self.options)
            grads = ops.roi_average_backward(grad, *rois, *self.sizes, *self.options, self.channels_last)
        else:
            out, argmax = ops.roi_max(features, *rois, *self.bins, *self.options)
            grads = ops.roi_max_backward(grad, argmax, *rois, *self.sizes, *self.options, self.channels_last)
        assert all(x.dtype == dtype and x.device == grad.device for x in (out, *grads))
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        assert all(x.is_contiguous(memory_format=layout) for x in grads)
        assert out.is_contiguous(memory_format=layout) or features[0].is_contiguous()
        return [x.cpu().to(self.sum_dtype) for x in (out, *grads)]

    def check(self, mode, kernels):
        """What the kernels compute is what the CPU does, rounded to the features' dtype."""
        results, expected = self.run(mode, kernels), self.run(mode)
        assert len(results) == 1 + len(self.maps)
        tolerance = 1e-13 if self.sum_dtype == torch.float64 else 3e-6
        for result, truth in zip(results, expected, strict=True):
            scale = 1 + truth.abs().max() if truth.numel() else 1
            torch.testing.assert_close(
                result, truth, rtol=0.51 * torch.finfo(self.grad.dtype).eps, atol=float(tolerance * scale)
            )
        return results


@pytest.fixture
def case(native):
    return lambda *args, **kwargs: Case(native, *args, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [ROI_ALIGN, ROI_WARP, ROI_POOL], ids=["RoIAlign", "RoIWarp", "RoIPool"])
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_dtypes_and_layouts(kernels, case, mode, options, layout, dtype):
    results = case(options, dtype, layout, channels=8).check(mode, kernels)
    assert all(x.isfinite().all() and x.any() for x in results)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("rounding", [0, 1, 2])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_odd_boxes(kernels, case, mode, sampling_ratio, rounding, aligned):
    options = (sampling_ratio, aligned, rounding, *CANONICAL)
    for layout in ("contiguous", "channels last"):
        results = case(options, layout=layout, boxes=ODD_BOXES).check(mode, kernels)
        assert all(torch.isfinite(x).all() for x in results)
        # what is pooled from one map alone
        case(options, layout=layout, boxes=ODD_BOXES, sizes=SIZES[:1]).check(mode, kernels)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 72, 256, 264])
def test_channels(kernels, case, channels, dtype, layout):
    for mode in ("mean", "max"):
        case(ROI_ALIGN, dtype, layout, channels, boxes_of(3), bins=(2, 3), sizes=SIZES[1:]).check(mode, kernels)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("bins", [(1, 1), (3, 5), (16, 17), (33, 2)])
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_bins(kernels, case, mode, bins, layout):
    """More bins than the tables have room for; with 1 x 1 of them, more cells in a bin than there is room for."""
    for options in (ROI_ALIGN, ROI_POOL):
        case(options, layout=layout, boxes=[*boxes_of(4).tolist(), ODD_BOXES[5]], bins=bins).check(mode, kernels)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (70, 1), (4, 8), (5, 9)])
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_small_maps(kernels, case, mode, size):
    for options in (ROI_ALIGN, ROI_POOL):
        case(options, boxes=[*boxes_of(10).tolist(), *ODD_BOXES], sizes=[size]).check(mode, kernels)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_many_images_some_without_boxes(kernels, case, mode):
    counts = [3 if i % 3 == 0 else 0 for i in range(150)]  # more than one launch has room for
    counts[70:] = [0] * 80
    boxes = boxes_of(sum(counts)) / 8
    case(boxes=boxes, counts=counts, images=150, sizes=[(3, 4)], bins=(2, 2)).check(mode, kernels)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_more_boxes_than_a_block_lists_at_once(kernels, case, mode):
    boxes = boxes_of(700) / 10
    options = {"boxes": boxes, "counts": [600, 100], "sizes": [(3, 4)], "bins": (2, 2)}
    first, second = (case(**options).check(mode, kernels) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_boxes_that_name_their_image(kernels, case, mode):
    boxes, image = boxes_of(20), torch.arange(20) % 2
    rois = torch.cat([image[:, None], boxes], 1)
    in_order = image.argsort(stable=True)
    indexed = case(boxes=rois).check(mode, kernels)
    counted = case(boxes=boxes[in_order], counts=[10, 10]).run(mode, kernels)
    assert torch.equal(indexed[0][in_order], counted[0])


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_a_box_that_names_no_image_is_pooled_from_nothing(kernels, case, mode):
    boxes = boxes_of(6)
    rois = torch.cat([torch.tensor([0, -1, 2, NAN, 1e20, 1])[:, None], boxes], 1)
    results = case(layout="sliced channels last", boxes=rois).run(mode, kernels)
    expected = case(layout="sliced channels last", boxes=rois[[0, 5]])
    expected.grad = case(boxes=rois).grad[[0, 5]]
    good, *grads = expected.run(mode, kernels)
    assert torch.equal(results[0][[0, 5]], good) and not results[0][1:5].any()
    assert all(torch.equal(a, b) for a, b in zip(results[1:], grads, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_nothing_to_do(kernels, case, mode, layout):
    results = case(layout=layout, boxes=torch.zeros(0, 4), counts=[0, 0]).run(mode, kernels)
    assert results[0].shape == (0, 4, 7, 7)
    assert all(x.shape == (2, 4, *size) and not x.any() for x, size in zip(results[1:], SIZES, strict=True))
    results = case(layout=layout, boxes=torch.zeros(0, 4), counts=[], images=0).run(mode, kernels)
    assert [x.numel() for x in results] == [0] * 4


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_the_mean_is_the_reference_in_float64(kernels, case, sampling_ratio, layout):
    options = (sampling_ratio, True, 0, *CANONICAL)
    pooling = case(options, torch.float32, layout, 8)
    out, *grads = pooling.run("mean", kernels)
    features = [x.double().requires_grad_() for x in pooling.maps]
    expected = reference.roi_average(features, *pooling.rois, *pooling.bins, *options)
    torch.testing.assert_close(out.double(), expected.detach(), rtol=0, atol=2e-5)
    expected.backward(pooling.grad.double())
    for grad, x in zip(grads, features, strict=True):
        torch.testing.assert_close(grad.double(), x.grad, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": [20, 3]}, "boxes_per_image adds up to 23, but there are 24"),
        ({"counts": [24]}, "features of 2 images, but boxes_per_image counts those of 1"),
        ({"bins": (0, 7)}, "bins along each axis"),
        ({"options": (-1, True, 0, *CANONICAL)}, "sampling_ratio"),
        ({"options": (0, True, 3, *CANONICAL)}, "rounding"),
        ({"boxes": torch.zeros(3, 6), "counts": [3]}, r"boxes must have shape \(R, 4\)"),
    ],
)
def test_errors(kernels, case, mode, change, message):
    with pytest.raises(RuntimeError, match=message):
        case(**change).run(mode, kernels)


def crowd(count, dtype, seed=0):
    """Boxes that pile up in places, scores with ties, groups."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(count // 12 + 1, (count, 1), generator=generator) * 30.0
    corner = place + torch.rand(count, 2, generator=generator) * 10
    boxes = torch.cat([corner, corner + 15 + 15 * torch.rand(count, 2, generator=generator)], 1)
    scores = torch.randint(count // 2 + 1, (count,), generator=generator) / count
    return boxes.to(dtype), scores.to(dtype), torch.randint(-1, 2, (count,), generator=generator) * 2**40


def check_nms(kernels, boxes, scores, groups, threshold):
    on_device = [None if x is None else x.to(kernels.device) for x in (boxes, scores, groups)]
    kept = kernels.ops.nms(*on_device, threshold)
    assert kept.dtype == torch.int64 and kept.device == on_device[0].device
    assert kept.tolist() == reference.nms(boxes, scores, groups, threshold).tolist()
    return kept


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 300])
def test_nms(kernels, count, threshold, dtype):
    boxes, scores, groups = crowd(count, dtype)
    kept = check_nms(kernels, boxes, scores, None, threshold)
    assert count < 63 or threshold == 1 or len(kept) < count
    check_nms(kernels, boxes, scores, groups, threshold)


def test_nms_of_odd_boxes(kernels):
    boxes = torch.tensor([*ODD_BOXES, [5, 5, 5, 9], [10, 10, 10.4, 10.3], [-3e38, -3e38, 3e38, 3e38], [0, 0, 50, 40]])
    for scores in (torch.linspace(1, 0, len(boxes)), torch.linspace(0, 1, len(boxes))):
        scores[3], scores[7] = NAN, INF
        for dtype, threshold in itertools.product((torch.float32, torch.float64), (0.0, 0.5)):
            check_nms(kernels, boxes.to(dtype), scores, None, threshold)


def test_the_threshold_of_nms_is_not_rounded(kernels):
    boxes, scores = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1]]), torch.tensor([0.9, 0.8])
    rounded = torch.tensor(1 / 3).item()  # the IoU, a little more than a third
    for dtype, threshold in itertools.product((torch.float32, torch.float64), (1 / 3, rounded)):
        check_nms(kernels, boxes.to(dtype), scores, None, threshold)
    assert len(check_nms(kernels, boxes, scores, None, rounded)) == 2


@pytest.mark.parametrize("cells", [(28, 28), (14, 9), (1, 1)])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5])
def test_masks_are_those_of_the_cpu_to_the_last_pixel(kernels, native, threshold, cells):
    boxes = torch.cat([torch.tensor(ODD_BOXES), boxes_of(20) / 3, (boxes_of(20, seed=1) / 3).round()])
    masks = torch.rand(len(boxes), *cells, generator=torch.Generator().manual_seed(0))
    masks[::7] = (masks[::7] * 4).round() / 4
    masks[3, 0] = NAN
    masks[4, 0, 0] = -INF
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        given = masks.to(dtype), boxes.to(dtype)
        expected = native.paste_masks(*given, 30, 40, threshold)
        pasted = kernels.ops.paste_masks(*(x.to(kernels.device) for x in given), 30, 40, threshold)
        assert pasted.dtype == expected.dtype and torch.equal(pasted.cpu(), expected)
    assert expected.any()


@pytest.mark.parametrize(("count", "height", "width"), [(0, 5, 5), (2, 0, 5), (2, 5, 0)])
def test_no_masks_or_pixels(kernels, count, height, width):
    masks = torch.ones(count, 3, 3, device=kernels.device), torch.ones(count, 4, device=kernels.device)
    assert kernels.ops.paste_masks(*masks, height, width, 0.5).shape == (count, height, width)
