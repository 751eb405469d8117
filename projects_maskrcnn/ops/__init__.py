"""RoI operations, independent of any framework: boxes and maps in, tensors out."""

from .masks import masks_to_rle, paste_masks
from .nms import batched_nms, nms
from .roi import check_pyramid, roi_align, roi_pool, roi_warp
