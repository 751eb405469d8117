"""Our feature pyramid and RoI heads on Detectron2's Swin transformer.

python detectron2/tools/lazyconfig_train_net.py --config-file configs/compose/mask_rcnn_swin_b_FPN.py
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import SwinTransformer

from .mask_rcnn_R_50_FPN import dataloader, lr_multiplier, model, train

constants = model_zoo.get_config("common/data/constants.py").constants

model.backbone.bottom_up = L(SwinTransformer)(
    embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], drop_path_rate=0.4
)
model.backbone.in_features = ["p0", "p1", "p2", "p3"]
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.input_format = dataloader.train.mapper.image_format = "RGB"

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params.overrides = {"relative_position_bias_table": {"weight_decay": 0.0}}
train.init_checkpoint = "detectron2://ImageNetPretrained/swin/swin_base_patch4_window7_224_22k.pth"
