"""The seam: every framework name that this project and its tests use, from one framework or the other.

The framework is chosen once, when this module is first imported, by the environment variable ``MASKRCNN_FRAMEWORK``:

``auto`` (default)
    Detectron2 where it is installed, else the embedded framework.
``detectron2``
    Detectron2, and an error where it is not installed.
``embedded``
    The embedded framework, also where Detectron2 is installed.

The two lists below are the whole contract between the project and a framework. They name the same things from the
same submodules: never a name from each. Nothing else in the project imports either framework.
"""

import importlib.util
import os

CHOICES = ("auto", "detectron2", "embedded")


class FrameworkError(ImportError):
    """The framework asked for cannot be used; the message says why and what to do."""


def is_installed(package: str) -> bool:
    """Whether `package` can be imported as a regular package: a mere folder of that name does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def select(choice: str) -> str:
    """The framework, ``"detectron2"`` or ``"embedded"``, for a value of ``MASKRCNN_FRAMEWORK``.

    Raises:
        FrameworkError: the value is unknown, or asks for a Detectron2 that is not installed.
    """
    if choice not in CHOICES:
        raise FrameworkError(f"MASKRCNN_FRAMEWORK={choice!r}: expected one of {', '.join(CHOICES)}")
    installed = choice != "embedded" and is_installed("detectron2")
    if choice == "detectron2" and not installed:
        raise FrameworkError(
            "MASKRCNN_FRAMEWORK=detectron2, but Detectron2 is not installed in this environment. "
            "Install it, or unset the variable to run on the embedded framework"
        )
    return "detectron2" if installed else "embedded"


FRAMEWORK = select(os.environ.get("MASKRCNN_FRAMEWORK", "auto"))

if FRAMEWORK == "detectron2":
    try:
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.config import CfgNode, configurable, get_cfg
        from detectron2.data import (
            DatasetCatalog,
            DatasetMapper,
            MetadataCatalog,
            build_detection_test_loader,
            build_detection_train_loader,
            load_proposals_into_dataset,
        )
        from detectron2.data.datasets import load_coco_json, register_coco_instances, register_pascal_voc
        from detectron2.data.detection_utils import create_keypoint_hflip_indices
        from detectron2.data.transforms import ResizeShortestEdge
        from detectron2.engine import (
            DefaultTrainer,
            default_argument_parser,
            default_setup,
            launch,
        )
        from detectron2.evaluation import (
            CityscapesInstanceEvaluator,
            COCOEvaluator,
            DatasetEvaluator,
            PascalVOCDetectionEvaluator,
            verify_results,
        )
        from detectron2.layers import (
            CNNBlockBase,
            Conv2d,
            ConvTranspose2d,
            FrozenBatchNorm2d,
            Linear,
            ROIAlign,
            ShapeSpec,
            batched_nms,
            cat,
            get_norm,
        )
        from detectron2.modeling import (
            ANCHOR_GENERATOR_REGISTRY,
            BACKBONE_REGISTRY,
            ROI_BOX_HEAD_REGISTRY,
            ROI_HEADS_REGISTRY,
            ROI_KEYPOINT_HEAD_REGISTRY,
            ROI_MASK_HEAD_REGISTRY,
            Backbone,
            FastRCNNOutputLayers,
            ROIHeads,
            build_box_head,
            build_keypoint_head,
            build_mask_head,
            build_model,
            detector_postprocess,
        )
        from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
        from detectron2.modeling.poolers import ROIPooler
        from detectron2.modeling.roi_heads import select_foreground_proposals
        from detectron2.modeling.roi_heads.roi_heads import select_proposals_with_visible_keypoints
        from detectron2.structures import (
            BitMasks,
            Boxes,
            BoxMode,
            ImageList,
            Instances,
            Keypoints,
            heatmaps_to_keypoints,
        )
        from detectron2.utils import comm
        from detectron2.utils.events import EventStorage, get_event_storage
        from detectron2.utils.file_io import PathManager
        from detectron2.utils.logger import setup_logger
        from detectron2.utils.visualizer import Visualizer
    except Exception as error:
        raise FrameworkError(
            f"Detectron2 is installed but broken: {type(error).__name__}: {error}. "
            "Repair it, or set MASKRCNN_FRAMEWORK=embedded to run on the embedded framework"
        ) from error
else:
    from .embedded.checkpoint import DetectionCheckpointer
    from .embedded.config import CfgNode, configurable, get_cfg
    from .embedded.data import (
        DatasetCatalog,
        DatasetMapper,
        MetadataCatalog,
        build_detection_test_loader,
        build_detection_train_loader,
        load_proposals_into_dataset,
    )
    from .embedded.data.datasets import load_coco_json, register_coco_instances, register_pascal_voc
    from .embedded.data.detection_utils import create_keypoint_hflip_indices
    from .embedded.data.transforms import ResizeShortestEdge
    from .embedded.engine import (
        DefaultTrainer,
        default_argument_parser,
        default_setup,
        launch,
    )
    from .embedded.evaluation import (
        CityscapesInstanceEvaluator,
        COCOEvaluator,
        DatasetEvaluator,
        PascalVOCDetectionEvaluator,
        verify_results,
    )
    from .embedded.layers import (
        CNNBlockBase,
        Conv2d,
        ConvTranspose2d,
        FrozenBatchNorm2d,
        Linear,
        ROIAlign,
        ShapeSpec,
        batched_nms,
        cat,
        get_norm,
    )
    from .embedded.modeling import (
        ANCHOR_GENERATOR_REGISTRY,
        BACKBONE_REGISTRY,
        ROI_BOX_HEAD_REGISTRY,
        ROI_HEADS_REGISTRY,
        ROI_KEYPOINT_HEAD_REGISTRY,
        ROI_MASK_HEAD_REGISTRY,
        Backbone,
        FastRCNNOutputLayers,
        ROIHeads,
        build_box_head,
        build_keypoint_head,
        build_mask_head,
        build_model,
        detector_postprocess,
    )
    from .embedded.modeling.anchor_generator import DefaultAnchorGenerator
    from .embedded.modeling.poolers import ROIPooler
    from .embedded.modeling.roi_heads import select_foreground_proposals
    from .embedded.modeling.roi_heads.roi_heads import select_proposals_with_visible_keypoints
    from .embedded.structures import BitMasks, Boxes, BoxMode, ImageList, Instances, Keypoints, heatmaps_to_keypoints
    from .embedded.utils import comm
    from .embedded.utils.events import EventStorage, get_event_storage
    from .embedded.utils.file_io import PathManager
    from .embedded.utils.logger import setup_logger
    from .embedded.utils.visualizer import Visualizer
