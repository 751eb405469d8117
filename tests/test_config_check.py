"""The ranges of config values."""

from pathlib import Path

import pytest

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.config_check import check_ranges
from projects_maskrcnn.framework import get_cfg

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
IN_RANGE = sorted(p for p in CONFIGS.rglob("*.yaml") if "compose" not in p.parts)  # those have keys of others


def config(*options):
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.merge_from_list(list(options))
    return cfg


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 0]], "more than 0"),
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "more than 0"),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", (1.0, 1.0, -1.0, 1.0), "more than 0"),
        ("MODEL.ROI_HEADS.CANONICAL_BOX_SIZE", 0, "more than 0"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", float("nan"), "more than 0"),
        ("SOLVER.WARMUP_FACTOR", -0.1, "at least 0"),
        ("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", -1, "at least 0"),
        ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", -256, "at least 1"),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", 0, "at least 1"),
        ("INPUT.MIN_SIZE_TRAIN", (800, 0), "at least 1"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "at least 1"),
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.5, "from 0 to 1"),
    ],
)
def test_a_value_out_of_range_is_named(key, value, rule):
    with pytest.raises(ValueError) as error:
        check_ranges(config(key, value))
    assert str(error.value) == f"{key} is {value}: it must be {rule}"


def test_the_defaults_are_in_range():
    check_ranges(config())
    check_ranges(config("SOLVER.BASE_LR", 0.0, "MODEL.RPN.POSITIVE_FRACTION", 1.0, "SOLVER.MAX_ITER", 1))


@pytest.mark.parametrize("path", IN_RANGE, ids=lambda p: str(p.relative_to(CONFIGS).with_suffix("")))
def test_our_configs_are_in_range(path):
    cfg = config()
    cfg.merge_from_file(str(path))
    check_ranges(cfg)
