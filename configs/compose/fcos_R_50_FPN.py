"""Detectron2's FCOS on our ResNet and feature pyramid.

python detectron2/tools/lazyconfig_train_net.py --config-file configs/compose/fcos_R_50_FPN.py
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from .mask_rcnn_R_50_FPN import dataloader, lr_multiplier, optimizer, train
from .mask_rcnn_R_50_FPN import model as mask_rcnn

model = model_zoo.get_config("common/models/fcos.py").model
model.backbone = mask_rcnn.backbone
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.backbone.top_block = L(LastLevelP6P7)(in_channels=256, out_channels=256, in_feature="p5")

dataloader.train.mapper.use_instance_mask = False
optimizer.lr = 0.01
