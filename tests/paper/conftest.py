"""The paper's configs, and small data of every kind that they ask for."""

import re
from pathlib import Path

import pytest

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.data import shapes
from projects_maskrcnn.framework import (
    DatasetCatalog,
    MetadataCatalog,
    get_cfg,
    load_coco_json,
    register_pascal_voc,
)

FOR_PAPER = {
    "MODEL.RPN.BOUNDARY_THRESH": -1,  # all anchors cross the border of so small an image
    "MODEL.ROI_MASK_HEAD.FC_DIM": 16,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.BASE_LR": 1e-5,
    "TEST.AUG.MIN_SIZES": (48, 64),
}
RESNET_18 = {  # its block has no groups, and its stem is as wide as res2
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.NUM_GROUPS": 1,
}


@pytest.fixture(scope="session")
def load():
    """A function from a YAML file to its config."""

    def load(path):
        cfg = get_cfg()
        add_maskrcnn_config(cfg)
        cfg.merge_from_file(str(path))
        return cfg

    return load


@pytest.fixture(scope="session")
def voc(scenes) -> Path:
    """The same scenes as PASCAL VOC has its own, with the splits `train` and `val`."""
    folder = scenes.parent / "VOC"
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    (folder / "JPEGImages").mkdir()
    for split in ("train", "val"):
        names = []
        json_file = str(scenes / f"annotations/instances_{split}.json")
        for record in load_coco_json(json_file, str(scenes / "images" / split)):
            name = f"{split}_{record['image_id']}"
            names.append(name)
            (folder / "JPEGImages" / f"{name}.jpg").write_bytes(Path(record["file_name"]).read_bytes())
            size = f"<size><width>{record['width']}</width><height>{record['height']}</height><depth>3</depth></size>"
            objects = ""
            for item in record["annotations"]:
                x, y, w, h = (int(v) for v in item["bbox"])
                corners = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
                box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
                objects += (
                    f"<object><name>{shapes.CLASSES[item['category_id'] - 1]}</name><pose>Unspecified</pose>"
                    f"<truncated>0</truncated><difficult>0</difficult><bndbox>{box}</bndbox></object>"
                )
            path = folder / "Annotations" / f"{name}.xml"
            path.write_text(f"<annotation>{size}{objects}</annotation>")
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
    return folder


@pytest.fixture
def run(train_net, tiny, load, scenes, voc, tmp_path, monkeypatch):
    """A function that runs the command line on small data, with a config and further values of it."""
    monkeypatch.setattr(train_net, "default_setup", lambda *_: None)  # its log files
    for split in ("train", "val"):
        if f"tiny_voc_{split}" not in DatasetCatalog.list():
            register_pascal_voc(f"tiny_voc_{split}", str(voc), split, 2007, shapes.CLASSES)
            MetadataCatalog.get(f"tiny_voc_{split}").evaluator_type = "pascal_voc"

    def run(path, *arguments, **values):
        cfg = load(path)
        options = {**tiny, **FOR_PAPER}
        if re.search("anchors|lambda|coco/", str(path)):  # each step is tested by the rows that are about steps
            options["MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS"] = 0
        if "vgg" not in cfg.MODEL.BACKBONE.NAME:
            options |= RESNET_18
        if "voc" in cfg.DATASETS.TRAIN[0]:
            options |= {"DATASETS.TRAIN": ("tiny_voc_train",), "DATASETS.TEST": ("tiny_voc_val",)}
        else:
            kind = "keypoints" if "keypoints" in cfg.DATASETS.TRAIN[0] else "instances"
            for split, name in (("TRAIN", "train"), ("TEST", "val")):
                options[f"DATASETS.{split}_JSON"] = str(scenes / f"annotations/{kind}_{name}.json")
                options[f"DATASETS.{split}_IMAGES"] = str(scenes / "images" / name)
        options["MODEL.ROI_HEADS.NUM_CLASSES"] = 1 if "keypoints" in cfg.DATASETS.TRAIN[0] else len(shapes.CLASSES)
        options |= {"OUTPUT_DIR": str(tmp_path), **values}
        options = [str(item) for pair in options.items() for item in pair]
        return train_net.main(
            train_net.argument_parser().parse_args(["--config-file", str(path), *arguments, *options])
        )

    return run
