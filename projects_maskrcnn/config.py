"""The config keys that this project adds to the framework's."""

from .framework import CfgNode


def add_maskrcnn_config(cfg: CfgNode) -> None:
    """Add this project's keys, with their defaults, to a config of the framework."""
    # C4: stride of the first block of res5, which runs on each RoI. 2 with POOLER_RESOLUTION 14 is Faster R-CNN's; the
    # paper's Mask R-CNN (section 3, "Network Architecture") takes 1 with POOLER_RESOLUTION 7.
    cfg.MODEL.ROI_BOX_HEAD.RES5_STRIDE = 2

    # FPN: side, in pixels of the network's input, of the smallest square box whose RoI features come from p4 (FPN
    # paper, equation 1). Images much smaller than the papers' 800 pixels want less.
    cfg.MODEL.ROI_HEADS.CANONICAL_BOX_SIZE = 224

    # One's own COCO files instead of a registered dataset: the JSON and the folder that its file names start from.
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.TEST_JSON = ""
    cfg.DATASETS.TEST_IMAGES = ""
