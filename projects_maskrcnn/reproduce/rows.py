"""The rows of the paper's tables, from `configs/paper`, and the small models that stand for them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..config import add_maskrcnn_config
from ..framework import CfgNode, DatasetCatalog, get_cfg

ROOT = Path(__file__).resolve().parents[2]
"""Of the clone: configs and `train_net.py` are not in an installed package."""

SMALL = ROOT / "configs/quick/paper"
"""`Base.yaml`, and what is merged after it for a body and for a dataset."""

BODIES = {"res4": "C4", "res5": "C5", "p2": "FPN"}
"""The files of `SMALL` by the first feature map that RoIs are pooled from."""

SMALL_DEPTHS = {50: 18, 101: 34}
PERSONS = "shapes_keypoints"
METRICS = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        table: such as "2c".
        path: of its config; the file's name is the row's.
    """

    table: str
    path: Path

    @property
    def name(self) -> str:
        """Among its table's."""
        return self.path.stem

    @property
    def id(self) -> str:
        """Among all tables'."""
        return f"{self.table}/{self.name}"

    @cached_property
    def cfg(self) -> CfgNode:
        """Its config at full scale."""
        cfg = get_cfg()
        add_maskrcnn_config(cfg)
        cfg.merge_from_file(str(self.path))
        return cfg

    def published(self) -> dict[str, float]:
        """The paper's figures by "task/metric"."""
        return {metric: figure for source, metric, figure in self.cfg.TEST.REFERENCE if source.startswith("paper")}

    def body(self) -> str | None:
        """The file of `SMALL` that fits it, or None where it has no small counterpart."""
        if self.cfg.MODEL.RESNETS.NUM_GROUPS > 1:
            return None
        return BODIES.get(self.cfg.MODEL.ROI_HEADS.IN_FEATURES[0])

    def small_depth(self) -> int:
        """Of the ResNet that stands for its own."""
        return SMALL_DEPTHS[self.cfg.MODEL.RESNETS.DEPTH]

    def small_config(self, data: str, device: str, iterations: int, seed: int, weights: str = "") -> dict:
        """The content of a YAML file: this row, its body made small, on another dataset.

        What makes the row (its heads, RoI layers, losses) is its own; what the small files set is common to all.
        """
        bases = [self.path, SMALL / "Base.yaml", SMALL / f"{self.body()}.yaml", SMALL / "data" / f"{data}.yaml"]
        return {
            "_BASE_": [str(base) for base in bases if base.is_file()],
            "MODEL": {"DEVICE": device, "WEIGHTS": weights, "RESNETS": {"DEPTH": self.small_depth()}},
            "DATASETS": {"TRAIN": [f"{data}_train"], "TEST": [f"{data}_val"]},
            "SOLVER": {"MAX_ITER": iterations, "CHECKPOINT_PERIOD": max(iterations // 4, 1)},
            "SEED": seed,
        }


def tables() -> dict[str, Path]:
    """The folders of the Mask R-CNN paper's tables, by the table's number."""
    return {path.name.split("_")[1]: path for path in sorted((ROOT / "configs/paper").glob("table_*"))}


def rows_of(table: str) -> list[Row]:
    """The rows of a table, in the order of the paper's first figure."""
    rows = [Row(table, path) for path in sorted(tables()[table].glob("*.yaml"))]
    return sorted(rows, key=lambda row: next(iter(row.published().values()), 0.0))


def default_data(table: str) -> str:
    """`shapes`, or those of its scenes that have persons."""
    persons = any(row.cfg.DATASETS.TRAIN[0].startswith("keypoints") for row in rows_of(table))
    return PERSONS if persons else "shapes"


def known_data() -> list[str]:
    """X for all registered datasets X_train and X_val."""
    names = set(DatasetCatalog.list())
    return sorted(n.removesuffix("_train") for n in names if n.endswith("_train") and f"{n[:-6]}_val" in names)
