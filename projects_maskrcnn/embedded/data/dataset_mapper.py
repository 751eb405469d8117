"""The default mapping of a dataset dict to a model's input."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..config import CfgNode, configurable
from . import detection_utils as utils
from . import transforms as T

logger = logging.getLogger(__name__)


class DatasetMapper:
    """Reads an image, augments it and its annotations, and makes tensors. Stands for Detectron2's class.

    Args:
        is_train: keep annotations, as "instances"; else they are dropped.
        augmentations: to apply in order.
        image_format: see `detection_utils.read_image`.
        use_instance_mask: keep segmentations.
        use_keypoint: keep keypoints.
        instance_mask_format: "polygon" or "bitmask".
        keypoint_hflip_indices: see `detection_utils.create_keypoint_hflip_indices`.
        precomputed_proposal_topk: keep this many of the precomputed proposals; by default they are left
            alone.
        recompute_boxes: take the boxes from the transformed masks: a box that is cropped, unlike one drawn
            around the cropped mask, need not be tight.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: Sequence[int] | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        if instance_mask_format not in ("polygon", "bitmask"):
            raise ValueError(f"INPUT.MASK_FORMAT is 'polygon' or 'bitmask', not {instance_mask_format!r}")
        if recompute_boxes and not use_instance_mask:
            raise ValueError("DatasetMapper: recompute_boxes needs use_instance_mask")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        logger.info("Augmentations in %s: %s", "training" if is_train else "inference", augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The arguments that INPUT and MODEL say."""
        augmentations = utils.build_augmentation(cfg, is_train)
        crop = cfg.INPUT.CROP.ENABLED and is_train
        if crop:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        arguments = {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "recompute_boxes": crop and cfg.MODEL.MASK_ON,
        }
        if cfg.MODEL.KEYPOINT_ON:
            arguments["keypoint_hflip_indices"] = utils.create_keypoint_hflip_indices(cfg.DATASETS.TRAIN)
        if cfg.MODEL.LOAD_PROPOSALS:
            topk = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN, cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
            arguments["precomputed_proposal_topk"] = topk[not is_train]
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one dataset dict, which is left as it is.

        Returns:
            A copy with "image" (C, H, W) in the format and dtype read; in training "instances" in the place
            of "annotations", without crowds; "proposals" where asked for. "height" and "width" stay the
            original's.

        Raises:
            SizeMismatchError, OSError, ValueError: see `detection_utils`; the message names the image.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)

        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image_shape = aug_input.image.shape[:2]
        # The copy is contiguous, and writable where the arrays of Pillow's images are not.
        dataset_dict["image"] = torch.from_numpy(np.array(aug_input.image.transpose(2, 0, 1), order="C"))
        if self.proposal_topk is not None:
            utils.transform_proposals(dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict

    def _transform_annotations(
        self, dataset_dict: dict, transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        """Replace "annotations" by "instances"."""
        transformed = []
        for number, anno in enumerate(dataset_dict.pop("annotations")):
            if anno.get("iscrowd", 0):
                continue
            if not self.use_instance_mask:
                anno.pop("segmentation", None)
            if not self.use_keypoint:
                anno.pop("keypoints", None)
            try:
                transformed.append(
                    utils.transform_instance_annotations(
                        anno, transforms, image_shape, keypoint_hflip_indices=self.keypoint_hflip_indices
                    )
                )
            except Exception as error:
                raise ValueError(
                    f"Annotation {number} (from 0) of image {dataset_dict['file_name']}: {error}"
                ) from error
        try:
            instances = utils.annotations_to_instances(transformed, image_shape, mask_format=self.instance_mask_format)
        except ValueError as error:
            raise ValueError(f"Image {dataset_dict['file_name']}: {error}") from error
        for field, wanted, key in (
            ("gt_masks", self.use_instance_mask, "MODEL.MASK_ON"),
            ("gt_keypoints", self.use_keypoint, "MODEL.KEYPOINT_ON"),
        ):
            if wanted and transformed and not instances.has(field):
                raise ValueError(
                    f"Image {dataset_dict['file_name']}: {key} is on, and no annotation has {field.removeprefix('gt_')}"
                )
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)
