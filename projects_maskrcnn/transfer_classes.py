"""Weights for other classes: the heads keep what they know of the classes that two datasets share.

python -m projects_maskrcnn.transfer_classes SRC DST \\
    --source coco_2017_train --target cityscapes_fine_instance_seg_train

SRC is a path or a URL of weights for the classes of `--source`; DST, a .pth or .safetensors file, gets weights for
those of `--target`. Each is the name of a registered dataset, or a COCO JSON. Classes are the same that have the same
name. The others start at random, as the heads of a new model do; of Cityscapes that is `rider` (paper, appendix A).
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .data.datasets import json_classes, thing_classes
from .framework import PathManager
from .weights import rewrite_weights

SYNONYMS = {  # PASCAL VOC's names -> COCO's
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}

INITIAL_STD = {"box_predictor.cls_score": 0.01, "box_predictor.bbox_pred": 0.001, "mask_head.predictor": 0.001}
"""The layers with rows for each class, and the deviation of their weights in a new model."""


def transfer_classes(weights: dict[str, Tensor], source: Sequence[str], target: Sequence[str]) -> dict[str, Tensor]:
    """Weights for the classes `target` from those for the classes `source`, by Detectron2's names.

    Class-agnostic layers, and all others, are left as they are.

    Raises:
        ValueError: the weights are of another number of classes than `source`.
    """
    known = {SYNONYMS.get(name, name): row for row, name in enumerate(source)}
    rows = [known.get(SYNONYMS.get(name, name)) for name in target]
    result = dict(weights)
    for layer, std in INITIAL_STD.items():
        for name in (n for n in weights if n.rpartition(".")[0].endswith(layer)):
            value = weights[name]
            per_class = 4 if layer.endswith("bbox_pred") else 1
            if len(value) == per_class and len(source) > 1:  # class-agnostic
                continue
            background = int(layer.endswith("cls_score"))  # a row of it comes last
            if len(value) != per_class * len(source) + background:
                raise ValueError(
                    f"{name} has {len(value)} rows, which is not the number for {len(source)} classes: "
                    "are the weights of another dataset than --source?"
                )
            old = value[: len(value) - background].unflatten(0, (-1, per_class))
            new = torch.zeros(len(target), *old.shape[1:])
            if name.endswith("weight"):
                torch.nn.init.normal_(new, std=std)
            for number, row in enumerate(rows):
                if row is not None:
                    new[number] = old[row]
            result[name] = torch.cat([new.flatten(0, 1), value[len(value) - background :]])
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="SRC")
    parser.add_argument("output", metavar="DST", type=Path)
    parser.add_argument("--source", required=True, help="dataset of the weights' classes")
    parser.add_argument("--target", required=True, help="dataset of the classes wanted")
    args = parser.parse_args()
    try:
        source, target = (
            (json_classes if dataset.endswith(".json") else thing_classes)(dataset)
            for dataset in (args.source, args.target)
        )
        change = partial(transfer_classes, source=source, target=target)
        rewrite_weights(args.weights, args.output, PathManager, change)
    except KeyError as error:  # whose text would be in quotes
        parser.exit(1, f"{error.args[0]}\n")
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    shared = {SYNONYMS.get(n, n) for n in source} & {SYNONYMS.get(n, n) for n in target}
    print(f"{args.output}: {len(shared)} of {len(target)} classes are known: {', '.join(sorted(shared))}")


if __name__ == "__main__":
    main()
