"""Our RoI heads on Detectron2's ViTDet: a plain vision transformer and its simple feature pyramid.

python detectron2/tools/lazyconfig_train_net.py --config-file configs/compose/mask_rcnn_vitdet_b.py
"""

from detectron2 import model_zoo

from .mask_rcnn_R_50_FPN import dataloader, lr_multiplier, model, train

theirs = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model.backbone = theirs.backbone
model.proposal_generator = theirs.proposal_generator
model.pixel_mean = theirs.pixel_mean
model.pixel_std = theirs.pixel_std
model.input_format = dataloader.train.mapper.image_format = "RGB"
for mapper in (dataloader.train.mapper, dataloader.test.mapper):
    mapper.augmentations[0].max_size = 1024  # it pads to a square of 1024

model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]
model.roi_heads.box_head.conv_norm = model.roi_heads.mask_head.conv_norm = "LN"

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"
del theirs, mapper
