"""RoIAlign against bilinear samples by `grid_sample` in float64, values worked out by hand, Detectron2's figures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from projects_maskrcnn.ops import roi_align

pytestmark = pytest.mark.usefixtures("implementation")

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
# image index, box in pixels of an image 4 times the map of 23 x 31
AWKWARD = torch.tensor(
    [
        [0, 3.3, 4.7, 60.2, 50.9],
        [1, 0, 0, 0, 0],  # a point
        [0, 5, 5, 5, 9],  # no width
        [1, 20, 10, 12, 4],  # inverted
        [0, -30, -20, -5, -6],  # outside
        [1, -40, -40, 200, 150],  # around the whole image
        [0, -14, -14, 14, 14],  # with sampling ratio 1 and 7 bins, samples exactly at -1 and 0 cells (not aligned)
        [1, 114, 82, 134, 102],  # samples near the far border
        [0, 100, 68, 148, 116],  # samples exactly at the map's height and width
        [1, 10, 10, 10.4, 10.3],  # within a cell
    ]
)


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 23, 31, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("output_size", [(7, 7), (3, 5), (14, 2)])
def test_values_and_gradient(x, by_samples, output_size, sampling_ratio, aligned):
    inputs, reference_inputs = x.clone().requires_grad_(), x.double().requires_grad_()
    out = roi_align(inputs, AWKWARD, output_size, 0.25, sampling_ratio, aligned)
    expected = by_samples(reference_inputs, AWKWARD, output_size, 0.25, sampling_ratio, aligned)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    upstream = torch.cos(torch.arange(out.numel())).view_as(out)
    out.backward(upstream)
    expected.backward(upstream.double())
    torch.testing.assert_close(inputs.grad.double(), reference_inputs.grad, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["average", "max"])
def test_boxes_get_no_gradient(x, mode):
    boxes = torch.tensor([[0, 3.3, 4.7, 60.2, 50.9]], requires_grad=True)
    assert not roi_align(x, boxes, 7, 0.25, mode=mode).requires_grad
    features = x.clone().requires_grad_()
    roi_align(features, boxes, 7, 0.25, mode=mode).sum().backward()
    assert features.grad.any() and boxes.grad is None


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_on_a_slope_a_bin_has_the_height_of_its_centre(sampling_ratio):
    slope = torch.arange(25.0).view(1, 1, 5, 5)  # 5 y + x at cell (y, x), whose centre is at (y + 0.5, x + 0.5)
    out = roi_align(slope, torch.tensor([[0.0, 1, 1, 3, 3]]), 4, 1.0, sampling_ratio, aligned=True)
    expected = [[4.5, 5, 5.5, 6], [7, 7.5, 8, 8.5], [9.5, 10, 10.5, 11], [12, 12.5, 13, 13.5]]
    assert out[0, 0].tolist() == expected


@pytest.mark.parametrize("aligned", [True, False])
def test_gradcheck(aligned):
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, -3, 1, 17, 15], [1, 2.5, 3.5, 9, 21], [1, 8, 8, 6, 6]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: roi_align(t, rois, (2, 3), 0.25, 0, aligned), x)
    assert torch.autograd.gradcheck(lambda t: roi_align(t, rois, (2, 3), 0.25, 2, aligned), x)


@pytest.mark.parametrize("figures", ["own copy", "shared"])
def test_equals_detectron2(figures, request):
    if figures == "shared":
        units = np.load(request.getfixturevalue("shared") / "parity" / "units.npz")
    else:
        units = np.load(Path(__file__).parent / "detectron2.npz")
    names = [n for n in units.files if n.startswith("out_ra_al")]
    assert names
    for name in names:
        case = name.removeprefix("out_ra_")
        aligned, sampling_ratio, size = case.split("_")
        x = torch.from_numpy(units["in_ra_x"]).requires_grad_()
        height, width = map(int, size.split("x"))
        rois = torch.from_numpy(units["in_ra_rois"])
        out = roi_align(x, rois, (height, width), 0.25, int(sampling_ratio[2:]), aligned == "al1")
        torch.testing.assert_close(out.detach(), torch.from_numpy(units[name]), rtol=0, atol=2e-6)
        out.backward(torch.cos(torch.arange(out.numel())).view_as(out))
        if figures == "shared":
            expected = torch.from_numpy(units[f"out_ra_grad_{case}"])
            torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_lose_their_own_precision_alone(by_samples, dtype):
    # above 1024, coordinates in half precision step by a whole pixel
    x = torch.randn(1, 4, 4, 600, generator=torch.Generator().manual_seed(1)).to(dtype)
    rois = torch.tensor([[0, 2000.3, 1.2, 2037.7, 14.1], [0, 1501.6, 0, 1588.4, 16]])
    out = roi_align(x, rois, 7, 0.25)
    assert out.dtype == dtype
    expected = by_samples(x, rois, (7, 7), 0.25, 0, True)
    assert ((out.double() - expected).abs() <= torch.finfo(dtype).eps * expected.abs() + 1e-5).all()


def test_the_layout_of_the_input_does_not_matter(x):
    expected = roi_align(x, AWKWARD, 7, 0.25)
    padded = F.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2]
    for same in (x.contiguous(memory_format=torch.channels_last), padded):
        torch.testing.assert_close(roi_align(same, AWKWARD, 7, 0.25), expected, rtol=0, atol=1e-6)
    expanded = x[:1].expand(2, -1, -1, -1)
    assert torch.equal(roi_align(expanded, AWKWARD, 7, 0.25), roi_align(expanded.clone(), AWKWARD, 7, 0.25))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_feature_that_is_not_finite_spoils_its_bin_alone(bad, layout):
    x = torch.randn(1, 16, 16, 32, generator=torch.Generator().manual_seed(3))
    box = torch.tensor([[0.0, 0, 32, 16]])
    expected = roi_align(x, [box], 4)
    x[0, :, 5, 20] = bad  # in the second row and the third column of bins, of 4 x 8 cells each
    out = roi_align(x.contiguous(memory_format=layout), [box], 4)
    beside = torch.ones(4, 4, dtype=torch.bool)
    beside[1, 2] = False
    torch.testing.assert_close(out[..., beside], expected[..., beside], rtol=0, atol=1e-6)
    assert not out[:, :, 1, 2].isfinite().any()


def test_order_of_rois_is_kept(x):
    order = torch.tensor([7, 2, 0, 9, 5, 1, 3, 8, 4, 6])
    assert torch.equal(roi_align(x, AWKWARD[order], 7, 0.25), roi_align(x, AWKWARD, 7, 0.25)[order])


def test_gradient_is_the_same_in_every_run_and_for_any_number_of_threads(x):
    rois = AWKWARD.repeat(30, 1)
    threads, gradients = torch.get_num_threads(), []
    for count in (1, 3, 3):
        torch.set_num_threads(count)
        inputs = x.clone().requires_grad_()
        roi_align(inputs, rois, 14, 0.25).pow(2).sum().backward()
        gradients.append(inputs.grad)
    torch.set_num_threads(threads)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[1], gradients[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_coordinate_that_is_not_finite_gives_zeros(x, bad, aligned):
    rois = AWKWARD[:3].clone()
    rois[1, 3] = bad
    out = roi_align(x, rois, 7, 0.25, 0, aligned)
    assert not out[1].any()
    assert torch.equal(out[[0, 2]], roi_align(x, AWKWARD[[0, 2]], 7, 0.25, 0, aligned))


@pytest.mark.parametrize("half_side", [5000, 2**22])
def test_a_huge_box_takes_no_more_memory_than_the_map(half_side):
    # one bin with a sample a cell, at whole coordinates: -1 to 6 and -1 to 8 of a map of 6 x 8 count
    ones = torch.ones(1, 1, 6, 8, dtype=torch.float64)
    box = torch.tensor([[0, -half_side, -half_side, half_side, half_side]], dtype=torch.float64)
    out = roi_align(ones, box, 1)
    assert out.item() == pytest.approx(8 * 10 / (2 * half_side) ** 2)
    overflow = torch.tensor([[0.0, -3e38, -3e38, 3e38, 3e38]])
    assert not roi_align(ones.float(), overflow, 2).any()


def test_a_map_of_one_pixel():
    x = torch.full((1, 2, 1, 1), 3.0)
    out = roi_align(x, torch.tensor([[0, 0, 0, 1, 1.0]]), (2, 2), 1.0, 16)
    assert out.tolist() == [[[[3.0, 3.0], [3.0, 3.0]]] * 2]


def test_without_boxes_or_images(x):
    inputs = x.clone().requires_grad_()
    out = roi_align(inputs, torch.zeros(0, 5), (7, 5), 0.25)
    assert out.shape == (0, 3, 7, 5)
    out.sum().backward()
    assert inputs.grad.shape == x.shape and not inputs.grad.any()
    assert roi_align(x[:0], torch.zeros(0, 5), 7).shape == (0, 3, 7, 7)
    assert roi_align([x[:0], x[:0]], [], 7, SCALES[:2]).shape == (0, 3, 7, 7)
    assert roi_align([x, x], [torch.zeros(0, 4)] * 2, 7, SCALES[:2]).shape == (0, 3, 7, 7)


@pytest.mark.parametrize("index", [2, -1, math.nan])
def test_an_image_index_out_of_range_is_an_error(x, index):
    rois = AWKWARD.clone()
    rois[3, 0] = index
    with pytest.raises((ValueError, RuntimeError), match="2 images"):
        roi_align(x, rois, 7, 0.25)


def test_wrong_shapes_are_errors(x):
    with pytest.raises(ValueError, match=r"\(R, 5\)"):
        roi_align(x, AWKWARD[:, 1:], 7)
    with pytest.raises(ValueError, match="features of 2 images, but boxes of 1"):
        roi_align([x], [AWKWARD[:, 1:]], 7, [0.25])


def test_second_derivatives_are_refused(x):
    inputs = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(roi_align(inputs, AWKWARD, 7).pow(2).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("side", "level"),
    [(0, 0), (10, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (447.9, 2), (448, 3), (3000, 3)],
)
def test_a_box_is_pooled_from_the_level_of_its_size(side, level):
    features = [torch.full((1, 1, 800 // 2**s, 800 // 2**s), float(s)) for s in range(2, 6)]
    box = 400 + side / 2 * torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
    out = roi_align(features, [box], 1, SCALES, sampling_ratio=1)
    assert out.item() == level + 2


@pytest.mark.parametrize("odd", [[math.nan, 0, 50, 50], [0, 0, math.inf, 50], [60, 10, 20, 50], [9, 9, 9, 9]])
def test_odd_boxes_on_a_pyramid_give_zeros(odd):
    features = [torch.randn(1, 2, 128 // 2**i, 128 // 2**i) for i in range(4)]
    boxes = torch.tensor([[10, 10, 60, 70], odd, [0, 0, 400, 400.0]])
    out = roi_align(features, [boxes], 3, SCALES)
    assert not out[1].any()
    assert torch.equal(out[[0, 2]], roi_align(features, [boxes[[0, 2]]], 3, SCALES))


def test_levels_are_pooled_as_each_alone_in_box_order(by_samples):
    generator = torch.Generator().manual_seed(2)
    features = [torch.randn(3, 4, 96 // 2**i, 128 // 2**i, generator=generator) for i in range(4)]
    corner = torch.rand(40, 2, generator=generator) * 300
    boxes = torch.cat([corner, corner + 4 ** (2 + 2.4 * torch.rand(40, 2, generator=generator))], 1)
    per_image = [boxes[:25], boxes[:0], boxes[25:]]
    image = torch.tensor([0] * 25 + [2] * 15)
    out = roi_align(features, per_image, (7, 5), SCALES, canonical_box_size=112)
    side = (boxes[:, 2:] - boxes[:, :2]).double().prod(1).sqrt()
    level = (4 + (side / 112).log2()).floor().clamp(2, 5).long() - 2
    assert set(level.tolist()) == {0, 1, 2, 3}
    for i, box in enumerate(boxes):
        roi = torch.cat([image[i : i + 1], box])[None]
        expected = by_samples(features[level[i]], roi, (7, 5), SCALES[level[i]], 0, True)
        torch.testing.assert_close(out[i : i + 1].double(), expected, rtol=0, atol=1e-5)
