"""Times Mask R-CNN R50-FPN as a whole against Detectron2's own, with equal weights, side by side in one process.

MASKRCNN_FRAMEWORK=embedded python benchmarks/end_to_end.py --threads 4
MASKRCNN_FRAMEWORK=detectron2 python benchmarks/end_to_end.py --threads 4

Needs Detectron2. One image of 800 x 1066 pixels: inference with its masks encoded for COCO's evaluation, and a training
step with SGD on two such images. Figures are medians of interleaved runs, in milliseconds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detectron2.config
import detectron2.evaluation.coco_evaluation
import detectron2.modeling
import detectron2.structures
import torch
from detectron2 import model_zoo
from detectron2.utils.events import EventStorage

from projects_maskrcnn import add_maskrcnn_config, framework

CONFIGS = Path(__file__).parents[1] / "configs"
SIZE = (800, 1066)


def peer_config() -> Any:
    """Detectron2's R50-FPN."""
    return model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")


def our_config() -> Any:
    """Ours, on the framework in use."""
    cfg = framework.get_cfg()
    add_maskrcnn_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    return cfg


def build(cfg: Any, build_model: Callable, weights: dict | None, channels_last: bool) -> torch.nn.Module:
    """The model; with `weights`, or its own random ones, tamed so that it finds 100 objects."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    torch.manual_seed(0)
    model = build_model(cfg)
    if weights is None:
        predictor = model.roi_heads.box_predictor
        with torch.no_grad():
            # Random features are huge: without this every box would be the whole image, of one class.
            for layer in (model.proposal_generator.rpn_head.anchor_deltas, predictor.cls_score, predictor.bbox_pred):
                layer.weight.mul_(1e-6)
            predictor.cls_score.bias[:10] = 20  # ten classes are likely, for every box
    else:
        model.load_state_dict(weights)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def training_inputs(image: torch.Tensor, structures: Any) -> list[dict]:
    """Two images with eight objects each."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(8, 2, generator=generator) * torch.tensor([800.0, 500.0])
    boxes = torch.cat([corner, corner + 40 + 200 * torch.rand(8, 2, generator=generator)], 1)
    polygons = [[[x0, y0, x1, y0, (x0 + x1) / 2, y1]] for x0, y0, x1, y1 in boxes.tolist()]
    instances = structures.Instances(
        SIZE,
        gt_boxes=structures.Boxes(boxes),
        gt_classes=torch.arange(8),
        gt_masks=structures.PolygonMasks(polygons),
    )
    return [{"image": image, "height": SIZE[0], "width": SIZE[1], "instances": instances}] * 2


def inference(model: torch.nn.Module, image: torch.Tensor, to_json: Callable) -> Callable[[], list]:
    """A run of detection, to COCO's result format."""

    def run() -> list:
        model.eval()
        with torch.no_grad():
            (output,) = model([{"image": image, "height": SIZE[0], "width": SIZE[1]}])
        return to_json(output["instances"].to("cpu"), 1)

    return run


def training_step(model: torch.nn.Module, inputs: list[dict], storage: Any) -> Callable[[], None]:
    """A run of one step, at a learning rate of zero so that every run does the same."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)

    def run() -> None:
        model.train()
        torch.manual_seed(0)
        with storage():
            loss = sum(model(inputs).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    # of the framework in use
    structures = sys.modules[framework.Instances.__module__.removesuffix(".instances")]
    instances_to_coco_json = sys.modules[framework.COCOEvaluator.__module__].instances_to_coco_json

    image = torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(0)).float()
    theirs = build(peer_config(), detectron2.modeling.build_model, None, False)
    weights = theirs.state_dict()
    runs: dict[str, dict[str, Callable]] = {"inference": {}, "training step": {}}
    to_json = detectron2.evaluation.coco_evaluation.instances_to_coco_json
    runs["inference"]["Detectron2"] = inference(theirs, image, to_json)
    runs["training step"]["Detectron2"] = training_step(
        theirs, training_inputs(image, detectron2.structures), EventStorage
    )
    for channels_last in (False, True):
        ours = build(our_config(), framework.build_model, weights, channels_last)
        name = "ours channels_last" if channels_last else "ours"
        runs["inference"][name] = inference(ours, image, instances_to_coco_json)
        runs["training step"][name] = training_step(ours, training_inputs(image, structures), framework.EventStorage)
    found = {name: len(run()) for name, run in runs["inference"].items()}
    print(f"{args.threads} threads, framework {framework.FRAMEWORK}, detections: {found}\n")
    print("| | Detectron2 | ours | ours channels_last |\n| --- | --- | --- | --- |")
    for what, functions in runs.items():
        times: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(args.repeats + 1):
            for name, run in functions.items():
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        peer = medians.pop("Detectron2")
        cells = [f"{value:.0f} ({peer / value:.2f}x)" for value in medians.values()]
        print(f"| {what} | {peer:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
