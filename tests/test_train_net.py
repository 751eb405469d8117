"""The command line, from one's own COCO files to results, each run in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from projects_maskrcnn.framework import FRAMEWORK, MetadataCatalog

CONFIG = "configs/quick/mask_rcnn_R_18_FPN_shapes.yaml"
KEYPOINT_CONFIG = "configs/quick/keypoint_rcnn_R_18_FPN_shapes.yaml"
SPLITS = {"TRAIN": "train", "TEST": "val"}
TINY = {
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.CONV_DIMS": "[16]",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": "[16]",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.01,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "TEST.EVAL_PERIOD": 0,
}


embedded_alone = pytest.mark.skipif(FRAMEWORK != "embedded", reason="Detectron2's trainer cannot")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with `annotations/` and `images/` of a few scenes of shapes."""
    from projects_maskrcnn.data import shapes

    folder = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(folder, num_train=12, num_val=6)  # the fifth of these has a figure
    return folder


@pytest.fixture(scope="module")
def train_net(root, scenes):
    """A function that runs train_net.py on the scenes with further arguments and config values."""

    def run(output, *arguments, config=CONFIG, check=True, **values):
        values = {
            "DATASETS.TRAIN_JSON": scenes / "annotations/instances_train.json",
            "DATASETS.TRAIN_IMAGES": scenes / "images/train",
            "DATASETS.TEST_JSON": scenes / "annotations/instances_val.json",
            "DATASETS.TEST_IMAGES": scenes / "images/val",
            "OUTPUT_DIR": output,
            **TINY,
            **{key.replace("__", "."): value for key, value in values.items()},
        }
        options = [str(item) for pair in values.items() for item in pair]
        command = [sys.executable, "train_net.py", "--config-file", config, *arguments, *options]
        environment = {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(root), "DETECTRON2_DATASETS": str(scenes.parent)}
        environment = {**os.environ, **environment}
        result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result

    return run


@pytest.fixture(scope="module")
def trained(train_net, tmp_path_factory):
    """The output folder of a whole run."""
    output = tmp_path_factory.mktemp("run")
    train_net(output)
    return output


def read_metrics(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def weights(output, name="model_final.pth"):
    return torch.load(output / name, weights_only=True)["model"]


def test_output_folder_is_detectron2s(trained):
    names = {p.name for p in trained.iterdir()}
    expected = {"config.yaml", "log.txt", "metrics.json", "last_checkpoint", "model_0000002.pth", "model_final.pth"}
    assert expected <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (trained / "inference/coco_instances_results.json").is_file()
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"
    progress = re.search(r"eta: \S+  iter: 5 .*", (trained / "log.txt").read_text())[0]
    parts = ["total_loss", "loss_mask", "loss_rpn_cls", "time", "data_time", "lr"]
    if FRAMEWORK == "embedded" or torch.cuda.is_available():  # Detectron2 knows the memory of GPUs alone
        parts.append("max_mem")
    for part in parts:
        assert f"{part}: " in progress


def test_metrics_hold_losses_and_results(trained):
    metrics = {}
    for line in read_metrics(trained):
        metrics.update(line)
    parts = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")
    assert all(metrics[part] >= 0 for part in parts)
    assert {"bbox/AP", "segm/AP", "segm/AP50", "segm/AP-star", "total_loss", "lr", "data_time"} <= set(metrics)


def test_the_number_of_classes_comes_from_the_data(trained):
    assert weights(trained)["roi_heads.box_predictor.cls_score.weight"].shape[0] == 6 + 1


@pytest.fixture(scope="module")
def resumed(trained, train_net, tmp_path_factory):
    """The output folder of a run that stopped after the third iteration and was resumed."""
    output = tmp_path_factory.mktemp("resumed")
    for name in ("model_0000002.pth", "metrics.json"):
        shutil.copy(trained / name, output)
    (output / "last_checkpoint").write_text("model_0000002.pth")
    train_net(output, "--resume")
    return output


def test_resume_goes_on_after_the_last_checkpoint(trained, resumed):
    before, added = read_metrics(trained), read_metrics(resumed)[len(read_metrics(trained)) :]
    assert added and min(line["iteration"] for line in added) >= 3
    rates = [[line["lr"] for line in lines if "lr" in line][-1] for lines in (before, added)]
    assert rates[0] == rates[1]
    assert "Starting training from iteration 3" in (resumed / "log.txt").read_text()
    assert (resumed / "last_checkpoint").read_text() == "model_final.pth"
    stopped, ended = weights(resumed, "model_0000002.pth"), weights(resumed)
    assert any(not torch.equal(stopped[name], ended[name]) for name in ended)


@embedded_alone  # it starts the data and the random numbers anew
def test_an_interrupted_run_ends_with_the_same_weights(trained, resumed):
    expected, found = weights(trained), weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_eval_only_repeats_the_result(trained, train_net, tmp_path):
    train_net(tmp_path, "--eval-only", MODEL__WEIGHTS=trained / "model_final.pth")
    name = "inference/coco_instances_results.json"
    assert json.loads((tmp_path / name).read_text()) == json.loads((trained / name).read_text())


def test_an_unexpected_result_fails(trained, train_net, tmp_path):
    result = train_net(
        tmp_path,
        "--eval-only",
        check=False,
        MODEL__WEIGHTS=trained / "model_final.pth",
        TEST__EXPECTED_RESULTS="[['segm', 'AP', 99.0, 0.1]]",
    )
    assert result.returncode != 0 and "99.0" in result.stdout + result.stderr


@embedded_alone  # it gives DistributedDataParallel a GPU's number whatever MODEL.DEVICE is
def test_two_processes_train_without_a_gpu(train_net, tmp_path):
    train_net(tmp_path, "--num-gpus", "2", "--dist-url", "auto", SOLVER__MAX_ITER=2)
    assert (tmp_path / "model_final.pth").is_file()
    assert (tmp_path / "log.txt.rank1").is_file()


def test_pictures_of_a_run(trained, root):
    command = [sys.executable, "-m", "projects_maskrcnn.show", str(trained), "--num", "2", "--min-score", "0"]
    result = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"\| segm +\| +\d", result.stdout)
    for name in ("predictions.png", "curves.png"):
        assert (trained / "show" / name).read_bytes().startswith(b"\x89PNG")


def test_keypoints_are_trained_and_evaluated(train_net, scenes, tmp_path):
    trained, evaluated = tmp_path / "trained", tmp_path / "evaluated"
    registered = dict.fromkeys((f"DATASETS__{s}_{f}" for s in ("TRAIN", "TEST") for f in ("JSON", "IMAGES")), "")
    train_net(trained, config=KEYPOINT_CONFIG, MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0, **registered)
    metrics = {name: value for line in read_metrics(trained) for name, value in line.items()}
    assert {f"{task}/{ap}" for task in ("bbox", "keypoints") for ap in ("AP", "AP50", "APl")} <= metrics.keys()
    assert metrics["loss_keypoint"] > 0 and "loss_mask" not in metrics and "segm/AP" not in metrics
    name = "inference/coco_instances_results.json"
    results = json.loads((trained / name).read_text())
    assert results and all(len(r["keypoints"]) == 6 * 3 and "segmentation" not in r for r in results)

    # the same files by path, and sigmas so wide that any pose on the right image counts
    values = {f"DATASETS__{s}_JSON": scenes / f"annotations/keypoints_{t}.json" for s, t in SPLITS.items()}
    values |= {"TEST__KEYPOINT_OKS_SIGMAS": [9.0] * 6, "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0}
    values["MODEL__WEIGHTS"] = trained / "model_final.pth"
    printed = train_net(evaluated, "--eval-only", config=KEYPOINT_CONFIG, **values).stdout
    header, row = re.search(r"Evaluation results for keypoints: *\n(\|.*)\n\|[-:| ]+\n(\|.*)", printed).groups()
    table = dict(zip(re.findall(r"\w+", header), re.findall(r"[\w.]+", row), strict=True))
    assert list(table) == ["AP", "AP50", "AP75", "APm", "APl"] and float(table["AP50"]) > 0
    assert json.loads((evaluated / name).read_text()) == results


BAD_INPUT = {
    "unknown key": ({"MODEL__ROI_HEADS__NUMCLASSES": 3}, "MODEL.ROI_HEADS.NUMCLASSES"),
    "missing JSON": ({"DATASETS__TRAIN_JSON": "/no/such.json"}, "DATASETS.TRAIN_JSON: there is no file /no/such.json"),
    "images not named": ({"DATASETS__TRAIN_IMAGES": ""}, "DATASETS.TRAIN_IMAGES is not: set both"),
    "other number of classes": ({"MODEL__ROI_HEADS__NUM_CLASSES": 80}, "has 6 classes, but the model has 80"),
    "no such weights": ({"MODEL__WEIGHTS": "/no/such.pth"}, "/no/such.pth"),
    "weights that are none": ({"MODEL__WEIGHTS": "README.md"}, "README.md"),
    "no keypoints": ({"MODEL__KEYPOINT_ON": True}, "has no keypoints"),
    "unknown dataset": (
        {"DATASETS__TRAIN_JSON": "", "DATASETS__TRAIN_IMAGES": "", "DATASETS__TRAIN": "('shapes_trian',)"},
        "did you mean shapes_train",
    ),
}


def test_random_weights_are_not_evaluated(train_net, tmp_path):
    result = train_net(tmp_path, "--eval-only", "--resume", check=False)
    assert result.returncode != 0 and "--eval-only has no weights to evaluate: set MODEL.WEIGHTS" in result.stderr


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case, train_net, tmp_path):
    values, message = BAD_INPUT[case]
    result = train_net(tmp_path, check=False, **values)
    assert result.returncode != 0
    assert message in result.stderr


def test_a_metric_that_is_not_there_is_not_replaced_by_another(load_module, root):
    train_net = load_module("train_net", root / "train_net.py")
    MetadataCatalog.get("of_lvis").evaluator_type = "lvis"
    with pytest.raises(ValueError, match="dataset of_lvis: .* evaluator_type 'lvis'"):
        train_net.evaluator_type("of_lvis")


def damage(scenes, tmp_path, change):
    """A copy of the training JSON whose first annotation is changed."""
    content = json.loads((scenes / "annotations/instances_train.json").read_text())
    change(content["annotations"][0])
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("iscrowd"), "iscrowd"),
        (lambda a: a.pop("area"), "area"),
        (lambda a: a.update(segmentation="a polygon"), "segmentation"),
        (lambda a: a.update(category_id=99), "99"),
    ],
    ids=["no iscrowd", "no area", "bad segmentation", "bad category"],
)
def test_a_bad_annotation_is_named_before_training(change, message, train_net, scenes, tmp_path):
    json_file = damage(scenes, tmp_path, change)
    result = train_net(tmp_path, check=False, DATASETS__TRAIN_JSON=json_file)
    assert result.returncode != 0
    assert "damaged.json" in result.stderr and message in result.stderr
    assert re.search(r"annotation.*\b1\b", result.stderr)
    assert not (tmp_path / "model_final.pth").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_does_not_end_a_run(workers, train_net, scenes, tmp_path, is_release_06):
    if FRAMEWORK == "detectron2" and is_release_06 and sys.version_info >= (3, 11):
        pytest.skip("Detectron2 0.6 draws the sample to take instead from a set, which Python 3.11 refuses")
    folder = shutil.copytree(scenes / "images", tmp_path / "images")
    for split in ("train", "val"):
        image = folder / split / "000001.png"
        image.write_bytes(image.read_bytes()[:100])
    output = tmp_path / "output"
    train_net(
        output,
        DATASETS__TRAIN_IMAGES=folder / "train",
        DATASETS__TEST_IMAGES=folder / "val",
        DATALOADER__NUM_WORKERS=workers,
        SOLVER__IMS_PER_BATCH=4,
    )
    log = (output / "log.txt").read_text()
    if workers == 0:  # workers log to the terminal
        assert log.count(f"Cannot use {folder / 'train' / '000001.png'}") == 1
    assert (output / "model_final.pth").is_file()
    assert (output / "inference/coco_instances_results.json").is_file()
