"""R-CNN in two stages: a backbone and proposals, then heads on regions (Faster R-CNN; paper, section 3)."""

import numpy as np
import torch
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...data.detection_utils import convert_image_to_rgb
from ...structures import ImageList, Instances
from ...utils.events import get_event_storage
from ...utils.visualizer import Visualizer
from ..backbone import Backbone, build_backbone
from ..postprocessing import detector_postprocess
from ..proposal_generator import build_proposal_generator
from ..roi_heads import build_roi_heads
from .build import META_ARCH_REGISTRY


class _Detector(nn.Module):
    """What both models share: normalised, batched input and results in the size of the input image."""

    def __init__(self, backbone: Backbone, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict[str, Tensor]]) -> ImageList:
        """The images of the inputs, normalised and padded to one size."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def _ground_truth(self, batched_inputs: list[dict]) -> list[Instances] | None:
        if "instances" not in batched_inputs[0]:
            return None
        return [x["instances"].to(self.device) for x in batched_inputs]

    @staticmethod
    def _original_size(
        results: list[Instances], batched_inputs: list[dict], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        return [
            detector_postprocess(result, x.get("height", size[0]), x.get("width", size[1]))
            for result, x, size in zip(results, batched_inputs, image_sizes, strict=True)
        ]


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(_Detector):
    """Stands for Detectron2's `GeneralizedRCNN`.

    Args:
        proposal_generator: gives proposals from features; None where the inputs bring `proposals`.
        roi_heads: turns features and proposals into detections or losses.
        pixel_mean, pixel_std: per channel, in the order of the images' channels.
        input_format: that order, needed for `vis_period` alone.
        vis_period: iterations between pictures of proposals in the event storage; 0 for none.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        input_format: str | None = None,
        vis_period: int = 0,
    ) -> None:
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        args = super().from_config(cfg)
        args["roi_heads"] = build_roi_heads(cfg, args["backbone"].output_shape())
        args["input_format"] = cfg.INPUT.FORMAT
        args["vis_period"] = cfg.VIS_PERIOD
        return args

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses by name in training, else for each input {"instances": detections in the original image}.

        Args:
            batched_inputs: dictionaries of a dataset mapper: `image` (C, H, W); in training `instances`; `height`
                and `width` of the output, the image's own by default; `proposals` where no generator is there.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = self._ground_truth(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._proposals(images, features, batched_inputs, targets)
        _, detector_losses = self.roi_heads(images, features, proposals, targets)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**detector_losses, **proposal_losses}

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Instances]] | list[Instances]:
        """Detections of each input.

        Args:
            detected_instances: boxes and classes that are given; only masks and keypoints are then predicted.
            do_postprocess: give results in pixels of the original image, masks as bitmaps of it. Otherwise the bare
                `Instances` in pixels of the network's input.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self._proposals(images, features, batched_inputs, None)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            detected_instances = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, detected_instances)
        if not do_postprocess:
            return results
        results = self._original_size(results, batched_inputs, images.image_sizes)
        return [{"instances": result} for result in results]

    def _proposals(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        batched_inputs: list[dict],
        targets: list[Instances] | None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, targets)
        if "proposals" not in batched_inputs[0]:
            raise KeyError(
                "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, but the inputs have no 'proposals': set "
                "MODEL.LOAD_PROPOSALS and DATASETS.PROPOSAL_FILES_TRAIN / PROPOSAL_FILES_TEST"
            )
        return [x["proposals"].to(self.device) for x in batched_inputs], {}

    def visualize_training(self, batched_inputs: list[dict], proposals: list[Instances]) -> None:
        """Put a picture of the first image into the event storage: ground truth beside the 20 best proposals."""
        image = convert_image_to_rgb(batched_inputs[0]["image"].permute(1, 2, 0), self.input_format)
        truth = Visualizer(image).overlay_instances(boxes=batched_inputs[0]["instances"].gt_boxes.to("cpu"))
        best = proposals[0].proposal_boxes.tensor[:20].detach().cpu().numpy()
        proposed = Visualizer(image).overlay_instances(boxes=best)
        picture = np.concatenate([truth.get_image(), proposed.get_image()], axis=1).transpose(2, 0, 1)
        get_event_storage().put_image("Left: GT bounding boxes;  Right: predicted proposals", picture)


@META_ARCH_REGISTRY.register()
class ProposalNetwork(_Detector):
    """A region proposal network alone. Stands for Detectron2's `ProposalNetwork`."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ) -> None:
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses by name in training, else for each input {"proposals": `Instances` in the original image}."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, self._ground_truth(batched_inputs))
        if self.training:
            return losses
        proposals = self._original_size(proposals, batched_inputs, images.image_sizes)
        return [{"proposals": p} for p in proposals]
