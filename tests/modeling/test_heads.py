"""Box, mask and keypoint heads: layers against plain torch, losses against values worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from projects_maskrcnn.framework import BitMasks, Boxes, Instances, Keypoints, ShapeSpec
from projects_maskrcnn.modeling import MaskRCNNBoxHead, MaskRCNNKeypointHead, MaskRCNNMaskHead
from projects_maskrcnn.modeling.keypoint_head import keypoint_rcnn_inference, keypoint_rcnn_loss
from projects_maskrcnn.modeling.mask_head import mask_rcnn_inference, mask_rcnn_loss

pytestmark = pytest.mark.usefixtures("storage")
POOLED = ShapeSpec(channels=5, height=14, width=14)


def instances(count, **fields):
    result = Instances((32, 32))
    boxes = torch.tensor([[4.0, 4.0, 18.0, 18.0]]).repeat(count, 1)
    result.proposal_boxes, result.pred_boxes = Boxes(boxes), Boxes(boxes)
    for name, value in fields.items():
        result.set(name, value)
    return result


def test_box_head():
    head = MaskRCNNBoxHead(ShapeSpec(channels=3, height=4, width=6), conv_dims=[7, 8], fc_dims=[9, 10])
    x = torch.randn(2, 3, 4, 6)
    y = F.conv2d(x, head.conv1.weight, head.conv1.bias, padding=1).relu()
    y = F.conv2d(y, head.conv2.weight, head.conv2.bias, padding=1).relu().flatten(1)
    y = (y @ head.fc1.weight.T + head.fc1.bias).relu()
    y = (y @ head.fc2.weight.T + head.fc2.bias).relu()
    torch.testing.assert_close(head(x), y, rtol=1e-5, atol=1e-6)
    assert head.output_shape.channels == 10


def test_box_head_with_convs_alone():
    head = MaskRCNNBoxHead(ShapeSpec(channels=3, height=4, width=6), conv_dims=[32], fc_dims=[], conv_norm="GN")
    assert head(torch.randn(2, 3, 4, 6)).shape == (2, 32, 4, 6)
    assert (head.output_shape.channels, head.output_shape.height, head.output_shape.width) == (32, 4, 6)
    assert head.conv1.bias is None
    with pytest.raises(ValueError, match="NUM_CONV.*NUM_FC"):
        MaskRCNNBoxHead(ShapeSpec(channels=3, height=4, width=6), conv_dims=[], fc_dims=[])


def test_heads_start_as_detectron2s():
    box = MaskRCNNBoxHead(ShapeSpec(channels=64, height=7, width=7), conv_dims=[64], fc_dims=[64])
    mask = MaskRCNNMaskHead(ShapeSpec(channels=64), num_classes=80, conv_dims=[64, 64])
    deviations = {
        box.conv1: math.sqrt(2 / (9 * 64)),  # He et al., 2015, by what goes out
        mask.mask_fcn1: math.sqrt(2 / (9 * 64)),
        box.fc1: math.sqrt(1 / (64 * 7 * 7)),  # Caffe2's "Xavier", by what comes in
        mask.predictor: 0.001,
    }
    for layer, deviation in deviations.items():
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)
        assert not layer.bias.any()


@pytest.mark.parametrize("num_convs", [0, 2])
def test_mask_head(num_convs):
    head = MaskRCNNMaskHead(POOLED, num_classes=3, conv_dims=[6] * num_convs + [4]).eval()
    x = y = torch.randn(2, *(5, 14, 14))
    for i in range(num_convs):
        conv = getattr(head, f"mask_fcn{i + 1}")
        y = F.conv2d(y, conv.weight, conv.bias, padding=1).relu()
    y = F.conv_transpose2d(y, head.deconv.weight, head.deconv.bias, stride=2).relu()
    y = F.conv2d(y, head.predictor.weight, head.predictor.bias).sigmoid()
    (out,) = head(x, [instances(2, pred_classes=torch.tensor([2, 0]))])
    assert out.pred_masks.shape == (2, 1, 28, 28)
    torch.testing.assert_close(out.pred_masks[:, 0], torch.stack([y[0, 2], y[1, 0]]), rtol=1e-5, atol=1e-6)


def test_class_agnostic_mask_head(config):
    cfg = config("fpn", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
    assert MaskRCNNMaskHead(cfg, POOLED).predictor.out_channels == 1
    logits = torch.randn(3, 1, 2, 2)
    found = [instances(1, pred_classes=torch.tensor([7])), instances(2, pred_classes=torch.tensor([1, 4]))]
    mask_rcnn_inference(logits, found)
    assert torch.equal(torch.cat([i.pred_masks for i in found]), logits.sigmoid())


def ground_truth(count):
    """Left halves of boxes of 14 pixels, as bitmaps: at 14 x 14, columns 0 to 6."""
    mask = torch.zeros(count, 32, 32, dtype=torch.bool)
    mask[:, :, :11] = True
    return BitMasks(mask)


def test_mask_loss(storage):
    logits = torch.zeros(3, 4, 14, 14)
    logits[:, :, :, :7] = 2.0  # right, on the left half
    logits[2, :, :, 7:] = 1.0  # wrong
    logits.requires_grad_()
    batch = [instances(1, gt_classes=torch.tensor([3]), gt_masks=ground_truth(1))]
    batch += [instances(0), instances(2, gt_classes=torch.tensor([0, 1]), gt_masks=ground_truth(2))]
    loss = mask_rcnn_loss(logits, batch)
    left, undecided, wrong = math.log1p(math.exp(-2)), math.log(2), math.log1p(math.exp(1))
    assert loss.item() == pytest.approx(left / 2 + (2 * undecided + wrong) / 6)
    loss.backward()
    touched = logits.grad.abs().amax((2, 3)) > 0
    assert touched.nonzero().tolist() == [[0, 3], [1, 0], [2, 1]]  # classes do not compete
    latest = {name: value[0] for name, value in storage.latest().items()}
    assert latest["mask_rcnn/accuracy"] == pytest.approx(5 / 6)
    assert latest["mask_rcnn/false_positive"] == pytest.approx(1 / 3)
    assert latest["mask_rcnn/false_negative"] == 0


def test_mask_loss_without_foreground_is_a_zero_that_trains():
    head = MaskRCNNMaskHead(POOLED, num_classes=3, conv_dims=[6, 4])
    losses = head(torch.zeros(0, 5, 14, 14), [instances(0), instances(0)])
    assert losses["loss_mask"].item() == 0
    losses["loss_mask"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_loss_weights():
    batch = [instances(2, gt_classes=torch.tensor([0, 1]), gt_masks=ground_truth(2))]
    x, losses = torch.randn(2, 5, 14, 14), []
    for weight in (1.0, 0.25):
        torch.manual_seed(0)
        head = MaskRCNNMaskHead(ShapeSpec(channels=5), num_classes=3, conv_dims=[4], loss_weight=weight)
        losses.append(head(x, batch)["loss_mask"].item())
    assert losses[1] == pytest.approx(losses[0] / 4) and losses[0] > 0


def test_keypoint_head():
    head = MaskRCNNKeypointHead(POOLED, num_keypoints=3, conv_dims=[6, 7]).eval()
    x = torch.randn(2, 5, 14, 14)
    y = F.conv2d(x, head.conv_fcn1.weight, head.conv_fcn1.bias, padding=1).relu()
    y = F.conv2d(y, head.conv_fcn2.weight, head.conv_fcn2.bias, padding=1).relu()
    y = F.conv_transpose2d(y, head.score_lowres.weight, head.score_lowres.bias, stride=2, padding=1)
    y = F.interpolate(y, size=(56, 56), mode="bilinear", align_corners=False)
    (out,) = head(x, [instances(2)])
    torch.testing.assert_close(out.pred_keypoint_heatmaps, y, rtol=1e-4, atol=1e-5)
    assert out.pred_keypoints.shape == (2, 3, 3)


def keypoints(visible):
    """(1, 3, 3) keypoints in the middle of the box, the first `visible` of them to be seen."""
    points = torch.tensor([[[11.5, 11.5, 0.0]]]).repeat(1, 3, 1)
    points[:, :visible, 2] = 2
    return Keypoints(points)


def test_keypoint_loss():
    # 14 pixels on 28 cells: the point 7.5 pixels into the box is in cell 15
    logits = torch.zeros(2, 3, 28, 28)
    logits[0, 0, 15, 15] = 5.0
    batch = [instances(1, gt_keypoints=keypoints(2)), instances(0), instances(1, gt_keypoints=keypoints(1))]
    sure = math.log(28 * 28 - 1 + math.exp(5)) - 5
    total = sure + 2 * math.log(28 * 28)
    assert keypoint_rcnn_loss(logits, batch, normalizer=None).item() == pytest.approx(total / 3)
    assert keypoint_rcnn_loss(logits, batch, normalizer=8.0).item() == pytest.approx(total / 8)


@pytest.mark.parametrize("count", [0, 1])
def test_keypoint_loss_without_visible_keypoints_is_a_zero_that_trains(count):
    head = MaskRCNNKeypointHead(POOLED, num_keypoints=3, conv_dims=[6])
    fields = {"gt_keypoints": keypoints(0)} if count else {}
    losses = head(torch.zeros(count, 5, 14, 14), [instances(count, **fields)])
    assert losses["loss_keypoint"].item() == 0
    losses["loss_keypoint"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("by_visible", [True, False])
def test_keypoint_loss_normalizer_of_the_config(config, by_visible):
    key = "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS"
    cfg = config("fpn", key, by_visible, "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT", 3.0)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    head = MaskRCNNKeypointHead(cfg, POOLED)
    torch.nn.init.zeros_(head.score_lowres.weight)  # every cell is as likely
    loss = head(torch.randn(1, 5, 14, 14), [instances(1, gt_keypoints=keypoints(2)), instances(0)])["loss_keypoint"]
    # else by keypoints, sampled RoIs (32 an image), their foreground (a quarter) and images
    divisor = 2 if by_visible else 3 * 32 * 0.25 * 2
    assert loss.item() == pytest.approx(3 * 2 * math.log(56 * 56) / divisor)


def test_keypoint_inference():
    heatmaps = torch.full((1, 2, 28, 28), -10.0)
    heatmaps[0, 0, 3, 20] = heatmaps[0, 1, 27, 0] = 10.0
    found = [instances(0), instances(1)]
    keypoint_rcnn_inference(heatmaps, found)
    assert found[0].pred_keypoints.shape == (0, 2, 3)
    # a cell is half a pixel, and the box begins at (4, 4)
    expected = torch.tensor([[4 + 20.5 / 2, 4 + 3.5 / 2], [4.25, 4 + 27.5 / 2]])
    assert (found[1].pred_keypoints[0, :, :2] - expected).abs().max() <= 0.51  # to the centre of a pixel
