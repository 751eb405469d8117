"""The rows of the papers' tables: each builds what its name says, quotes what was published, trains and evaluates."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from projects_maskrcnn.framework import build_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs/paper"
ROWS = {
    str(path.relative_to(CONFIGS).with_suffix("")): path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if not path.name.startswith("Base-")
}


def on_meta(cfg):
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def poolers(model):
    return {m.pooler_type for m in model.modules() if hasattr(m, "pooler_type")}


def mask_channels(model):
    return model.roi_heads.mask_head.predictor.out_channels


def linear_sizes(module):
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, torch.nn.Linear)]


def anchors(model):
    return model.proposal_generator.rpn_head.objectness_logits.out_channels


def stride(model):
    return {shape.stride for shape in model.backbone.output_shape().values()}


WHAT_MAKES_THE_ROW = {
    "table_2b_mask_loss/softmax": lambda m: mask_channels(m) == 81,
    "table_2b_mask_loss/sigmoid": lambda m: mask_channels(m) == 80,
    "table_2b_mask_loss/class_agnostic": lambda m: mask_channels(m) == 1,
    "table_2c_roi_layer/roi_pool": lambda m: poolers(m) == {"ROIPool"},
    "table_2c_roi_layer/roi_warp_max": lambda m: poolers(m) == {"ROIWarpMax"},
    "table_2c_roi_layer/roi_warp_ave": lambda m: poolers(m) == {"ROIWarp"},
    "table_2c_roi_layer/roi_align_max": lambda m: poolers(m) == {"ROIAlignMax"},
    "table_2c_roi_layer/roi_align_ave": lambda m: poolers(m) == {"ROIAlignV2"},
    "table_2d_roi_layer_C5/roi_pool": lambda m: poolers(m) == {"ROIPool"} and stride(m) == {32},
    "table_2d_roi_layer_C5/roi_align": lambda m: poolers(m) == {"ROIAlignV2"} and stride(m) == {32},
    "table_2e_mask_branch/mlp_2_hidden_layers": lambda m: (
        linear_sizes(m.roi_heads.mask_head) == [(14 * 14 * 256, 1024), (1024, 1024), (1024, 80 * 28 * 28)]
    ),
    "table_2e_mask_branch/mlp_3_hidden_layers": lambda m: len(linear_sizes(m.roi_heads.mask_head)) == 4,
    "table_2e_mask_branch/fcn": lambda m: not linear_sizes(m.roi_heads.mask_head),
    "table_3_object_detection/faster_rcnn_R_101_FPN": lambda m: poolers(m) == {"ROIPool"},
    "table_3_object_detection/faster_rcnn_roi_align_R_101_FPN": lambda m: (
        poolers(m) == {"ROIAlignV2"} and m.roi_heads.mask_head is None
    ),
    "table_6_keypoint_roi_layer/roi_pool": lambda m: poolers(m) == {"ROIPool"},
    "table_6_keypoint_roi_layer/roi_align": lambda m: poolers(m) == {"ROIAlignV2"},
    "table_8_enhanced/deeper": lambda m: len(m.backbone.bottom_up.res4) == 36,
    "table_8_enhanced/non_local": lambda m: (
        [n for n, _ in m.backbone.bottom_up.res4.named_children()][34:] == ["34", "non_local", "35"]
    ),
    "faster_rcnn/table_3_voc_2007/shared_07": lambda m: (
        linear_sizes(m.roi_heads.box_head) == [(7 * 7 * 512, 4096), (4096, 4096)] and poolers(m) == {"ROIPool"}
    ),
    "faster_rcnn/table_8_anchors/1_scale_1_ratio_128": lambda m: anchors(m) == 1,
    "faster_rcnn/table_8_anchors/1_scale_1_ratio_256": lambda m: anchors(m) == 1,
    "faster_rcnn/table_8_anchors/1_scale_3_ratios_128": lambda m: anchors(m) == 3,
    "faster_rcnn/table_8_anchors/1_scale_3_ratios_256": lambda m: anchors(m) == 3,
    "faster_rcnn/table_8_anchors/3_scales_1_ratio": lambda m: anchors(m) == 3,
    "faster_rcnn/table_8_anchors/3_scales_3_ratios": lambda m: anchors(m) == 9,
    "faster_rcnn/table_9_lambda/lambda_0.1": lambda m: loss_weight(m) == pytest.approx(0.1 * 256 / 2400, rel=1e-3),
    "faster_rcnn/table_9_lambda/lambda_1": lambda m: loss_weight(m) == pytest.approx(1 * 256 / 2400, rel=1e-3),
    "faster_rcnn/table_9_lambda/lambda_10": lambda m: loss_weight(m) == pytest.approx(10 * 256 / 2400, rel=1e-3),
    "faster_rcnn/table_9_lambda/lambda_100": lambda m: loss_weight(m) == pytest.approx(100 * 256 / 2400, rel=1e-3),
}
"""What the model has that its name promises."""


def loss_weight(model):
    return model.proposal_generator.loss_weight["loss_rpn_loc"]


@pytest.mark.parametrize("row", ROWS)
def test_row_builds_what_its_name_says(row, load):
    cfg = load(ROWS[row])
    model = on_meta(cfg)
    names = [name for name, _ in model.named_parameters()]
    if said := re.search(r"([RX])_(\d+)(?:_(C4|FPN))?$", row):
        arch, depth, body = said.groups()
        convs = [n for n in names if re.search(r"(stem|res\d\.\d+)\.conv\d\.weight", n)]
        alone = cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork" and body == "C4"  # res5 is in the heads
        assert len(convs) + 1 + 9 * alone == int(depth)
        assert any(getattr(m, "groups", 1) > 1 for m in model.modules()) == (arch == "X")
        assert any("fpn_lateral" in n for n in names) == (body != "C4")
    if "keypoint" in row or "mask_only" in row:
        assert any("keypoint_head" in n for n in names) == ("mask_only" not in row)
        has_mask = "mask_only" in row or "keypoint_and_mask" in row
        assert any("mask_head" in n for n in names) == has_mask
    assert WHAT_MAKES_THE_ROW.get(row, lambda _: True)(model)
    for key in ("unshared", "original", "updated_baseline"):
        if key in row and "keypoints" not in row:
            assert cfg.MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS == 2


def test_every_row_named_above_exists():
    assert WHAT_MAKES_THE_ROW.keys() <= ROWS.keys()


@pytest.mark.parametrize(
    ("row", "schedule"),
    [  # images a batch, learning rate, drops, iterations, RoIs an image, proposals in testing
        ("table_2a_backbone/R_50_C4", (16, 0.02, (120000,), 160000, 64, 300)),
        ("table_2a_backbone/R_101_FPN", (16, 0.02, (120000,), 160000, 512, 1000)),
        ("table_2a_backbone/X_101_FPN", (8, 0.01, (120000,), 160000, 512, 1000)),
        ("table_4_keypoints/keypoint_only", (16, 0.02, (60000, 80000), 90000, 512, 1000)),
        ("table_7_cityscapes/fine", (8, 0.01, (18000,), 24000, 512, 1000)),
        ("table_7_cityscapes/fine_and_coco", (8, 0.01, (3000,), 4000, 512, 1000)),
        ("table_8_enhanced/end_to_end", (8, 0.01, (120000, 160000), 180000, 512, 1000)),
        ("faster_rcnn/table_3_voc_2007/shared_07", (1, 0.001, (60000,), 80000, 128, 300)),
    ],
)
def test_schedules_are_the_papers(row, schedule, load):
    cfg = load(ROWS[row])
    solver, model = cfg.SOLVER, cfg.MODEL
    assert schedule == (
        solver.IMS_PER_BATCH,
        solver.BASE_LR,
        solver.STEPS,
        solver.MAX_ITER,
        model.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
        model.RPN.POST_NMS_TOPK_TEST,
    )


@pytest.mark.parametrize("row", [r for r in ROWS if r.startswith("table_")])
def test_figures_are_those_of_the_papers_table(row, shared, load):
    table = re.match(r"table_(\w+?)_", row)[1]
    (line,) = [text for text in (shared / "REFERENCE.md").read_text().splitlines() if text.startswith(f"| {table},")]
    published = set(re.findall(r"\d+\.\d", line))
    references = [r for r in load(ROWS[row]).TEST.REFERENCE if r[0].startswith("paper")]
    assert references and {str(figure) for _, _, figure in references} <= published


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_row_trains_and_evaluates(row, load, run, tmp_path):
    cfg = load(ROWS[row])
    run(ROWS[row])
    for log in tmp_path.rglob("metrics.json"):
        metrics = {k: v for line in log.read_text().splitlines() for k, v in json.loads(line).items()}
        assert math.isfinite(metrics["total_loss"]) and metrics["total_loss"] > 0
    results = run(ROWS[row], "--eval-only", **{"MODEL.WEIGHTS": str(tmp_path / "model_final.pth")})
    tasks = {"bbox"} | ({"segm"} if cfg.MODEL.MASK_ON else set()) | ({"keypoints"} if cfg.MODEL.KEYPOINT_ON else set())
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        tasks = {"box_proposals"}
    if cfg.TEST.AUG.ENABLED:
        tasks |= {f"{task}_TTA" for task in tasks}
    assert results.keys() == tasks
    published = {metric.split("/")[0] for _, metric, _ in cfg.TEST.REFERENCE}
    assert published <= tasks
    for _, metric, _ in cfg.TEST.REFERENCE:
        task, name = metric.split("/")
        assert name in results[task]


def test_figures_are_printed_beside_the_results(run, train_net, monkeypatch):
    seen = []
    monkeypatch.setattr(train_net, "log_reference_figures", lambda cfg, results: seen.append(set(results)))
    run(ROWS["table_8_enhanced/test_time_augmentation"])
    assert seen == [{"bbox", "segm"}, {"bbox_TTA", "segm_TTA"}]
