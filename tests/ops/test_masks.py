"""Mask pasting and its run-length encoding: the definition of bilinear interpolation in float64, Detectron2's rasters,
pycocotools' strings."""

import json
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from projects_maskrcnn.ops import masks_to_rle, paste_masks, reference

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
ODD_BOXES = torch.tensor(
    [
        [math.nan, 1, 20, 30],
        [1, 1, math.nan, 30],
        [-math.inf, -math.inf, math.inf, math.inf],
        [3, 3, math.inf, 9],
        [-1e30, -1e30, 1e30, 1e30],
        [-1e9, 0, 40, 30],
        [5.2, 5.1, 4.9, 9],  # inverted, by less than a pixel
        [30, 20, 10, 5],
        [3, 3, 3, 3],
        [0, 0, 1e-38, 1e-38],
        [7, -1e30, 9, 1e30],
    ]
)


def strings_of(rles):
    return [rle["counts"] for rle in rles]


def encode(bitmaps):
    """pycocotools' strings of (N, H, W) bool."""
    return [r["counts"] for r in coco.encode(np.asfortranarray(bitmaps.numpy().transpose(1, 2, 0).astype(np.uint8)))]


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


def masks_of(kind, count, height, width, generator):
    """(count, height, width), of the kinds that stress rounding or the encoding."""
    noise = torch.rand(count, height, width, generator=generator)
    if kind == "flat":
        return torch.full_like(noise, 0.5)
    if kind == "quarters":
        return (noise * 5).floor() / 4
    if kind == "smooth":
        coarse = torch.rand(count, 1, 4, 4, generator=generator)
        return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[:, 0]
    if kind == "not finite":
        noise[0::3, 0, 0], noise[1::3, -1, -1] = math.nan, math.inf
        noise[2::3] *= 1e30
    return noise


@pytest.fixture(scope="module")
def masks():
    return torch.rand(len(BOXES), 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("implementation")
def test_soft_masks(masks):
    out = paste_masks(masks, BOXES, (HEIGHT, WIDTH), threshold=-1)
    assert out.dtype == torch.uint8 and out.shape == (len(BOXES), HEIGHT, WIDTH)
    for pasted, mask, box in zip(out, masks, BOXES, strict=True):
        expected = by_definition(mask.numpy(), box.double().numpy()) * 255
        assert np.abs(pasted.numpy() - (expected - 0.5)).max() < 0.501  # rounded down


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
@pytest.mark.usefixtures("implementation")
def test_decisions(masks, threshold):
    out = paste_masks(masks, BOXES, (HEIGHT, WIDTH), threshold)
    assert out.dtype == torch.bool
    for pasted, mask, box in zip(out.numpy(), masks, BOXES.double(), strict=True):
        expected = by_definition(mask.numpy(), box.numpy())
        clear = np.abs(expected - threshold) > 1e-5
        assert clear.any()
        assert (pasted == (expected >= threshold))[clear].all()


@pytest.mark.usefixtures("implementation")
def test_masks_that_are_not_square():
    masks = torch.rand(len(BOXES), 5, 9, generator=torch.Generator().manual_seed(1))
    out = paste_masks(masks, BOXES, (HEIGHT, WIDTH), threshold=-1)
    for pasted, mask, box in zip(out, masks, BOXES.double(), strict=True):
        # a pixel of a box is less than a cell here, so the cells around the box reach further than we paste
        y, x = np.ogrid[:HEIGHT, :WIDTH]
        near = (x >= math.floor(box[0]) - 1) & (x <= math.ceil(box[2]))
        near = near & (y >= math.floor(box[1]) - 1) & (y <= math.ceil(box[3]))
        expected = by_definition(mask.numpy(), box.numpy()) * 255
        assert np.abs(pasted.numpy() - (expected - 0.5))[near].max(initial=0) < 0.501
        assert not pasted.numpy()[~near].any()


@pytest.mark.usefixtures("implementation")
def test_whole_pixels_are_copied():
    mask = torch.eye(4)[None]
    out = paste_masks(mask, torch.tensor([[2.0, 1.0, 6.0, 5.0]]), (7, 9))
    expected = torch.zeros(1, 7, 9, dtype=torch.bool)
    expected[0, 1:5, 2:6] = torch.eye(4, dtype=torch.bool)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [5, 5, 5, 5], [9, 9, 4, 4], [math.nan, 1, 2, 3], [1, math.inf, 9, 9]])
@pytest.mark.usefixtures("implementation")
def test_a_box_without_area_gets_an_empty_mask(box):
    assert not paste_masks(torch.ones(1, 28, 28), torch.tensor([box], dtype=torch.float32), (HEIGHT, WIDTH)).any()


@pytest.mark.parametrize(("count", "height", "width"), [(0, HEIGHT, WIDTH), (2, 0, 5), (2, 5, 0), (2, 0, 0)])
@pytest.mark.usefixtures("implementation")
def test_no_masks_or_pixels(count, height, width):
    out = paste_masks(torch.ones(count, 28, 28), torch.tensor([[0.0, 0, 9, 9]]).expand(count, 4), (height, width))
    assert out.shape == (count, height, width) and out.dtype == torch.bool


@pytest.mark.usefixtures("implementation")
def test_equals_detectron2(shared):
    units = np.load(shared / "parity" / "units.npz")
    masks, boxes = torch.from_numpy(units["in_paste_masks"]), torch.from_numpy(units["in_paste_boxes"])
    decided = np.unpackbits(units["out_paste_bool"]).reshape(24, 120, 160).astype(bool)
    assert (paste_masks(masks, boxes, (120, 160)).numpy() == decided).all()
    assert (paste_masks(masks, boxes, (120, 160), -1).numpy() == units["out_paste_soft_u8"]).all()


@pytest.mark.parametrize("kind", ["noise", "flat", "quarters", "smooth", "not finite"])
@pytest.mark.parametrize("cells", [(28, 28), (14, 9), (1, 1), (2, 31)])
def test_native_is_the_reference_to_the_last_pixel(native, kind, cells):
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch itself interpolates without fused multiply-add on this processor")
    generator = torch.Generator().manual_seed(sum(cells))
    size = torch.rand(30, 2, generator=generator) ** 2 * 60
    corner = torch.rand(30, 2, generator=generator) * 60 - 15
    boxes = torch.cat([corner, corner + size], 1)
    boxes = torch.cat([boxes, boxes.round(), BOXES, ODD_BOXES])
    masks = masks_of(kind, len(boxes), *cells, generator)
    for threshold in (0.0, 0.25, 0.5, 0.7, 1.0, -1.0):
        expected = reference.paste_masks(masks, boxes, HEIGHT, WIDTH, threshold)
        assert torch.equal(native.paste_masks(masks, boxes, HEIGHT, WIDTH, threshold), expected)


@pytest.mark.parametrize("kind", ["noise", "flat", "quarters", "smooth", "not finite"])
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (9, 400), (1, 1), (61, 1)])
@pytest.mark.usefixtures("implementation")
def test_encoding_equals_that_of_the_bitmap(kind, size):
    generator = torch.Generator().manual_seed(sum(size))
    boxes = torch.cat([BOXES, ODD_BOXES, torch.tensor([[-20.0, -20, 900, 900], [0, 0, 1, 1]])])
    masks = masks_of(kind, len(boxes), 28, 28, generator)
    for threshold in (0.0, 0.25, 0.5, 0.9):
        bitmaps = paste_masks(masks, boxes, size, threshold)
        assert strings_of(masks_to_rle(masks, boxes, size, threshold)) == encode(bitmaps)


@pytest.mark.usefixtures("implementation")
def test_encoding_by_hand():
    masks = torch.stack([torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 1)])
    # interpolated towards the zeros around it, the one cell is 0.75 half way to the edge of its box
    boxes = torch.tensor([[1.0, 0, 2, 2], [-9, -9, 12, 11], [0, 0, 3, 2]])
    assert strings_of(masks_to_rle(masks, boxes, (2, 3), 0.5)) == [b"222", b"06", b"6"]
    # 1200 = 16 + 5 * 32 + 1 * 1024, the first two digits with 32 for more to come: from '0' on 48, 37 and 1
    assert strings_of(masks_to_rle(masks[2:], boxes[2:], (HEIGHT, WIDTH), 0.5)) == [b"`U1"]


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (0, 0)])
@pytest.mark.usefixtures("implementation")
def test_encoding_of_no_pixels(height, width):
    encoded = masks_to_rle(torch.ones(2, 3, 3), torch.tensor([[0.0, 0, 3, 3]] * 2), (height, width), 0.5)
    assert strings_of(encoded) == encode(torch.zeros(2, height, width, dtype=torch.bool))


@pytest.mark.usefixtures("implementation")
def test_encoding_of_no_masks():
    assert strings_of(masks_to_rle(torch.ones(0, 3, 3), torch.zeros(0, 4), (5, 5), 0.5)) == []


def test_encoding_needs_no_bitmap(native):
    side, count = 60_000, 200  # 720 GB of bitmaps
    boxes = torch.arange(count)[:, None] * 250.0 + torch.tensor([0.0, 0, 64, 64])
    strings = strings_of(masks_to_rle(torch.ones(count, 8, 8), boxes, (side, side), 0.99))
    rles = [{"size": [side, side], "counts": s} for s in strings]
    # only the pixels between the centres of the outer cells are sure: half a cell less on each side
    assert coco.area(rles).tolist() == [56 * 56] * count
    assert coco.toBbox(rles[7]).tolist() == [1754, 1754, 56, 56]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_native_dtypes_and_layouts(native, masks, dtype):
    rounded, boxes = masks.to(dtype), BOXES.to(dtype)
    expected = paste_masks(rounded.float(), boxes.float(), (HEIGHT, WIDTH), 0.5)
    assert torch.equal(paste_masks(rounded, boxes, (HEIGHT, WIDTH), 0.5), expected)
    strided, reversed_boxes = rounded.transpose(1, 2).contiguous().transpose(1, 2), boxes.T.contiguous().T
    assert torch.equal(paste_masks(strided, reversed_boxes, (HEIGHT, WIDTH), 0.5), expected)
    assert strings_of(masks_to_rle(strided, reversed_boxes, (HEIGHT, WIDTH), 0.5)) == encode(expected)


def test_native_does_not_depend_on_the_number_of_threads(native, masks):
    threads, pasted, encoded = torch.get_num_threads(), [], []
    for count in (1, 3):
        torch.set_num_threads(count)
        pasted.append(paste_masks(masks, BOXES, (HEIGHT, WIDTH), 0.5))
        encoded.append(strings_of(masks_to_rle(masks, BOXES, (HEIGHT, WIDTH), 0.5)))
    torch.set_num_threads(threads)
    assert torch.equal(*pasted) and encoded[0] == encoded[1]


@pytest.mark.parametrize("op", ["paste_masks", "masks_to_rle"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": torch.zeros(2, 1, 3, 3)}, r"masks must have shape \(N, h, w\); got \(2, 1, 3, 3\)"),
        ({"masks": torch.zeros(2, 0, 3)}, r"masks must have a cell or more; got \(2, 0, 3\)"),
        ({"masks": torch.zeros(2, 3, 3, dtype=torch.bool)}, "masks must be float64"),
        ({"boxes": torch.zeros(3, 4)}, r"boxes must have shape \(2, 4\), one for each mask; got \(3, 4\)"),
        ({"boxes": torch.zeros(2, 5)}, r"boxes must have shape \(2, 4\), one for each mask; got \(2, 5\)"),
        ({"boxes": torch.zeros(2, 4, dtype=torch.int64)}, "boxes must be float64"),
        ({"height": -1}, "height and width must be from 0"),
        ({"width": 2**31}, "height and width must be from 0"),
    ],
)
def test_errors(operators, op, change, message):
    arguments = {"masks": torch.zeros(2, 3, 3), "boxes": torch.zeros(2, 4), "height": 5, "width": 6} | change
    with pytest.raises(RuntimeError, match=message):
        getattr(operators, op)(*arguments.values(), 0.5)


def test_encoding_refuses_what_has_none(native):
    with pytest.raises(RuntimeError, match="threshold must not be negative"):
        native.masks_to_rle(torch.zeros(1, 3, 3), torch.zeros(1, 4), 5, 5, -1.0)
    with pytest.raises(RuntimeError, match=r"less than 2 \*\* 32 pixels"):
        native.masks_to_rle(torch.zeros(1, 3, 3), torch.zeros(1, 4), 2**16, 2**16, 0.5)


@pytest.mark.parametrize("threshold", [-0.5, float("nan")])
def test_an_encoding_needs_a_decision(implementation, threshold):
    if math.isnan(threshold):
        with pytest.raises(ValueError, match="threshold is NaN"):
            paste_masks(torch.ones(1, 4, 4), torch.tensor([[0.0, 0, 8, 8]]), (9, 9), threshold)
    with pytest.raises(ValueError, match="threshold is "):
        masks_to_rle(torch.ones(1, 4, 4), torch.tensor([[0.0, 0, 8, 8]]), (9, 9), threshold)


def test_the_size_of_an_image_is_two_integers(implementation):
    masks, boxes = torch.ones(1, 4, 4), torch.tensor([[0.0, 0, 8, 8]])
    (rle,) = masks_to_rle(masks, boxes, (np.int64(9), torch.tensor(7)))
    assert json.loads(json.dumps(rle["size"])) == [9, 7]
    for function in (paste_masks, masks_to_rle):
        with pytest.raises(ValueError, match=r"image_size must be \(height, width\), got \(9,\)"):
            function(masks, boxes, (9,))
        with pytest.raises(TypeError, match="integer"):
            function(masks, boxes, (9.5, 7))
        with pytest.raises(TypeError, match="masks must be of tensors, not of ndarray"):
            function(masks.numpy(), boxes, (9, 7))
