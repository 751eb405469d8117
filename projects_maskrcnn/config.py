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
