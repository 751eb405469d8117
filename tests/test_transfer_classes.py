"""Weights for other classes."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from projects_maskrcnn.transfer_classes import transfer_classes

SOURCE, TARGET = ["person", "car", "sofa"], ["rider", "couch", "person"]


ROWS = {"box_predictor.cls_score": 3, "box_predictor.bbox_pred": 8, "mask_head.predictor": 2}
"""Of the layers of a model of two classes."""


def layers(num_classes, agnostic=False):
    boxes, masks = (1, 1) if agnostic else (num_classes, num_classes)
    return {
        "backbone.conv.weight": torch.randn(3, 3),
        "roi_heads.box_predictor.cls_score.weight": torch.randn(num_classes + 1, 5),
        "roi_heads.box_predictor.cls_score.bias": torch.randn(num_classes + 1),
        "roi_heads.box_predictor.bbox_pred.weight": torch.randn(4 * boxes, 5),
        "roi_heads.box_predictor.bbox_pred.bias": torch.randn(4 * boxes),
        "roi_heads.mask_head.predictor.weight": torch.randn(masks, 5, 1, 1),
        "roi_heads.mask_head.predictor.bias": torch.randn(masks),
    }


def test_classes_of_the_same_name_keep_their_rows():
    torch.manual_seed(0)
    old = layers(3)
    new = transfer_classes(old, SOURCE, TARGET)
    assert new.keys() == old.keys() and torch.equal(new["backbone.conv.weight"], old["backbone.conv.weight"])
    for part in ("weight", "bias"):
        scores, old_scores = (w[f"roi_heads.box_predictor.cls_score.{part}"] for w in (new, old))
        assert torch.equal(scores[1:], old_scores[[2, 0, 3]])  # couch, person, background
        boxes, old_boxes = (w[f"roi_heads.box_predictor.bbox_pred.{part}"] for w in (new, old))
        assert torch.equal(boxes[4:], torch.cat([old_boxes[8:12], old_boxes[0:4]]))
        masks, old_masks = (w[f"roi_heads.mask_head.predictor.{part}"] for w in (new, old))
        assert torch.equal(masks[1:], old_masks[[2, 0]])
        assert {len(scores), len(masks)} == {4, 3} and len(boxes) == 12
    # the rider starts as a new head does
    assert 0 < new["roi_heads.box_predictor.cls_score.weight"][0].abs().max() < 0.05
    assert new["roi_heads.box_predictor.cls_score.bias"][0] == 0
    assert not new["roi_heads.box_predictor.bbox_pred.bias"][:4].any()


def test_names_of_voc_are_those_of_coco_either_way():
    old = layers(2)
    for source, target in ((["couch", "tv"], ["tvmonitor", "sofa"]), (["sofa", "tvmonitor"], ["tv", "couch"])):
        new = transfer_classes(old, source, target)
        name = "roi_heads.mask_head.predictor.bias"
        assert torch.equal(new[name], old[name].flip(0))


def test_weights_of_a_single_class():
    old = layers(1)
    new = transfer_classes(old, ["nucleus"], ["cell", "nucleus"])
    name = "roi_heads.box_predictor.bbox_pred.weight"
    assert new[name].shape == (8, 5) and torch.equal(new[name][4:], old[name])


def test_new_classes_start_as_those_of_a_new_model():
    torch.manual_seed(0)
    old = {f"roi_heads.{layer}.weight": torch.ones(rows, 2000) for layer, rows in ROWS.items()}
    new = transfer_classes(old, ["a", "b"], ["b", "c"])
    for layer, deviation in (("cls_score", 0.01), ("bbox_pred", 0.001)):  # Fast R-CNN, section 2.3
        value = new[f"roi_heads.box_predictor.{layer}.weight"]
        unknown = value[1] if layer == "cls_score" else value[4:]
        assert unknown.std().item() == pytest.approx(deviation, rel=0.1)
    assert new["roi_heads.mask_head.predictor.weight"][1].std().item() == pytest.approx(0.001, rel=0.1)


def test_class_agnostic_layers_stay():
    old = layers(3, agnostic=True)
    new = transfer_classes(old, SOURCE, TARGET)
    for name in old:
        assert torch.equal(new[name], old[name]) != ("cls_score" in name)


def test_weights_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="cls_score.weight has 5 rows.*3 classes"):
        transfer_classes(layers(4), SOURCE, TARGET)


def test_an_unknown_dataset_is_named(root, tmp_path):
    command = [sys.executable, "-m", "projects_maskrcnn.transfer_classes", "a.pth", tmp_path / "b.pth"]
    command += ["--source", "coco_2017_trian", "--target", "shapes_train"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 1 and "'coco_2017_trian' is not registered: did you mean coco_2017_" in result.stderr


def test_own_files_name_their_classes(root, tmp_path):
    for name, classes in (("old", ["red", "white", "blue"]), ("new", ["blue", "green"])):
        categories = [{"id": 5 * i, "name": c} for i, c in enumerate(classes, start=1)]
        content = {"images": [], "annotations": [], "categories": categories[::-1]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    old = layers(3)
    torch.save({"model": old}, tmp_path / "old.pth")
    command = [sys.executable, "-m", "projects_maskrcnn.transfer_classes", tmp_path / "old.pth", tmp_path / "new.pth"]
    command += ["--source", tmp_path / "old.json", "--target", tmp_path / "new.json"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert "1 of 2 classes are known: blue" in result.stdout, result.stderr
    name = "roi_heads.box_predictor.cls_score.weight"
    new = torch.load(tmp_path / "new.pth", weights_only=True)["model"]
    assert torch.equal(new[name][0], old[name][2]) and len(new[name]) == 3
    (tmp_path / "old.json").unlink()
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 1 and "No such file" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_command_line(root, tmp_path, suffix):
    torch.manual_seed(0)
    old = layers(80)
    torch.save({"model": old}, tmp_path / "coco.pth")
    new = tmp_path / f"new{suffix}"
    command = [sys.executable, "-m", "projects_maskrcnn.transfer_classes", tmp_path / "coco.pth", new]
    command += ["--source", "coco_2017_train", "--target", "cityscapes_fine_instance_seg_train"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "7 of 8 classes" in result.stdout
    new = load_file(new) if suffix == ".safetensors" else torch.load(new, weights_only=True)["model"]
    # Cityscapes: person, rider, car, truck, bus, train, motorcycle, bicycle; COCO: person 0, bicycle 1, car 2,
    # motorcycle 3, bus 5, train 6, truck 7
    rows = new["roi_heads.mask_head.predictor.weight"]
    old_rows = old["roi_heads.mask_head.predictor.weight"]
    assert len(rows) == 8 and torch.equal(rows[[0, 2, 3, 4, 5, 6, 7]], old_rows[[0, 2, 7, 5, 6, 3, 1]])


def test_ends_of_names_stay_known_as_such(root, tmp_path):
    torch.save({"model": {"stem.conv1.weight": torch.ones(2)}, "matching_heuristics": True}, tmp_path / "part.pth")
    command = [sys.executable, "-m", "projects_maskrcnn.transfer_classes", tmp_path / "part.pth", tmp_path / "new.pth"]
    command += ["--source", "coco_2017_train", "--target", "cityscapes_fine_instance_seg_train"]
    subprocess.run(command, cwd=root, check=True)
    assert torch.load(tmp_path / "new.pth", weights_only=True)["matching_heuristics"]


def test_the_source_is_not_written_over(root, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": layers(80), "iteration": 3}, path)
    command = [sys.executable, "-m", "projects_maskrcnn.transfer_classes", path, path]
    command += ["--source", "coco_2017_train", "--target", "cityscapes_fine_instance_seg_train"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 1 and "model.pth is the source itself" in result.stderr
    assert torch.load(path)["iteration"] == 3
