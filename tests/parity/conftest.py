"""A model with weights that anyone can rebuild, as Detectron2 had them when its figures were taken."""

import json
import zlib
from pathlib import Path

import pytest
import torch

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.framework import build_model, get_cfg

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"

# nothing is left to chance: every anchor and every proposal is sampled
OVERRIDES = {
    "MODEL.WEIGHTS": "",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 1000000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 300,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "INPUT.MIN_SIZE_TEST": 320,
    "INPUT.MAX_SIZE_TEST": 512,
    "INPUT.MIN_SIZE_TRAIN": (256,),
    "INPUT.MAX_SIZE_TRAIN": 416,
    "INPUT.RANDOM_FLIP": "none",
    "TEST.DETECTIONS_PER_IMAGE": 50,
}

GAINS = {"objectness_logits": 1.0, "anchor_deltas": 0.2, "cls_score": 3.0, "bbox_pred": 0.5, "predictor": 1.0}
"""Of output layers, by name: they spread the answers."""


def draw(name: str, shape: torch.Size, stem_gain: float) -> torch.Tensor:
    """The values of the parameter or buffer `name`: normal noise seeded by the name, scaled by what the layer is."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return 1.0 + 0.1 * noise.abs()
    if ".norm." in name:
        if leaf != "weight":
            return 0.1 * noise
        return (0.25 if ".conv3." in name else 1.0) * (1.0 + 0.1 * noise)
    if leaf == "bias":
        return 0.05 * noise
    transposed = name.endswith(("deconv.weight", "score_lowres.weight"))
    he = (2.0 / (len(noise) if transposed else noise[0].numel())) ** 0.5
    if name.endswith("stem.conv1.weight"):
        return stem_gain * he * noise
    gain = 0.5 if "fpn_" in name else GAINS.get(name.split(".")[-2], 1.0)
    return gain * he * noise


def fill(model: torch.nn.Module, adjust: dict) -> None:
    """Draw all of the model's weights, then scale or set those that `adjust` names."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.is_floating_point():
                tensor.copy_(draw(name, tensor.shape, model.pixel_std.mean().item() / 58.0))
        for name, factor in adjust.get("scale", {}).items():
            state[name].mul_(factor)
        for name, values in adjust.get("set", {}).items():
            state[name].copy_(torch.tensor(values))


@pytest.fixture(scope="module")
def parameters() -> dict:
    """For each parity model its config, and Detectron2's names with [shape, whether it is trained]."""
    return json.loads((HERE / "parameters.json").read_text())


@pytest.fixture
def build(parameters):
    """A function from a parity model's name to (config, model)."""

    def build(name: str, device: str = "cpu"):
        cfg = get_cfg()
        add_maskrcnn_config(cfg)
        cfg.merge_from_file(str(CONFIGS / parameters[name]["config"]))
        cfg.merge_from_list([item for pair in OVERRIDES.items() for item in pair])
        cfg.MODEL.DEVICE = device
        with torch.device(device):
            return cfg, build_model(cfg)

    return build


@pytest.fixture
def fill_weights():
    return fill
