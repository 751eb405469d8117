"""Proposal files: what `DATASETS.PROPOSAL_FILES_TRAIN` and `_TEST` name."""

import logging
import pickle
from pathlib import Path

import torch

from ..framework import BoxMode, DatasetEvaluator, comm
from ..weights.files import replaced

logger = logging.getLogger(__name__)


class ProposalWriter(DatasetEvaluator):
    """Writes the proposals of a model to a file, in Detectron2's format, rather than measuring them.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reset()

    def reset(self) -> None:
        """Forgets all proposals."""
        self._proposals = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes in a batch: `image_id` of the inputs, and `proposals`, in the original image, of the outputs."""
        for image, output in zip(inputs, outputs, strict=True):
            proposals = output["proposals"].to(torch.device("cpu"))
            boxes, logits = proposals.proposal_boxes.tensor.numpy(), proposals.objectness_logits.numpy()
            self._proposals.append((image["image_id"], boxes, logits))

    def evaluate(self) -> dict:
        """Writes the file, with the proposals of all processes; there are no results."""
        gathered = comm.gather(self._proposals, dst=0)
        if comm.is_main_process():
            ids, boxes, logits = zip(*(p for proposals in gathered for p in proposals), strict=True)
            content = {"ids": list(ids), "boxes": list(boxes), "objectness_logits": list(logits)}
            with replaced(self.path) as unfinished, unfinished.open("wb") as file:
                pickle.dump({**content, "bbox_mode": BoxMode.XYXY_ABS.value}, file)
            logger.info("Wrote the proposals of %d images to %s", len(ids), self.path)
        comm.synchronize()
        return {}
