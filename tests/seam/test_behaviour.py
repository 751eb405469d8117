"""The embedded framework and Detectron2 do the same with the same random input, side by side in one process.

A case is a function of a framework. It draws its input from the generators that are seeded before, uses the framework,
and returns what that made of it; the test runs it on both and compares.
"""

import importlib
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from projects_maskrcnn import framework
from projects_maskrcnn.modeling import keypoint_head, mask_head

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
pytestmark = pytest.mark.usefixtures("after_release_06")

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def random_boxes(n, size=100.0):
    corner = torch.rand(n, 2) * size * 0.8
    return torch.cat([corner, corner + 1 + torch.rand(n, 2) * size * 0.5], dim=1)


def random_polygons(n, size=60.0):
    """For each of n instances one or two polygons of three to six corners."""
    corners = [np.random.randint(3, 7, np.random.randint(1, 3)) for _ in range(n)]
    return [[np.random.rand(2 * c) * size for c in parts] for parts in corners]


# ---- structures


@case
def boxes(f):
    s = f("structures")
    tensor = torch.cat([torch.randn(12, 4) * 60, random_boxes(8)])
    b, other = s.Boxes(tensor), s.Boxes(random_boxes(5))
    clipped, scaled = b.clone(), b.clone()
    clipped.clip((40, 70))
    scaled.scale(0.5, 3.0)
    return {
        "area": b.area(),
        "clipped": clipped,
        "scaled": scaled,
        "nonempty": [b.nonempty(), b.nonempty(threshold=20)],
        "inside": [b.inside_box((60, 80)), b.inside_box((60, 80), boundary_threshold=30)],
        "centres": b.get_centers(),
        "parts": [b[3], b[2:9:3], b[b.area() > 50], b[torch.tensor([4, 1])], list(b)[7]],
        "joined": [s.Boxes.cat([b, other]), s.Boxes.cat([])],
        "empty": s.Boxes(torch.zeros(0, 4)).area(),
        "pairs": [g(s.Boxes(tensor[12:]), other) for g in (s.pairwise_iou, s.pairwise_ioa)],
        "repr": repr(other),
    }


@case
def box_modes(f):
    modes = f("structures").BoxMode
    convert, box = modes.convert, random_boxes(1)[0].tolist()
    return {
        f"{a.name} to {b.name}": [
            convert(box, a, b),
            convert(tuple(box), a, b),
            convert(np.array([box]), a, b),
            convert(torch.tensor([box]), a, b),
        ]
        for a, b in itertools.product((modes.XYXY_ABS, modes.XYWH_ABS), repeat=2)
    }


@case
def instances(f):
    s = f("structures")
    i = s.Instances((50, 60), gt_boxes=s.Boxes(random_boxes(6)), scores=torch.rand(6))
    i.gt_masks = s.PolygonMasks(random_polygons(6))
    parts = [i[2], i[-1], i[1:4], i[i.scores > 0.5], i[torch.tensor([5, 0, 5])]]
    joined = s.Instances.cat(parts)
    i.remove("scores")
    i.names = list("abcdef")
    i.set("scores", torch.ones(6))
    return {
        "parts": parts,
        "joined": joined,
        "named": [i[4], i[1:3]],
        "len": [len(p) for p in parts],
        "has": [i.has("names"), i.has("missing")],
        "fields": sorted(i.get_fields()),
        "moved": i.to("cpu"),
    }


@case
def image_lists(f):
    from_tensors = f("structures").ImageList.from_tensors
    images = [torch.rand(3, *np.random.randint(5, 40, 2).tolist()) for _ in range(3)]
    return [
        [made.tensor, [tuple(int(v) for v in size) for size in made.image_sizes], made[-1]]
        for options in (
            {},
            {"size_divisibility": 16, "pad_value": 0.5},
            {"padding_constraints": {"square_size": 64}},
            {"padding_constraints": {"size_divisibility": 32}},
        )
        for made in (from_tensors(images, **options), from_tensors(images[:1], **options))
    ]


@case
def bit_masks(f):
    s = f("structures")
    masks = s.BitMasks(torch.rand(5, 40, 50) > torch.tensor([0.2, 0.5, 0.9, 0.995, 1.1])[:, None, None])
    drawn = s.BitMasks.from_polygon_masks(random_polygons(4), 60, 70)
    return {
        "boxes": masks.get_bounding_boxes(),
        "nonempty": masks.nonempty(),
        "cropped": masks.crop_and_resize(random_boxes(5, 40), 14),
        "parts": [masks[1], masks[1:3], masks[masks.nonempty()]],
        "joined": s.BitMasks.cat([masks, masks[:2]]),
        "drawn": drawn,
    }


@case
def polygon_masks(f):
    s = f("structures")
    masks = s.PolygonMasks(random_polygons(6))
    return {
        "area": masks.area(),
        "boxes": masks.get_bounding_boxes(),
        "nonempty": masks.nonempty(),
        "cropped": masks.crop_and_resize(random_boxes(6, 50), 28),
        "parts": [masks[2], masks[1:4], masks[torch.tensor([4, 0])], masks[masks.area() > 200]],
        "joined": s.PolygonMasks.cat([masks, masks[:1]]),
    }


@case
def roi_masks(f):
    s = f("structures")
    masks = s.ROIMasks(torch.rand(4, 28, 28))
    return [masks.to_bitmasks(s.Boxes(random_boxes(4)), 90, 110, threshold=0.4), masks[1:3]]


@case
def keypoints(f):
    s = f("structures")
    tensor = torch.cat([torch.rand(5, 7, 2) * 100, torch.randint(0, 3, (5, 7, 1)).float()], dim=2)
    points, boxes = s.Keypoints(tensor), random_boxes(5)
    boxes[0, 2:] = tensor[0, 0, :2]  # a keypoint on the right and lower edge
    return {
        "heatmaps": points.to_heatmap(boxes, 56),
        "parts": [points[1:3], points[torch.tensor([3, 0])]],
        "joined": s.Keypoints.cat([points, points[:2]]),
        "found": s.heatmaps_to_keypoints(torch.randn(4, 7, 28, 28), random_boxes(4)),
    }


# ---- anchors, proposals, box predictor


@case
def anchors(f):
    features = [torch.zeros(1, 4, *np.random.randint(2, 9, 2)) for _ in range(3)]
    generate = f("modeling.anchor_generator").DefaultAnchorGenerator
    made = [
        generate(sizes=[[32, 64], [48], [16]][:n], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[4, 8, 16], offset=offset)
        for n, offset in ((3, 0.0), (1, 0.5))
    ]
    return [[m.num_anchors, m.box_dim, m(features), list(m.cell_anchors)] for m in made]


@case
def box_coder(f):
    coder = f("modeling.box_regression").Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    a, b = random_boxes(20), random_boxes(20)
    return {"deltas": coder.get_deltas(a, b), "boxes": coder.apply_deltas(torch.randn(20, 12) * 8, a)}


@case
def matcher(f):
    make = f("modeling.matcher").Matcher
    iou = torch.rand(4, 30)
    iou[:, 0] = iou[:, 1]  # ties
    return [
        make(thresholds, labels, allow_low_quality_matches=low)(matrix)
        for thresholds, labels in (([0.3, 0.7], [0, -1, 1]), ([0.5], [0, 1]))
        for low in (False, True)
        for matrix in (iou, iou * 0.4, torch.zeros(0, 30))
    ]


@case
def poolers(f):
    make = f("modeling.poolers").ROIPooler
    features = [torch.rand(2, 3, 64 // stride, 96 // stride) for stride in (4, 8)]
    boxes = [f("structures").Boxes(random_boxes(n, size=60)) for n in (9, 0)]
    return [
        make(size, [1 / 4, 1 / 8][: len(maps)], ratio, kind, *canonical)(maps, boxes)
        for size, ratio, kind in ((7, 0, "ROIAlignV2"), ((3, 3), 2, "ROIAlign"))
        for maps in (features, features[:1])
        for canonical in ((), (20, 3))
    ]


@case
def sampling(f):
    labels = torch.randint(-1, 3, (200,))
    return [f("modeling.sampling").subsample_labels(labels, n, 0.25, bg_label=2) for n in (8, 64, 1000)]


def rpn_of(f, **options):
    """An RPN of two levels whose weights depend on their number alone."""
    rpn = f("modeling.proposal_generator.rpn")
    anchors = {"sizes": [[24], [48]], "aspect_ratios": [[0.5, 1.0, 2.0]], "strides": [8, 16]}
    made = rpn.RPN(
        in_features=["a", "b"],
        head=rpn.StandardRPNHead(in_channels=8, num_anchors=3),
        anchor_generator=f("modeling.anchor_generator").DefaultAnchorGenerator(**anchors),
        anchor_matcher=f("modeling.matcher").Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=f("modeling.box_regression").Box2BoxTransform((1.0,) * 4),
        batch_size_per_image=32,
        positive_fraction=0.5,
        pre_nms_topk=(60, 40),
        post_nms_topk=(30, 20),
        **options,
    )
    for number, parameter in enumerate(made.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
    return made


def scene(f):
    """Images, features of two levels, and ground truth with none in the second image."""
    s = f("structures")
    images = s.ImageList(torch.zeros(2, 3, 128, 128), [(128, 100), (90, 128)])
    features = {"a": torch.randn(2, 8, 16, 16), "b": torch.randn(2, 8, 8, 8)}
    gt = []
    for size, n in zip(images.image_sizes, (3, 0), strict=True):
        gt.append(s.Instances(size, gt_boxes=s.Boxes(random_boxes(n)), gt_classes=torch.randint(0, 3, (n,))))
    return images, features, gt


@case
def rpn_training_and_testing(f):
    images, features, gt = scene(f)
    found = []
    for options in (
        {},
        {"box_reg_loss_type": "giou", "loss_weight": {"loss_rpn_cls": 2.0, "loss_rpn_loc": 0.5}},
        {"smooth_l1_beta": 0.1, "anchor_boundary_thresh": 0, "min_box_size": 10.0},
    ):
        rpn = rpn_of(f, **options)
        with f("utils.events").EventStorage() as storage:
            proposals, losses = rpn(images, features, gt)
            found += [proposals, losses, storage.latest()]
        found.append(rpn.eval()(images, features)[0])
    return found


@case
def box_predictor(f):
    s, found = f("structures"), []
    proposals = []
    for n in (9, 6):
        i = s.Instances((100, 120), proposal_boxes=s.Boxes(random_boxes(n)), gt_boxes=s.Boxes(random_boxes(n)))
        i.gt_classes = torch.randint(0, 4, (n,))
        proposals.append(i)
    scores, deltas, x = torch.randn(15, 4) * 3, torch.randn(15, 12), torch.randn(15, 5)
    for agnostic, options in itertools.product(
        (False, True),
        (
            {},
            {"smooth_l1_beta": 0.5, "loss_weight": {"loss_box_reg": 2.0}},
            {"box_reg_loss_type": "giou"},
            {"use_sigmoid_ce": True, "test_score_thresh": 0.3, "test_topk_per_image": 7},
        ),
    ):
        predictor = f("modeling").FastRCNNOutputLayers(
            f("layers").ShapeSpec(channels=5),
            box2box_transform=f("modeling.box_regression").Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
            num_classes=3,
            cls_agnostic_bbox_reg=agnostic,
            **options,
        )
        predictions = scores, deltas[:, :4] if agnostic else deltas
        with f("utils.events").EventStorage() as storage:
            found += [predictor.losses(predictions, proposals), storage.latest()]
        found += [predictor.inference(predictions, proposals), [list(y.shape) for y in predictor(x)]]
        found.append(predictor.predict_boxes_for_gt_classes(predictions, proposals))
    return found


@case
def roi_sampling(f):
    images, _, gt = scene(f)
    cfg = f("config").get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 3, 16
    heads, s = f("modeling").ROIHeads(cfg), f("structures")
    proposals = [
        s.Instances(size, proposal_boxes=s.Boxes(random_boxes(40)), objectness_logits=torch.randn(40))
        for size in images.image_sizes
    ]
    with f("utils.events").EventStorage() as storage:
        sampled = heads.label_and_sample_proposals(proposals, gt)
        module = f("modeling.roi_heads.roi_heads")
        return [sampled, storage.latest(), module.select_foreground_proposals(sampled, 3)]


@case
def postprocessing(f):
    s = f("structures")
    detections = s.Instances((100, 80), pred_boxes=s.Boxes(random_boxes(6)), scores=torch.rand(6))
    detections.pred_boxes.tensor[0] = torch.tensor([200.0, 10, 220, 30])  # outside
    detections.pred_classes = torch.arange(6)
    detections.pred_masks = torch.rand(6, 1, 28, 28)
    detections.pred_keypoints = torch.rand(6, 5, 3) * 80
    return f("modeling.postprocessing").detector_postprocess(detections, 150, 60)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_same(name, seed, assert_both_do_the_same):
    assert_both_do_the_same(CASES[name], seed)


# ---- the heads of this project, and Detectron2's


@pytest.mark.parametrize("counts", [(4, 3), (5, 0), (0, 0)])
@pytest.mark.parametrize("num_masks", [1, 3])
def test_mask_losses_and_results(counts, num_masks, assert_same):
    theirs = importlib.import_module("detectron2.modeling.roi_heads.mask_head")
    assert_same(*(run_head(module, "mask_rcnn", (num_masks, 28, 28), counts) for module in (mask_head, theirs)))


@pytest.mark.parametrize("counts", [(4, 3), (5, 0), (0, 0)])
@pytest.mark.parametrize("normalizer", [None, 7.0])
def test_keypoint_losses_and_results(counts, normalizer, assert_same):
    theirs = importlib.import_module("detectron2.modeling.roi_heads.keypoint_head")
    heads = (keypoint_head, theirs)
    assert_same(*(run_head(module, "keypoint_rcnn", (5, 28, 28), counts, normalizer) for module in heads))


def run_head(module, prefix, shape, counts, *options):
    """Loss, gradient, what is logged and predicted, of a module's functions `prefix`_loss and `prefix`_inference."""
    theirs = module.__name__.startswith("detectron2") or framework.FRAMEWORK == "detectron2"
    package = "detectron2" if theirs else "projects_maskrcnn.embedded"
    s = importlib.import_module(f"{package}.structures")
    torch.manual_seed(sum(counts))
    np.random.seed(sum(counts))
    logits = torch.randn(sum(counts), *shape, requires_grad=True)
    batch = []
    for n in counts:
        boxes = s.Boxes(random_boxes(n))
        i = s.Instances((100, 100), proposal_boxes=boxes, pred_boxes=boxes, gt_classes=torch.randint(0, 3, (n,)))
        i.pred_classes, i.gt_masks = i.gt_classes, s.PolygonMasks(random_polygons(n, 100))
        i.gt_keypoints = s.Keypoints(torch.rand(n, 5, 3) * 100)
        batch.append(i)
    with importlib.import_module(f"{package}.utils.events").EventStorage() as storage:
        loss = getattr(module, f"{prefix}_loss")(logits, batch, *options)
        (gradient,) = torch.autograd.grad(loss, logits)
        logged = storage.latest() if prefix == "mask_rcnn" and sum(counts) else {}
    getattr(module, f"{prefix}_inference")(logits.detach(), batch)
    predicted = [{k: v for k, v in i.get_fields().items() if k.startswith("pred_")} for i in batch]
    return [loss, gradient, logged, predicted]
