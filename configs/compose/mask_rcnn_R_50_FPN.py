"""Mask R-CNN of this project's classes as a LazyConfig; the others of this folder start from its `model`.

python detectron2/tools/lazyconfig_train_net.py --config-file configs/compose/mask_rcnn_R_50_FPN.py
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from omegaconf import DictConfig

from projects_maskrcnn.modeling import FPN, MaskRCNNBoxHead, MaskRCNNMaskHead, MaskRCNNPooler, MaskRCNNROIHeads, ResNet
from projects_maskrcnn.modeling.fpn import LastLevelMaxPool
from projects_maskrcnn.modeling.resnet import BottleneckBlock, Stem

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = model_zoo.get_config("common/optim.py").SGD
train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


def stage(number: int, num_blocks: int) -> list[DictConfig]:
    """The blocks of res`number` of a ResNet of bottlenecks."""
    channels = 64 * 2**number
    in_channels, stride = (64, 1) if number == 2 else (channels // 2, 2)
    return [
        L(BottleneckBlock)(
            in_channels=channels if index else in_channels,
            out_channels=channels,
            bottleneck_channels=channels // 4,
            stride=1 if index else stride,
            norm="FrozenBN",
            stride_in_1x1=True,
        )
        for index in range(num_blocks)
    ]


def pooler(side: int) -> DictConfig:
    """RoIAlign to `side` x `side` bins from p2 to p5."""
    return L(MaskRCNNPooler)(
        output_size=side, scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32], sampling_ratio=0, pooler_type="ROIAlignV2"
    )


model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone = L(FPN)(
    bottom_up=L(ResNet)(
        stem=L(Stem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=[stage(2, 3), stage(3, 4), stage(4, 6), stage(5, 3)],
        out_features=["res2", "res3", "res4", "res5"],
        freeze_at=2,
    ),
    in_features="${.bottom_up.out_features}",
    out_channels=256,
    top_block=L(LastLevelMaxPool)(in_feature="p5"),
)
model.roi_heads = L(MaskRCNNROIHeads)(
    num_classes=80,
    batch_size_per_image=512,
    positive_fraction=0.25,
    proposal_matcher=model.roi_heads.proposal_matcher,
    in_features=["p2", "p3", "p4", "p5"],
    box_pooler=pooler(7),
    box_head=L(MaskRCNNBoxHead)(
        input_shape=L(ShapeSpec)(channels=256, height=7, width=7), conv_dims=[], fc_dims=[1024, 1024]
    ),
    box_predictor=model.roi_heads.box_predictor,
    mask_pooler=pooler(14),
    mask_head=L(MaskRCNNMaskHead)(
        input_shape=L(ShapeSpec)(channels=256, height=14, width=14),
        num_classes="${..num_classes}",
        conv_dims=[256, 256, 256, 256, 256],
    ),
)
