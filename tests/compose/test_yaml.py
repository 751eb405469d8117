"""Our parts and Detectron2's in one model: the YAML files of `configs/compose`, through `train_net.py`."""

from pathlib import Path

import pytest

detectron2 = pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from projects_maskrcnn.framework import FRAMEWORK  # noqa: E402

pytestmark = pytest.mark.skipif(FRAMEWORK != "detectron2", reason="the framework in use is the embedded one")

PROJECTS = Path(detectron2.__file__).parents[1] / "projects"  # of an installation in place
NUM_CLASSES = 6

DATA = {  # what a config needs of the data, beside MODEL.ROI_HEADS.NUM_CLASSES
    "point_rend_R_50_FPN": {"MODEL.POINT_HEAD.NUM_CLASSES": NUM_CLASSES},
    "retinanet_R_50_FPN": {"MODEL.RETINANET.NUM_CLASSES": NUM_CLASSES, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0},
    "panoptic_fpn_R_50": {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES + 1},
}
PROJECTS_OF = {
    "point_rend_R_50_FPN": ["detectron2.projects.point_rend:add_pointrend_config"],
    "deeplab_R_50_DC5": ["detectron2.projects.deeplab:add_deeplab_config"],
    "tridentnet_R_50_C4": ["tridentnet:add_tridentnet_config", "configs.compose.trident_roi_heads"],
}
MADE_OF = {  # where the parts come from
    "cascade_mask_rcnn_R_50_FPN": {
        "backbone": "projects_maskrcnn FPN",
        "roi_heads": "detectron2 CascadeROIHeads",
        "roi_heads.box_pooler": "projects_maskrcnn MaskRCNNPooler",
        "roi_heads.box_head.2": "projects_maskrcnn MaskRCNNBoxHead",
        "roi_heads.mask_pooler": "projects_maskrcnn MaskRCNNPooler",
        "roi_heads.mask_head": "projects_maskrcnn MaskRCNNMaskHead",
    },
    "point_rend_R_50_FPN": {
        "backbone": "projects_maskrcnn FPN",
        "roi_heads": "projects_maskrcnn MaskRCNNROIHeads",
        "roi_heads.box_pooler": "projects_maskrcnn MaskRCNNPooler",
        "roi_heads.mask_head": "detectron2 PointRendMaskHead",
    },
    "retinanet_R_50_FPN": {"": "detectron2 RetinaNet", "backbone": "projects_maskrcnn FPN"},
    "panoptic_fpn_R_50": {
        "": "detectron2 PanopticFPN",
        "backbone": "projects_maskrcnn FPN",
        "roi_heads": "projects_maskrcnn MaskRCNNROIHeads",
        "sem_seg_head": "detectron2 SemSegFPNHead",
    },
    "deeplab_R_50_DC5": {
        "backbone": "detectron2 ResNet",
        "backbone.stem": "detectron2 DeepLabStem",
        "roi_heads": "projects_maskrcnn MaskRCNNROIHeads",
    },
    "tridentnet_R_50_C4": {
        "backbone.res4.0": "tridentnet TridentBottleneckBlock",
        "proposal_generator": "tridentnet TridentRPN",
        "roi_heads": "configs TridentMaskRCNNC4ROIHeads",
        "roi_heads.pooler": "projects_maskrcnn MaskRCNNPooler",
    },
    "standard_roi_heads_R_50_FPN": {
        "backbone": "detectron2 FPN",
        "roi_heads": "detectron2 StandardROIHeads",
        "roi_heads.box_pooler": "projects_maskrcnn MaskRCNNPooler",
        "roi_heads.box_head": "detectron2 FastRCNNConvFCHead",
        "roi_heads.mask_pooler": "projects_maskrcnn MaskRCNNPooler",
        "roi_heads.mask_head": "projects_maskrcnn MaskRCNNMaskHead",
        "roi_heads.keypoint_pooler": "projects_maskrcnn MaskRCNNPooler",
        "roi_heads.keypoint_head": "projects_maskrcnn MaskRCNNKeypointHead",
    },
    "detectron2_heads_R_50_FPN": {
        "backbone": "projects_maskrcnn FPN",
        "roi_heads": "projects_maskrcnn MaskRCNNROIHeads",
        "roi_heads.box_head": "detectron2 FastRCNNConvFCHead",
        "roi_heads.mask_head": "detectron2 MaskRCNNConvUpsampleHead",
        "roi_heads.keypoint_head": "detectron2 KRCNNConvDeconvUpsampleHead",
    },
    "res5_roi_heads_R_50_C4": {
        "backbone": "detectron2 ResNet",
        "roi_heads": "detectron2 Res5ROIHeads",
        "roi_heads.pooler": "projects_maskrcnn MaskRCNNPooler",
    },
}
LOSSES = {  # of the foreign part
    "cascade_mask_rcnn_R_50_FPN": {"loss_cls_stage2", "loss_box_reg_stage2", "loss_mask"},
    "point_rend_R_50_FPN": {"loss_mask", "loss_mask_point"},
    "retinanet_R_50_FPN": {"loss_cls", "loss_box_reg"},
    "panoptic_fpn_R_50": {"loss_sem_seg", "loss_mask"},
    "standard_roi_heads_R_50_FPN": {"loss_mask", "loss_keypoint"},
    "detectron2_heads_R_50_FPN": {"loss_mask", "loss_keypoint"},
}


def test_every_config_is_tested(root):
    assert {path.stem for path in (root / "configs/compose").glob("*.yaml")} == MADE_OF.keys()


@pytest.mark.parametrize("config", MADE_OF)
def test_trains_and_is_evaluated(config, run, registered, root, monkeypatch):
    values, kind = dict(DATA.get(config, {})), "instances"
    if config == "panoptic_fpn_R_50":
        values |= {"DATASETS.TRAIN": (registered["train"],), "DATASETS.TEST": (registered["val"],)}
    if config == "tridentnet_R_50_C4":
        if not (PROJECTS / "TridentNet").is_dir():
            pytest.skip("TridentNet is not there: Detectron2 is not installed in place")
        monkeypatch.syspath_prepend(str(PROJECTS / "TridentNet"))
        monkeypatch.syspath_prepend(str(root))
    tasks = {"bbox"} if config == "retinanet_R_50_FPN" else {"bbox", "segm"}
    if "loss_keypoint" in LOSSES.get(config, ()):
        kind, tasks = "keypoints", tasks | {"keypoints"}
        values["MODEL.ROI_HEADS.NUM_CLASSES"] = 1
    projects = [argument for project in PROJECTS_OF.get(config, ()) for argument in ("--project", project)]
    model, metrics = run(root / f"configs/compose/{config}.yaml", *projects, kind=kind, **values)

    parts = {n: f"{type(m).__module__.split('.')[0]} {type(m).__name__}" for n, m in model.named_modules()}
    assert {name: parts[name] for name in MADE_OF[config]} == MADE_OF[config]
    assert not [name for name, part in parts.items() if part == "detectron2 ROIPooler"]
    assert LOSSES.get(config, {"loss_mask"}) <= metrics.keys()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert {f"{task}/AP" for task in tasks} == {name for name in metrics if name.endswith("/AP")}
    assert all(metrics[f"{task}/AP"] >= 0 for task in tasks)  # not NaN: there were detections
