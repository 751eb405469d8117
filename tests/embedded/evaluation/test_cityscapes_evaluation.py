"""Cityscapes' metric on a case computed by hand, and the error where its scripts are not installed."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from projects_maskrcnn.embedded.data import MetadataCatalog
from projects_maskrcnn.embedded.evaluation import CityscapesInstanceEvaluator
from projects_maskrcnn.embedded.structures import Instances


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation", None)
    with pytest.raises(ImportError, match="pip install cityscapesscripts"):
        CityscapesInstanceEvaluator("cityscapes_any")


@pytest.fixture
def evaluator(tmp_path, request):
    name = request.node.name
    MetadataCatalog.get(name).set(thing_classes=["car", "person"], gt_dir=str(tmp_path / "gtFine/val"))
    try:
        evaluator = CityscapesInstanceEvaluator(name)
    except ImportError as error:
        pytest.skip(str(error))
    evaluator.reset()
    return evaluator


def test_by_hand(evaluator, tmp_path):
    """Two cars (label 26): one found exactly, one not. AP is the area under precision 1 up to recall 0.5."""
    ids = np.zeros((100, 200), dtype=np.uint16)
    ids[10:60, 10:80], ids[10:60, 100:180] = 26000, 26001
    folder = tmp_path / "gtFine/val/town"
    folder.mkdir(parents=True)
    Image.fromarray(ids).save(folder / "town_000000_000001_gtFine_instanceIds.png")
    predicted = Instances(
        (100, 200),
        pred_masks=torch.from_numpy(ids == 26000)[None],
        scores=torch.tensor([0.9]),
        pred_classes=torch.tensor([0]),
    )
    image = {"file_name": "anywhere/town_000000_000001_leftImg8bit.png"}
    evaluator.process([image], [{"instances": predicted}])
    results = evaluator.evaluate()["segm"]
    assert results["AP"] == results["AP50"] == pytest.approx(50, abs=0.5)


def test_missing_ground_truth_is_named(evaluator):
    with pytest.raises(FileNotFoundError, match="gtFine/val"):
        evaluator.evaluate()
