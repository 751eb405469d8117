"""Suppression against its definition in a plain loop, torchvision's, and Detectron2's kept sets."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from projects_maskrcnn import ops
from projects_maskrcnn.ops import reference


def nms(boxes, scores, groups, threshold):
    """Kept indices, of all boxes together where there are no groups."""
    if groups is None:
        return ops.nms(boxes, scores, threshold)
    return ops.batched_nms(boxes, scores, groups, threshold)


def by_definition(boxes, scores, threshold, groups=None):
    """Indices kept by greedy suppression within groups, in float64."""
    order = np.argsort(-scores, kind="stable")
    kept = []
    for i in order:
        for j in kept:
            if groups is not None and groups[i] != groups[j]:
                continue
            a, b = boxes[i].astype(np.float64), boxes[j].astype(np.float64)
            side = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            both = max(side[0], 0) * max(side[1], 0)
            union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both
            if union > 0 and both / union > threshold:
                break
        else:
            kept.append(i)
    return kept


def crowd(count, seed, places=12):
    """Boxes that pile up in a few places, some at negative coordinates; groups; scores with ties."""
    random = np.random.default_rng(seed)
    corner = random.uniform(-200, 200, (places, 2))[random.integers(places, size=count)]
    corner = corner + random.uniform(0, 12, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(20, 40, (count, 2))], 1).astype(np.float32)
    scores = (random.integers(0, count // 2 + 1, count) / count).astype(np.float32)
    return boxes, scores, random.integers(-2, 2, count) * 2**40


def proposals(count, seed):
    """Boxes of many sizes and shapes all over an image, clipped to it, as tensors; scores; levels."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([400.0, 300.0])
    half = 4 * torch.exp(3 * torch.rand(count, 1, generator=generator) + torch.randn(count, 2, generator=generator) / 3)
    boxes = torch.cat([centre - half, centre + half], 1).clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([400.0, 300.0, 400.0, 300.0]))
    return boxes, torch.rand(count, generator=generator), torch.randint(5, (count,), generator=generator)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("count", [1, 60, 400])
@pytest.mark.usefixtures("implementation")
def test_equals_the_definition(count, threshold):
    boxes, scores, groups = crowd(count, seed=count)
    expected = by_definition(boxes, scores, threshold)
    assert count < 60 or threshold == 1.0 or len(expected) < count
    boxes_, scores_, groups_ = map(torch.from_numpy, (boxes, scores, groups))
    assert nms(boxes_, scores_, None, threshold).tolist() == expected
    assert nms(boxes_, scores_, groups_, threshold).tolist() == by_definition(boxes, scores, threshold, groups)


@pytest.mark.usefixtures("implementation")
def test_a_box_at_the_threshold_stays():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 3, 4]])  # IoU with the first: 0.5, 0.75
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), None, 0.5).tolist() == [0, 1]


@pytest.mark.usefixtures("implementation")
def test_the_threshold_is_not_rounded():
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1]])
    rounded = float(np.float32(1 / 3))  # the IoU
    assert rounded > 1 / 3
    assert nms(boxes, torch.tensor([0.9, 0.8]), None, 1 / 3).tolist() == [0]
    assert nms(boxes, torch.tensor([0.9, 0.8]), None, rounded).tolist() == [0, 1]
    assert nms(boxes.double(), torch.tensor([0.9, 0.8]), None, 1 / 3).tolist() == [0, 1]


@pytest.mark.usefixtures("implementation")
def test_a_suppressed_box_suppresses_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])  # each overlaps the next by 3 / 7
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), None, 0.4).tolist() == [0, 2]
    assert nms(boxes, torch.tensor([0.8, 0.9, 0.7]), None, 0.4).tolist() == [1]


@pytest.mark.usefixtures("implementation")
def test_boxes_without_area_stay():
    boxes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 4, 4], [0, 0, 4, 4]])
    assert nms(boxes, torch.tensor([0.1, 0.2, 0.3, 0.4]), None, 0.5).tolist() == [3, 1, 0]


@pytest.mark.usefixtures("implementation")
def test_boxes_that_are_not_finite_or_inverted_stay_and_suppress_nothing():
    box = [10.0, 10, 20, 20]
    odd = [[bad if i == corner else box[i] for i in range(4)] for bad in (math.nan, math.inf) for corner in range(4)]
    odd += [[20, 20, 10, 10], [20, 10, 10, 20], [-math.inf, -math.inf, math.inf, math.inf], [-3e38, -3e38, 3e38, 3e38]]
    boxes = torch.tensor([*odd, box, box])
    scores = torch.linspace(1, 0, len(boxes))
    assert nms(boxes, scores, None, 0.0).tolist() == list(range(len(odd) + 1))


@pytest.mark.usefixtures("implementation")
def test_order_of_scores():
    boxes = torch.arange(7.0)[:, None] * 10 + torch.tensor([0.0, 0, 5, 5])
    scores = torch.tensor([0.0, -math.inf, math.nan, math.inf, -0.0, math.nan, 0.5])
    expected = torch.argsort(scores, descending=True, stable=True).tolist()
    assert expected == [2, 5, 3, 6, 0, 4, 1]
    assert nms(boxes, scores, None, 0.5).tolist() == expected
    assert nms(boxes, scores, torch.tensor([1, 0, 1, 0, 1, 0, 1]), 0.5).tolist() == expected


@pytest.mark.usefixtures("implementation")
def test_no_boxes():
    empty = torch.zeros(0, 4), torch.zeros(0)
    for groups in (None, torch.zeros(0, dtype=torch.int64)):
        kept = nms(*empty, groups, 0.5)
        assert kept.shape == (0,) and kept.dtype == torch.int64


@pytest.mark.parametrize(("figures", "count"), [("own copy", 300), ("shared", 300), ("shared", 3000)])
@pytest.mark.parametrize("threshold", ["0.5", "0.7"])
@pytest.mark.usefixtures("implementation")
def test_equals_detectron2(figures, count, threshold, request):
    if figures == "shared":
        units = np.load(request.getfixturevalue("shared") / "parity" / "units.npz")
    else:
        units = np.load(Path(__file__).parent / "detectron2.npz")
    boxes, scores, classes = (torch.from_numpy(units[f"in_nms{count}_{n}"]) for n in ("boxes", "scores", "cls"))
    kept = nms(boxes, scores, classes, float(threshold))
    assert kept.tolist() == units[f"out_nms{count}_{threshold}"].tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0, 2.0])
def test_native_decides_as_the_reference(native, threshold):
    boxes, scores, levels = proposals(3000, seed=0)
    for of_image, of_groups in ((1.0, None), (1e-3, levels), (1e6, None)):
        scaled = boxes * of_image
        expected = reference.nms(scaled, scores, of_groups, threshold)
        assert torch.equal(native.nms(scaled, scores, of_groups, threshold), expected)
    assert torch.equal(
        native.nms(boxes.double(), scores, None, threshold), reference.nms(boxes.double(), scores, None, threshold)
    )


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("scale", [1e-22, 1e-19, 1e18])
def test_areas_that_underflow_or_overflow(native, scale, threshold):
    generator = torch.Generator().manual_seed(1)
    corner, size = (8 * torch.rand(2, 600, 2, generator=generator)).unbind(0)
    boxes = torch.cat([corner, corner + size], 1)
    boxes[::3] *= 30
    boxes *= scale
    scores = torch.rand(600, generator=generator)
    assert torch.equal(native.nms(boxes, scores, None, threshold), reference.nms(boxes, scores, None, threshold))


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_tiny_boxes_whose_areas_are_a_few_roundings(native, threshold):
    """An area of 1e-44 is seven times the least number, and an IoU of such areas need not be near the true one."""
    generator = torch.Generator().manual_seed(0)
    corner, size = (8 * torch.rand(3000, 2, generator=generator) for _ in range(2))
    boxes = torch.cat([corner, corner + size], 1) * 3e-23
    scores = torch.rand(3000, generator=generator)
    assert torch.equal(native.nms(boxes, scores, None, threshold), reference.nms(boxes, scores, None, threshold))


def test_a_far_box_does_not_matter(native):
    boxes, scores, _ = proposals(1000, seed=2)
    expected = native.nms(boxes, scores, None, 0.5)
    far = torch.cat([boxes, torch.tensor([[1e12, -1e12, 1.1e12, -0.9e12]])])
    assert native.nms(far, torch.cat([scores, torch.tensor([-1.0])]), None, 0.5).tolist() == [*expected.tolist(), 1000]


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_native_equals_torchvision(native, threshold):
    torchvision = pytest.importorskip("torchvision")
    boxes, scores, levels = proposals(3000, seed=3)
    assert torch.equal(native.nms(boxes, scores, None, threshold), torchvision.ops.nms(boxes, scores, threshold))
    by_level = torchvision.ops.batched_nms(boxes.double(), scores.double(), levels, threshold)
    assert torch.equal(native.nms(boxes.double(), scores, levels, threshold), by_level)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_native_dtypes(native, dtype):
    boxes, scores, levels = proposals(500, seed=4)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    expected = reference.nms(boxes.to(exact), scores.float(), levels, 0.5)
    assert torch.equal(native.nms(boxes, scores, levels, 0.5), expected)


def test_native_takes_any_layout(native):
    boxes, scores, levels = proposals(500, seed=5)
    expected = native.nms(boxes, scores, levels, 0.5)
    wide = torch.stack([boxes, boxes + 7], 2)[:, :, 0]
    assert not wide.is_contiguous()
    assert torch.equal(native.nms(wide, torch.stack([scores, scores], 1)[:, 1], levels.repeat(2)[:500], 0.5), expected)
    assert torch.equal(native.nms(boxes.T.contiguous().T, scores.flip(0).flip(0), levels, 0.5), expected)


def test_native_does_not_depend_on_the_number_of_threads(native):
    boxes, scores, levels = proposals(2000, seed=6)
    threads, kept = torch.get_num_threads(), []
    for count in (1, 3, 4):
        torch.set_num_threads(count)
        kept.append(native.nms(boxes, scores, levels, 0.6))
    torch.set_num_threads(threads)
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(3, 5)}, r"boxes must have shape \(N, 4\); got \(3, 5\)"),
        ({"boxes": torch.zeros(4)}, r"boxes must have shape \(N, 4\); got \(4\)"),
        ({"boxes": torch.zeros(3, 4, dtype=torch.int64)}, "boxes must be float64"),
        ({"scores": torch.zeros(2)}, r"scores must have shape \(3,\), one for each box; got \(2\)"),
        ({"scores": torch.zeros(3, dtype=torch.int32)}, "scores must be float64"),
        ({"groups": torch.zeros(4, dtype=torch.int64)}, r"groups must have shape \(3,\), one for each box; got \(4\)"),
        ({"groups": torch.zeros(3)}, "groups must be int64"),
        ({"iou_threshold": -0.1}, "iou_threshold must not be negative; got -0.1"),
        ({"iou_threshold": math.nan}, "iou_threshold must not be negative; got nan"),
    ],
)
def test_errors(operators, change, message):
    arguments = {"boxes": torch.zeros(3, 4), "scores": torch.zeros(3), "groups": None, "iou_threshold": 0.5} | change
    with pytest.raises(RuntimeError, match=message):
        operators.nms(*arguments.values())
