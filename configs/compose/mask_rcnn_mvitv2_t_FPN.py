"""Our feature pyramid and RoI heads on Detectron2's MViTv2.

python detectron2/tools/lazyconfig_train_net.py --config-file configs/compose/mask_rcnn_mvitv2_t_FPN.py
"""

from functools import partial

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import MViT
from torch import nn

from .mask_rcnn_R_50_FPN import dataloader, lr_multiplier, model, train

constants = model_zoo.get_config("common/data/constants.py").constants

model.backbone.bottom_up = L(MViT)(
    embed_dim=96,
    depth=10,
    num_heads=1,
    last_block_indexes=(0, 2, 7, 9),
    residual_pooling=True,
    drop_path_rate=0.2,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    out_features=("scale2", "scale3", "scale4", "scale5"),
)
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.input_format = dataloader.train.mapper.image_format = "RGB"

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params.overrides = {name: {"weight_decay": 0.0} for name in ("pos_embed", "rel_pos_h", "rel_pos_w")}
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_T_in1k.pyth"
