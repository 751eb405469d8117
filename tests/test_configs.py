"""Every config in `configs/` loads, and builds the model that its name says."""

import re
from pathlib import Path

import pytest
import torch

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.framework import build_model, get_cfg

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OTHERS = {"paper", "compose"}  # folders with tests of their own
EXPERIMENTS = sorted(p for p in CONFIGS.rglob("*.yaml") if not p.name.startswith("Base-") and not OTHERS & {*p.parts})


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(CONFIGS).with_suffix("")))
def test_config_builds_the_model_of_its_name(path):
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    names = [name for name, _ in model.named_parameters()]
    kind, arch, depth, body = re.match(
        r"(mask|faster|keypoint)_rcnn_([RX])_(\d+)(?:_32x8d)?_(FPN|C4|DC5)", path.name
    ).groups()
    assert any("mask_head" in n for n in names) == (kind == "mask") == cfg.MODEL.MASK_ON
    assert any("keypoint_head" in n for n in names) == (kind == "keypoint")
    assert any("fpn_lateral" in n for n in names) == (body == "FPN")
    assert any("roi_heads.res5" in n for n in names) == (body == "C4")
    # conv layers of stem and stages, without shortcuts, plus the classifier that a detector drops
    convs = [n for n in names if re.search(r"(stem|res\d\.\d+)\.conv\d\.weight", n)]
    assert len(convs) + 1 == int(depth)
    grouped = [m for m in model.modules() if getattr(m, "groups", 1) == 32]
    assert len(grouped) == (33 if arch == "X" else 0)
