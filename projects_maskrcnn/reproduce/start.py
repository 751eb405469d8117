"""The weights that small models start from: a backbone that has learned to tell the objects of the training images.

The paper's models start from a classifier of ImageNet. Here the objects, and as many pieces of background, are cut
out of the training images and classified, which takes a minute or two. It involves no RoI layer and no head, so that it
favours no row.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import add_maskrcnn_config
from ..framework import BoxMode, DatasetCatalog, MetadataCatalog, ShapeSpec, get_cfg
from ..modeling.resnet import build_maskrcnn_resnet_backbone
from ..weights import write_weights
from .rows import SMALL

SIDE = 64
"""Pixels of a crop."""

CONTEXT = 1.25
"""Side of a crop over the longer side of its object."""

MOST_OBJECTS = 10_000
ITERATIONS, BATCH, LEARNING_RATE = 800, 64, 0.1


def crops(data: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(N, 3, SIDE, SIDE) uint8, BGR, and (N,) int64 classes of objects of `data`_train; one more is background."""
    records = DatasetCatalog.get(f"{data}_train")
    background = len(MetadataCatalog.get(f"{data}_train").thing_classes)
    images, classes = [], []
    for record in records:
        objects = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        image = cv2.imread(record["file_name"]) if objects else None
        if image is None:  # empty or damaged
            continue
        boxes = np.array([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects])
        centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(1)
        elsewhere = rng.uniform((0, 0), image.shape[1::-1], centres.shape)
        free = np.abs(elsewhere[:, None] - centres).max(2) > (sides[:, None] + sides) / 2  # of every object
        labels = [a["category_id"] for a in objects]
        for centre, side, label in zip(centres, sides, labels, strict=True):
            images.append(_crop(image, centre, side * CONTEXT))
            classes.append(label)
        for centre, side in zip(elsewhere[free.all(1)], sides[free.all(1)], strict=True):
            images.append(_crop(image, centre, side * CONTEXT))
            classes.append(background)
        if len(images) > MOST_OBJECTS:
            break
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(classes)


def _crop(image: np.ndarray, centre: np.ndarray, side: float) -> np.ndarray:
    scale = SIDE / max(side, 1.0)
    shift = SIDE / 2 - centre * scale
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return cv2.warpAffine(image, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)


def starting_weights(file: Path, data: str, depth: int, device: str) -> None:
    """Train a ResNet of `depth` on the crops of a dataset, and write it to `file`, unless that is there.

    Its parameters' names are those of ImageNet's models, so that all bodies take what they have of it.
    """
    if file.is_file():
        return
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.merge_from_file(str(SMALL / "Base.yaml"))
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    backbone = build_maskrcnn_resnet_backbone(cfg, ShapeSpec(channels=3)).to(device)
    images, classes = crops(data, rng)
    classifier = nn.Linear(backbone.output_shape()["res5"].channels, int(classes.max()) + 1).to(device)
    parameters = [*backbone.parameters(), *classifier.parameters()]
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=ITERATIONS)
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN, device=device).view(3, 1, 1)
    for _ in range(ITERATIONS):
        chosen = torch.from_numpy(rng.integers(len(images), size=BATCH))
        batch = images[chosen].to(device) - mean
        batch = batch.flip([axis for axis in (2, 3) if rng.random() < 0.5])
        scores = classifier(backbone(batch)["res5"].mean(dim=(2, 3)))
        loss = F.cross_entropy(scores, classes[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    write_weights(file, backbone.cpu().state_dict(), by_ending=True)
