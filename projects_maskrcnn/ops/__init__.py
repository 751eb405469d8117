"""RoI operations, independent of any framework: boxes and maps in, tensors out."""

from .reference import batched_nms, multilevel_roi_align, nms, paste_masks, roi_align
