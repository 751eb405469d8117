"""RoIWarp, RoIPool and the maximum of samples: plain loops in float64, values worked out by hand, torchvision."""

import math

import pytest
import torch

from projects_maskrcnn.ops import roi_align, roi_pool, roi_warp

pytestmark = pytest.mark.usefixtures("implementation")
SCALE = 0.25
ROIS = torch.tensor(
    [
        [0, 3.3, 4.7, 60.2, 50.9],
        [1, 0, 0, 0, 0],  # a point
        [0, 5, 5, 5, 9],  # no width
        [1, 20, 10, 12, 4],  # inverted
        [0, -30, -20, -5, -6],  # outside
        [1, -40, -40, 200, 150],  # around the whole image
        [0, 6, 2, 18, 26],  # edges at 1.5, 0.5, 4.5 and 6.5 cells: halves round away from zero
        [1, -6, -2, 10, 14],
        [1, 114, 82, 134, 102],  # over the far border
        [0, math.nan, 3, 20, 20],
        [0, 3, 3, math.inf, 20],
    ]
)


def rounded(value):
    return math.copysign(math.floor(abs(value) + 0.5), value)


def by_cells(x, rois, bins):
    """RoIPool as Fast R-CNN defines it."""
    height, width = x.shape[2:]
    out = x.new_zeros(len(rois), x.shape[1], *bins)
    for r, (image, *corners) in enumerate(rois.double().tolist()):
        if not all(math.isfinite(c) for c in corners):
            continue
        x0, y0, x1, y1 = (int(rounded(c * SCALE)) for c in corners)
        h, w = max(y1 - y0 + 1, 1) / bins[0], max(x1 - x0 + 1, 1) / bins[1]
        for i in range(bins[0]):
            for j in range(bins[1]):
                rows = slice(*(min(max(y0 + v, 0), height) for v in (math.floor(i * h), math.ceil((i + 1) * h))))
                columns = slice(*(min(max(x0 + v, 0), width) for v in (math.floor(j * w), math.ceil((j + 1) * w))))
                cells = x[int(image), :, rows, columns].flatten(1)
                if cells.shape[1]:
                    out[r, :, i, j] = cells.max(1).values
    return out


def maps(dtype=torch.float64):
    return torch.randn(2, 3, 23, 31, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def check(x, actual, expected, tolerance=1e-12):
    """Values, and the gradient by a weighted sum."""
    weight = torch.cos(torch.arange(expected.numel())).view(expected.shape)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)
    (grad,) = torch.autograd.grad((actual * weight).sum(), x)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), x)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("bins", [(7, 7), (3, 5)])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize(("aligned", "mode"), [(True, "average"), (True, "max"), (False, "max")])
@pytest.mark.parametrize("rounding", [False, True])
def test_samples(by_samples, rounding, aligned, mode, sampling_ratio, bins):
    x = maps().requires_grad_()
    layer = roi_warp if rounding else roi_align
    actual = layer(x, ROIS, bins, SCALE, sampling_ratio, aligned, mode=mode)
    check(x, actual, by_samples(x, ROIS, bins, SCALE, sampling_ratio, aligned, mode, rounding))


@pytest.mark.parametrize("bins", [(7, 7), (3, 5), (1, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_cells(bins, channels_last):
    x = maps().to(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_()
    check(x, roi_pool(x, ROIS, bins, SCALE), by_cells(x, ROIS, bins))


def test_by_hand():
    x = torch.arange(16.0).view(1, 1, 4, 4)  # 4 y + x
    box = torch.tensor([[0.4, 0.6, 2.4, 2.6]])
    # RoIPool: cells 0 to 2 by 1 to 3; halves of three cells overlap in the middle one
    assert roi_pool(x, [box], 2).tolist() == [[[[9, 10], [13, 14]]]]
    # RoIWarp: from (0, 1) to (2, 3) without the fractions, so its four samples are the cells' own centres
    assert roi_warp(x, [box], 2).tolist() == [[[[4, 5], [8, 9]]]]
    assert roi_align(x, [box], 2)[0, 0].flatten().tolist() == pytest.approx([2.8, 3.8, 6.8, 7.8])
    assert roi_warp(x, [box], 1, mode="max").item() == 9 and roi_warp(x, [box], 1).item() == 6.5


def test_the_gradient_of_a_maximum_goes_to_the_first_of_equal_cells():
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    roi_pool(x, [torch.tensor([[1.0, 1, 2, 2]])], 1).sum().backward()
    assert x.grad.nonzero().tolist() == [[0, 0, 1, 1]]


def test_a_maximum_off_the_map_is_zero_and_has_no_gradient():
    x = torch.full((1, 1, 4, 4), -3.0, requires_grad=True)
    half_off = torch.tensor([[-6.0, 0, 2, 2]])
    out = roi_align(x, [half_off], 1, mode="max")
    out.sum().backward()
    assert out.item() == 0 and not x.grad.any()
    assert roi_pool(x, [half_off], 1).item() == -3  # of the cells that there are


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_greatest_with_a_nan_is_nan(dtype):
    x = torch.zeros(1, 1, 4, 4, dtype=dtype)
    x[0, 0, 1, 1], x[0, 0, 2, 2] = math.nan, 5
    whole, beside = torch.tensor([[0.0, 0, 3, 3]]), torch.tensor([[2.0, 2, 3, 3]])
    assert roi_pool(x, [whole], 1).isnan().all() and roi_pool(x, [beside], 1).item() == 5
    assert roi_align(x, [whole + 0.5], 1, mode="max").isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", [roi_pool, roi_warp])
def test_dtypes(layer, dtype):
    x = maps(dtype)
    out = layer(x, ROIS, 7, SCALE)
    expected = layer(x.double(), ROIS, 7, SCALE)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("layer", [roi_pool, roi_warp])
def test_levels(layer):
    x = [maps(), maps()[:, :, :12, :16]]
    small, large = torch.tensor([[4.0, 4, 30, 30]]), torch.tensor([[4.0, 4, 90, 80]])
    out = layer(x, [large, small], (2, 3), [SCALE, SCALE / 2], canonical_box_size=64, canonical_level=3)
    torch.testing.assert_close(out[:1], layer(x[1][:1], [large], (2, 3), SCALE / 2))
    torch.testing.assert_close(out[1:], layer(x[0][1:], [small], (2, 3), SCALE))


def test_equals_torchvision():
    torchvision = pytest.importorskip("torchvision")
    finite = ROIS[ROIS.isfinite().all(1)]
    x = maps(torch.float32).requires_grad_()
    check(
        x,
        roi_pool(x, finite, (5, 7), SCALE).double(),
        torchvision.ops.roi_pool(x, finite, (5, 7), SCALE).double(),
        1e-6,
    )
