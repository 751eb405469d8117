"""Rounded anchors, against values by hand."""

import torch

from projects_maskrcnn.modeling import MaskRCNNRoundedAnchorGenerator


def test_anchors_are_whole_and_as_far_apart_as_their_cells():
    generator = MaskRCNNRoundedAnchorGenerator(sizes=[[32], [64]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[4, 16])
    fine, coarse = (boxes.tensor.tolist() for boxes in generator([torch.zeros(1, 1, 8, 10), torch.zeros(1, 1, 3, 3)]))
    assert (len(fine), len(coarse)) == (8 * 10 * 3, 3 * 3 * 3)
    # 32 * sqrt(2) / 2 = 22.6 and 32 / sqrt(2) / 2 = 11.3
    assert fine[:4] == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23], [-19, -11, 27, 11]]
    # an image of 32 x 40 pixels has 3 x 3 cells, 10 and 13 pixels apart
    assert coarse[3 * 3 + 1 :: 3] == [[x - 32, y - 32, x + 32, y + 32] for y in (10, 20) for x in (0, 13, 26)]
