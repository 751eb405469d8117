"""One weights file, two models: Detectron2's and ours, on either framework, detect the same, both ways."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
MODELS = {
    "R50-FPN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "R50-C4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "R50-DC5": "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
    "X101-FPN": "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("detectron2") is None or find_spec("detectron2").origin is None,
        reason="compares with Detectron2, which is not installed",
    ),
]


@pytest.fixture(scope="module")
def detect(tmp_path_factory, root):
    """A function that runs `detect.py`: Detectron2's model, or ours on a framework; gives its weights and output."""

    def run(config, framework=None, weights=None):
        folder = tmp_path_factory.mktemp("model")
        command = [sys.executable, HERE / "detect.py", "ours" if framework else "detectron2", config, folder]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "2"}
        environment |= {"MASKRCNN_FRAMEWORK": framework} if framework else {}
        command += [weights] if weights else []
        result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return folder / "weights.pth", torch.load(folder / "output.pt", weights_only=True)

    return run


@pytest.fixture(scope="module", params=MODELS)
def theirs(request, detect):
    """A config's path, weights that Detectron2 saved, and what its model detects with them."""
    return MODELS[request.param], *detect(MODELS[request.param])


def assert_same(expected, found):
    for theirs, ours in zip(expected["found"], found["found"], strict=True):
        assert len(theirs["scores"]) >= 5 and theirs.keys() == ours.keys()
        assert torch.equal(theirs["pred_classes"], ours["pred_classes"])
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours["pred_boxes"], theirs["pred_boxes"], rtol=0, atol=2e-2)
        if "pred_masks" in theirs:
            differ = (ours["pred_masks"] != theirs["pred_masks"]).flatten(1).sum(1)
            assert theirs["pred_masks"].any() and differ.max() <= 10  # pixels at the threshold
        if "pred_keypoints" in theirs:
            points, scores = theirs["pred_keypoints"].split([2, 1], dim=2)
            torch.testing.assert_close(ours["pred_keypoints"][..., :2], points, rtol=0, atol=2e-2)
            torch.testing.assert_close(ours["pred_keypoints"][..., 2:], scores, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("framework", ["detectron2", "embedded"])
def test_detections_are_the_same_both_ways(theirs, framework, detect):
    config, weights, expected = theirs
    saved_by_us, ours = detect(config, framework, weights)
    assert ours["said"] == []
    assert_same(expected, ours)

    _, again = detect(config, weights=saved_by_us)
    assert again["said"] == []
    assert_same(expected, again)
