"""Rewrites a weights file for Detectron2.

python -m projects_maskrcnn.convert SRC DST

SRC is a path or a URL (also detectron2://) of any file that MODEL.WEIGHTS may name: Detectron2's .pkl and .pth,
Caffe2's .pkl, torchvision's .pth, .safetensors. DST is a .pth, which Detectron2 itself loads, or a .safetensors file.
Weights alone are written, not the state of a training.
"""

import argparse
from pathlib import Path

from torch import Tensor

from .framework import PathManager, setup_logger
from .weights import rewrite_weights


def convert(source: str, destination: str | Path) -> dict[str, Tensor]:
    """Writes the weights of `source`, under Detectron2's names, to `destination`, and returns them.

    Raises: as `rewrite_weights`.
    """
    return rewrite_weights(source, Path(destination), PathManager)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("destination", metavar="DST")
    args = parser.parse_args()
    setup_logger(name="projects_maskrcnn")
    try:
        weights = convert(args.source, args.destination)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{args.destination}: {len(weights)} tensors, {sum(v.numel() for v in weights.values()) / 1e6:.1f} M values")


if __name__ == "__main__":
    main()
