"""The paper's tables at small scale: claims, reports, and runs that go on where they were stopped."""

import json
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_pre_hook

from projects_maskrcnn import add_maskrcnn_config
from projects_maskrcnn.checkpoint import MaskRCNNCheckpointer
from projects_maskrcnn.data import shapes
from projects_maskrcnn.framework import DatasetCatalog, MetadataCatalog, build_model, get_cfg, register_coco_instances
from projects_maskrcnn.reproduce import __main__ as command_line
from projects_maskrcnn.reproduce import start
from projects_maskrcnn.reproduce.claims import CLAIMS, STUDENT_95, Claim, judge
from projects_maskrcnn.reproduce.full_scale import folders, hours, page
from projects_maskrcnn.reproduce.rows import default_data, rows_of, tables

MORE = Claim("a over b", {"t/a": 1, "t/b": -1})
ALIKE = Claim("a is like b", {"t/a": 1, "t/b": -1}, alike=True)


def results(**rows):
    return {f"t/{name}": [{"segm/AP": value} for value in values] for name, values in rows.items()}


@pytest.mark.parametrize(
    ("claim", "a", "b", "verdict"),
    [
        # the deviation of each row is sqrt(2) / 10, and with 2 degrees of freedom 4.30 of these / sqrt(2 / 2) the noise
        (MORE, (30.0, 30.2), (20.0, 20.2), "shows"),
        (MORE, (20.0, 20.2), (30.0, 30.2), "does not show"),
        (MORE, (20.5, 20.7), (20.0, 20.2), "within the noise"),
        (MORE, (30.0, 40.0), (20.0, 30.0), "within the noise"),
        (MORE, (30.0,), (20.0,), "within the noise"),
        (ALIKE, (20.2, 20.4), (20.0, 20.2), "shows"),
        (ALIKE, (20.0, 20.2), (20.2, 20.4), "shows"),
        (ALIKE, (23.0, 23.2), (20.0, 20.2), "does not show"),
        (ALIKE, (17.0, 17.2), (20.0, 20.2), "does not show"),
        (ALIKE, (20.6, 20.8), (20.0, 20.2), "within the noise"),
        (ALIKE, (21.5, 21.7), (20.0, 20.2), "within the noise"),
    ],
)
def test_judgement(claim, a, b, verdict):
    judgement = judge(claim, results(a=a, b=b))
    assert judgement.verdict == verdict
    assert judgement.effect == pytest.approx(sum(a) / len(a) - sum(b) / len(b))
    assert judgement.seeds == pytest.approx([x - y for x, y in zip(a, b, strict=True)])


def test_noise_is_that_of_students_t():
    found = judge(MORE, results(a=(10.0, 12.0, 14.0), b=(5.0, 9.0)))
    variance = (4 + 0 + 4 + 4 + 4) / (2 + 1)
    assert found.noise == pytest.approx(3.18 * math.sqrt(variance * (1 / 3 + 1 / 2)))
    pooled = judge(MORE, results(a=(10.0, 12.0, 14.0), b=(5.0, 9.0), c=(7.0, 7.0)))  # c tells of the noise alone
    assert pooled.noise == pytest.approx(2.78 * math.sqrt(variance * 3 / 4 * (1 / 3 + 1 / 2)))
    assert math.isinf(judge(MORE, results(a=(10.0,), b=(5.0,))).noise)
    assert list(STUDENT_95) == sorted(STUDENT_95, reverse=True)


def test_a_claim_over_metrics_and_tables():
    claim = Claim("", {"t/a": 1, "t/b": -1, "u/a": -1, "u/b": 1}, {"segm/AP75": 1, "segm/AP50": -1})
    runs = {"t/a": (60, 40), "t/b": (50, 20), "u/a": (50, 30), "u/b": (50, 25)}
    runs = {row: [{"segm/AP50": ap50, "segm/AP75": ap75}] for row, (ap50, ap75) in runs.items()}
    assert claim.tables() == {"t", "u"}
    assert judge(claim, runs).effect == (40 - 60) - (20 - 50) - (30 - 50) + (25 - 50) == 5
    assert judge(claim, {row: runs[row] for row in ("t/a", "t/b")}) is None
    assert judge(MORE, runs) is None  # they have no segm/AP


@pytest.mark.parametrize("table", CLAIMS)
def test_the_papers_own_figures_bear_its_claims_out(table):
    for claim in CLAIMS[table]:
        published = {row.id: row.published() for name in claim.tables() for row in rows_of(name)}
        effect = claim.effect(published)
        assert abs(effect) <= 1 if claim.alike else effect > 0, claim.text


def small_cfg(row, folder, **heads):
    """The config of a small row, by way of a YAML file in `folder`."""
    file = folder / f"{row.name}.yaml"
    file.write_text(yaml.safe_dump(row.small_config(default_data(row.table), "cpu", 10, seed=3)))
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.merge_from_file(str(file))
    for key, value in heads.items():
        cfg.MODEL.ROI_HEADS[key] = value
    return cfg


@pytest.mark.parametrize("table", CLAIMS)
def test_small_rows_keep_what_makes_them(table, tmp_path):
    """No two rows of a table become one model, and the small files change nothing that tells rows apart."""
    found = []
    for row in rows_of(table):
        if row.body() is None:
            continue
        cfg = small_cfg(row, tmp_path, NUM_CLASSES=6)
        assert cfg.MODEL.WEIGHTS == "" and cfg.SOLVER.MAX_ITER == 10 and cfg.SEED == 3
        for key in ("MASK_ON", "KEYPOINT_ON"):
            assert cfg.MODEL[key] == row.cfg.MODEL[key]
        for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD"):
            assert cfg.MODEL[head].POOLER_TYPE == row.cfg.MODEL[head].POOLER_TYPE
            assert cfg.MODEL[head].NAME == row.cfg.MODEL[head].NAME
        for key in ("LOSS_TYPE", "CLS_AGNOSTIC_MASK"):
            assert cfg.MODEL.ROI_MASK_HEAD[key] == row.cfg.MODEL.ROI_MASK_HEAD[key]
        found.append(str(build_model(cfg)))
    assert len(set(found)) == len(found)


def test_all_claims_are_of_rows_that_there_are():
    names = {row.id for table in tables() for row in rows_of(table)}
    assert {row for claims in CLAIMS.values() for claim in claims for row in claim.rows} <= names


@pytest.fixture
def reproduce(root, tmp_path):
    """A function that runs the command line in `tmp_path`."""

    def run(*arguments, check=True):
        command = [sys.executable, "-m", "projects_maskrcnn.reproduce", *arguments, "--output", "runs"]
        environment = {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(root), "DETECTRON2_DATASETS": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """A folder with a few scenes, registered as `few_train` and `few_val`."""
    shapes.generate(tmp_path / "shapes", num_train=8, num_val=4)
    for split in ("train", "val"):
        json_file = str(tmp_path / f"shapes/annotations/instances_{split}.json")
        register_coco_instances(f"few_{split}", {}, json_file, str(tmp_path / "shapes/images" / split))
    yield tmp_path
    for split in ("train", "val"):
        DatasetCatalog.remove(f"few_{split}")
        MetadataCatalog.remove(f"few_{split}")


def test_a_crop_shows_its_object_in_the_middle():
    image = np.zeros((100, 120, 3), np.uint8)
    image[20:40, 70:90] = 255
    crop = start._crop(image, np.array([80, 30]), 40)
    inside = crop[17:47, 17:47], crop.copy()  # half of the crop: pixels 16 to 47
    inside[1][14:50, 14:50] = 0
    assert (inside[0] == 255).all() and not inside[1].any()


def test_crops_are_of_objects_and_of_background(scenes):
    file = scenes / "shapes/annotations/instances_train.json"
    coco = json.loads(file.read_text())
    coco["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(coco))
    images, classes = start.crops("few", np.random.default_rng(0))
    objects = [a for a in coco["annotations"] if not a["iscrowd"]]
    assert images.shape == (len(classes), 3, start.SIDE, start.SIDE) and images.dtype == torch.uint8
    assert Counter(classes[classes < 6].tolist()) == Counter(a["category_id"] - 1 for a in objects)
    assert 0 < (classes == 6).sum() <= len(objects)
    # the ground of a scene varies less than what has an object in it
    spread = images.float().flatten(1).std(dim=1)
    assert spread[classes == 6].median() < spread[classes < 6].median()


def test_small_models_start_from_the_classifiers_weights(scenes, monkeypatch):
    monkeypatch.setattr(start, "ITERATIONS", 2)
    file = scenes / "start/few_R_18.pth"
    start.starting_weights(file, "few", 18, "cpu")
    content = torch.load(file, weights_only=True)
    for table, stem, res5 in (("2b", "backbone", "roi_heads"), ("2e", "backbone.bottom_up", "backbone.bottom_up")):
        model = build_model(small_cfg(rows_of(table)[0], scenes, NUM_CLASSES=6))
        MaskRCNNCheckpointer(model).load(str(file))
        found = model.state_dict()
        for name, value in content["model"].items():
            prefix = res5 if name.startswith("res5") else stem
            assert torch.equal(found[f"{prefix}.{name}"], value), name
    before = file.stat().st_mtime_ns
    start.starting_weights(file, "few", 18, "cpu")
    assert file.stat().st_mtime_ns == before


def test_steps_of_the_classifier(scenes, monkeypatch):
    """It sees pixels less the mean, as the models do, and each step follows the gradient of its batch alone."""
    monkeypatch.setattr(start, "ITERATIONS", 3)
    seen, scored, gradients = [], [], []

    def build(*arguments):
        backbone = build_backbone(*arguments)
        backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        return backbone

    def cross_entropy(scores, classes):
        scored.append((scores.detach().double(), classes))
        return cross_entropy_of_torch(scores, classes)

    build_backbone, cross_entropy_of_torch = start.build_maskrcnn_resnet_backbone, start.F.cross_entropy
    monkeypatch.setattr(start, "build_maskrcnn_resnet_backbone", build)
    monkeypatch.setattr(start.F, "cross_entropy", cross_entropy)
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: gradients.append(optimizer.param_groups[0]["params"][-1].grad.double().clone())
    )
    start.starting_weights(scenes / "start/few_R_18.pth", "few", 18, "cpu")
    hook.remove()
    pixels = seen[0] + torch.tensor(get_cfg().MODEL.PIXEL_MEAN)[:, None, None]
    assert (pixels - pixels.round()).abs().max() < 1e-3 and pixels.min() > -0.5 and pixels.max() < 255.5
    assert len(gradients) == 3
    for gradient, (scores, classes) in zip(gradients, scored, strict=True):  # of the last layer's bias
        probabilities = scores.exp() / scores.exp().sum(1, keepdim=True)
        expected = (probabilities - torch.eye(scores.shape[1], dtype=torch.float64)[classes]).mean(0)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def write_plan(folder, **values):
    folder.mkdir(parents=True)
    plan = {"data": "shapes", "device": "cpu", "budget": 5.0, "iterations": 2, **values}
    (folder / "plan.json").write_text(json.dumps(plan))


def write_run(folder, **figures):
    folder.mkdir(parents=True)
    lines = [{"iteration": 0, "time": 0.5}, {"iteration": 1, **{f"segm/{k}": v for k, v in figures.items()}}]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def cells(text, name):
    """Those of the line that starts with `name`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_report_of_finished_runs(reproduce, tmp_path):
    folder = tmp_path / "runs/table_2b"
    write_plan(folder, iterations=240)
    write_run(folder / "softmax/seed_3", AP=math.nan, AP50=math.nan, AP75=math.nan)  # it detected nothing
    aps = {"softmax": (20.0, 21.0), "class_agnostic": (29.9, 30.9), "sigmoid": (30.0, 31.0)}
    for name, values in aps.items():
        for seed, ap in enumerate(values, start=1):
            write_run(folder / name / f"seed_{seed}", AP=ap, AP50=ap + 20, AP75=ap + 1)
    printed = reproduce("2b", "--device", "cpu").stdout
    text = (folder / "table_2b.md").read_text()
    assert text in printed
    assert (folder / "table_2b.png").read_bytes().startswith(b"\x89PNG")
    row = cells(text, "sigmoid")
    assert row == ["2", "30.5 (30.0 to 31.0)", "50.5 (50.0 to 51.0)", "31.5 (31.0 to 32.0)", "30.3", "51.2", "31.5"]
    assert cells(text, "class_agnostic")[4:] == ["29.7", "-", "-"]
    assert cells(text, "command") == ["`python -m projects_maskrcnn.reproduce 2b --device cpu --output runs`"]
    assert cells(text, "softmax")[:2] == ["3", "20.5 (20.0 to 21.0)"]
    assert cells(text, "runs")[0] == "7, seeds 1 to 3, 14 minutes in all"  # 7 runs of 240 iterations of half a second
    assert "**shows**" in cells(text, "Sigmoid over softmax: classes need not compete")
    assert cells(text, "Class-agnostic masks are alike")[-1] == "**within the noise**"


def test_all_rows_get_the_iterations_of_the_slowest(tmp_path, monkeypatch):
    seconds = {"softmax": 0.2, "class_agnostic": 0.5, "sigmoid": 0.3}
    monkeypatch.setattr(command_line, "seconds_per_iteration", lambda row, *_: seconds.pop(row.name))
    for _ in range(2):  # and they are timed once
        plan = command_line.plan(rows_of("2b"), tmp_path / "table_2b", "shapes", "cpu", {"budget": 2})
        assert plan["iterations"] == 2 * 60 / 0.5


def test_all_rows_get_the_iterations_that_are_asked_for(tmp_path):
    arguments = (rows_of("2b"), tmp_path / "table_2b", "shapes", "cpu")
    for _ in range(2):
        assert command_line.plan(*arguments, {"iterations": 30})["iterations"] == 30
    for length, message in (({"iterations": 31}, "iterations 30, not 31"), ({"budget": 5.0}, "budget None, not 5.0")):
        with pytest.raises(FileExistsError, match=message):
            command_line.plan(*arguments, length)


@pytest.mark.slow
def test_a_row_is_timed(scenes, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    assert 0 < command_line.seconds_per_iteration(rows_of("2d")[0], "shapes", "cpu") < 60


def test_another_plan_is_refused(reproduce, tmp_path):
    write_plan(tmp_path / "runs/table_2b", budget=7.0)
    done = reproduce("2b", "--device", "cpu", check=False)
    assert done.returncode == 1 and "budget 7.0, not 5.0" in done.stderr and "--output" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["2f"], "2a, 2b, 2c, 2d, 2e, 3, 4, 5, 6"),
        (["2c", "--data", "shape"], "nuclei, shapes, shapes_keypoints"),
        (["2c", "--seeds", "0"], "--seeds and --iterations must be 1 or more"),
        (["2c", "--iterations", "0"], "--seeds and --iterations must be 1 or more"),
        (["2c", "--iterations", "10", "--budget", "2"], "not allowed with argument"),
        (["2c", "--budget", "nan"], "--budget some minutes"),
    ],
)
def test_what_there_is_not(reproduce, arguments, named):
    done = reproduce(*arguments, check=False)
    assert done.returncode != 0 and named in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_runs_go_on_where_they_were_stopped(reproduce, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "ITERATIONS", 2)
    start.starting_weights(tmp_path / "runs/start/shapes_R_18.pth", "few", 18, "cpu")
    folder = tmp_path / "runs/table_2d"
    write_plan(folder)
    assert cells(reproduce("2d", "--seeds", "1").stdout, "runs")[0].startswith("2, ")
    finished = sorted(folder.glob("*/seed_1/model_final.pth"))
    times = [path.stat().st_mtime_ns for path in finished]
    assert len(finished) == 2
    stopped = folder / "roi_align/seed_2"  # before its evaluation
    stopped.mkdir()
    (stopped / "model_0000000.pth").write_bytes((folder / "roi_align/seed_1/model_0000000.pth").read_bytes())
    (stopped / "last_checkpoint").write_text("model_0000000.pth")
    text = reproduce("2d", "--seeds", "2").stdout
    assert [path.stat().st_mtime_ns for path in finished] == times
    assert "Starting training from iteration 1" in (stopped / "log.txt").read_text()
    assert cells(text, "runs")[0].startswith("4, ")
    assert "not run: needs table 2c and 2d" in text


def test_failed_run_says_why(reproduce, tmp_path):
    write_plan(tmp_path / "runs/table_2b", data="nuclei")
    (tmp_path / "runs/start").mkdir()
    (tmp_path / "runs/start/nuclei_R_18.pth").touch()
    done = reproduce("2b", "--data", "nuclei", "--device", "cpu", check=False)
    assert done.returncode == 1 and "nuclei_train" in done.stderr and "DETECTRON2_DATASETS" in done.stderr
    assert "train_net.py" in done.stderr and "console.txt" in done.stderr


def test_the_page_of_full_scale_is_current(root):
    assert (root / "docs/reproduction/README.md").read_text() == page()
    commands = [line for line in page().splitlines() if line.startswith("| `python train_net.py")]
    assert len(commands) == sum(len(list(folder.glob("*.yaml"))) for folder in folders())


def test_hours_at_full_scale():
    known = {row.id: hours(row) for row in rows_of("2a")}
    assert known["2a/R_50_FPN"] == pytest.approx(160_000 * 0.261 / 3600)
    assert known["2a/X_101_FPN"] is None
