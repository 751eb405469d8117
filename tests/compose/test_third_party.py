"""A project that knows nothing of this one's models brings a backbone, a mask head, a RoI layer and a config key."""

import json
import os
import subprocess
import sys

import pytest
import torch

from projects_maskrcnn.framework import FRAMEWORK

ROOT_OF_IMPORTS = {"embedded": "projects_maskrcnn.embedded", "detectron2": "detectron2"}[FRAMEWORK]

PROJECT = f"""
import torch.nn.functional as F
from torch import nn

from {ROOT_OF_IMPORTS}.layers import Conv2d, ShapeSpec, get_norm
from {ROOT_OF_IMPORTS}.modeling import BACKBONE_REGISTRY, ROI_MASK_HEAD_REGISTRY, Backbone
from projects_maskrcnn.modeling import ROI_LAYERS
from projects_maskrcnn.modeling.mask_head import mask_rcnn_inference, mask_rcnn_loss
from projects_maskrcnn.ops import roi_align


def add_my_config(cfg):
    cfg.MODEL.MY_WIDTH = 0


@BACKBONE_REGISTRY.register()
class MyBackbone(Backbone):
    def __init__(self, cfg, input_shape):
        super().__init__()
        width = cfg.MODEL.MY_WIDTH
        self.patches = Conv2d(input_shape.channels, width, 8, stride=8, norm=get_norm("GN", width), activation=F.relu)

    def forward(self, x):
        return {{"patches": self.patches(x)}}

    def output_shape(self):
        return {{"patches": ShapeSpec(channels=self.patches.out_channels, stride=8)}}


@ROI_MASK_HEAD_REGISTRY.register()
class MyMaskHead(nn.Module):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.my_predictor = nn.Conv2d(input_shape.channels, cfg.MODEL.ROI_HEADS.NUM_CLASSES, 1)

    def forward(self, x, instances):
        logits = self.my_predictor(x)
        if self.training:
            return {{"loss_my_mask": mask_rcnn_loss(logits, instances)}}
        mask_rcnn_inference(logits, instances)
        return instances


def average_and_max(*args, **kwargs):
    print("AverageAndMax pools")
    return roi_align(*args, **kwargs) + roi_align(*args, mode="max", **kwargs)


ROI_LAYERS["AverageAndMax"] = average_and_max
"""

CONFIG = """
MODEL:
  DEVICE: cpu
  MASK_ON: True
  MY_WIDTH: 32
  BACKBONE: {NAME: MyBackbone}
  ANCHOR_GENERATOR: {SIZES: [[16, 32, 64]]}
  RPN: {IN_FEATURES: [patches], POST_NMS_TOPK_TRAIN: 20, POST_NMS_TOPK_TEST: 10}
  ROI_HEADS: {NAME: MaskRCNNROIHeads, IN_FEATURES: [patches], SCORE_THRESH_TEST: 0.0}
  ROI_BOX_HEAD: {NAME: MaskRCNNBoxHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7, POOLER_TYPE: AverageAndMax}
  ROI_MASK_HEAD: {NAME: MyMaskHead, POOLER_RESOLUTION: 14}
INPUT: {MASK_FORMAT: bitmask, MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 2, BASE_LR: 0.001, STEPS: [1], MAX_ITER: 2}
"""


@pytest.fixture
def run_python(root, tmp_path):
    """A function that runs Python where the project can be imported; returns what it printed."""
    (tmp_path / "my_project.py").write_text(PROJECT)
    paths = [str(root), str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]

    def run_python(*arguments):
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    return run_python


def test_a_project_trains_is_evaluated_and_shown(run_python, root, scenes, tmp_path):
    config, output = tmp_path / "my_config.yaml", tmp_path / "output"
    config.write_text(CONFIG)
    data = []
    for split, name in (("TRAIN", "train"), ("TEST", "val")):
        data += [f"DATASETS.{split}_JSON", scenes / f"annotations/instances_{name}.json"]
        data += [f"DATASETS.{split}_IMAGES", scenes / "images" / name]
    arguments = ("--project", "my_project:add_my_config", "--config-file", config, "OUTPUT_DIR", output, *data)
    assert "AverageAndMax pools" in run_python(root / "train_net.py", *arguments)

    weights = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert weights["backbone.patches.weight"].shape == (32, 3, 8, 8)
    assert weights["roi_heads.mask_head.my_predictor.weight"].shape == (6, 32, 1, 1)
    lines = (output / "metrics.json").read_text().splitlines()
    metrics = {name: value for line in lines for name, value in json.loads(line).items()}
    assert metrics["loss_my_mask"] > 0 and metrics["bbox/AP"] >= 0 and metrics["segm/AP"] >= 0

    # what reads a finished run does not know the project
    assert "| segm" in run_python("-m", "projects_maskrcnn.show", output, "--num", 2, "--min-score", 0)
