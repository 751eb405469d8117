"""Small data, and the command lines that train on it."""

import json
from functools import partial

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api

from projects_maskrcnn.data import shapes
from projects_maskrcnn.framework import DatasetCatalog, MetadataCatalog, load_coco_json

NARROW = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.FPN.NORM": "BN",
    "SOLVER.BASE_LR": 1e-4,
}


def read_metrics(folder) -> dict[str, float]:
    """The last value of each metric of a run."""
    lines = (folder / "metrics.json").read_text().splitlines()
    return {name: value for line in lines for name, value in json.loads(line).items()}


def with_classes_of_pixels(name, scenes, split) -> list[dict]:
    """The dataset of a split, where a PNG beside each image has the class of each pixel, 0 for the ground."""
    json_file = scenes / f"annotations/instances_{split}.json"
    records = load_coco_json(str(json_file), str(scenes / "images" / split), name)
    for record in records:
        classes = np.zeros((record["height"], record["width"]), dtype=np.uint8)
        for item in record["annotations"]:
            classes[mask_api.decode(item["segmentation"]) > 0] = item["category_id"] + 1
        record["sem_seg_file_name"] = record["file_name"].replace(".png", "_classes.png")
        cv2.imwrite(record["sem_seg_file_name"], classes)
    return records


@pytest.fixture(scope="session")
def registered(scenes) -> dict[str, str]:
    """The names, by split, under which the same scenes are registered with the framework."""
    names = {"train": "tiny_scenes_train", "val": "tiny_scenes_val"}
    for split, name in names.items():
        DatasetCatalog.register(name, partial(with_classes_of_pixels, name, scenes, split))
        json_file = scenes / f"annotations/instances_{split}.json"
        MetadataCatalog.get(name).set(
            thing_classes=list(shapes.CLASSES), json_file=str(json_file), evaluator_type="coco"
        )
    return names


@pytest.fixture
def run(train_net, tiny, scenes, tmp_path, monkeypatch):
    """A function that trains two steps and evaluates by `train_net.py`; returns the model and the last metrics."""
    monkeypatch.setattr(train_net, "default_setup", lambda *_: None)  # its log files
    models = []
    build_model = train_net.Trainer.build_model
    monkeypatch.setattr(
        train_net.Trainer, "build_model", classmethod(lambda _, cfg: models.append(build_model(cfg)) or models[-1])
    )

    def run(config, *arguments, kind="instances", **values):
        options = {**tiny, **NARROW, "OUTPUT_DIR": tmp_path}
        if "DATASETS.TRAIN" not in values:
            for split, name in (("TRAIN", "train"), ("TEST", "val")):
                options[f"DATASETS.{split}_JSON"] = scenes / f"annotations/{kind}_{name}.json"
                options[f"DATASETS.{split}_IMAGES"] = scenes / "images" / name
        options = [str(item) for pair in (options | values).items() for item in pair]
        arguments = train_net.argument_parser().parse_args(["--config-file", str(config), *arguments, *options])
        train_net.main(arguments)
        return models[0], read_metrics(tmp_path)

    return run
