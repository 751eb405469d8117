"""Pictures and a table of a finished run.

    python -m projects_maskrcnn.show output/demo

writes `show/predictions.png` (ground truth beside predictions) and `show/curves.png` (losses and AP over iterations)
into the run's folder, and prints the final AP.
"""

import argparse
import contextlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from pycocotools import mask as mask_api
from tabulate import tabulate

from .config import add_maskrcnn_config
from .data import use_coco_files
from .framework import Boxes, CfgNode, DatasetCatalog, Instances, MetadataCatalog, Visualizer, get_cfg

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend must be chosen first

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CELL = 384
"""Pixels of a picture's longer side in the grid."""


def read_config(output_dir: Path) -> CfgNode:
    """The config that the run wrote.

    Raises:
        FileNotFoundError: there is none in the folder.
    """
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.set_new_allowed(True)  # keys of other projects
    cfg.merge_from_file(str(_needed(output_dir / "config.yaml")))
    use_coco_files(cfg)
    return cfg


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: name the OUTPUT_DIR of a run of train_net.py that has been evaluated"
        )
    return path


def read_metrics(output_dir: Path) -> list[dict[str, float]]:
    """The lines of `metrics.json`; none where the run evaluated only."""
    path = output_dir / "metrics.json"
    if not path.is_file():
        return []
    metrics = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a line that a killed run was writing is not whole
            metrics.append(json.loads(line))
    return metrics


def result_table(metrics: list[dict[str, float]]) -> str:
    """The last AP of each task, as a Markdown table."""
    latest: dict[str, float] = {}
    for line in metrics:
        latest.update({name: value for name, value in line.items() if "/" in name})
    tasks = [task for task in ("bbox", "segm", "keypoints") if f"{task}/AP" in latest]
    rows = [[task, *(latest.get(f"{task}/{metric}", float("nan")) for metric in METRICS)] for task in tasks]
    return tabulate(rows, headers=["", *METRICS], tablefmt="github", floatfmt=".1f")


def draw_curves(metrics: list[dict[str, float]], path: Path) -> None:
    """Losses on the left, AP on the right, over iterations."""
    by_iteration: dict[str, dict[float, float]] = defaultdict(dict)
    for line in metrics:  # a run that goes on from a checkpoint repeats the iterations after it
        for name, value in line.items():
            by_iteration[name][line["iteration"]] = value
    series = {name: sorted(values.items()) for name, values in by_iteration.items()}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), dpi=110)
    for name in sorted(n for n in series if "loss" in n):
        total = name == "total_loss"
        left.plot(
            *zip(*series[name], strict=True), label=name, color="black" if total else None, lw=2 if total else 1.2
        )
    left.set(title="training loss", xlabel="iteration", ylim=(0, None))
    for task, colour in (("bbox", "tab:blue"), ("segm", "tab:orange"), ("keypoints", "tab:green")):
        for metric, style in (("AP", "-"), ("AP50", "--")):
            if f"{task}/{metric}" in series:
                points = series[f"{task}/{metric}"]
                right.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=f"{task} {metric}")
    right.set(title="held-out AP", xlabel="iteration", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def draw_predictions(cfg: CfgNode, output_dir: Path, path: Path, num: int, min_score: float) -> None:
    """A grid of `num` images of the first test set: ground truth on the left, predictions on the right.

    Raises:
        FileNotFoundError: the run was not evaluated.
        ValueError: it has no test set, or its results are not whole.
        OSError: the picture cannot be written.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError(f"The run in {output_dir} has no DATASETS.TEST, so that there is nothing to show")
    name = cfg.DATASETS.TEST[0]
    file = _needed(output_dir / "inference" / "coco_instances_results.json")
    try:
        results = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not whole ({error}): evaluate the run again, with --eval-only --resume") from error
    by_image: dict[int, list[dict]] = defaultdict(list)
    for result in results:
        if result["score"] >= min_score:
            by_image[result["image_id"]].append(result)
    pairs = [_pair(record, by_image[record["image_id"]], name) for record in _choose(DatasetCatalog.get(name), num)]
    height = max(p.shape[0] for p in pairs)
    columns = 2 if num > 1 else 1
    pairs = [_pad(p, height, p.shape[1]) for p in pairs]
    while len(pairs) % columns:
        pairs.append(np.full_like(pairs[0], 255))
    rows = [np.hstack(pairs[i : i + columns]) for i in range(0, len(pairs), columns)]
    titles = np.full((36, rows[0].shape[1], 3), 255, np.uint8)
    cell = pairs[0].shape[1] // 2
    for index in range(2 * columns):
        text = "prediction" if index % 2 else "ground truth"
        cv2.putText(titles, text, (index * cell + 8, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2, cv2.LINE_AA)
    if not cv2.imwrite(str(path), np.vstack([titles, *rows])[:, :, ::-1]):
        raise OSError(f"{path} cannot be written")


def _choose(records: list[dict], num: int) -> list[dict]:
    """`num` records from all over the dataset: with several objects where there are enough of them, else with any."""
    for least in (2, 1, 0):
        candidates = [r for r in records if len(r["annotations"]) >= least]
        if len(candidates) >= num:
            break
    return candidates[:: max(1, len(candidates) // num)][:num]


def _pair(record: dict, results: list[dict], dataset: str) -> np.ndarray:
    """Ground truth beside predictions, RGB."""
    metadata = MetadataCatalog.get(dataset)
    image = cv2.imread(record["file_name"])
    if image is None:  # it was evaluated as a black image too
        image = np.zeros((record["height"], record["width"], 3), np.uint8)
    image = image[:, :, ::-1]
    scale = CELL / max(image.shape[:2])
    truth = Visualizer(image, metadata, scale=scale).draw_dataset_dict(record)
    predicted = Visualizer(image, metadata, scale=scale).draw_instance_predictions(
        _instances(results, image.shape[:2], metadata)
    )
    pictures = [v.get_image() for v in (truth, predicted)]
    return np.hstack([_pad(picture, picture.shape[0] + 6, CELL + 6) for picture in pictures])


def _instances(results: list[dict], image_size: tuple[int, int], metadata: Any) -> Instances:
    """COCO results as a model's output."""
    instances = Instances(image_size)
    boxes = np.array([r["bbox"] for r in results], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = {v: v for v in range(len(metadata.thing_classes))}
    classes = metadata.get("thing_dataset_id_to_contiguous_id", classes)
    instances.pred_boxes = Boxes(boxes)
    instances.scores = np.array([r["score"] for r in results])
    instances.pred_classes = np.array([classes[r["category_id"]] for r in results], dtype=np.int64)
    if results and "segmentation" in results[0]:
        instances.pred_masks = np.stack([mask_api.decode(r["segmentation"]) for r in results]).astype(bool)
    if results and "keypoints" in results[0]:
        points = np.array([r["keypoints"] for r in results], dtype=np.float32).reshape(len(results), -1, 3)
        points[:, :, :2] += 0.5  # COCO counts pixels, the framework measures from the corner
        instances.pred_keypoints = points
    return instances


def _pad(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    missing = (height - picture.shape[0], width - picture.shape[1])
    return np.pad(picture, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=255)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pictures and a table of a finished run.")
    parser.add_argument("output_dir", type=Path, help="the OUTPUT_DIR of a run of train_net.py")
    parser.add_argument("--num", type=int, default=8, help="images in the picture of predictions")
    parser.add_argument("--min-score", type=float, default=0.5, help="lowest score that is drawn")
    args = parser.parse_args()
    if args.num < 1:
        parser.error(f"--num is {args.num}: one image or more")
    if not 0 <= args.min_score <= 1:
        parser.error(f"--min-score is {args.min_score}: from 0 to 1")
    folder = args.output_dir / "show"
    try:
        cfg = read_config(args.output_dir)
        folder.mkdir(exist_ok=True)
        draw_predictions(cfg, args.output_dir, folder / "predictions.png", args.num, args.min_score)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    metrics = read_metrics(args.output_dir)
    written = [folder / "predictions.png"]
    if metrics:
        draw_curves(metrics, folder / "curves.png")
        written.append(folder / "curves.png")
        print(result_table(metrics), end="\n\n")
    print(f"Pictures: {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
