"""Suppression against its definition in a plain loop, and Detectron2's kept sets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from projects_maskrcnn.ops import batched_nms, nms


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
    return boxes, scores, random.integers(0, 4, count)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("count", [1, 60, 400])
def test_equals_the_definition(count, threshold):
    boxes, scores, groups = crowd(count, seed=count)
    expected = by_definition(boxes, scores, threshold)
    assert count < 60 or threshold == 1.0 or len(expected) < count
    boxes_, scores_, groups_ = map(torch.from_numpy, (boxes, scores, groups))
    assert nms(boxes_, scores_, threshold).tolist() == expected
    assert batched_nms(boxes_, scores_, groups_, threshold).tolist() == by_definition(boxes, scores, threshold, groups)


def test_a_box_at_the_threshold_stays():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 3, 4]])  # IoU with the first: 0.5, 0.75
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 1]


def test_a_suppressed_box_suppresses_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])  # each overlaps the next by 3 / 7
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.4).tolist() == [0, 2]
    assert nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.4).tolist() == [1]


def test_boxes_without_area_stay():
    boxes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 4, 4], [0, 0, 4, 4]])
    assert nms(boxes, torch.tensor([0.1, 0.2, 0.3, 0.4]), 0.5).tolist() == [3, 1, 0]


def test_no_boxes():
    empty = torch.zeros(0, 4), torch.zeros(0)
    assert nms(*empty, 0.5).shape == (0,)
    kept = batched_nms(*empty, torch.zeros(0, dtype=torch.int64), 0.5)
    assert kept.shape == (0,) and kept.dtype == torch.int64


@pytest.mark.parametrize(("figures", "count"), [("own copy", 300), ("shared", 300), ("shared", 3000)])
@pytest.mark.parametrize("threshold", ["0.5", "0.7"])
def test_equals_detectron2(figures, count, threshold, request):
    if figures == "shared":
        units = np.load(request.getfixturevalue("shared") / "parity" / "units.npz")
    else:
        units = np.load(Path(__file__).parent / "detectron2.npz")
    boxes, scores, classes = (torch.from_numpy(units[f"in_nms{count}_{n}"]) for n in ("boxes", "scores", "cls"))
    kept = batched_nms(boxes, scores, classes, float(threshold))
    assert kept.tolist() == units[f"out_nms{count}_{threshold}"].tolist()
