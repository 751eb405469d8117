"""The parts that only rows of the papers' tables need, against their definitions in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from projects_maskrcnn.framework import BitMasks, Boxes, Instances, ShapeSpec, build_model
from projects_maskrcnn.modeling import (
    VGG16,
    MaskRCNNBoxHead,
    MaskRCNNMaskHead,
    MaskRCNNMLPMaskHead,
    NonLocalBlock,
    build_maskrcnn_resnet_backbone,
)
from projects_maskrcnn.modeling.mask_head import mask_rcnn_inference, mask_rcnn_loss

pytestmark = pytest.mark.usefixtures("storage")
POOLED = ShapeSpec(channels=5, height=14, width=14)


def rois(*classes):
    """RoIs (4, 4, 18, 18) of these classes, whose masks are their left halves: at 14 x 14, columns 0 to 6."""
    result = Instances((32, 32))
    result.proposal_boxes = result.pred_boxes = Boxes(torch.tensor([[4.0, 4.0, 18.0, 18.0]]).repeat(len(classes), 1))
    result.gt_classes = result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    mask = torch.zeros(len(classes), 32, 32, dtype=torch.bool)
    mask[:, :, :11] = True
    result.gt_masks = BitMasks(mask)
    return result


def test_softmax_masks_are_a_multinomial_over_classes_and_background(storage):
    logits = torch.randn(3, 4 + 1, 14, 14, requires_grad=True)
    loss = mask_rcnn_loss(logits, [rois(3), rois(), rois(0, 1)], "softmax")
    total = 0.0
    for roi, category in zip(logits.detach().double(), (3, 0, 1), strict=True):
        for row in range(14):
            for column in range(14):
                label = category if column < 7 else 4
                total += math.log(sum(math.exp(v) for v in roi[:, row, column])) - roi[label, row, column].item()
    assert loss.item() == pytest.approx(total / (3 * 14 * 14), rel=1e-5)
    loss.backward()
    assert (logits.grad.abs().amax((2, 3)) > 0).all()  # classes compete
    found = [rois(2, 0), rois(1)]
    mask_rcnn_inference(logits.detach(), found, "softmax")
    probabilities = logits.detach().double().exp() / logits.detach().double().exp().sum(1, keepdim=True)
    for mask, roi, category in zip(torch.cat([f.pred_masks for f in found]), probabilities, (2, 0, 1), strict=True):
        torch.testing.assert_close(mask[0].double(), roi[category], rtol=1e-5, atol=1e-6)


def test_softmax_accuracy_is_that_of_the_class_of_the_roi(storage):
    logits = torch.zeros(1, 3, 14, 14)
    logits[:, 1, :, :7] = 5.0  # right on the left half
    logits[:, 0, :, 7:] = 5.0  # another class there: not the RoI's, hence right too
    mask_rcnn_loss(logits, [rois(1)], "softmax")
    assert storage.latest()["mask_rcnn/accuracy"][0] == 1


@pytest.mark.parametrize("loss_type", ["sigmoid", "softmax"])
def test_mlp_mask_head(loss_type):
    head = MaskRCNNMLPMaskHead(POOLED, num_classes=3, fc_dims=[6, 7], loss_type=loss_type).eval()
    x = torch.randn(2, 5, 14, 14)
    y = (x.flatten(1).double() @ head.mask_fc1.weight.double().T + head.mask_fc1.bias.double()).relu()
    y = (y @ head.mask_fc2.weight.double().T + head.mask_fc2.bias.double()).relu()
    y = y @ head.predictor.weight.double().T + head.predictor.bias.double()
    channels = 3 + (loss_type == "softmax")
    y = y.reshape(2, channels, 28, 28)
    y = y.sigmoid() if loss_type == "sigmoid" else y.softmax(1)
    (out,) = head(x, [rois(2, 0)])
    torch.testing.assert_close(out.pred_masks[:, 0].double(), torch.stack([y[0, 2], y[1, 0]]), rtol=1e-4, atol=1e-6)
    losses = head.train()(x, [rois(2, 0)])
    losses["loss_mask"].backward()
    assert all(p.grad.any() for p in head.parameters())


def test_mask_heads_of_the_config(config):
    softmax = config("fpn", "MODEL.ROI_MASK_HEAD.LOSS_TYPE", "softmax")
    assert MaskRCNNMaskHead(softmax, POOLED).predictor.out_channels == 3 + 1
    mlp = config("fpn", "MODEL.ROI_MASK_HEAD.NUM_FC", 3, "MODEL.ROI_MASK_HEAD.FC_DIM", 8)
    shapes = [tuple(p.shape) for n, p in MaskRCNNMLPMaskHead(mlp, POOLED).named_parameters() if "weight" in n]
    assert shapes == [(8, 5 * 14 * 14), (8, 8), (8, 8), (3 * 28 * 28, 8)]
    for value, remedy in (("multinomial", "sigmoid, softmax"), ("softmax", "CLS_AGNOSTIC_MASK False")):
        options = ("MODEL.ROI_MASK_HEAD.LOSS_TYPE", value, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
        with pytest.raises(ValueError, match=remedy):
            MaskRCNNMaskHead(config("fpn", *options), POOLED)


def test_non_local_block():
    block = NonLocalBlock(6).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    assert torch.equal(block(x), x)  # to begin with
    torch.nn.init.normal_(block.w.weight)
    torch.nn.init.normal_(block.w.bias)

    def project(conv, position):
        return conv.weight[:, :, 0, 0] @ position + conv.bias

    for image, out in zip(x, block(x), strict=True):
        blocks = [(r, c) for r in (0, 2, 4) for c in (0, 2)]
        others = [image[:, r : r + 2, c : c + 2].amax((1, 2)) for r, c in blocks]  # pooled by 2 x 2, the border too
        keys = torch.stack([project(block.phi, o) for o in others])
        values = torch.stack([project(block.g, o) for o in others])
        for row in range(5):
            for column in range(4):
                position = image[:, row, column]
                affinity = (keys @ project(block.theta, position)).exp()
                y = (affinity[:, None] * values).sum(0) / affinity.sum()
                torch.testing.assert_close(out[:, row, column], position + project(block.w, y))


def test_non_local_block_in_res4_leaves_the_other_names(config):
    options = ("MODEL.RESNETS.OUT_FEATURES", ["res4"])
    plain, with_block = (
        build_maskrcnn_resnet_backbone(
            config("c4", *options, "MODEL.RESNETS.NON_LOCAL_RES4", on), ShapeSpec(channels=3)
        )
        for on in (False, True)
    )
    added = with_block.state_dict().keys() - plain.state_dict().keys()
    assert added and all(name.startswith("res4.non_local.") for name in added)
    with_block.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(with_block(x)["res4"], plain(x)["res4"])
    seen = []
    with_block.res4.non_local.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with_block.res4[-1].register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with_block(x)
    assert torch.equal(*seen)  # right before the last block


def test_vgg16():
    model = VGG16(freeze_at=2).double()
    x = torch.randn(1, 3, 37, 64, dtype=torch.float64)
    y = x
    for stage, convs in enumerate((2, 2, 3, 3, 3), start=1):
        if stage > 1:
            y = F.max_pool2d(y, 2, 2)
        for i in range(1, convs + 1):
            conv = dict(model.named_children())[f"conv{stage}_{i}"]
            y = F.conv2d(y, conv.weight, conv.bias, padding=1).relu()
            assert conv.weight.requires_grad == (stage > 2)
    torch.testing.assert_close(model(x)["conv5_3"], y)
    shape = model.output_shape()["conv5_3"]
    assert (shape.channels, shape.stride) == (512, 16) == (y.shape[1], 64 // y.shape[3])
    assert sum(p.numel() for p in model.parameters()) == 14_714_688  # of the 138 million of VGG-16


def test_dropout_of_the_box_head():
    head = MaskRCNNBoxHead(ShapeSpec(channels=3, height=2, width=2), conv_dims=[], fc_dims=[1000, 4], dropout=0.5)
    assert [name for name, _ in head.named_parameters()] == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    hidden = []
    head.fc2.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    torch.nn.init.constant_(head.fc1.bias, 10.0)
    x = torch.zeros(1, 3, 2, 2)
    head(x), head.eval()(x)
    assert set(hidden[0].unique().tolist()) == {0.0, 20.0} and 400 < (hidden[0] == 0).sum() < 600
    assert hidden[1].unique().tolist() == [10.0]


@pytest.mark.parametrize("layer", ["ROIPool", "ROIWarp", "ROIWarpMax", "ROIAlignMax", "ROIAlignV2"])
@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_every_roi_layer_trains_a_model(layer, kind, config, random_image):
    poolers = [f"MODEL.ROI_{head}_HEAD.POOLER_TYPE" for head in ("BOX", "MASK", "KEYPOINT")]
    cfg = config(kind, *(x for key in poolers for x in (key, layer)))
    truth = rois(1, 2)
    truth.gt_boxes = truth.proposal_boxes
    image = random_image(32, 32)
    instances = Instances((32, 32), **{k: v for k, v in truth.get_fields().items() if k.startswith("gt_")})
    losses = build_model(cfg).train()([{**image, "instances": instances}])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
