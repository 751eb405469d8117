"""What each row of `configs/paper` takes and gives at full scale: the text of docs/reproduction/README.md.

python -m projects_maskrcnn.reproduce.full_scale > docs/reproduction/README.md
"""

from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from .rows import BODIES, ROOT, Row

SECONDS = {
    ("C4", 50, False): 0.584,
    ("C5", 50, False): 0.471,
    ("FPN", 50, False): 0.261,
    ("C4", 101, False): 0.652,
    ("FPN", 101, False): 0.340,
    ("FPN", 50, True): 0.315,
}
"""Detectron2's model zoo, 8 V100: seconds an iteration of 16 images, by body, depth, and whether keypoints are on."""

SHOWN = ("bbox/AP", "bbox/AP50", "segm/AP", "keypoints/AP", "bbox_TTA/AP", "segm_TTA/AP", "keypoints_TTA/AP")

HEAD = """\
# The paper's tables

## On one's own machine

    python -m projects_maskrcnn.reproduce 2c --budget 5 --seeds 3

trains small models of a table's rows for equally many iterations, of 5 minutes in the slowest row, and reports which of
the paper's effects show. Tables 2a to 2e and 3 to 6 can be run so, on any registered dataset (`--data`); `table_*.md`
here are reports of such runs.

## At full scale

For each row of `configs/paper` the command for 8 GPUs, what was published, and what it costs. Append
`--eval-only MODEL.WEIGHTS model_final.pth` to evaluate alone. The published figures are printed beside the measured
ones. Hours are those of 8 V100 at the speed of Detectron2's model zoo for the same body (C4's is that of 512 RoIs an
image, not the paper's 64: an upper bound), and `-` where the zoo has no such model.
"""


def hours(row: Row) -> float | None:
    """Of training at the zoo's speed, or None where it is not known."""
    model = row.cfg.MODEL
    # No speed is published for VGG, ResNeXt 64x4d, or one image a GPU.
    if (
        model.RESNETS.NUM_GROUPS > 1
        or row.cfg.SOLVER.IMS_PER_BATCH != 16
        or model.META_ARCHITECTURE != "GeneralizedRCNN"
    ):
        return None
    key = (BODIES.get(model.ROI_HEADS.IN_FEATURES[0]), model.RESNETS.DEPTH, model.KEYPOINT_ON)
    seconds = SECONDS.get(key)
    return None if seconds is None else seconds * row.cfg.SOLVER.MAX_ITER / 3600


def _line(row: Row) -> list[str]:
    command = f"`python train_net.py --num-gpus 8 --config-file {row.path.relative_to(ROOT)}`"
    published = [
        f"{source}: {metric} {figure:g}" for source, metric, figure in row.cfg.TEST.REFERENCE if metric in SHOWN
    ]
    solver = row.cfg.SOLVER
    cost = hours(row)
    return [
        command,
        "<br>".join(published) or "-",
        f"{solver.MAX_ITER // 1000}k x {solver.IMS_PER_BATCH}",
        "-" if cost is None else f"{cost:.0f}",
    ]


def folders() -> Iterator[Path]:
    """Those of `configs/paper` that hold rows."""
    rows = {path.parent for path in (ROOT / "configs/paper").rglob("*.yaml") if not path.name.startswith("Base-")}
    return iter(sorted(rows))


def page() -> str:
    """The whole page, as Markdown."""
    parts = [HEAD]
    for folder in folders():
        rows = [Row(folder.name, path) for path in sorted(folder.glob("*.yaml"))]
        headers = ["command", "published", "iterations x images", "hours"]
        table = tabulate([_line(row) for row in rows], headers, tablefmt="pipe", disable_numparse=True)
        parts.append(f"### {folder.relative_to(ROOT / 'configs/paper')}\n\n{table}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
