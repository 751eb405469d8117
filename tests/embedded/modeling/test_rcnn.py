"""Losses and inference of RPN, box predictor and RoI heads: against naive float64, and on images without objects."""

import math

import numpy as np
import pytest
import torch

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.embedded.config import get_cfg
from projects_maskrcnn.embedded.layers import ShapeSpec
from projects_maskrcnn.embedded.modeling import FastRCNNOutputLayers, ROIHeads, build_model
from projects_maskrcnn.embedded.modeling.anchor_generator import DefaultAnchorGenerator
from projects_maskrcnn.embedded.modeling.box_regression import Box2BoxTransform
from projects_maskrcnn.embedded.modeling.matcher import Matcher
from projects_maskrcnn.embedded.modeling.proposal_generator import RPN, StandardRPNHead
from projects_maskrcnn.embedded.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    find_top_rpn_proposals,
)
from projects_maskrcnn.embedded.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from projects_maskrcnn.embedded.modeling.roi_heads.roi_heads import (
    select_foreground_proposals,
    select_proposals_with_visible_keypoints,
)
from projects_maskrcnn.embedded.structures import BitMasks, Boxes, Instances, Keypoints
from projects_maskrcnn.embedded.utils.events import EventStorage
from projects_maskrcnn.framework import FRAMEWORK

SIZE = (100, 100)


@pytest.fixture(autouse=True)
def storage():
    with EventStorage() as storage:
        yield storage


def test_proposals_are_clipped_suppressed_within_a_level_and_sorted():
    boxes = [
        torch.tensor([[[0, 0, 50, 50], [0, 0, 50, 48], [-20, -20, 30, 30.0]]]),
        torch.tensor([[[0, 0, 50, 50], [60, 60, 60, 90.0]]]),  # the second has no area
    ]
    logits = [torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[0.0, 9.0]])]
    (result,) = find_top_rpn_proposals(boxes, logits, [SIZE], 0.7, 10, 10, 0.0, True)
    assert result.objectness_logits.tolist() == [3, 2, 0]  # 0 is on another level than the 3 it overlaps
    assert result.proposal_boxes.tensor.tolist() == [[0, 0, 50, 48], [0, 0, 30, 30], [0, 0, 50, 50]]


def test_infinite_proposals_end_training_and_are_dropped_in_testing():
    boxes, logits = [torch.tensor([[[0, 0, math.inf, 5], [0, 0, 5, 5.0]]])], [torch.tensor([[2.0, 1.0]])]
    with pytest.raises(FloatingPointError, match="SOLVER.CLIP_GRADIENTS"):
        find_top_rpn_proposals(boxes, logits, [SIZE], 0.7, 10, 10, 0.0, True)
    (result,) = find_top_rpn_proposals(boxes, logits, [SIZE], 0.7, 10, 10, 0.0, False)
    assert result.objectness_logits.tolist() == [1]


def test_ground_truth_becomes_a_near_certain_proposal():
    proposals = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(2, 4)), objectness_logits=torch.zeros(2))
    gt = Instances(SIZE, gt_boxes=Boxes(torch.ones(1, 4)))
    (result,) = add_ground_truth_to_proposals([gt], [proposals])
    assert result.proposal_boxes.tensor.tolist() == [[0] * 4, [0] * 4, [1] * 4]
    assert torch.sigmoid(result.objectness_logits)[2] > 0.999999


def test_detections_by_hand():
    boxes = torch.tensor([[0, 0, 10, 10, 0, 0, 10, 10], [0, 0, 10, 9, 50, 50, 150, 90], [0, 0, 1, 1, 0, 0, 1, 1.0]])
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.45, 0.05], [0.01, 0.02, 0.97]])
    result, rows = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.05, 0.5, 10)
    # class 0: the second overlaps the first; class 1: they are apart, and the second is clipped
    assert result.scores.tolist() == pytest.approx([0.6, 0.45, 0.3])
    assert result.pred_classes.tolist() == [0, 1, 1] and rows.tolist() == [0, 1, 0]
    assert result.pred_boxes.tensor[1].tolist() == [50, 50, 100, 90]
    assert len(fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.05, 0.5, 1)[0]) == 1


def proposals_with_classes(classes, num_gt=True):
    torch.manual_seed(0)
    corner = torch.rand(len(classes), 2) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(len(classes), 2) * 40], 1)
    p = Instances(SIZE, proposal_boxes=Boxes(boxes), gt_classes=torch.tensor(classes, dtype=torch.int64))
    if num_gt:
        p.gt_boxes = Boxes(boxes + torch.tensor([1.0, -2.0, 3.0, 1.5]))
    return p


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_box_losses_equal_naive_ones(agnostic, beta):
    num_classes, p = 3, proposals_with_classes([0, 3, 2, 3, 1])
    layers = FastRCNNOutputLayers(
        ShapeSpec(channels=7),
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=agnostic,
        smooth_l1_beta=beta,
        loss_weight={"loss_box_reg": 2.0},
    )
    scores, deltas = torch.randn(5, 4), torch.randn(5, 4 if agnostic else 12)
    losses = layers.losses((scores, deltas), [p])
    classes, classification, regression = p.gt_classes.tolist(), 0.0, 0.0
    for row, c in enumerate(classes):
        z = scores[row].double()
        classification -= (z[c] - z.exp().sum().log()).item() / 5
        if c == num_classes:
            continue
        (x0, y0, x1, y1), (u0, v0, u1, v1) = p.proposal_boxes.tensor[row].tolist(), p.gt_boxes.tensor[row].tolist()
        target = [
            10 * ((u0 + u1) - (x0 + x1)) / 2 / (x1 - x0),
            10 * ((v0 + v1) - (y0 + y1)) / 2 / (y1 - y0),
            5 * math.log((u1 - u0) / (x1 - x0)),
            5 * math.log((v1 - v0) / (y1 - y0)),
        ]
        predicted = deltas[row] if agnostic else deltas[row, 4 * c : 4 * c + 4]
        for a, b in zip(predicted.tolist(), target, strict=True):
            d = abs(a - b)
            regression += 2.0 * (0.5 * d * d / beta if d < beta else d - 0.5 * beta) / 5
    assert losses["loss_cls"].item() == pytest.approx(classification, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(regression, rel=1e-5)


def test_accuracies_are_logged(storage):
    p = proposals_with_classes([0, 1, 2])
    layers = FastRCNNOutputLayers(ShapeSpec(channels=1), box2box_transform=Box2BoxTransform((1,) * 4), num_classes=2)
    scores = torch.tensor([[9.0, 0, 0], [0, 0, 9], [0, 0, 9]])  # right, missed, right (background)
    layers.losses((scores, torch.zeros(3, 8)), [p])
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["fast_rcnn/cls_accuracy"] == pytest.approx(2 / 3)
    assert latest["fast_rcnn/fg_cls_accuracy"] == latest["fast_rcnn/false_negative"] == 0.5


def test_proposals_get_the_class_and_fields_of_their_ground_truth():
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    heads = ROIHeads(**ROIHeads.from_config(cfg))
    gt = Instances(
        SIZE, gt_boxes=Boxes(torch.tensor([[0, 0, 10, 10], [50, 50, 90, 90.0]])), gt_classes=torch.tensor([4, 1])
    )
    gt.gt_tag = torch.tensor([70, 80])
    boxes = torch.tensor([[0, 0, 10, 9], [52, 50, 90, 90], [20, 20, 30, 30.0]])
    proposals = Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(3))
    (result,) = heads.label_and_sample_proposals([proposals], [gt])
    found = {
        tuple(b): (c, t)
        for b, c, t in zip(
            result.proposal_boxes.tensor.tolist(), result.gt_classes.tolist(), result.gt_tag.tolist(), strict=True
        )
    }
    assert len(found) == 5  # the ground truth itself is among them
    assert found[(0, 0, 10, 9)] == (4, 70) and found[(52, 50, 90, 90)] == (1, 80) and found[(50, 50, 90, 90)] == (1, 80)
    assert found[(20, 20, 30, 30)][0] == 5
    (foreground,), (mask,) = select_foreground_proposals([result], 5)
    assert sorted(foreground.gt_classes.tolist()) == [1, 1, 4, 4] and mask.sum() == 4


def test_keypoint_proposals_need_a_visible_keypoint_inside():
    boxes = Boxes(torch.tensor([[0, 0, 10, 10.0]] * 4))
    # inside, inside but not labelled, outside, and labelled but hidden, which counts (COCO's 1)
    points = torch.tensor([[[5, 5, 2.0]], [[5, 5, 0]], [[50, 5, 2]], [[6, 5, 1]]])
    (result,) = select_proposals_with_visible_keypoints(
        [Instances(SIZE, proposal_boxes=boxes, gt_keypoints=Keypoints(points))]
    )
    assert result.gt_keypoints.tensor[:, 0, 0].tolist() == [5, 6]


def small_model(keypoints=False):
    if FRAMEWORK != "embedded":
        pytest.skip("this project's backbones and heads are in Detectron2's registries here, not in embedded's")
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.merge_from_file("configs/quick/mask_rcnn_R_18_FPN_shapes.yaml")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.KEYPOINT_ON = keypoints
    torch.manual_seed(0)
    return build_model(cfg)


def sample(num_objects, keypoints=False):
    boxes = torch.tensor([[10, 10, 40, 50]] * num_objects, dtype=torch.float32).view(-1, 4)
    instances = Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(num_objects, dtype=torch.int64))
    instances.gt_masks = BitMasks(torch.ones(num_objects, 64, 64, dtype=torch.bool))
    if keypoints:
        instances.gt_keypoints = Keypoints(torch.full((num_objects, 17, 3), 20.0))
    return {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), "instances": instances}


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (2, 1)])
@pytest.mark.parametrize("keypoints", [False, True])
def test_training_on_images_with_and_without_objects(counts, keypoints):
    model = small_model(keypoints)
    losses = model([sample(n, keypoints) for n in counts])
    assert all(loss.isfinite() for loss in losses.values())
    if not any(counts):
        assert losses["loss_box_reg"] == losses["loss_mask"] == losses["loss_rpn_loc"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_pictures_of_proposals_by_period(storage):
    model, inputs = small_model(), [sample(1), sample(0)]
    model.vis_period, model.input_format = 2, "BGR"
    for _ in range(3):
        model(inputs)
        storage.step()
    assert [iteration for _, _, iteration in storage._vis_data] == [0, 2]
    (_, picture, _), _ = storage._vis_data
    assert picture.shape == (3, 64, 2 * 64) and picture.dtype == np.uint8
    # ground truth on the left: of the image itself, a box's border apart
    left, rgb = picture[:, :, :64].astype(int), inputs[0]["image"].flip(0).numpy().astype(int)
    assert (np.abs(left - rgb).max(0) <= 8)[:9].all() and (np.abs(left - rgb).max(0) > 8).any()


def test_results_are_in_the_size_that_is_asked_for():
    model = small_model(keypoints=True).eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    with torch.no_grad():
        (output,) = model([{"image": sample(0)["image"], "height": 128, "width": 32}])
    instances = output["instances"]
    assert instances.image_size == (128, 32) and len(instances) > 0
    assert instances.pred_masks.shape == (len(instances), 128, 32) and instances.pred_masks.dtype == torch.bool
    assert instances.pred_keypoints.shape == (len(instances), 17, 3)
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2] <= 32).all() and (boxes[:, 3] <= 128).all()


def test_a_batch_gives_what_its_images_give_alone():
    model = small_model().eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    inputs = [{"image": sample(0)["image"]} for _ in range(2)]
    with torch.no_grad():
        together, alone = model(inputs), [model([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a["instances"].scores, b["instances"].scores, atol=1e-3)
        assert torch.equal(a["instances"].pred_classes[:20], b["instances"].pred_classes[:20])


def small_rpn(**options):
    """On a map of stride 10 with an anchor of 10 x 10 a cell, so that anchors touch but do not overlap."""
    return RPN(
        in_features=["a"],
        head=StandardRPNHead(in_channels=1, num_anchors=1),
        anchor_generator=DefaultAnchorGenerator(sizes=[[10]], aspect_ratios=[[1.0]], strides=[10]),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform((1.0,) * 4),
        batch_size_per_image=1000,
        positive_fraction=0.5,
        **{"pre_nms_topk": (6, 4), "post_nms_topk": (5, 3), **options},
    )


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (-1.0, [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        (0.0, [[1, 0, -1], [0, 0, -1], [-1, -1, -1]]),  # Faster R-CNN's; the image of 25 x 25 ends in the last cells
        (6.0, [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_anchors_that_leave_the_image_are_not_trained(threshold, expected):
    rpn = small_rpn(anchor_boundary_thresh=threshold)
    gt = Instances((25, 25), gt_boxes=Boxes(torch.tensor([[0, 0, 10, 10.0]])))
    anchors = rpn.anchor_generator([torch.zeros(1, 1, 3, 3)])
    (labels,), _ = rpn.label_and_sample_anchors(anchors, [gt])
    assert labels.view(3, 3).tolist() == expected


@pytest.mark.parametrize(("training", "count"), [(True, 5), (False, 3)])
def test_numbers_of_proposals_in_training_and_testing(training, count):
    rpn = small_rpn().train(training)
    anchors = rpn.anchor_generator([torch.zeros(1, 1, 3, 3)])
    logits = torch.arange(9.0)[None]
    (found,) = rpn.predict_proposals(anchors, [logits], [torch.zeros(1, 9, 4)], [(30, 30)])
    assert found.objectness_logits.tolist() == [8.0, 7.0, 6.0, 5.0, 4.0][:count]
    # of each level the best 6 in training, the best 4 in testing
    fewer = small_rpn(post_nms_topk=(100, 100)).train(training)
    (found,) = fewer.predict_proposals(anchors, [logits], [torch.zeros(1, 9, 4)], [(30, 30)])
    assert len(found) == (6 if training else 4)


def test_weights_of_the_losses_of_the_rpn():
    cfg = get_cfg()
    cfg.MODEL.RPN.LOSS_WEIGHT, cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 2.0, 3.0
    arguments = RPN.from_config(cfg, {"res4": ShapeSpec(channels=8, stride=16)})
    assert arguments["loss_weight"] == {"loss_rpn_cls": 2.0, "loss_rpn_loc": 6.0}


def test_small_proposals_are_dropped():
    boxes, logits = [torch.tensor([[[0, 0, 16, 40], [0, 50, 17, 90.0]]])], [torch.tensor([[2.0, 1.0]])]
    (result,) = find_top_rpn_proposals(boxes, logits, [SIZE], 0.7, 10, 10, 16.0, True)
    assert result.proposal_boxes.tensor.tolist() == [[0, 50, 17, 90]]


def test_scores_have_to_be_above_the_threshold_and_finite():
    boxes = torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50.0]])
    scores = torch.tensor([[math.nan, 0.75, 0.1], [0.5, 0.25, 0.25], [0.125, 0.625, 0.25]])
    result, rows = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.5, 0.5, 10)
    assert result.scores.tolist() == [0.625] and result.pred_classes.tolist() == [1]
    assert rows.tolist() == [1]  # of the two finite ones
    assert result.pred_boxes.tensor.tolist() == [[40, 40, 50, 50]]


def predictor(**options):
    return FastRCNNOutputLayers(
        ShapeSpec(channels=1000), box2box_transform=Box2BoxTransform((1.0,) * 4), num_classes=3, **options
    )


def test_classes_with_a_sigmoid_each():
    p, scores = proposals_with_classes([0, 3, 2, 1]), torch.randn(4, 4) * 2
    layers = predictor(use_sigmoid_ce=True)
    loss = layers.losses((scores, torch.zeros(4, 12)), [p])["loss_cls"]
    probabilities = 1 / (1 + np.exp(-scores.double().numpy()))
    expected = 0.0
    for row, category in zip(probabilities, p.gt_classes.tolist(), strict=True):
        expected -= sum(math.log(row[k] if k == category else 1 - row[k]) for k in range(3))  # no background
    assert loss.item() == pytest.approx(expected / 4, rel=1e-5)
    np.testing.assert_allclose(layers.predict_probs((scores, None), [p])[0].numpy(), probabilities, rtol=1e-5)


def test_boxes_of_the_ground_truth_classes():
    p = Instances(SIZE, proposal_boxes=Boxes(torch.tensor([[0, 0, 10, 10.0]] * 3)))
    p.gt_classes = torch.tensor([2, 0, 3])  # the last is background, and any box will do
    deltas = torch.zeros(3, 3, 4)
    deltas[:, :, 0] = torch.tensor([0.1, 0.2, 0.3])  # class k is 1 + k pixels to the right
    (boxes,) = predictor().predict_boxes_for_gt_classes((None, deltas.flatten(1)), [p])
    torch.testing.assert_close(boxes[:2], torch.tensor([[3, 0, 13, 10], [1, 0, 11, 10.0]]))
    assert boxes.shape == (3, 4)


def test_the_predictor_starts_as_fast_rcnns():
    torch.manual_seed(0)
    layers = predictor()  # Gaussians of deviation 0.01 and 0.001 (Fast R-CNN, section 2.3)
    assert layers.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert layers.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not layers.cls_score.bias.any() and not layers.bbox_pred.bias.any()


def test_proposals_between_the_thresholds_are_not_sampled():
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS, cfg.MODEL.ROI_HEADS.IOU_LABELS = [0.1, 0.5], [-1, 0, 1]  # Fast R-CNN's
    heads = ROIHeads(**ROIHeads.from_config(cfg))
    gt = Instances(SIZE, gt_boxes=Boxes(torch.tensor([[0, 0, 10, 10.0]])), gt_classes=torch.tensor([4]))
    boxes = torch.tensor([[0, 0, 10, 8], [0, 0, 10, 3], [0, 0, 10, 0.5], [50, 50, 60, 60.0]])  # IoU .8, .3, .05, 0
    proposals = Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(4))
    (result,) = heads.label_and_sample_proposals([proposals], [gt])
    assert sorted(result.gt_classes.tolist()) == [4, 5]
    assert sorted(result.proposal_boxes.tensor[:, 3].tolist()) == [3, 8]
