"""A model for one image at a time. Stands for `detectron2.engine.DefaultPredictor`."""

import numpy as np
import torch

from ..checkpoint import DetectionCheckpointer
from ..config import CfgNode
from ..data import MetadataCatalog
from ..data import transforms as T
from ..modeling import build_model


class DefaultPredictor:
    """The config's model with its weights, on images as `cv2.imread` gives them.

    ::

        predictor = DefaultPredictor(cfg)
        instances = predictor(cv2.imread("input.jpg"))["instances"]

    Raises:
        ValueError: `INPUT.FORMAT` is neither RGB nor BGR, or it is called with something else than such an image.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg)
        self.model.eval()
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        if self.input_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {self.input_format!r}; DefaultPredictor takes BGR images to RGB or BGR")

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict:
        """The model's output for an image (height, width, 3), BGR, uint8 or floating, from 0 to 255."""
        _check_image(original_image)
        height, width = original_image.shape[:2]
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        image = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
        return self.model([{"image": tensor, "height": height, "width": width}])[0]


def _check_image(image: np.ndarray | None) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"expected an image as cv2.imread gives it, not {type(image).__name__}; of a file that it cannot read "
            "cv2.imread makes None"
        )
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"expected an image (height, width, 3), BGR; got {image.shape}. See cv2.cvtColor for others")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"expected an image of uint8, or floating from 0 to 255; got {image.dtype}: scale it first")
