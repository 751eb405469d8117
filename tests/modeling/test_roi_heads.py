"""RoI heads in a whole small model: every kind of batch trains, and what follows from the config's keys."""

import pytest
import torch
from torch import nn

from projects_maskrcnn.framework import (
    ROI_MASK_HEAD_REGISTRY,
    BitMasks,
    Boxes,
    EventStorage,
    Instances,
    Keypoints,
    build_model,
)

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}


def with_ground_truth(image, boxes):
    """The input with one instance a box: its lower half is the mask, its corner the only visible keypoint."""
    height, width = image["image"].shape[1:]
    truth = Instances((height, width))
    truth.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    truth.gt_classes = torch.arange(len(boxes)) % 3
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    points = torch.zeros(len(boxes), 5, 3)
    for mask, point, (x0, y0, x1, y1) in zip(masks, points, boxes, strict=True):
        mask[(y0 + y1) // 2 : y1, x0:x1] = True
        point[0] = torch.tensor([x0 + 1.5, y0 + 1.5, 2])
    truth.gt_masks, truth.gt_keypoints = BitMasks(masks), Keypoints(points)
    return {**image, "instances": truth}


@pytest.fixture(params=["objects", "an image without", "nothing at all"])
def batch(request, random_image):
    boxes = {
        "objects": ([[4, 6, 50, 40], [30, 10, 90, 60]], [[8, 8, 28, 36]]),
        "an image without": ([], [[8, 8, 28, 36]]),
        "nothing at all": ([], []),
    }[request.param]
    return [with_ground_truth(random_image(seed=i), b) for i, b in enumerate(boxes)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("fpn", ()),
        ("fpn", ("MODEL.KEYPOINT_ON", True)),
        ("fpn", ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True)),
        ("fpn", ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)),
        ("c4", ("MODEL.ROI_MASK_HEAD.NUM_CONV", 0)),
        ("c4", ("MODEL.ROI_BOX_HEAD.RES5_STRIDE", 1)),
    ],
)
def test_every_batch_trains_every_parameter(kind, options, batch, config):
    torch.manual_seed(0)
    cfg = config(kind, *options)
    model = build_model(cfg).train()
    with EventStorage():
        losses = model(batch)
    assert set(losses) == LOSSES | ({"loss_keypoint"} if cfg.MODEL.KEYPOINT_ON else set())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    empty = all(len(b["instances"]) == 0 for b in batch)
    assert (losses["loss_mask"].item() == 0) == empty
    head = model.roi_heads.mask_head.predictor.weight
    assert head.grad.any().item() is not empty


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_inference_on_detections_and_on_given_boxes(kind, config, random_image):
    torch.manual_seed(0)
    cfg = config(kind, "MODEL.KEYPOINT_ON", kind == "fpn")
    model = build_model(cfg).eval()
    batch = [random_image(), random_image(96, 64, seed=1)]
    with torch.no_grad():
        detections = model.inference(batch, do_postprocess=False)
        given = []
        for d in detections:
            boxes = Instances(d.image_size)
            boxes.pred_boxes, boxes.pred_classes = d.pred_boxes, d.pred_classes
            given.append(boxes)
        again = model.inference(batch, detected_instances=given, do_postprocess=False)
        pasted = model(batch)
    for d, g, p, image in zip(detections, again, pasted, batch, strict=True):
        assert len(d) == 6 and d.pred_masks.shape[:2] == (6, 1)
        torch.testing.assert_close(d.pred_masks, g.pred_masks)
        if kind == "fpn":
            torch.testing.assert_close(d.pred_keypoints, g.pred_keypoints)
        assert p["instances"].pred_masks.shape[1:] == (image["height"], image["width"])


@pytest.mark.parametrize(("resolution", "stride", "side"), [(7, 1, 7), (14, 2, 7), (7, 2, 4)])
def test_the_masks_of_c4_are_twice_what_res5_gives(resolution, stride, side, config, random_image):
    options = ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", resolution, "MODEL.ROI_BOX_HEAD.RES5_STRIDE", stride)
    model = build_model(config("c4", *options, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNMLPMaskHead")).eval()
    with torch.no_grad():
        (found,) = model.inference([random_image()], do_postprocess=False)
    assert found.pred_masks.shape[1:] == (1, 2 * side, 2 * side)


def test_no_detections(config, random_image):
    model = build_model(config("fpn", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.1, "MODEL.KEYPOINT_ON", True)).eval()
    with torch.no_grad():
        result = model([random_image()])[0]["instances"]
    assert len(result) == 0 and result.pred_masks.shape == (0, 64, 96) and result.pred_keypoints.shape == (0, 5, 3)


@pytest.mark.parametrize(("resolution", "stride"), [(14, 2), (7, 1)])
def test_res5_on_rois_gives_7_by_7(resolution, stride, config):
    options = ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", resolution, "MODEL.ROI_BOX_HEAD.RES5_STRIDE", stride)
    heads = build_model(config("c4", *options)).roi_heads
    features = {"res4": torch.randn(1, 128, 6, 8)}
    x = heads._shared(features, [Boxes(torch.tensor([[8.0, 8, 80, 60]]))])
    assert x.shape == (1, 256, 7, 7)


def test_a_head_trains_on_the_boxes_that_it_is_told(config, random_image):
    """With TRAIN_ON_PRED_BOXES the mask pooler sees the box predictor's boxes, without it the proposals."""
    for on_predicted in (False, True):
        torch.manual_seed(0)
        heads = build_model(config("fpn", "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", on_predicted)).roi_heads
        torch.nn.init.zeros_(heads.box_predictor.bbox_pred.weight)
        with torch.no_grad():  # dx = 1, of weight 10: every box moves right by a tenth of its width
            heads.box_predictor.bbox_pred.bias.copy_(torch.tensor([1.0, 0, 0, 0]).repeat(3))
        seen = []
        heads.mask_pooler.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[1]))
        batch = [with_ground_truth(random_image(), [[10, 10, 50, 40]])]
        proposals = Instances((64, 96))
        proposals.proposal_boxes = Boxes(torch.tensor([[10.0, 10, 50, 42]]))
        proposals.objectness_logits = torch.ones(1)
        features = {f"p{i}": torch.randn(1, 16, 64 >> i, 96 >> i) for i in range(2, 6)}
        with EventStorage():
            heads.train()(None, features, [proposals], [batch[0]["instances"]])
        shift = 4 * on_predicted
        boxes = sorted(seen[0][0].tensor.tolist())
        assert boxes == [pytest.approx([10 + shift, 10, 50 + shift, bottom], abs=1e-4) for bottom in (40, 42)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.KEYPOINT_ON", True), "MODEL.KEYPOINT_ON"),
        (("MODEL.ROI_HEADS.IN_FEATURES", ["res3", "res4"]), "MODEL.ROI_HEADS.IN_FEATURES"),
    ],
)
def test_what_c4_heads_cannot_do(options, message, config):
    with pytest.raises(ValueError, match=message):
        build_model(config("c4", *options))


def test_training_needs_ground_truth(config):
    heads = build_model(config("fpn")).roi_heads.train()
    with pytest.raises(ValueError, match="instances"):
        heads(None, {}, [])


def test_all_poolers_take_the_canonical_box_size(config):
    heads = build_model(config("fpn", "MODEL.ROI_HEADS.CANONICAL_BOX_SIZE", 56, "MODEL.KEYPOINT_ON", True)).roi_heads
    features = [torch.full((1, 1, 128 >> i, 128 >> i), float(i)) for i in range(2, 6)]
    boxes = [Boxes(torch.tensor([[36.0, 36, 92, 92], [37, 37, 92, 92]]))]  # of 56 and 55 pixels
    for pooler in (heads.box_pooler, heads.mask_pooler, heads.keypoint_pooler):
        assert pooler(features, boxes)[:, 0, 0, 0].tolist() == pytest.approx([4, 3])


@ROI_MASK_HEAD_REGISTRY.register()
class MapsOfP3(nn.Module):
    """A mask head without pooler, which keeps what it is given."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.input_shape = input_shape

    def forward(self, features, instances):
        self.features = features
        return {"loss_of_p3": features["p3"].mean()} if self.training else instances


def test_a_head_without_a_pooler_gets_the_feature_maps(config, random_image):
    head = ("MODEL.ROI_MASK_HEAD.NAME", "MapsOfP3", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "")
    model = build_model(config("fpn", *head))
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    assert {n: s.stride for n, s in model.roi_heads.mask_head.input_shape.items()} == strides
    with EventStorage():
        losses = model.train()([with_ground_truth(random_image(), [[4, 6, 50, 40]])])
    features = model.roi_heads.mask_head.features
    assert losses["loss_of_p3"] == features["p3"].mean()
    assert {n: tuple(f.shape[2:]) for n, f in features.items()} == {n: (64 // s, 96 // s) for n, s in strides.items()}
    with torch.no_grad():
        model.eval()([random_image()])
    assert list(model.roi_heads.mask_head.features) == list(strides)
