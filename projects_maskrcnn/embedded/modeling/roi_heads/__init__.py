"""What runs on regions: the base of RoI heads, the box predictor, and the registries of heads."""

from .box_head import ROI_BOX_HEAD_REGISTRY, build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .keypoint_head import ROI_KEYPOINT_HEAD_REGISTRY, build_keypoint_head
from .mask_head import ROI_MASK_HEAD_REGISTRY, build_mask_head
from .roi_heads import ROI_HEADS_REGISTRY, ROIHeads, build_roi_heads, select_foreground_proposals
