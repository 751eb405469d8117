"""Caffe2's names and parts of models, against a table by hand and against Detectron2's own loading."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.checkpoint import MaskRCNNCheckpointer
from projects_maskrcnn.framework import FRAMEWORK, build_model, get_cfg
from projects_maskrcnn.weights import CheckpointError, load_for
from projects_maskrcnn.weights.fitting import fit

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

BY_HAND = {
    "conv1_w": "backbone.bottom_up.stem.conv1.weight",
    "res_conv1_bn_s": "backbone.bottom_up.stem.conv1.norm.weight",
    "res_conv1_bn_b": "backbone.bottom_up.stem.conv1.norm.bias",
    "res2_0_branch1_w": "backbone.bottom_up.res2.0.shortcut.weight",
    "res2_0_branch1_bn_beta": "backbone.bottom_up.res2.0.shortcut.norm.bias",
    "res4_5_branch2a_w": "backbone.bottom_up.res4.5.conv1.weight",
    "res4_5_branch2b_bn_gamma": "backbone.bottom_up.res4.5.conv2.norm.weight",
    "res4_5_branch2b_bn_running_mean": "backbone.bottom_up.res4.5.conv2.norm.running_mean",
    "res4_5_branch2b_bn_running_var": "backbone.bottom_up.res4.5.conv2.norm.running_var",
    "res5_2_branch2c_bn_rm": "backbone.bottom_up.res5.2.conv3.norm.running_mean",
    "res5_2_branch2c_bn_riv": "backbone.bottom_up.res5.2.conv3.norm.running_var",
    "fpn_inner_res5_2_sum_w": "backbone.fpn_lateral5.weight",
    "fpn_inner_res4_5_sum_lateral_b": "backbone.fpn_lateral4.bias",
    "fpn_res2_2_sum_w": "backbone.fpn_output2.weight",
    "conv_rpn_fpn2_w": "proposal_generator.rpn_head.conv.weight",
    "rpn_cls_logits_fpn2_b": "proposal_generator.rpn_head.objectness_logits.bias",
    "rpn_bbox_pred_fpn2_w": "proposal_generator.rpn_head.anchor_deltas.weight",
    "fc6_w": "roi_heads.box_head.fc1.weight",
    "fc7_b": "roi_heads.box_head.fc2.bias",
    "_[mask]_fcn1_w": "roi_heads.mask_head.mask_fcn1.weight",
    "_[mask]_fcn4_b": "roi_heads.mask_head.mask_fcn4.bias",
    "conv5_mask_w": "roi_heads.mask_head.deconv.weight",
    "cls_score_b": "roi_heads.box_predictor.cls_score.bias",
    "bbox_pred_b": "roi_heads.box_predictor.bbox_pred.bias",
    "mask_fcn_logits_b": "roi_heads.mask_head.predictor.bias",
}


def build(config, *options):
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.merge_from_file(str(CONFIGS / config))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.fixture(scope="module")
def mask_rcnn():
    return build("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", 2)


def test_caffe2_names(mask_rcnn):
    state = mask_rcnn.state_dict()
    blobs, seed = {}, np.random.default_rng(0)
    rows = {"cls_score_b": 3, "bbox_pred_b": 12, "mask_fcn_logits_b": 3}  # with a background, which comes first
    for blob, name in BY_HAND.items():
        blobs[blob] = torch.from_numpy(seed.normal(size=(rows.get(blob) or state[name].shape)).astype("f"))
        blobs[f"{blob}_momentum"] = blobs[blob] * 2
    found = fit(blobs, mask_rcnn)
    for blob, name in BY_HAND.items():
        expected = blobs[blob]
        match blob:
            case "cls_score_b":
                expected = expected[[1, 2, 0]]
            case "bbox_pred_b":
                expected = expected[4:]
            case "mask_fcn_logits_b":
                expected = expected[1:]
        assert torch.equal(found.pop(name), expected), name
    # the norm of which a scale and a bias are known is those alone
    assert {name: value.unique().tolist() for name, value in found.items()} == {
        "backbone.bottom_up.stem.conv1.norm.running_mean": [0.0],
        "backbone.bottom_up.stem.conv1.norm.running_var": [1.0],
    }


def test_caffe2_keypoint_names():
    model = build("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml")
    names = {"conv_fcn8_w": "conv_fcn8.weight", "kps_score_lowres_b": "score_lowres.bias"}
    state = model.state_dict()
    blobs = {blob: state[f"roi_heads.keypoint_head.{name}"] + 1 for blob, name in names.items()}
    found = fit(blobs, model)
    assert all(torch.equal(found[f"roi_heads.keypoint_head.{name}"], blobs[blob]) for blob, name in names.items())


@pytest.mark.parametrize(
    "config, places",
    [
        ("Base-RCNN-FPN.yaml", {"res5.2.conv1.weight": "backbone.bottom_up.res5.2.conv1.weight"}),
        ("Base-RCNN-DC5.yaml", {"res5.2.conv1.weight": "backbone.res5.2.conv1.weight"}),
        ("Base-RCNN-C4.yaml", {"res5.2.conv1.weight": "roi_heads.res5.2.conv1.weight", "fc.weight": "fc.weight"}),
    ],
)
def test_a_backbone_finds_its_place(config, places):
    model = build(config)
    found = fit({name: torch.zeros(512, 2048, 1, 1) for name in places}, model)
    assert set(found) == set(places.values())


class Nested(nn.Module):
    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def test_the_longest_name_serves_each():
    model = Nested(body=Nested(conv=nn.Linear(1, 2), res=Nested(conv=nn.Linear(1, 2))))
    weights = {"conv.bias": torch.ones(2), "res.conv.bias": torch.zeros(2)}
    found = fit(weights, model)
    assert found["body.conv.bias"] is weights["conv.bias"] and found["body.res.conv.bias"] is weights["res.conv.bias"]
    assert "myconv.bias" in fit({"myconv.bias": torch.ones(2), **weights}, model)  # ends must be whole


def test_of_two_places_the_one_of_its_shape():
    model = Nested(a=Nested(fc=nn.Linear(1, 3)), b=Nested(fc=nn.Linear(1, 2)), c=Nested(fc=nn.Linear(1, 4)))
    assert set(fit({"fc.bias": torch.ones(2)}, model)) == {"b.fc.bias"}
    with pytest.raises(CheckpointError, match=r"fc.bias .* fits both a.fc.bias and b.fc.bias"):
        fit({"fc.bias": torch.ones(2)}, Nested(a=Nested(fc=nn.Linear(1, 2)), b=Nested(fc=nn.Linear(1, 2))))


def test_what_fits_no_shape_is_placed_to_be_reported():
    model = Nested(body=Nested(fc=nn.Linear(1, 3)))
    assert set(fit({"fc.bias": torch.ones(2)}, model)) == {"body.fc.bias"}


def test_full_names_are_not_completed():
    model = Nested(fc=nn.Linear(1, 2), more=Nested(fc=nn.Linear(1, 2)))
    weights = {"fc.bias": torch.ones(2), "other": torch.ones(1)}
    assert fit(weights, model) == weights


NORM_ROLES = {
    "scale and bias": {"weight": "s", "bias": "b"},
    "with statistics": {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "running_mean",
        "running_var": "running_var",
    },
}
OTHERS = {name.rpartition(".")[0]: blob[:-2] for blob, name in BY_HAND.items() if not re.search("res|conv1", blob)}


def as_blob(name, roles):
    """Caffe2's name for one of Detectron2's, or None."""
    layer, _, role = re.sub(r"^(backbone\.bottom_up|backbone|roi_heads)\.(?=stem|res\d)", "", name).rpartition(".")
    norm = layer.endswith(".norm")
    role = roles.get(role) if norm else {"weight": "w", "bias": "b"}[role]
    layer = layer.removesuffix(".norm")
    if role is None:
        return None
    if layer == "stem.conv1":
        return f"res_conv1_bn_{role}" if norm else "conv1_w"
    if block := re.fullmatch(r"res(\d)\.(\d+)\.(\w+)", layer):
        branch = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}[block[3]]
        return f"res{block[1]}_{block[2]}_branch{branch}_{'bn_' if norm else ''}{role}"
    if layer in OTHERS:
        return f"{OTHERS[layer]}_{role}"
    return None


@pytest.mark.skipif(FRAMEWORK != "detectron2", reason="compares with Detectron2, which is not in use")
@pytest.mark.parametrize(
    "body, roles",
    [("FPN", "scale and bias"), ("FPN", "with statistics"), ("C4", "scale and bias"), ("DC5", "with statistics")],
)
def test_caffe2_weights_load_as_in_detectron2(body, roles, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    config = f"COCO-InstanceSegmentation/mask_rcnn_R_50_{body}_1x.yaml"
    models = [build(config, "MODEL.ROI_HEADS.NUM_CLASSES", 2) for _ in range(2)]
    rows = {"roi_heads.box_predictor.cls_score": 3, "roi_heads.box_predictor.bbox_pred": 12}
    rows["roi_heads.mask_head.predictor"] = 3
    seed, blobs = np.random.default_rng(0), {"fc1000_w": np.ones((1000, 2048), "f")}
    for name, value in models[0].state_dict().items():
        if blob := as_blob(name, NORM_ROLES[roles]):
            shape = (rows.get(name.rpartition(".")[0], len(value)), *value.shape[1:])
            blobs[blob] = seed.normal(size=shape).astype("f")
            blobs[f"{blob}_momentum"] = blobs[blob]
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    before = {name: value.clone() for name, value in models[0].state_dict().items()}
    DetectionCheckpointer(models[0]).load(str(tmp_path / "model.pkl"))
    MaskRCNNCheckpointer(models[1]).load(str(tmp_path / "model.pkl"))
    expected, found = (model.state_dict() for model in models)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert sum(not torch.equal(found[name], value) for name, value in before.items()) > 200


def test_weights_of_other_shapes_alone_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.ones(1), "bias": torch.ones(7)}, path)
    with pytest.raises(CheckpointError, match="other.pth holds the weights of another model: none has the shape"):
        load_for(nn.Linear(2, 3), str(path))
