"""What stands between TridentNet and our RoI heads: the features of an image come once from each branch."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor
from tridentnet.trident_rcnn import merge_branch_instances

from projects_maskrcnn.modeling import MaskRCNNC4ROIHeads


@ROI_HEADS_REGISTRY.register()
class TridentMaskRCNNC4ROIHeads(MaskRCNNC4ROIHeads):
    """`MaskRCNNC4ROIHeads` that take a branch for an image. Stands for TridentNet's `TridentRes5ROIHeads`.

    Args:
        train_branches, test_branches: how many the features hold.
        kwargs: see `MaskRCNNC4ROIHeads`.
    """

    @configurable
    def __init__(self, *, train_branches: int, test_branches: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.train_branches = train_branches
        self.test_branches = test_branches

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        trident = cfg.MODEL.TRIDENT
        return {
            **super().from_config(cfg, input_shape),
            "train_branches": trident.NUM_BRANCH,
            "test_branches": trident.NUM_BRANCH if trident.TEST_BRANCH_IDX == -1 else 1,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As `MaskRCNNC4ROIHeads`; the detections of all branches are merged."""
        if self.training:
            return super().forward(images, features, proposals, targets * self.train_branches)
        detections, _ = super().forward(images, features, proposals)
        box = self.box_predictor
        return merge_branch_instances(detections, self.test_branches, box.test_nms_thresh, box.test_topk_per_image), {}
