"""The recall of proposals, against cases worked out by hand."""

import numpy as np
import pytest
import torch

from projects_maskrcnn.embedded.evaluation import COCOEvaluator
from projects_maskrcnn.embedded.structures import Boxes, Instances

DATA = {
    "images": [{"id": 4, "width": 100, "height": 100}, {"id": 5, "width": 100, "height": 100}],
    "categories": [{"id": 9, "name": "b"}, {"id": 7, "name": "a"}],
}


def proposals(boxes, logits):
    return Instances(
        (400, 400),
        proposal_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
        objectness_logits=torch.tensor(logits, dtype=torch.float32),
    )


def test_proposal_recall_by_hand(register, tmp_path):
    """Small: one box at IoU 0.8, over 7 of 10 thresholds. Large: one exact; one whose proposal is not among
    the best 100, where it is missed, since the other's proposal is taken. Crowds do not count."""
    data = {
        **DATA,
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 7, "bbox": [0, 0, 20, 20]},
            {"id": 2, "image_id": 4, "category_id": 9, "bbox": [100, 100, 100, 100]},
            {"id": 3, "image_id": 4, "category_id": 9, "bbox": [100, 100, 100, 150]},
            {"id": 4, "image_id": 4, "category_id": 9, "bbox": [0, 300, 50, 50], "iscrowd": 1, "area": 2500},
            {"id": 5, "image_id": 5, "category_id": 9, "bbox": [0, 300, 50, 50]},
        ],
    }
    far = [[300, 0, 310, 10]] * 99
    boxes = [[0, 0, 20, 16], *far, [100, 100, 200, 200], [100, 100, 200, 250]]
    logits = [1.0, *[3.0] * 99, 2.0, 0.0]
    name = register(data)
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path))
    evaluator.process([{"image_id": 4}], [{"proposals": proposals(boxes, logits)}])
    results = evaluator.evaluate()
    assert list(results) == ["box_proposals"]
    expected = {
        "AR@100": 100 / 3,
        "ARs@100": 0,
        "ARm@100": np.nan,  # the image with the medium box has no proposals, and is left out
        "ARl@100": 50,
        "AR@1000": 100 * (0.7 + 1 + 1) / 3,
        "ARs@1000": 70,
        "ARm@1000": np.nan,
        "ARl@1000": 100,
    }
    assert list(results["box_proposals"]) == list(expected)
    assert results["box_proposals"] == pytest.approx(expected, nan_ok=True)
    assert (tmp_path / "box_proposals.pkl").is_file()


def test_the_size_of_an_object_is_its_annotations_area(register):
    """Of 1600 square pixels its mask has 900: small, though its box is of medium size."""
    annotation = {"id": 1, "image_id": 4, "category_id": 7, "bbox": [0, 0, 40, 40], "area": 900}
    evaluator = COCOEvaluator(register({**DATA, "annotations": [annotation]}))
    evaluator.process([{"image_id": 4}], [{"proposals": proposals([[0, 0, 40, 40]], [1.0])}])
    results = evaluator.evaluate()["box_proposals"]
    assert results["ARs@100"] == 100 and np.isnan(results["ARm@100"])
