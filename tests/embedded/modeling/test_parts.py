"""Anchors, box regression, matching, sampling: against values worked out by hand, and Detectron2's."""

import math

import numpy as np
import pytest
import torch

from projects_maskrcnn.embedded.layers import FrozenBatchNorm2d, cross_entropy, get_norm
from projects_maskrcnn.embedded.modeling import detector_postprocess
from projects_maskrcnn.embedded.modeling.anchor_generator import DefaultAnchorGenerator
from projects_maskrcnn.embedded.modeling.box_regression import Box2BoxTransform
from projects_maskrcnn.embedded.modeling.matcher import Matcher
from projects_maskrcnn.embedded.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from projects_maskrcnn.embedded.modeling.sampling import subsample_labels
from projects_maskrcnn.embedded.structures import Boxes, Instances, pairwise_iou


def test_anchors_of_a_small_map():
    generator = DefaultAnchorGenerator(sizes=[[4, 8]], aspect_ratios=[[1.0, 4.0]], strides=[10], offset=0.5)
    (boxes,) = generator([torch.zeros(1, 1, 1, 2)])
    # around (5, 5): size 4 ratio 1, size 4 ratio 4 (2 wide, 8 high), size 8 ratio 1, size 8 ratio 4
    first = [[3, 3, 7, 7], [4, 1, 6, 9], [1, 1, 9, 9], [3, -3, 7, 13]]
    second = [[x0 + 10, y0, x1 + 10, y1] for x0, y0, x1, y1 in first]
    assert boxes.tensor.tolist() == first + second
    assert generator.num_anchors == [4]
    assert not generator.state_dict()


def test_as_many_sizes_as_maps():
    with pytest.raises(ValueError, match="MODEL.ANCHOR_GENERATOR.SIZES has 3 lists for 2 feature maps"):
        DefaultAnchorGenerator(sizes=[[4], [8], [16]], aspect_ratios=[[1.0]], strides=[4, 8])


def test_deltas_by_hand_and_back():
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    source, target = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 0.0, 25.0, 20.0]])
    deltas = transform.get_deltas(source, target)
    assert deltas.tolist()[0] == pytest.approx([10.0, 0.0, 5 * math.log(2), 0.0])
    assert torch.allclose(transform.apply_deltas(deltas, source), target, atol=1e-5)
    huge = transform.apply_deltas(torch.full((1, 4), 1e4), source)
    assert huge.isfinite().all()
    with pytest.raises(ValueError, match="no width"):
        transform.get_deltas(torch.zeros(1, 4), target)


def test_matcher_by_hand():
    quality = torch.tensor([[0.9, 0.4, 0.1, 0.2], [0.0, 0.45, 0.1, 0.05]])
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1])(quality)
    assert matches.tolist() == [0, 1, 0, 0] and labels.tolist() == [1, -1, 0, 0]
    # the best box of each ground truth counts too, ties included
    _, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(quality)
    assert labels.tolist() == [1, 1, 0, 0]
    matches, labels = Matcher([0.5], [0, 1])(torch.zeros(0, 3))
    assert matches.tolist() == labels.tolist() == [0, 0, 0]


def test_a_threshold_belongs_to_the_label_above():
    _, labels = Matcher([0.5], [0, 1])(torch.tensor([[0.5, 0.4999]]))
    assert labels.tolist() == [1, 0]


def test_samples_are_balanced_and_valid():
    labels = torch.tensor([1] * 10 + [0] * 100 + [-1] * 5)
    positive, negative = subsample_labels(labels, 16, 0.25, 0)
    assert len(positive) == 4 and len(negative) == 12
    assert (labels[positive] == 1).all() and (labels[negative] == 0).all()
    positive, negative = subsample_labels(labels, 1000, 0.5, 0)
    assert sorted(positive.tolist()) == list(range(10)) and len(negative) == 100


def test_equal_seeds_give_detectron2s_sample():
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    torch.manual_seed(3)
    positive, negative = subsample_labels(labels, 4, 0.5, 0)
    torch.manual_seed(3)  # Detectron2 draws the permutation of positives, then that of negatives
    assert positive.tolist() == torch.tensor([1, 3, 4])[torch.randperm(3)[:2]].tolist()
    assert negative.tolist() == torch.tensor([0, 2, 5])[torch.randperm(3)[:2]].tolist()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_batch_norm_is_batch_norm(requires_grad):
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(5).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 5, 3, 4)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    assert isinstance(frozen, FrozenBatchNorm2d) and not list(frozen.parameters())
    expected = norm(x).detach()
    assert torch.allclose(frozen(x.requires_grad_(requires_grad)), expected, atol=1e-6)


def test_norms_by_name():
    assert get_norm("", 32) is None
    assert get_norm("GN", 64).num_groups == 32
    with pytest.raises(KeyError, match="'BatchNorm' is unknown; known are BN"):
        get_norm("BatchNorm", 8)


def test_cross_entropy_of_nothing_is_zero_with_a_gradient():
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, 3)


@pytest.fixture
def units(shared):
    """Detectron2's answers to small inputs."""
    return {name: torch.from_numpy(value) for name, value in np.load(shared / "parity" / "units.npz").items()}


@pytest.mark.parametrize("weights", ["1111", "10_10_5_5"])
def test_deltas_equal_detectron2s(units, weights):
    transform = Box2BoxTransform(weights=(1.0,) * 4 if weights == "1111" else (10.0, 10.0, 5.0, 5.0))
    source = units["in_b2b_src"]
    assert torch.allclose(
        transform.get_deltas(source, units["in_b2b_dst"]), units[f"out_b2b_get_{weights}"], rtol=1e-5, atol=1e-5
    )
    applied = transform.apply_deltas(units["in_b2b_deltas"], source)
    assert torch.allclose(applied, units[f"out_b2b_apply_{weights}"], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "matcher"),
    [("rpn", Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)), ("roi", Matcher([0.5], [0, 1]))],
)
def test_matches_equal_detectron2s(units, kind, matcher):
    matches, labels = matcher(pairwise_iou(Boxes(units["in_match_gt"]), Boxes(units["in_match_boxes"])))
    assert torch.equal(matches, units[f"out_match_{kind}_idx"])
    assert torch.equal(labels, units[f"out_match_{kind}_label"])


@pytest.mark.parametrize("num_classes", [1, 3])
def test_no_proposals_or_none_that_is_finite_give_no_detections(num_classes):
    for boxes in torch.zeros(0, 4 * num_classes), torch.full((2, 4 * num_classes), torch.nan):
        scores = torch.full((len(boxes), num_classes + 1), 0.5)
        (found,), (rows,) = fast_rcnn_inference([boxes], [scores], [(8, 8)], 0.1, 0.5, 10)
        assert len(found) == len(rows) == 0 and found.pred_boxes.tensor.shape == (0, 4)


def test_negatives_fill_up_where_positives_are_few():
    labels = torch.tensor([1] * 2 + [0] * 100)
    positive, negative = subsample_labels(labels, 16, 0.25, 0)
    assert positive.sort()[0].tolist() == [0, 1] and len(negative) == 14


def test_boxes_are_decoded_in_float32():
    source = torch.tensor([[1001.25, 3.0, 1333.5, 7.0]])  # which float16 has not
    boxes = Box2BoxTransform((1.0,) * 4).apply_deltas(torch.zeros(1, 4, dtype=torch.float16), source)
    assert boxes.dtype == torch.float32 and torch.equal(boxes, source)


def test_postprocessing_scales_each_axis_by_itself():
    boxes = torch.tensor([[2, 4, 6, 8], [30, 0, 40, 5.0]])  # the second lies outside the image
    found = Instances((10, 20), pred_boxes=Boxes(boxes), scores=torch.tensor([0.9, 0.8]))
    found.pred_keypoints = torch.tensor([[[3.0, 5.0, 0.7]], [[31.0, 1.0, 0.7]]])
    result = detector_postprocess(found, 30, 40)  # three times as high, twice as wide
    assert result.image_size == (30, 40) and result.scores.tolist() == pytest.approx([0.9])
    assert result.pred_boxes.tensor.tolist() == [[4, 12, 12, 24]]
    assert result.pred_keypoints[0, 0].tolist() == pytest.approx([6, 15, 0.7])
