"""Losses on IoU, against values worked out by hand, and their derivatives."""

import math

import pytest
import torch

from projects_maskrcnn.embedded.layers import ciou_loss, diou_loss

# IoU 1/7, centres sqrt(2) apart, squared diagonal around both 18; and apart from each other; and equal
BOXES1 = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [3, 4, 7, 5]])
BOXES2 = torch.tensor([[1.0, 1, 3, 3], [2, 0, 3, 1], [3, 4, 7, 5]])
DIOU = [1 - 1 / 7 + 2 / 18, 1 + 4 / 10, 0]


@pytest.mark.parametrize("loss", [diou_loss, ciou_loss])
def test_boxes_of_equal_aspect(loss):
    assert loss(BOXES1, BOXES2).tolist() == pytest.approx(DIOU, abs=1e-6)
    assert loss(BOXES1, BOXES2, reduction="sum").item() == pytest.approx(sum(DIOU), abs=1e-6)
    assert loss(BOXES1, BOXES2, reduction="mean").item() == pytest.approx(sum(DIOU) / 3, abs=1e-6)
    assert loss(BOXES1[None], BOXES2[None]).shape == (1, 3)


def test_another_aspect_costs_in_ciou_alone():
    wide, high = torch.tensor([[0.0, 0, 4, 2]]), torch.tensor([[0.0, 0, 2, 4]])
    diou = 1 - 4 / 12 + 2 / 32
    aspect = 4 / math.pi**2 * (math.atan(4 / 2) - math.atan(2 / 4)) ** 2
    ciou = diou + aspect * aspect / (1 - 4 / 12 + aspect)
    assert diou_loss(wide, high).item() == pytest.approx(diou, abs=1e-6)
    assert ciou_loss(wide, high).item() == pytest.approx(ciou, abs=1e-6)


@pytest.mark.parametrize("loss", [diou_loss, ciou_loss])
def test_no_boxes_cost_nothing_and_have_a_gradient(loss):
    boxes = torch.zeros(0, 4, requires_grad=True)
    value = loss(boxes, torch.zeros(0, 4), reduction="mean")
    value.backward()
    assert value.item() == 0 and boxes.grad.shape == (0, 4)


def test_the_derivative_of_diou():
    # of general position: at a tie of edges or of sizes there is none
    boxes = torch.tensor([[0.0, 0.1, 2.2, 2.5]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.7, 0.9, 3.1, 3.8]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda b: diou_loss(b, target), boxes)


@pytest.mark.parametrize("loss", [diou_loss, ciou_loss])
def test_descent_moves_a_box_that_does_not_overlap_onto_its_target(loss):
    boxes = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
    target = torch.tensor([[20.0, 25, 36, 33]])
    optimizer = torch.optim.Adam([boxes], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        loss(boxes, target, reduction="sum").backward()
        optimizer.step()
    assert (boxes - target).abs().max() < 1
