"""Equal to torchvision: what its models compute, ours compute from its weights."""

import logging
from pathlib import Path

import pytest
import torch

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.checkpoint import MaskRCNNCheckpointer
from projects_maskrcnn.framework import build_model, get_cfg
from projects_maskrcnn.weights.fitting import rename_known
from projects_maskrcnn.weights.torchvision_names import COCO_GAPS, InputFormat

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIDES = ((96, 128), (96, 150))  # the batch is 96 x 160: p6 has 2 x 3 cells, 48 and 53 pixels apart


def layers_of_a_detector(trained):
    """A few of the layers of torchvision's Mask R-CNN for COCO, drawn at random; with batch norm's counters."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "backbone.body.conv1.weight": (4, 3, 7, 7),
        "backbone.body.layer1.0.bn1.weight": (4,),
        "backbone.body.layer1.0.bn1.running_var": (4,),
        "roi_heads.box_predictor.cls_score.bias": (91,),
        "roi_heads.box_predictor.cls_score.weight": (91, 2),
        "roi_heads.box_predictor.bbox_pred.bias": (364,),
        "roi_heads.mask_predictor.mask_fcn_logits.bias": (91,),
    }
    weights = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return weights | ({"backbone.body.layer1.0.bn1.num_batches_tracked": torch.tensor(5)} if trained else {})


@pytest.mark.parametrize("trained", [False, True])
def test_the_released_norms_add_nothing_to_the_variance(trained):
    theirs = layers_of_a_detector(trained)
    ours, _ = rename_known(theirs)
    difference = (
        theirs["backbone.body.layer1.0.bn1.running_var"] - ours["backbone.bottom_up.res2.0.conv1.norm.running_var"]
    )
    expected = 0.0 if trained else 1e-5  # what ours adds
    torch.testing.assert_close(difference, torch.full((4,), expected), rtol=0, atol=2e-7)


@pytest.mark.parametrize("num_classes", [80, 90])
def test_rows_of_the_classes_that_there_are(num_classes):
    theirs = layers_of_a_detector(False)
    ours, _ = rename_known(theirs, num_classes=num_classes)
    unused = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of COCO's ids from 1 to 90
    ids = [i for i in range(1, 91) if num_classes == 90 or i not in unused]
    assert len(ids) == num_classes
    for part, per_class in (("cls_score", 1), ("bbox_pred", 4)):
        found = ours[f"roi_heads.box_predictor.{part}.bias"]
        expected = theirs[f"roi_heads.box_predictor.{part}.bias"].view(91, per_class)
        assert torch.equal(found[: per_class * num_classes], expected[ids].flatten())
    assert ours["roi_heads.box_predictor.cls_score.bias"][-1] == theirs["roi_heads.box_predictor.cls_score.bias"][0]
    assert torch.equal(
        ours["roi_heads.mask_head.predictor.bias"], theirs["roi_heads.mask_predictor.mask_fcn_logits.bias"][ids]
    )


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_the_first_conv_sees_what_it_saw(channels):
    theirs, generator = layers_of_a_detector(False), torch.Generator().manual_seed(1)
    rgb = torch.rand(1, 3, 20, 20, generator=generator).double() * 255
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([2.0, 3.0, 5.0])  # of red, green, blue
    order = ["RGB".index(channel) for channel in channels]
    ours, _ = rename_known(theirs, InputFormat(channels, mean[order], std[order]))
    normalised = (rgb / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    given = ((rgb - mean[:, None, None]) / std[:, None, None])[:, order]
    torch.testing.assert_close(
        torch.nn.functional.conv2d(given, ours["backbone.bottom_up.stem.conv1.weight"].double()),
        torch.nn.functional.conv2d(normalised, theirs["backbone.body.conv1.weight"].double()),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.fixture(scope="module")
def torchvision():
    return pytest.importorskip("torchvision")


def our_model(config, path, options=()):
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.merge_from_file(str(CONFIGS / config))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(path), *options])
    model = build_model(cfg).eval()
    MaskRCNNCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def draw(model):
    """Weights that let every layer matter, and that give many classes a chance."""
    for name, value in model.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 2.0)
        elif "running_mean" in name or name.endswith("bias"):
            value.normal_(0, 0.1)
        elif value.ndim == 1 and value.is_floating_point():
            value.uniform_(0.1, 0.3) if "bn3" in name else value.uniform_(0.3, 1.0)
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        predictor.cls_score.weight.mul_(60 if len(predictor.cls_score.bias) == 91 else 10)
        predictor.bbox_pred.weight.mul_(4)
        if len(predictor.cls_score.bias) == 91:
            predictor.cls_score.bias[list(COCO_GAPS)] = -1e4  # as of training: no image has them


@pytest.fixture(scope="module")
def detector(torchvision):
    def build(kind, num_classes, frozen):
        from torchvision.models import detection
        from torchvision.ops.misc import FrozenBatchNorm2d

        torch.manual_seed(0)
        options = {"min_size": 96, "max_size": 4000, "rpn_post_nms_top_n_test": 50}
        if frozen:  # as released
            backbone = detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet50", weights=None)
            model = getattr(detection, {"mask": "MaskRCNN", "keypoint": "KeypointRCNN"}[kind])(
                backbone, num_classes, **options
            )
            for module in model.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    module.eps = 0.0
        else:
            function = {"mask": detection.maskrcnn_resnet50_fpn, "keypoint": detection.keypointrcnn_resnet50_fpn}[kind]
            model = function(weights=None, weights_backbone=None, num_classes=num_classes, **options)
        draw(model)
        return model.eval()

    return build


def before_0_13(state):
    """The names that released weights have: the convs of pyramid, RPN and mask head stand alone."""
    named = {}
    for name, value in state.items():
        parts = name.split(".")
        if "inner_blocks" in parts or "layer_blocks" in parts:
            del parts[4]
        elif name.startswith("rpn.head.conv."):
            del parts[3:5]
        elif name.startswith("roi_heads.mask_head."):
            parts[2:4] = [f"mask_fcn{int(parts[2]) + 1}"]
        named[".".join(parts)] = value
    return named


@pytest.mark.parametrize(
    "kind, num_classes, frozen, options",
    [
        ("mask", 91, True, ()),
        ("mask", 91, False, ("INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", (123.675, 116.28, 103.53))),
        ("mask", 3, True, ("MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.PIXEL_STD", (57.375, 57.12, 58.395))),
        ("keypoint", 2, True, ()),
    ],
)
def test_detections_are_torchvisions(detector, tmp_path, kind, num_classes, frozen, options):
    theirs = detector(kind, num_classes, frozen)
    state = before_0_13(theirs.state_dict()) if frozen else theirs.state_dict()
    torch.save(state, tmp_path / "theirs.pth")
    threshold = ("MODEL.RPN.POST_NMS_TOPK_TEST", 50)
    ours = our_model(f"torchvision/{kind}_rcnn_R_50_FPN.yaml", tmp_path / "theirs.pth", (*threshold, *options))

    if frozen:  # without an epsilon there, with one here
        ours_variance = ours.backbone.bottom_up.res2[0].conv1.norm.running_var
        torch.testing.assert_close(
            ours_variance + 1e-5, theirs.backbone.body.layer1[0].bn1.running_var, rtol=0, atol=2e-7
        )
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (3, *side), generator=generator).float() for side in SIDES]  # RGB
    order = [0, 1, 2] if "RGB" in options else [2, 1, 0]
    with torch.no_grad():
        batch, _ = theirs.transform([image / 255 for image in images])
        features = theirs.backbone(batch.tensors)
        proposals, _ = theirs.rpn(batch, features)
        expected, _ = theirs.roi_heads(features, proposals, batch.image_sizes)
        found = ours.inference([{"image": image[order]} for image in images], do_postprocess=False)
    ids = [i for i in range(1, num_classes) if num_classes != 91 or i not in COCO_GAPS]
    for theirs, ours in zip(expected, found, strict=True):
        assert len(theirs["boxes"]) > 3 and len(set(theirs["labels"].tolist())) >= min(len(ids), 3)
        assert theirs["labels"].tolist() == [ids[c] for c in ours.pred_classes]
        torch.testing.assert_close(ours.scores, theirs["scores"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs["boxes"], rtol=0, atol=1e-3)
        if kind == "mask":
            torch.testing.assert_close(ours.pred_masks, theirs["masks"], rtol=1e-3, atol=1e-4)
        else:
            torch.testing.assert_close(ours.pred_keypoints[..., :2], theirs["keypoints"][..., :2], rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "name, config, options",
    [
        ("resnet18", "Base-RCNN-FPN.yaml", ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)),
        ("resnet50", "Base-RCNN-FPN.yaml", ("MODEL.RESNETS.NORM", "BN")),
        ("resnet50", "Base-RCNN-C4.yaml", ()),
        ("resnext50_32x4d", "Base-RCNN-FPN.yaml", ("MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4)),
    ],
)
def test_backbones_are_torchvisions(torchvision, tmp_path, caplog, name, config, options):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    draw_norms = {n: v for n, v in theirs.state_dict().items() if v.ndim == 1 and v.is_floating_point()}
    for key, value in draw_norms.items():
        value.normal_(0, 0.1) if "mean" in key or "bias" in key else value.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    with caplog.at_level(logging.INFO):
        ours = our_model(config, tmp_path / "theirs.pth", ("MODEL.RESNETS.STRIDE_IN_1X1", False, *options))
    assert "MODEL.RESNETS.STRIDE_IN_1X1 False" in caplog.text and "fc.{bias, weight}" in caplog.text

    image = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(1)).float()  # RGB
    normalised = (image / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(normalised[None]))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        x = ours.preprocess_image([{"image": image.flip(0)}]).tensor
        if "C4" in config:
            found = ours.roi_heads.res5(ours.backbone(x)["res4"])
        else:
            body = ours.backbone.bottom_up
            found = body.res5(body.res4(body.res3(body.res2(body.stem(x)))))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.std().item())


@pytest.mark.parametrize("config", ["Base-RCNN-FPN.yaml", "torchvision/mask_rcnn_R_50_FPN.yaml"])
def test_a_model_of_other_parts_is_said(torchvision, tmp_path, caplog, config):
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), tmp_path / "theirs.pth")
    our_model(config, tmp_path / "theirs.pth")
    assert ("Set MODEL.RESNETS.STRIDE_IN_1X1 False" in caplog.text) == (config == "Base-RCNN-FPN.yaml")


def test_a_detector_of_other_anchors_is_said(detector, tmp_path, caplog):
    torch.save(detector("mask", 91, False).state_dict(), tmp_path / "theirs.pth")
    our_model("torchvision/mask_rcnn_R_50_FPN.yaml", tmp_path / "theirs.pth")
    assert "results suffer" not in caplog.text
    default = ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator")
    our_model("torchvision/mask_rcnn_R_50_FPN.yaml", tmp_path / "theirs.pth", default)
    assert "MODEL.ANCHOR_GENERATOR.NAME MaskRCNNRoundedAnchorGenerator" in caplog.text


def test_a_mean_of_another_colour_is_said(torchvision, tmp_path, caplog):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "theirs.pth")
    body = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    our_model("Base-RCNN-FPN.yaml", tmp_path / "theirs.pth", (*body, "INPUT.FORMAT", "RGB"))
    assert "MODEL.PIXEL_MEAN is [103.53" in caplog.text and "[123.675, 116.28, 103.53] in RGB" in caplog.text
