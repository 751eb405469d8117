"""Pictures and a table of runs that these tests write by hand."""

import json
import re
import sys

import cv2
import numpy as np
import pytest
import yaml
from matplotlib import pyplot as plt

from projects_maskrcnn import show

SIZE = 64
BOX = [8, 8, 48, 48]


@pytest.fixture
def run(tmp_path):
    """A function that writes the output of an evaluation on black images with one object each; returns its folder."""

    def write(results: list[dict], num_images: int = 3, metrics: list[dict] | None = None):
        for i in range(num_images):
            cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((SIZE, SIZE, 3), np.uint8))
        corners = [8, 8, 56, 8, 56, 56, 8, 56]
        truth = {"category_id": 5, "bbox": BOX, "area": 2304, "iscrowd": 0, "segmentation": [corners]}
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(num_images)],
            "annotations": [{"id": i + 1, "image_id": i, **truth} for i in range(num_images)],
            "categories": [{"id": 5, "name": "thing", "keypoints": ["left_end", "right_end"]}],
        }
        (tmp_path / "held_out.json").write_text(json.dumps(content))
        output = tmp_path / "output"
        (output / "inference").mkdir(parents=True)
        (output / "inference" / "coco_instances_results.json").write_text(json.dumps(results))
        datasets = {"TRAIN": [], "TEST_JSON": str(tmp_path / "held_out.json"), "TEST_IMAGES": str(tmp_path)}
        (output / "config.yaml").write_text(yaml.safe_dump({"VERSION": 2, "DATASETS": datasets}))
        if metrics is not None:
            (output / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        return output

    return write


def shown(monkeypatch, output, *arguments):
    """The two panels, ground truth and prediction, of a grid of one image."""
    monkeypatch.setattr(sys, "argv", ["show", str(output), "--num", "1", *arguments])
    show.main()
    picture = cv2.imread(str(output / "show" / "predictions.png"))
    picture = picture[-(show.CELL + 6) :]  # below the titles
    return picture[: show.CELL, : show.CELL], picture[: show.CELL, show.CELL + 6 : 2 * show.CELL + 6]


@pytest.fixture
def refused(monkeypatch, capsys):
    """A function from a run that cannot be shown to what the command says before it ends with status 1."""

    def refused(output):
        with pytest.raises(SystemExit) as error:
            shown(monkeypatch, output)
        assert error.value.code == 1
        return capsys.readouterr().err

    return refused


def result(**fields):
    return {"image_id": 0, "category_id": 5, "bbox": BOX, "score": 0.8, **fields}


def test_predictions_of_enough_score_stand_beside_the_truth(run, monkeypatch):
    output = run([result()])
    truth, prediction = shown(monkeypatch, output)
    assert truth.any() and prediction.any()
    _, prediction = shown(monkeypatch, output, "--min-score", "0.8")  # the lowest that is drawn
    assert prediction.any()
    truth, prediction = shown(monkeypatch, output, "--min-score", "0.9")
    assert truth.any() and not prediction.any()


def test_colours_are_those_of_the_image(run, monkeypatch, tmp_path):
    output = run([], num_images=1)
    bgr = [30, 120, 240]
    cv2.imwrite(str(tmp_path / "0.png"), np.full((SIZE, SIZE, 3), bgr, np.uint8))
    truth, prediction = shown(monkeypatch, output)
    for panel in (truth, prediction):
        assert np.abs(panel[5, 5].astype(int) - bgr).max() <= 3


def test_masks_are_drawn_where_they_are(run, monkeypatch):
    from pycocotools import mask as mask_api

    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[32:56, 8:56] = 1
    rle = mask_api.encode(mask)
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    _, prediction = shown(monkeypatch, run([result(segmentation=segmentation)]))
    pixel = show.CELL // SIZE
    assert prediction[44 * pixel, 48 * pixel].any()
    assert not prediction[28 * pixel, 48 * pixel].any()  # in the box, not in the mask


def test_keypoints_are_drawn_where_they_are(run, monkeypatch):
    _, prediction = shown(monkeypatch, run([result(keypoints=[24, 40, 0.9, 44, 40, 0.01])]))
    pixel = show.CELL // SIZE
    assert prediction[40 * pixel + pixel // 2, 24 * pixel + pixel // 2].any()
    assert not prediction[40 * pixel + pixel // 2, 44 * pixel + pixel // 2].any()  # too unlikely


def test_an_image_that_does_not_decode_is_black(run, monkeypatch, tmp_path):
    output = run([], num_images=1)
    (tmp_path / "0.png").write_bytes(b"no image")
    truth, prediction = shown(monkeypatch, output)
    assert truth.any() and not prediction.any()


def test_the_grid_has_the_images_that_there_are(run, monkeypatch):
    output = run([], num_images=3)
    monkeypatch.setattr(sys, "argv", ["show", str(output), "--num", "8"])
    show.main()
    height, width, _ = cv2.imread(str(output / "show" / "predictions.png")).shape
    assert width == 4 * (show.CELL + 6)  # two pairs a row
    assert 2 * show.CELL < height < 3 * show.CELL  # three pairs: two rows


def test_images_with_several_objects_are_preferred():
    records = [{"image_id": i, "annotations": [{}] * n} for i, n in enumerate([0, 3, 1, 2, 0, 5, 4])]
    assert [r["image_id"] for r in show._choose(records, 2)] == [1, 5]
    assert [r["image_id"] for r in show._choose(records, 5)] == [1, 2, 3, 5, 6]
    assert len(show._choose(records, 20)) == len(records)


def test_the_table_has_each_tasks_last_figures(run, monkeypatch, capsys):
    metrics = [
        {"iteration": 19, "total_loss": 2.0, "loss_mask": 0.7, "bbox/AP": 11.0, "bbox/AP50": 31.0},
        {"iteration": 39, "total_loss": 1.0, "loss_mask": 0.5},
        {"iteration": 39, "bbox/AP": 22.0, "bbox/AP50": 44.0, "segm/AP": 33.0, "segm/AP-thing": 99.0},
    ]
    output = run([], metrics=metrics)
    shown(monkeypatch, output)
    lines = capsys.readouterr().out.splitlines()
    rows = {
        cells[1]: cells[2:4] for cells in ([c.strip() for c in line.split("|")] for line in lines) if len(cells) > 3
    }
    assert rows["bbox"] == ["22.0", "44.0"]
    assert rows["segm"] == ["33.0", "nan"]
    curves = cv2.imread(str(output / "show" / "curves.png"))
    assert len(np.unique(curves.reshape(-1, 3), axis=0)) > 10


def test_iterations_that_a_resumed_run_repeats_are_drawn_once(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(plt.Axes, "plot", lambda self, x, y, *_, label=None, **__: drawn.update({label: (x, y)}))
    losses = [(19, 5.0), (39, 4.0), (19, 5.5), (59, 3.0)]
    show.draw_curves([{"iteration": i, "total_loss": loss} for i, loss in losses], tmp_path / "curves.png")
    assert drawn["total_loss"] == ((19, 39, 59), (5.5, 4.0, 3.0))


def test_an_evaluation_alone_has_no_curves(run, monkeypatch, capsys):
    output = run([])
    shown(monkeypatch, output)
    assert [p.name for p in (output / "show").iterdir()] == ["predictions.png"]
    assert "predictions.png" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.yaml", "inference/coco_instances_results.json"])
def test_a_folder_that_is_no_run_says_so(run, refused, name):
    output = run([])
    (output / name).unlink()
    assert re.search(f"There is no .*{name}.*OUTPUT_DIR", refused(output))


def test_what_cannot_be_shown(run, refused):
    output = run([result()])
    (output / "show" / "predictions.png").mkdir(parents=True)
    assert "predictions.png cannot be written" in refused(output)
    (output / "config.yaml").write_text(yaml.safe_dump({"VERSION": 2, "DATASETS": {"TRAIN": [], "TEST": []}}))
    assert "has no DATASETS.TEST" in refused(output)


def test_what_a_killed_run_left_half_written(run, refused, monkeypatch, capsys):
    """Lines of metrics.json, also one to which a resumed run has added its own, are left out; results are needed."""
    output = run([], metrics=[{"iteration": 19, "bbox/AP": 11.0}])
    with (output / "metrics.json").open("a") as file:
        file.write('{"iteration": 39, "bbox/A{"iteration": 39, "bbox/AP": 22.0}\n{"iteration": 59, "bbox/AP": 3')
    shown(monkeypatch, output)
    assert "11.0" in capsys.readouterr().out
    (output / "inference" / "coco_instances_results.json").write_text('[{"ima')
    assert re.search("coco_instances_results.json is not whole.*--eval-only --resume", refused(output))
