"""PASCAL VOC's metric: AP of boxes."""

import logging
import os
from collections import defaultdict

import numpy as np

from ..data import MetadataCatalog
from ..data.datasets.pascal_voc import read_image_ids, read_voc_annotation
from ..utils import comm
from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """AP of boxes by the rule of the dataset's year. Stands for Detectron2's `PascalVOCDetectionEvaluator`.

    Args:
        dataset_name: registered by `register_pascal_voc`; of 2007 by the 11-point rule, of 2012 by the area under the
            curve.
    """

    def __init__(self, dataset_name: str) -> None:
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        if self._metadata.year not in (2007, 2012):
            raise ValueError(f"dataset {dataset_name}: the year is {self._metadata.year}; known are 2007 and 2012")
        self.reset()

    def reset(self) -> None:
        """Forgets all predictions."""
        self._predictions = defaultdict(list)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes in a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances``: ``pred_boxes``, ``scores``, ``pred_classes``.
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.numpy().astype(float)
            boxes[:, :2] += 1  # to VOC's pixels, see `load_voc_instances`
            # rounded as the development kit's files are
            scored = zip(instances.scores.tolist(), boxes.round(1), instances.pred_classes.tolist(), strict=True)
            for score, box, category in scored:
                self._predictions[category].append((image["image_id"], round(score, 3), box))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """``{"bbox": {"AP", "AP50", "AP75"}}`` in percent, means over classes; None off the main process."""
        gathered = comm.gather(dict(self._predictions), dst=0)
        if not comm.is_main_process():
            return None
        dirname, names = self._metadata.dirname, self._metadata.thing_classes
        objects = {
            image_id: read_voc_annotation(os.path.join(dirname, "Annotations", f"{image_id}.xml"))["objects"]
            for image_id in read_image_ids(dirname, self._metadata.split)
        }
        thresholds = np.arange(50, 100, 5)
        aps = np.zeros((len(names), len(thresholds)))
        for category, name in enumerate(names):
            truth = {i: [o for o in items if o["name"] == name] for i, items in objects.items()}
            detections = [d for predictions in gathered for d in predictions.get(category, [])]
            for column, threshold in enumerate(thresholds):
                recall, precision = recall_and_precision(detections, truth, threshold / 100)
                aps[category, column] = average_precision(recall, precision, eleven_points=self._metadata.year == 2007)
        mean = aps.mean(axis=0) * 100
        results = {"AP": float(mean.mean()), "AP50": float(mean[0]), "AP75": float(mean[5])}
        logger.info("Evaluated %s by the rule of %d: %s", self._dataset_name, self._metadata.year, results)
        return {"bbox": results}


def recall_and_precision(
    detections: list[tuple[str, float, np.ndarray]], truth: dict[str, list[dict]], threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of one class after each detection, by decreasing score.

    A detection is right if it overlaps an object by more than `threshold`, of those that it overlaps the most, and no
    better one did. Difficult objects, and detections of them, do not count.

    Args:
        detections: image id, score and box, in VOC's 1-based pixels of which the last are included.
        truth: for each image its objects of the class, `bbox` and `difficult`.
    """
    boxes = {i: np.array([o["bbox"] for o in items], dtype=float).reshape(-1, 4) for i, items in truth.items()}
    found = {i: [False] * len(items) for i, items in truth.items()}
    num_objects = sum(not o["difficult"] for items in truth.values() for o in items)
    right, wrong = [], []
    for image_id, _, box in sorted(detections, key=lambda d: -d[1]):
        overlaps = _overlaps(box, boxes[image_id])
        best = int(overlaps.argmax()) if len(overlaps) else None
        hit = best is not None and overlaps[best] > threshold
        counts = not (hit and truth[image_id][best]["difficult"])
        first = hit and not found[image_id][best]
        if first:
            found[image_id][best] = True
        right.append(counts and first)
        wrong.append(counts and not first)
    right, wrong = np.cumsum(right, dtype=float), np.cumsum(wrong, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / num_objects
    return recall, right / np.maximum(right + wrong, np.finfo(float).eps)


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of a box with boxes (N, 4), of pixels of which the last are included."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + 1
    intersection = sides.clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1) + (box[2:] - box[:2] + 1).prod()
    return intersection / (areas - intersection)


def average_precision(recall: np.ndarray, precision: np.ndarray, eleven_points: bool) -> float:
    """AP of a curve whose precision at a recall is the best at that recall or a higher one.

    Args:
        recall: (N,), which does not fall.
        precision: (N,).
        eleven_points: the mean at recalls 0, 0.1, ..., 1 (VOC 2007), not the area under the curve (VOC 2010 and on).
    """
    if eleven_points:
        return float(np.mean([precision[recall >= r].max(initial=0) for r in np.arange(0, 1.1, 0.1)]))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * best).sum())
