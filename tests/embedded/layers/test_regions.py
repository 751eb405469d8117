"""The layers' faces of `ops` on regions: NMS, RoIAlign, mask pasting. Their mathematics is tested with `ops`."""

import pytest
import torch

from projects_maskrcnn.embedded.layers import ROIAlign, batched_nms, nms, paste_masks_in_image, roi_align
from projects_maskrcnn.embedded.structures import Boxes

# IoU of the first two 90/110 = 0.82, of the first and the third 1/3
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 11], [5, 0, 15, 10]])
SCORES = torch.tensor([0.6, 0.9, 0.8])


@pytest.mark.parametrize(("threshold", "kept"), [(0.9, [1, 2, 0]), (0.5, [1, 2]), (0.2, [1])])
def test_nms(threshold, kept):
    found = nms(BOXES, SCORES, threshold)
    assert found.tolist() == kept and found.dtype == torch.int64


@pytest.mark.parametrize(
    ("groups", "kept"), [([0, 0, 0], [1, 2]), ([0, 1, 0], [1, 2, 0]), ([7, 7, 3], [1, 2]), ([-1, 2, 5], [1, 2, 0])]
)
def test_groups_do_not_suppress_each_other(groups, kept):
    assert batched_nms(BOXES, SCORES, torch.tensor(groups), 0.5).tolist() == kept


def test_half_precision_boxes_are_compared_in_full():
    # whole pixels that float16 has, where offsets between groups, or areas, would not fit
    boxes = torch.cat([BOXES * 100, BOXES * 100]).half()
    groups = torch.tensor([0, 0, 0, 90, 90, 90])
    assert batched_nms(boxes, torch.cat([SCORES, SCORES - 0.5]), groups, 0.5).tolist() == [1, 2, 4, 5]
    assert nms(BOXES.half(), SCORES, 0.5).tolist() == [1, 2]


def test_no_boxes():
    none = torch.zeros(0)
    assert nms(torch.zeros(0, 4), none, 0.5).shape == (0,)
    assert batched_nms(torch.zeros(0, 4), none, none.long(), 0.5).shape == (0,)


def test_roi_align_by_hand():
    # a map whose value is its column: a bin has the value of its centre, in cells of the map
    x = torch.arange(10.0).expand(2, 1, 10, 10).clone()
    x[1] += 100
    rois = torch.tensor([[0.0, 4, 4, 12, 12], [1, 4, 4, 12, 12]])
    layer = ROIAlign((1, 2), spatial_scale=0.5, sampling_ratio=2)
    # columns 2 to 6 of the map in two bins: centres 3 and 5, less half a cell
    assert layer(x, rois).tolist() == [[[[2.5, 4.5]]], [[[102.5, 104.5]]]]
    unaligned = ROIAlign((1, 2), 0.5, 2, aligned=False)
    assert unaligned(x, rois).tolist() == [[[[3.0, 5.0]]], [[[103.0, 105.0]]]]
    assert torch.equal(layer(x, rois), roi_align(x, rois, (1, 2), 0.5, 2, True))
    assert layer(x, rois[:0]).shape == (0, 1, 1, 2)
    settings = "output_size=(1, 2), spatial_scale=0.5, sampling_ratio=2, aligned=True"
    assert repr(layer) == f"ROIAlign({settings})" and not layer.state_dict()


@pytest.mark.parametrize("boxes", [Boxes, lambda tensor: tensor])
def test_masks_are_pasted_at_their_boxes(boxes):
    # left half set, on whole pixels: four cells of 2 x 2 pixels each
    masks = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    pasted = paste_masks_in_image(masks, boxes(torch.tensor([[2.0, 1.0, 6.0, 5.0]])), (7, 9))
    expected = torch.zeros(7, 9, dtype=torch.bool)
    expected[1:5, 2:4] = True
    assert pasted.dtype == torch.bool and torch.equal(pasted[0], expected)


def test_soft_masks_and_no_masks():
    soft = paste_masks_in_image(torch.full((1, 1, 1), 0.5), torch.tensor([[1.0, 1.0, 4.0, 4.0]]), (5, 5), threshold=-1)
    slope = torch.tensor([1, 2, 3, 2, 1]) / 3  # one cell of 3 pixels fades over its width on either side
    assert soft.dtype == torch.uint8 and (soft[0] - 127.5 * slope[:, None] * slope).abs().max() <= 1
    assert paste_masks_in_image(torch.zeros(0, 28, 28), Boxes(torch.zeros(0, 4)), (5, 6)).shape == (0, 5, 6)
