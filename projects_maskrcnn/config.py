"""The config keys that this project adds to the framework's, and what no key may be."""

from collections.abc import Iterator
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
            value = cfg
            for part in key.split("."):
                value = value[part]
            if not all(map(fits, _numbers(value))):
                raise ValueError(f"{key} is {value}: it must be {name}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    else:
        yield value


def add_maskrcnn_config(cfg: CfgNode) -> None:
    """Add this project's keys, with their defaults, to a config of the framework."""
    # C4: stride of the first block of res5, which runs on each RoI. 2 with POOLER_RESOLUTION 14 is Faster R-CNN's; the
    # paper's Mask R-CNN (section 3, "Network Architecture") takes 1 with POOLER_RESOLUTION 7.
    cfg.MODEL.ROI_BOX_HEAD.RES5_STRIDE = 2

    # FPN: side, in pixels of the network's input, of the smallest square box whose RoI features come from p4 (FPN
    # paper, equation 1). Images much smaller than the papers' 800 pixels want less.
    cfg.MODEL.ROI_HEADS.CANONICAL_BOX_SIZE = 224

    # Pool with this project's RoIAlign in RoI heads that are not its own, such as Detectron2's StandardROIHeads and
    # CascadeROIHeads. train_net.py reads it; elsewhere call `replace_poolers(model)`.
    cfg.MODEL.ROI_HEADS.REPLACE_POOLERS = False

    # Probability of dropout after each fully connected layer of the box head: 0.5 in VGG-16.
    cfg.MODEL.ROI_BOX_HEAD.DROPOUT = 0.0

    # What a mask's pixels are trained with (paper, table 2b): "sigmoid", a binary cross-entropy on the mask of the
    # RoI's class, or "softmax", a cross-entropy over all classes and background.
    cfg.MODEL.ROI_MASK_HEAD.LOSS_TYPE = "sigmoid"

    # Hidden layers of MaskRCNNMLPMaskHead (paper, table 2e), and their width.
    cfg.MODEL.ROI_MASK_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_MASK_HEAD.FC_DIM = 1024

    # A non-local block before the last block of res4 (paper, table 8).
    cfg.MODEL.RESNETS.NON_LOCAL_RES4 = False

    # 0: proposals and heads are trained at once. 2: proposals first, then heads from them, in a network of their own.
    # 4: and both again on the convolutions of these heads, as one network (Faster R-CNN, section 3.2).
    cfg.MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS = 0

    # Published figures to print beside the measured ones: [[source, "task/metric", figure], ...], such as
    # ["paper", "segm/AP", 30.3].
    cfg.TEST.REFERENCE = []

    # One's own COCO files instead of a registered dataset: the JSON and the folder that its file names start from.
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.TEST_JSON = ""
    cfg.DATASETS.TEST_IMAGES = ""
