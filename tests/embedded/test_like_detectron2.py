"""A program for Detectron2 runs on the embedded framework once its imports name that one, with the same numbers.

`like_detectron2.json` holds what the program reports on Detectron2 (commit 02b5c4e).
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from projects_maskrcnn.framework import is_installed

# What a user of Detectron2 writes: a backbone, a mask head, a mapper, a dataset, a trainer and a hook of one's own. All
# that is random is fixed, so that two frameworks compute the same. The RoI heads are this project's on either.
PROGRAM = r'''
import copy, json, os, sys

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode as CN, configurable, get_cfg
from detectron2.data import (
    DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_test_loader, build_detection_train_loader,
    detection_utils as utils, transforms as T,
)
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultPredictor, DefaultTrainer, HookBase, default_argument_parser, default_setup
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.layers import Conv2d, ShapeSpec, cat, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, ROI_MASK_HEAD_REGISTRY, Backbone, build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import BitMasks, Boxes, BoxMode, ImageList, Instances, PolygonMasks, pairwise_iou
from detectron2.utils.events import EventStorage, get_event_storage
from detectron2.utils.visualizer import ColorMode, Visualizer
from projects_maskrcnn import add_maskrcnn_config

HEIGHT, WIDTH = 48, 64
OUTPUT = sys.argv[1]
report = {}


# ---- data

def scenes():
    """Four pictures of a bright box and, in all but the first, a darker triangle. Noise keeps anchors from ties."""
    dicts = []
    for i in range(4):
        image = np.random.default_rng(i).integers(20, 80, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        box = [4 + 3 * i, 6 + i, 28 + 3 * i, 30 + 2 * i]
        x0, y0, x1, y1 = box
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), (200, 220, 90 + 20 * i), -1)
        objects = [{
            "bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0,
            "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        }]
        if i:
            corners = [44, 8, 60, 8, 52, 8 + 8 * i]
            cv2.fillPoly(image, [np.array(corners).reshape(3, 2)], (30, 90, 150))
            objects.append({
                "bbox": [44, 8, 16, 8 * i], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0,
                "segmentation": [corners],
            })
        image += np.random.default_rng(i).integers(0, 20, image.shape, dtype=np.uint8)
        name = f"{OUTPUT}/{i}.png"
        cv2.imwrite(name, image)
        dicts.append({"file_name": name, "image_id": i, "height": HEIGHT, "width": WIDTH, "annotations": objects})
    return dicts


class Fade(T.Augmentation):
    def __init__(self, share):
        super().__init__()
        self.share = share

    def get_transform(self, image):
        return T.BlendTransform(src_image=image.mean(), src_weight=self.share, dst_weight=1 - self.share)


def flipping_mapper(dataset_dict):
    dataset_dict = copy.deepcopy(dataset_dict)
    image = utils.read_image(dataset_dict["file_name"], format="BGR")
    aug_input = T.AugInput(image)
    transforms = T.AugmentationList([T.Resize((HEIGHT, WIDTH)), T.RandomFlip(prob=1.0), Fade(0.3)])(aug_input)
    image = aug_input.image
    annotations = [
        utils.transform_instance_annotations(a, transforms, image.shape[:2])
        for a in dataset_dict.pop("annotations") if not a.get("iscrowd", 0)
    ]
    instances = utils.annotations_to_instances(annotations, image.shape[:2], mask_format="bitmask")
    dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
    dataset_dict["instances"] = utils.filter_empty_instances(instances)
    return dataset_dict


DatasetCatalog.register("boxes_and_triangles", scenes)
MetadataCatalog.get("boxes_and_triangles").thing_classes = ["box", "triangle"]
MetadataCatalog.get("boxes_and_triangles").set(thing_colors=[(255, 0, 0), (0, 0, 255)])


# ---- model

@BACKBONE_REGISTRY.register()
class TinyBackbone(Backbone):
    @configurable
    def __init__(self, in_channels, *, channels, norm="BN"):
        super().__init__()
        self.stem = Conv2d(in_channels, channels, 4, stride=4, norm=get_norm(norm, channels), activation=F.relu)
        self.down = Conv2d(channels, 2 * channels, 2, stride=2, activation=F.relu)
        self._out_features = ["c2", "c3"]
        self._out_feature_channels = {"c2": channels, "c3": channels}
        self._out_feature_strides = {"c2": 4, "c3": 8}
        self.lateral = Conv2d(2 * channels, channels, 1)

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {"in_channels": input_shape.channels, "channels": cfg.MODEL.TINY.CHANNELS, "norm": cfg.MODEL.TINY.NORM}

    @property
    def size_divisibility(self):
        return 8

    def forward(self, x):
        c2 = self.stem(x)
        return {"c2": c2, "c3": self.lateral(self.down(c2))}


@ROI_MASK_HEAD_REGISTRY.register()
class DiceMaskHead(nn.Module):
    """One mask for all classes, trained on the Dice loss."""

    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__()
        self.predictor = Conv2d(input_shape.channels, 1, 3, padding=1)

    def forward(self, x, instances):
        logits = self.predictor(x)[:, 0]
        masks = (logits - logits.mean((1, 2), keepdim=True)).sigmoid()
        if self.training:
            size = masks.shape[-1]
            targets = cat([i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, size) for i in instances]).float()
            overlap = (masks * targets).sum((1, 2))
            dice = 2 * overlap / (masks.sum((1, 2)) + targets.sum((1, 2)) + 1)
            get_event_storage().put_scalar("dice", dice.mean().item())
            return {"loss_dice": 1 - dice.mean()}
        for i, m in zip(instances, masks.split([len(i) for i in instances])):
            i.pred_masks = m[:, None]
        return instances


def fixed(model):
    """The model with weights that do not depend on who built it."""
    for seed, (_, parameter) in enumerate(sorted(model.named_parameters())):
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        parameter.data.copy_(0.1 * values)
    return model


# ---- training

class Recorder(HookBase):
    def before_train(self):
        self.totals = []

    def after_step(self):
        storage = self.trainer.storage
        total, iteration = storage.latest()["total_loss"]
        assert iteration == self.trainer.iter
        self.totals.append(total)
        storage.put_scalar("recorder/loss_of_an_image", total / self.trainer.cfg.SOLVER.IMS_PER_BATCH)

    def after_train(self):
        report["total_loss"] = self.totals
        report["scalars"] = {name: value for name, (value, _) in self.trainer.storage.latest().items()
                             if name.startswith("loss_") or name in ("dice", "lr", "recorder/loss_of_an_image")}


class CountDetections(DatasetEvaluator):
    def reset(self):
        self.counts = {}

    def process(self, inputs, outputs):
        for i, o in zip(inputs, outputs):
            self.counts[i["image_id"]] = len(o["instances"])

    def evaluate(self):
        return {"count": {"images": len(self.counts), "detections": sum(self.counts.values())}}


class Trainer(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        return fixed(super().build_model(cfg))

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=flipping_mapper, sampler=TrainingSampler(4, seed=3))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        return DatasetEvaluators([COCOEvaluator(dataset_name, output_dir=folder), CountDetections()])

    def build_hooks(self):
        hooks = super().build_hooks()
        hooks.insert(-1, Recorder())
        return hooks


def setup():
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.MODEL.TINY = CN()
    cfg.MODEL.TINY.CHANNELS = 8
    cfg.MODEL.TINY.NORM = "BN"
    cfg.MODEL.BACKBONE.NAME = "TinyBackbone"
    cfg.MODEL.ROI_MASK_HEAD.NAME = "DiceMaskHead"
    with open(f"{OUTPUT}/base.yaml", "w") as f:
        f.write("MODEL: {MASK_ON: True, DEVICE: cpu, ROI_HEADS: {NAME: MaskRCNNROIHeads, NUM_CLASSES: 2}}")
    with open(f"{OUTPUT}/tiny.yaml", "w") as f:
        f.write("_BASE_: base.yaml\nINPUT:\n  MIN_SIZE_TEST: 48\nDATASETS:\n  TRAIN: ('boxes_and_triangles',)\n")
    args = default_argument_parser().parse_args(["--config-file", f"{OUTPUT}/tiny.yaml", "OUTPUT_DIR", f"{OUTPUT}/run"])
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts + [
        "DATASETS.TEST", ("boxes_and_triangles",),
        "DATALOADER.NUM_WORKERS", 0,
        "MODEL.PIXEL_STD", [57.0, 57.0, 58.0],
        "MODEL.ANCHOR_GENERATOR.SIZES", [[12], [24]],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]",
        "MODEL.RPN.IN_FEATURES", ["c2", "c3"],
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 1024,  # all anchors: none is drawn by lot
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20,
        "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
        "MODEL.ROI_HEADS.IN_FEATURES", ["c2", "c3"],
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 128,  # all proposals
        "MODEL.ROI_HEADS.CANONICAL_BOX_SIZE", 24,
        "MODEL.ROI_BOX_HEAD.NAME", "MaskRCNNBoxHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14,
        "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.BASE_LR", 0.02,
        "SOLVER.MAX_ITER", 3,
        "SOLVER.WARMUP_ITERS", 2,
        "TEST.DETECTIONS_PER_IMAGE", 5,
        "TEST.EVAL_PERIOD", 0,
        "SEED", 7,
    ])
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


cfg = setup()
model = fixed(build_model(cfg))
report["parameters"] = {name: list(p.shape) for name, p in model.named_parameters()}
optimizer = build_optimizer(cfg, model)
scheduler = build_lr_scheduler(cfg, optimizer)
report["weight decay and rate"] = sorted({(g["weight_decay"], round(g["lr"], 6)) for g in optimizer.param_groups})

shapes = TinyBackbone(3, channels=4, norm="").output_shape()  # without a config
report["shapes"] = {name: [s.channels, s.stride, s.height] for name, s in shapes.items()}

trainer = Trainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
results = Trainer.test(cfg, trainer.model)
report["results"] = {task: sorted(scores) for task, scores in results.items()}
report["counts"] = results["count"]
report["files"] = sorted(n for n in os.listdir(cfg.OUTPUT_DIR) if "tfevents" not in n)

# ---- evaluation of a model of one's own: the truth, but for one image

class Truth(nn.Module):
    def forward(self, inputs):
        by_id = {d["image_id"]: d for d in DatasetCatalog.get("boxes_and_triangles")}
        outputs = []
        for i in inputs:
            annotations = by_id[i["image_id"]]["annotations"]
            boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
            masks = PolygonMasks([a["segmentation"] for a in annotations])
            o = Instances((i["height"], i["width"]))
            o.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
            o.pred_classes = torch.tensor([a["category_id"] for a in annotations])
            o.scores = torch.ones(len(boxes)) * 0.9
            o.pred_masks = BitMasks.from_polygon_masks(masks, i["height"], i["width"]).tensor
            outputs.append({"instances": o[o.pred_classes == 0] if i["image_id"] == 3 else o})
        return outputs


loader = build_detection_test_loader(cfg, "boxes_and_triangles", mapper=DatasetMapper(cfg, is_train=False))
evaluator = COCOEvaluator("boxes_and_triangles", ("bbox", "segm"), False, output_dir=f"{OUTPUT}/truth")
results = inference_on_dataset(Truth(), loader, evaluator)
report["truth"] = {task: {m: scores[m] for m in ("AP", "AP-box", "AP-triangle")} for task, scores in results.items()}

# ---- checkpoint and prediction

checkpointer = DetectionCheckpointer(trainer.model, save_dir=OUTPUT)
checkpointer.save("again", note="hello")
report["note"] = DetectionCheckpointer(model).load(f"{OUTPUT}/again.pth")["note"]
report["last"] = checkpointer.get_checkpoint_file() == f"{OUTPUT}/again.pth"
cfg = cfg.clone()
cfg.defrost()
cfg.MODEL.WEIGHTS = f"{OUTPUT}/run/model_final.pth"
cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
image = cv2.imread(f"{OUTPUT}/1.png")
instances = DefaultPredictor(cfg)(cv2.resize(image, (WIDTH * 2, HEIGHT * 2)))["instances"].to("cpu")
report["prediction"] = {
    "size": list(instances.image_size),
    "fields": sorted(instances.get_fields()),
    "masks": [str(instances.pred_masks.dtype), *instances.pred_masks.shape],
    "scores": instances.scores.tolist(),
    "classes": instances.pred_classes.tolist(),
    "boxes": instances.pred_boxes.tensor.tolist(),
    "mask pixels": instances.pred_masks.flatten(1).sum(1).tolist(),
}
metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
picture = Visualizer(image[:, :, ::-1], metadata, scale=2.0, instance_mode=ColorMode.SEGMENTATION)
truth = DatasetCatalog.get("boxes_and_triangles")[1]
drawn = picture.draw_dataset_dict(truth).get_image()
report["picture"] = [str(drawn.dtype), *drawn.shape]
big = Visualizer(cv2.resize(image, (WIDTH * 2, HEIGHT * 2)), metadata)
big.draw_instance_predictions(instances[instances.scores > 0]).save(f"{OUTPUT}/prediction.png")
report["saved picture"] = cv2.imread(f"{OUTPUT}/prediction.png").shape

# ---- structures and events

boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 25], [-4, 2, 3, 80]]))
other = boxes.clone()
other.clip((20, 12))
other.scale(2, 0.5)
masks = BitMasks(torch.zeros(3, 20, 30, dtype=torch.bool))
masks.tensor[0, 2:8, 3:9] = True
masks.tensor[2, 10:, 20:] = True
some = Instances((20, 30), gt_boxes=boxes, gt_masks=masks, gt_classes=torch.tensor([4, 5, 6]))
both = Instances.cat([some[torch.tensor([True, False, True])], some[1:2]])
some.tags = ["a", "b", "c"]
both.remove("gt_boxes")
images = ImageList.from_tensors([torch.ones(3, 10, 12), torch.ones(3, 9, 17)], size_divisibility=8, pad_value=0.5)
report["structures"] = {
    "area": boxes.area().tolist(),
    "clipped": other.tensor.tolist(),
    "centres": boxes.get_centers().tolist(),
    "inside": boxes.inside_box((12, 12), boundary_threshold=3).tolist(),
    "iou": pairwise_iou(boxes, other).tolist(),
    "nonempty": [boxes.nonempty(threshold=8).tolist(), masks.nonempty().tolist()],
    "around": masks.get_bounding_boxes().tensor.tolist(),
    "cropped": masks.crop_and_resize(boxes.tensor, 4).long().sum((1, 2)).tolist(),
    "joined": [len(both), both.has("gt_boxes"), both.gt_classes.tolist(), both.gt_masks.tensor.sum((1, 2)).tolist()],
    "item": [len(some[-1]), some[-1].gt_boxes.tensor.tolist(), Instances.cat([some[1:], some[:1]]).tags],
    "images": [images.tensor.shape, images.image_sizes[1], images[0].shape, images.tensor[0, 0, -1, 0].item()],
    "modes": BoxMode.convert([1.0, 2.0, 3.0, 4.0], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS),
}
with EventStorage(10) as storage:
    for value in (4.0, 2.0, 9.0):
        storage.put_scalar("a", value)
        with storage.name_scope("inner"):
            storage.put_scalars(b=value + 1, c=torch.tensor(value).item(), smoothing_hint=False)
        storage.step()
    report["events"] = {
        "latest": {k: list(v) for k, v in storage.latest().items()},
        "smooth": {k: list(v) for k, v in storage.latest_with_smoothing_hint(3).items()},
        "history": [storage.history("a").avg(2), storage.history("a").median(3), storage.history("a").values()],
        "iter": [storage.iter, get_event_storage() is storage],
    }

with open(f"{OUTPUT}/report.json", "w") as f:
    json.dump(report, f)
'''


def leaves(value, path=""):
    """Path and value of each leaf of nested dictionaries and lists."""
    if not isinstance(value, (dict, list)):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {leaf: v for key, child in items for leaf, v in leaves(child, f"{path}/{key}").items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory, root):
    """A function that returns what the program reports on a framework."""

    @cache
    def run(framework: str) -> dict:
        package = {"detectron2": "detectron2", "embedded": "projects_maskrcnn.embedded"}[framework]
        if not is_installed(package):
            pytest.skip(f"{package} is not installed")
        folder = tmp_path_factory.mktemp(framework)
        (folder / "program.py").write_text(PROGRAM.replace("from detectron2", f"from {package}"))
        environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MASKRCNN_FRAMEWORK": framework}
        command = [sys.executable, str(folder / "program.py"), str(folder)]
        result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]
        return json.loads((folder / "report.json").read_text())

    return run


@pytest.fixture(scope="module", params=["detectron2", "embedded"])
def report(request, run):
    """What the program reports on a framework."""
    return run(request.param)


@pytest.fixture(scope="module")
def kept() -> dict:
    """What it reported on Detectron2 once."""
    return json.loads(Path(__file__).with_name("like_detectron2.json").read_text())


def check(found: dict, expected: dict) -> None:
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    assert found == {path: pytest.approx(v, rel=1e-3) if isinstance(v, float) else v for path, v in expected.items()}


def test_detectron2_reports_what_is_kept(run, kept, after_release_06):
    check(run("detectron2"), kept)


def test_embedded_reports_what_detectron2_reports(run, kept):
    # Where Detectron2 is installed, it has the last word: NumPy's and OpenCV's releases of 2022 round otherwise.
    check(run("embedded"), run("detectron2") if is_installed("detectron2") else kept)


def test_the_truth_but_for_one_triangle_of_three(report):
    precision_1_up_to_recall_2_of_3 = 100 * 67 / 101  # of COCO's recalls 0, 0.01, ..., 1
    expected = {"AP-box": 100, "AP-triangle": precision_1_up_to_recall_2_of_3}
    expected["AP"] = sum(expected.values()) / 2
    assert report["truth"] == {"bbox": pytest.approx(expected), "segm": pytest.approx(expected)}


def test_a_hook_sees_all_losses_of_a_step(report):
    scalars, last = report["scalars"], report["total_loss"][-1]
    losses = ("loss_cls", "loss_box_reg", "loss_dice", "loss_rpn_cls", "loss_rpn_loc")
    assert sum(scalars[name] for name in losses) == pytest.approx(last)
    assert scalars["recorder/loss_of_an_image"] == pytest.approx(last / 2)
