"""A small config, a model's inputs, and where it logs."""

import pytest
import torch

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.framework import CfgNode, EventStorage, get_cfg

SMALL = {
    "fpn": """
        MODEL:
          BACKBONE: {NAME: build_maskrcnn_resnet_fpn_backbone, FREEZE_AT: 0}
          RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: GN, OUT_FEATURES: [res2, res3, res4, res5]}
          FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
          ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [128]]}
          RPN: {IN_FEATURES: [p2, p3, p4, p5, p6], POST_NMS_TOPK_TRAIN: 40, POST_NMS_TOPK_TEST: 20}
          ROI_HEADS: {NAME: MaskRCNNROIHeads, IN_FEATURES: [p2, p3, p4, p5]}
    """,
    "c4": """
        MODEL:
          BACKBONE: {NAME: build_maskrcnn_resnet_backbone, FREEZE_AT: 0}
          RESNETS: {DEPTH: 50, NORM: GN, WIDTH_PER_GROUP: 32, RES2_OUT_CHANNELS: 32, STEM_OUT_CHANNELS: 32}
          ANCHOR_GENERATOR: {SIZES: [[16, 64]]}
          RPN: {POST_NMS_TOPK_TRAIN: 20, POST_NMS_TOPK_TEST: 10}
          ROI_HEADS: {NAME: MaskRCNNC4ROIHeads}
    """,
}
HEADS = """
    MODEL:
      DEVICE: cpu
      MASK_ON: True
      ROI_HEADS: {NUM_CLASSES: 3, SCORE_THRESH_TEST: 0.0, BATCH_SIZE_PER_IMAGE: 32}
      ROI_BOX_HEAD: {NAME: MaskRCNNBoxHead, NUM_FC: 1, FC_DIM: 32, POOLER_RESOLUTION: 7}
      ROI_MASK_HEAD: {NAME: MaskRCNNMaskHead, NUM_CONV: 1, CONV_DIM: 16, POOLER_RESOLUTION: 14}
      ROI_KEYPOINT_HEAD: {NAME: MaskRCNNKeypointHead, CONV_DIMS: [16], NUM_KEYPOINTS: 5}
    TEST: {DETECTIONS_PER_IMAGE: 6}
"""


@pytest.fixture
def storage():
    """An event storage in use, and torch seeded."""
    torch.manual_seed(0)
    with EventStorage() as storage:
        yield storage


@pytest.fixture
def config():
    """A function from "fpn" or "c4", and KEY VALUE pairs, to the config of a small Mask R-CNN."""

    def config(kind="fpn", *options):
        cfg = get_cfg()
        add_maskrcnn_config(cfg)
        for text in (SMALL[kind], HEADS):
            cfg.merge_from_other_cfg(CfgNode(CfgNode.load_cfg(text)))
        cfg.merge_from_list(list(options))
        return cfg

    return config


@pytest.fixture
def random_image():
    """A function from a height and width to one input of a model, without ground truth."""

    def random_image(height=64, width=96, seed=0):
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        return {"image": image, "height": height, "width": width}

    return random_image
