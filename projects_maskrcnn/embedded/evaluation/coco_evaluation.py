"""COCO's metrics, computed by pycocotools."""

import contextlib
import io
import itertools
import json
import logging
import math
import os
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from ..data import MetadataCatalog
from ..data.datasets.coco import convert_to_coco_json
from ..structures import BoxMode, Instances
from ..utils import comm
from ..utils.file_io import PathManager
from ..utils.logger import create_small_table
from .box_proposals import evaluate_box_proposals
from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)

METRICS = {  # in the order of COCOeval.stats
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # of a detection
PROPOSAL_AREAS = {"all": "", "small": "s", "medium": "m", "large": "l"}


class COCOEvaluator(DatasetEvaluator):
    """AP of boxes, masks and keypoints, AR of proposals, in percent. Stands for Detectron2's `COCOEvaluator`.

    A metric that cannot be computed (no ground truth of a size, no predictions at all) is NaN.

    Args:
        dataset_name: a registered dataset. Its metadata has ``json_file``, its COCO annotations; otherwise
            they are written from its dicts into `output_dir`.
        tasks: of ``bbox``, ``segm`` and ``keypoints``; None for those that the predictions have.
        distributed: evaluate the predictions of all processes on the main one; otherwise each its own.
        output_dir: a folder for ``coco_instances_results.json`` (COCO's result format),
            ``instances_predictions.pth`` and, of proposals, ``box_proposals.pkl``; None to write none.
        max_dets_per_image: the most boxes or masks of an image that count; None for COCO's 100.
        use_fast_impl: for Detectron2's callers; pycocotools' own evaluation serves in either case.
        kpt_oks_sigmas: sigma of each keypoint in the OKS; empty for COCO's 17.
        allow_cached_coco: use the annotations in `output_dir` that an earlier evaluation wrote.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        if unknown := set(tasks or ()) - set(METRICS):
            raise ValueError(f"unknown tasks {sorted(unknown)}: expected some of {', '.join(METRICS)}")
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = 100 if max_dets_per_image is None else max_dets_per_image
        self._kpt_oks_sigmas = kpt_oks_sigmas
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = self._metadata.get("json_file")
        if json_file is None:
            if output_dir is None:
                raise ValueError(
                    f"the metadata of {dataset_name!r} names no json_file: give COCOEvaluator an output_dir, "
                    "where it writes the dataset's annotations in COCO's format"
                )
            json_file = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, json_file, allow_cached=allow_cached_coco)
        self._coco_api = load_ground_truth(PathManager.get_local_path(json_file))
        self.reset()

    def reset(self) -> None:
        """Forgets all predictions."""
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes in a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances`` or ``proposals``, `Instances` in pixels of the original image.
        """
        for image, output in zip(inputs, outputs, strict=True):
            prediction = {"image_id": image["image_id"]}
            if "instances" in output:
                prediction["instances"] = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to("cpu")
            if len(prediction) > 1:
                self._predictions.append(prediction)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """The metrics of each task, and of each category where there are several.

        Args:
            img_ids: the images to evaluate on; None for the whole dataset.

        Returns:
            ``{task: {metric: score}}``; empty without predictions or annotations, and off the main process.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            logger.warning("[COCOEvaluator] Did not receive valid predictions.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with self._open("instances_predictions.pth", "wb") as f:
                torch.save(predictions, f)

        results = OrderedDict()
        if "proposals" in predictions[0]:
            results.update(self._evaluate_proposals(predictions))
        if "instances" in predictions[0]:
            results.update(self._evaluate_instances(predictions, img_ids))
        return results

    def _open(self, name: str, mode: str) -> Any:
        return PathManager.open(os.path.join(self._output_dir, name), mode)

    def _has_annotations(self) -> bool:
        if "annotations" in self._coco_api.dataset:
            return True
        logger.info("Annotations are not available for evaluation.")
        return False

    def _has_masks(self) -> bool:
        annotations = self._coco_api.anns.values()
        return not annotations or any(a.get("segmentation") for a in annotations)

    def _evaluate_instances(self, predictions: list[dict], img_ids: Sequence[int] | None) -> dict:
        detections = self._to_dataset_ids(list(itertools.chain(*(p["instances"] for p in predictions))))
        if self._output_dir:
            with self._open("coco_instances_results.json", "w") as f:
                logger.info("Saving results to %s", os.path.join(self._output_dir, "coco_instances_results.json"))
                json.dump(detections, f)
        if not self._has_annotations():
            return {}
        logger.info("Evaluating predictions with official COCO API...")
        results = {}
        for task in sorted(self._tasks or _tasks_of(detections)):
            if not detections:  # pycocotools takes no empty results
                logger.warning("No predictions from the model!")
                results[task] = dict.fromkeys(METRICS[task], float("nan"))
            elif task == "segm" and FIELDS[task] in detections[0] and not self._has_masks():
                logger.warning("The annotations of %r have no masks to evaluate.", self._dataset_name)
                results[task] = dict.fromkeys(METRICS[task], float("nan"))
            else:
                coco_eval = self._run_coco_eval(detections, task, img_ids)
                results[task] = self._derive_results(coco_eval, task)
        return results

    def _to_dataset_ids(self, detections: list[dict]) -> list[dict]:
        """The detections with the dataset's category ids for the model's class indices."""
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_contiguous is None:
            return detections
        to_dataset = {contiguous: dataset for dataset, contiguous in to_contiguous.items()}
        if foreign := {d["category_id"] for d in detections} - set(to_dataset):
            raise ValueError(
                f"the model predicts class {max(foreign)}, but {self._dataset_name!r} has {len(to_dataset)} "
                f"classes, numbered from 0: set MODEL.ROI_HEADS.NUM_CLASSES to {len(to_dataset)}"
            )
        return [{**d, "category_id": to_dataset[d["category_id"]]} for d in detections]

    def _run_coco_eval(self, detections: list[dict], task: str, img_ids: Sequence[int] | None) -> COCOeval:
        """COCOeval, evaluated and summarized; the summary is logged."""
        if foreign := {d["image_id"] for d in detections} - set(self._coco_api.imgs):
            raise ValueError(f"predictions for images that {self._dataset_name!r} does not have: {sorted(foreign)[:5]}")
        if FIELDS[task] not in detections[0]:
            raise ValueError(f"task {task!r} asked for, but the predictions have no {FIELDS[task]}")
        # COCOeval writes into the results. With a box in them it would take the box's area for the mask's.
        dropped = ("bbox",) if task == "segm" else ()
        detections = [{key: value for key, value in d.items() if key not in dropped} for d in detections]
        with contextlib.redirect_stdout(io.StringIO()):
            coco_eval = COCOeval(self._coco_api, self._coco_api.loadRes(detections), task)
        if task == "keypoints":
            if self._kpt_oks_sigmas:
                coco_eval.params.kpt_oks_sigmas = np.array(self._kpt_oks_sigmas)
            self._check_keypoints(detections, len(coco_eval.params.kpt_oks_sigmas))
        else:
            coco_eval.params.maxDets = [1, 10, self._max_dets]
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        with contextlib.redirect_stdout(io.StringIO()):
            coco_eval.evaluate()
            coco_eval.accumulate()
        with contextlib.redirect_stdout(io.StringIO()) as summary:
            coco_eval.summarize()
        lines = summary.getvalue().splitlines()
        if task != "keypoints" and self._max_dets != 100:  # summarize() takes AP at 100 detections alone
            precision = coco_eval.eval["precision"][:, :, :, 0, -1]
            coco_eval.stats[0] = _mean(precision)
            del lines[0]
        logger.info("COCO's summary for %s:\n%s", task, "\n".join(lines))
        return coco_eval

    def _check_keypoints(self, detections: list[dict], num_sigmas: int) -> None:
        predicted = len(detections[0]["keypoints"]) // 3
        annotated = {len(a.get("keypoints", ())) // 3 for a in self._coco_api.anns.values()} or {num_sigmas}
        if {predicted, num_sigmas} != annotated:
            raise ValueError(
                f"keypoints of an instance: {predicted} predicted (MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS), "
                f"{sorted(annotated)} in the annotations of {self._dataset_name!r}, "
                f"{num_sigmas} sigmas (TEST.KEYPOINT_OKS_SIGMAS). They have to agree"
            )

    def _derive_results(self, coco_eval: COCOeval, task: str) -> dict[str, float]:
        """The task's metrics, and the AP of each category where there are several."""
        results = {
            metric: float(value * 100 if value >= 0 else "nan")
            for metric, value in zip(METRICS[task], coco_eval.stats, strict=False)
        }
        logger.info("Evaluation results for %s: \n%s", task, create_small_table(results))
        if not np.isfinite(list(results.values())).all():
            logger.info("Some metrics cannot be computed and are shown as NaN.")

        names = self._metadata.get("thing_classes") or ()
        if len(names) <= 1:
            return results
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id") or {}
        to_dataset = {contiguous: dataset for dataset, contiguous in to_contiguous.items()}
        precision = dict(
            zip(coco_eval.params.catIds, coco_eval.eval["precision"].transpose(2, 0, 1, 3, 4), strict=True)
        )
        per_category = []
        for index, name in enumerate(names):
            of_category = precision.get(to_dataset.get(index, index))
            ap = -1 if of_category is None else _mean(of_category[:, :, 0, -1])
            per_category.append((name, float(ap * 100 if ap >= 0 else "nan")))
        logger.info("Per-category %s AP: \n%s", task, _table(per_category))
        results.update({f"AP-{name}": ap for name, ap in per_category})
        return results

    def _evaluate_proposals(self, predictions: list[dict]) -> dict[str, dict[str, float]]:
        if self._output_dir:
            data = {
                "boxes": [p["proposals"].proposal_boxes.tensor.numpy() for p in predictions],
                "objectness_logits": [p["proposals"].objectness_logits.numpy() for p in predictions],
                "ids": [p["image_id"] for p in predictions],
                "bbox_mode": BoxMode.XYXY_ABS.value,
            }
            with self._open("box_proposals.pkl", "wb") as f:
                pickle.dump(data, f)
        if not self._has_annotations():
            return {}
        logger.info("Evaluating bbox proposals ...")
        scores = {}
        for limit, (area, suffix) in itertools.product((100, 1000), PROPOSAL_AREAS.items()):
            recall = evaluate_box_proposals(predictions, self._coco_api, area=area, limit=limit)
            scores[f"AR{suffix}@{limit}"] = recall["ar"].item() * 100
        logger.info("Proposal metrics: \n%s", create_small_table(scores))
        return {"box_proposals": scores}


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict[str, Any]]:
    """An image's predictions in COCO's result format. Stands for Detectron2's `instances_to_coco_json`.

    Args:
        instances: on the CPU and in pixels of the original image, with ``pred_boxes``, ``scores`` and
            ``pred_classes``; also taken are ``pred_masks`` (N, H, W) of 0 and 1, and ``pred_keypoints``
            (N, K, 3) of x, y and score.
        img_id: the image's id.

    Returns:
        one dict an instance; ``category_id`` is the class index, masks are compressed RLE, and keypoints are
        pixel indices as in COCO: half a pixel less than the continuous coordinates.
    """
    if len(instances) == 0:
        return []
    fields = {
        "category_id": instances.pred_classes.tolist(),
        "bbox": BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks"):
        pasted = instances.deferred("pred_masks")
        rles = pasted.rle() if pasted else encode_masks(instances.pred_masks)
        fields["segmentation"] = [{**rle, "counts": rle["counts"].decode()} for rle in rles]
    if instances.has("pred_keypoints"):
        keypoints = instances.pred_keypoints - torch.tensor([0.5, 0.5, 0])
        fields["keypoints"] = keypoints.flatten(1).tolist()
    return [
        {"image_id": img_id, **dict(zip(fields, values, strict=True))} for values in zip(*fields.values(), strict=True)
    ]


def encode_masks(masks: torch.Tensor) -> list[dict[str, Any]]:
    """COCO's compressed run-length encoding of masks (N, H, W) of 0 and 1."""
    return mask_util.encode(np.asfortranarray(np.asarray(masks, dtype=np.uint8).transpose(1, 2, 0)))


def load_ground_truth(json_file: str) -> COCO:
    """pycocotools' index of a COCO annotation file, with what annotations may leave out filled in.

    ``iscrowd`` becomes 0, ``area`` that of the mask or the box; an instance without keypoints, beside
    instances with them, gets as many, none visible; one without a mask, beside instances with them, gets an empty
    one, which no prediction matches.
    """
    with open(json_file) as f:
        coco = COCO()
        coco.dataset = json.load(f)
    coco.dataset.setdefault("info", {})  # loadRes of older pycocotools copies it
    annotations = coco.dataset.get("annotations", [])
    num_keypoints = max((len(a.get("keypoints") or ()) for a in annotations), default=0)
    _fill_in_masks(annotations, coco.dataset["images"], json_file)
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number  # COCOeval takes an annotation of id 0 for one that is never matched
        annotation.setdefault("iscrowd", 0)
        if num_keypoints:
            annotation["keypoints"] = annotation.get("keypoints") or [0] * num_keypoints
            annotation.setdefault("num_keypoints", sum(v > 0 for v in annotation["keypoints"][2::3]))
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    for annotation in annotations:
        if "area" not in annotation:
            _, _, width, height = annotation["bbox"]
            has_mask = bool(annotation.get("segmentation"))
            annotation["area"] = float(mask_util.area(coco.annToRLE(annotation))) if has_mask else width * height
    return coco


def _fill_in_masks(annotations: list[dict], images: list[dict], json_file: str) -> None:
    """Leave out polygons that pycocotools does not take, and give annotations without a mask an empty one."""
    if not any(annotation.get("segmentation") for annotation in annotations):
        return
    sizes = {image["id"]: [image["height"], image["width"]] for image in images}
    without_mask = []
    for annotation in annotations:
        mask = annotation.get("segmentation")
        if isinstance(mask, list):
            annotation["segmentation"] = mask = [polygon for polygon in mask if len(polygon) > 4]
        if not mask:
            without_mask.append(annotation["id"])
            size = sizes[annotation["image_id"]]
            annotation["segmentation"] = {"size": size, "counts": [math.prod(size)]}
    if without_mask:
        listed = ", ".join(map(str, without_mask[:10])) + ", ..." * (len(without_mask) > 10)
        logger.warning("%s: annotations without a mask count as not found: %s", json_file, listed)


def _tasks_of(detections: list[dict]) -> set[str]:
    """The tasks whose fields the detections have."""
    fields = set().union(*detections)
    return {"bbox"} | {task for task, field in FIELDS.items() if field in fields}


def _mean(precision: np.ndarray) -> float:
    """The mean of the entries that could be computed, or -1 where none could."""
    valid = precision[precision > -1]
    return float(np.mean(valid)) if valid.size else -1.0


def _table(pairs: list[tuple[str, float]], pairs_a_row: int = 3) -> str:
    """Names and values as a table of several pairs a row."""
    columns = min(pairs_a_row, len(pairs))
    rows = [list(itertools.chain(*pairs[i : i + columns])) for i in range(0, len(pairs), columns)]
    headers = ["category", "AP"] * columns
    return tabulate(rows, tablefmt="pipe", floatfmt=".3f", headers=headers, numalign="left")
