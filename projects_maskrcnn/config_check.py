"""What must hold of a config's numbers, checked before anything is built."""

from collections.abc import Iterator
from functools import reduce
from operator import getitem
from typing import Any

from .framework import CfgNode

# Of lists, every number is meant.
MORE_THAN_0 = """
    MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS MODEL.ANCHOR_GENERATOR.SIZES MODEL.PIXEL_STD MODEL.ROI_HEADS.CANONICAL_BOX_SIZE
    MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS MODEL.RPN.BBOX_REG_WEIGHTS
    SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.NORM_TYPE
"""
AT_LEAST_0 = """
    DATALOADER.NUM_WORKERS INPUT.MIN_SIZE_TEST MODEL.PROPOSAL_GENERATOR.MIN_SIZE MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA
    MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO MODEL.ROI_HEADS.NMS_THRESH_TEST
    MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO MODEL.RPN.NMS_THRESH
    MODEL.RPN.SMOOTH_L1_BETA SOLVER.BASE_LR SOLVER.MOMENTUM SOLVER.WARMUP_FACTOR SOLVER.WARMUP_ITERS SOLVER.WEIGHT_DECAY
    SOLVER.WEIGHT_DECAY_NORM
"""
AT_LEAST_1 = """
    INPUT.MAX_SIZE_TEST INPUT.MAX_SIZE_TRAIN INPUT.MIN_SIZE_TRAIN MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
    MODEL.RPN.BATCH_SIZE_PER_IMAGE MODEL.RPN.POST_NMS_TOPK_TEST MODEL.RPN.POST_NMS_TOPK_TRAIN
    MODEL.RPN.PRE_NMS_TOPK_TEST MODEL.RPN.PRE_NMS_TOPK_TRAIN SOLVER.CHECKPOINT_PERIOD SOLVER.IMS_PER_BATCH
    SOLVER.MAX_ITER
"""
FROM_0_TO_1 = """
    MODEL.ROI_BOX_HEAD.DROPOUT MODEL.ROI_HEADS.POSITIVE_FRACTION MODEL.RPN.POSITIVE_FRACTION
"""
RANGES = {
    "more than 0": (lambda value: value > 0, MORE_THAN_0),
    "at least 0": (lambda value: value >= 0, AT_LEAST_0),
    "at least 1": (lambda value: value >= 1, AT_LEAST_1),
    "from 0 to 1": (lambda value: 0 <= value <= 1, FROM_0_TO_1),
}


def check_ranges(cfg: CfgNode) -> None:
    """Raise a ValueError where a number is such that a training would fail late, or learn nothing."""
    for name, (fits, keys) in RANGES.items():
        for key in keys.split():
            value = reduce(getitem, key.split("."), cfg)
            if not all(map(fits, _numbers(value))):
                raise ValueError(f"{key} is {value}: it must be {name}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    else:
        yield value
