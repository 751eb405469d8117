"""The parts of Mask R-CNN. Importing this package registers them with the framework, by the names in brackets.

Backbones: ResNet and ResNeXt (`build_maskrcnn_resnet_backbone`), with a feature pyramid
(`build_maskrcnn_resnet_fpn_backbone`), and VGG-16 (`build_maskrcnn_vgg_backbone`). RoI heads (`MaskRCNNROIHeads`,
`MaskRCNNC4ROIHeads`) with box, mask and keypoint heads (`MaskRCNNBoxHead`, `MaskRCNNMaskHead`, `MaskRCNNMLPMaskHead`,
`MaskRCNNKeypointHead`).
"""

from .anchor_generator import MaskRCNNRoundedAnchorGenerator
from .box_head import MaskRCNNBoxHead
from .fpn import FPN, build_maskrcnn_resnet_fpn_backbone
from .keypoint_head import MaskRCNNKeypointHead
from .mask_head import MaskRCNNMaskHead
from .mlp_mask_head import MaskRCNNMLPMaskHead
from .non_local import NonLocalBlock
from .pooler import ROI_LAYERS, MaskRCNNPooler, replace_poolers
from .resnet import ResNet, build_maskrcnn_resnet_backbone
from .roi_heads import MaskRCNNC4ROIHeads, MaskRCNNROIHeads
from .test_time_augmentation import GeneralizedRCNNWithTTA
from .vgg import VGG16, build_maskrcnn_vgg_backbone
