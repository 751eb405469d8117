"""Mask pasting against the definition of bilinear interpolation in float64, and Detectron2's rasters."""

import numpy as np
import pytest
import torch

from projects_maskrcnn.ops import paste_masks

HEIGHT, WIDTH = 30, 40
BOXES = torch.tensor(
    [
        [5.0, 4, 25, 20],
        [3.3, 2.8, 17.1, 29.4],
        [-8.5, -6.25, 12.4, 9.9],  # over the top left corner
        [30.2, 21.7, 55, 44],  # over the bottom right one
        [-5, -5, 60, 50],  # around the image
        [12.3, 11.1, 12.9, 11.4],  # smaller than a pixel
        [-30, 4, -10, 20],  # outside
    ]
)


def by_definition(mask, box):
    """(HEIGHT, WIDTH) float64: at each pixel centre the bilinear interpolation of the mask, zero around it."""
    padded = np.pad(mask.astype(np.float64), 1)
    cells = []
    for length, start, end, size in ((HEIGHT, box[1], box[3], len(mask)), (WIDTH, box[0], box[2], mask.shape[1])):
        at = (np.arange(length) + 0.5 - start) / (end - start) * size - 0.5 + 1
        at = at.clip(0, size + 1)
        low = np.floor(at).astype(int).clip(max=size)
        weight = np.zeros((length, size + 2))
        weight[np.arange(length), low] += 1 - (at - low)
        weight[np.arange(length), low + 1] += at - low
        cells.append(weight)
    return cells[0] @ padded @ cells[1].T


@pytest.fixture(scope="module")
def masks():
    return torch.rand(len(BOXES), 28, 28, generator=torch.Generator().manual_seed(0))


def test_soft_masks(masks):
    out = paste_masks(masks, BOXES, (HEIGHT, WIDTH), threshold=-1)
    assert out.dtype == torch.uint8 and out.shape == (len(BOXES), HEIGHT, WIDTH)
    for pasted, mask, box in zip(out, masks, BOXES, strict=True):
        expected = by_definition(mask.numpy(), box.double().numpy()) * 255
        assert np.abs(pasted.numpy() - (expected - 0.5)).max() < 0.501  # rounded down


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_decisions(masks, threshold):
    out = paste_masks(masks, BOXES, (HEIGHT, WIDTH), threshold)
    assert out.dtype == torch.bool
    for pasted, mask, box in zip(out.numpy(), masks, BOXES.double(), strict=True):
        expected = by_definition(mask.numpy(), box.numpy())
        clear = np.abs(expected - threshold) > 1e-5
        assert clear.any()
        assert (pasted == (expected >= threshold))[clear].all()


def test_whole_pixels_are_copied():
    mask = torch.eye(4)[None]
    out = paste_masks(mask, torch.tensor([[2.0, 1.0, 6.0, 5.0]]), (7, 9))
    expected = torch.zeros(1, 7, 9, dtype=torch.bool)
    expected[0, 1:5, 2:6] = torch.eye(4, dtype=torch.bool)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [5, 5, 5, 5], [9, 9, 4, 4], [float("nan"), 1, 2, 3]])
def test_a_box_without_area_gets_an_empty_mask(box):
    assert not paste_masks(torch.ones(1, 28, 28), torch.tensor([box], dtype=torch.float32), (HEIGHT, WIDTH)).any()


def test_no_masks():
    out = paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (HEIGHT, WIDTH))
    assert out.shape == (0, HEIGHT, WIDTH) and out.dtype == torch.bool


def test_equals_detectron2(shared):
    units = np.load(shared / "parity" / "units.npz")
    masks, boxes = torch.from_numpy(units["in_paste_masks"]), torch.from_numpy(units["in_paste_boxes"])
    decided = np.unpackbits(units["out_paste_bool"]).reshape(24, 120, 160).astype(bool)
    assert (paste_masks(masks, boxes, (120, 160)).numpy() == decided).all()
    assert (paste_masks(masks, boxes, (120, 160), -1).numpy() == units["out_paste_soft_u8"]).all()
