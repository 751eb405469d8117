"""PASCAL VOC's AP, against values worked out by hand."""

import numpy as np
import pytest
import torch

from projects_maskrcnn.embedded.data import DatasetCatalog, MetadataCatalog
from projects_maskrcnn.embedded.data.datasets import register_pascal_voc
from projects_maskrcnn.embedded.evaluation import PascalVOCDetectionEvaluator
from projects_maskrcnn.embedded.evaluation.pascal_voc_evaluation import average_precision, recall_and_precision
from projects_maskrcnn.embedded.structures import Boxes, Instances


def test_average_precision_by_hand():
    # four objects; right, wrong, right: recalls 1/4, 1/4, 2/4 with precisions 1, 1/2, 2/3
    recall, precision = np.array([0.25, 0.25, 0.5]), np.array([1, 0.5, 2 / 3])
    # 11 points: 0, 0.1, 0.2 have 1; 0.3, 0.4, 0.5 have 2/3; the others none
    assert average_precision(recall, precision, True) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    # area: a quarter at 1, a quarter at 2/3
    assert average_precision(recall, precision, False) == pytest.approx(0.25 + 0.25 * 2 / 3)


def test_precision_is_the_best_at_a_higher_recall():
    # wrong, right, right: precisions 0, 1/2, 2/3, all of which count as 2/3
    recall, precision = np.array([0, 0.5, 1.0]), np.array([0, 0.5, 2 / 3])
    for eleven_points in (True, False):
        assert average_precision(recall, precision, eleven_points) == pytest.approx(2 / 3)
    assert average_precision(np.zeros(0), np.zeros(0), True) == 0
    assert average_precision(np.zeros(0), np.zeros(0), False) == 0


def box(*corners):
    return np.array(corners, dtype=float)


def test_what_counts_as_right():
    truth = {
        "a": [{"bbox": [1, 1, 10, 10], "difficult": False}, {"bbox": [21, 1, 30, 10], "difficult": True}],
        "b": [{"bbox": [1, 1, 10, 10], "difficult": False}],
        "c": [],
    }
    detections = [
        ("a", 0.5, box(1, 1, 10, 10)),  # the second on this object: wrong
        ("a", 0.9, box(1, 1, 10, 9)),  # 90 of 100 pixels: right
        ("a", 0.8, box(21, 1, 30, 10)),  # on a difficult object: does not count
        ("c", 0.7, box(1, 1, 10, 10)),  # no object: wrong
        ("b", 0.6, box(1, 1, 10, 5)),  # an overlap of exactly a half is not more than a half: wrong
        ("b", 0.4, box(1, 1, 10, 6)),  # 60 of 100 pixels: right
    ]
    recall, precision = recall_and_precision(detections, truth, 0.5)
    assert recall.tolist() == [0.5, 0.5, 0.5, 0.5, 0.5, 1.0]  # of two objects
    assert precision == pytest.approx([1, 1, 1 / 2, 1 / 3, 1 / 4, 2 / 5])


@pytest.fixture(params=[2007, 2012])
def dataset(request, tmp_path):
    """Two images of 40 x 40 with an object of class 0 each, of 10 x 10 pixels, and one of class 1."""
    for name in ("Annotations", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/test.txt").write_text("a\nb\n")
    cat = "<object><name>cat</name><difficult>0</difficult><bndbox>{}</bndbox></object>"
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>10</ymax>"
    size = "<size><height>40</height><width>40</width></size>"
    both = cat.format(corners) + cat.replace("cat", "dog").format(corners)
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{size}{both}</annotation>")
    (tmp_path / "Annotations/b.xml").write_text(f"<annotation>{size}{cat.format(corners)}</annotation>")
    register_pascal_voc("pets", str(tmp_path), "test", request.param, ("cat", "dog"))
    yield request.param
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")


def found(boxes, scores, classes):
    fields = {"scores": torch.tensor(scores), "pred_classes": torch.tensor(classes, dtype=torch.int64)}
    boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return {"instances": Instances((40, 40), pred_boxes=boxes, **fields)}


def test_evaluator(dataset):
    evaluator = PascalVOCDetectionEvaluator("pets")
    evaluator.reset()
    # the whole object; eight tenths of it, and its dog is missed; no detection in the second image but a wrong one
    outputs = [found([[0, 0, 10, 8], [20, 20, 30, 30]], [0.9, 0.95], [0, 1]), found([[0, 0, 10, 10]], [0.8], [0])]
    evaluator.process([{"image_id": "a"}, {"image_id": "b"}], outputs)
    results = evaluator.evaluate()["bbox"]
    # cats: at an overlap below 0.8 both are right; from 0.8 on the first is wrong, and the second right: recall 1/2 at
    # a precision of 1/2, which is 6 of 11 points, or half of the area
    half = 6 / 11 * 0.5 if dataset == 2007 else 0.25
    cats = [1.0] * 6 + [half] * 4  # 0.5, 0.55, ..., 0.95
    assert results["AP50"] == pytest.approx(100 * (1 + 0) / 2)
    assert results["AP75"] == pytest.approx(100 * (1 + 0) / 2)
    assert results["AP"] == pytest.approx(100 * (sum(cats) / 10 + 0) / 2)


def test_scores_and_boxes_are_rounded_as_in_the_development_kits_files(dataset):
    evaluator = PascalVOCDetectionEvaluator("pets")
    # both scores are 0.900 there, so that the wrong one, which comes first, stays first: precisions 0, 1/2
    evaluator.process([{"image_id": "a"}], [found([[20, 20, 30, 30], [0, 0, 10, 10]], [0.9001, 0.9004], [0, 0])])
    cats = 6 / 11 * 0.5 if dataset == 2007 else 0.25
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100 * cats / 2)
    evaluator.reset()
    # a box that ends at 5.04 ends at 5.0 there: half of the object, which is not enough
    evaluator.process([{"image_id": "a"}], [found([[0, 0, 10, 5.04]], [0.9], [0])])
    assert evaluator.evaluate()["bbox"]["AP50"] == 0


def test_no_detections(dataset):
    evaluator = PascalVOCDetectionEvaluator("pets")
    assert evaluator.evaluate() == {"bbox": {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}}
