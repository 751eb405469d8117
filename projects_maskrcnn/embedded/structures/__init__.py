"""What the models take and give: boxes, masks, keypoints, instances and batches of images."""

from .boxes import Boxes, BoxMode, pairwise_intersection, pairwise_ioa, pairwise_iou
from .image_list import ImageList
from .instances import Instances
from .keypoints import Keypoints, heatmaps_to_keypoints
from .masks import BitMasks, PastedMasks, PolygonMasks, ROIMasks, polygons_to_bitmask, rasterize_polygons_within_box
