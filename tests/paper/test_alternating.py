"""Training proposals and heads in steps: which weights each step starts from, trains and leaves alone."""

from pathlib import Path

import pytest
import torch

from projects_maskrcnn import add_maskrcnn_config, alternating
from projects_maskrcnn.framework import DefaultTrainer, get_cfg, load_proposals_into_dataset
from projects_maskrcnn.weights import CheckpointError

KEY = "MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS"
VALUES = {"SOLVER.BASE_LR": 1e-3, "SOLVER.WARMUP_ITERS": 0, "MODEL.BACKBONE.FREEZE_AT": 0}


@pytest.fixture
def weights(tmp_path):
    """A function from a folder of the run to the weights that it ends with, by part of the model.

    Without BatchNorm's counters, which a network that is not trained has not.
    """

    def weights(folder="."):
        model = torch.load(tmp_path / folder / "model_final.pth", weights_only=True)["model"]
        parts = {}
        for name, value in model.items():
            if name.endswith("num_batches_tracked"):
                continue
            parts.setdefault(name.split(".")[0], {})[name] = value
        return parts

    return weights


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def config(root):
    return root / "configs/paper/table_2b_mask_loss/sigmoid.yaml"


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_four_steps_give_one_network(norm, config, run, weights, tmp_path):
    results = run(config, **VALUES, **{KEY: 4, "MODEL.RESNETS.NORM": norm})
    assert results.keys() == {"bbox", "segm"}
    steps = [weights(f"step_{i}_{part}") for i, part in enumerate(("proposals", "heads") * 2, start=1)]
    assert [step.keys() for step in steps] == [{"backbone", "proposal_generator"}, {"backbone", "roi_heads"}] * 2
    assert not equal(steps[0]["backbone"], steps[1]["backbone"])  # each trained its own
    assert equal(steps[1]["backbone"], steps[2]["backbone"]) and equal(steps[1]["backbone"], steps[3]["backbone"])
    assert not equal(steps[1]["roi_heads"], steps[3]["roi_heads"])  # trained further
    final = weights()
    assert equal(final["backbone"], steps[1]["backbone"])
    assert equal(final["proposal_generator"], steps[2]["proposal_generator"])
    assert equal(final["roi_heads"], steps[3]["roi_heads"])


@pytest.fixture
def steps(monkeypatch):
    """The configs of the steps, which are not trained: each leaves weights of one tensor."""
    steps = []

    def train(cfg, *_):
        steps.append(cfg)
        Path(cfg.OUTPUT_DIR).mkdir()
        torch.save({"model": {"weight": torch.ones(1)}}, Path(cfg.OUTPUT_DIR) / "model_final.pth")

    monkeypatch.setattr(alternating, "_train", train)
    monkeypatch.setattr(alternating, "_train_proposals", train)
    return steps


def test_an_interrupted_end_leaves_what_was_there(steps, monkeypatch, tmp_path):
    save, path = torch.save, tmp_path / "model_final.pth"
    path.write_bytes(b"as it was")

    def full(content, file):
        if Path(file).parent != tmp_path:
            return save(content, file)
        Path(file).write_bytes(b"half")
        raise RuntimeError("no space left")

    monkeypatch.setattr(torch, "save", full)
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.OUTPUT_DIR, cfg.MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS = str(tmp_path), 2
    with pytest.raises(CheckpointError, match="model_final.pth cannot be written .no space left"):
        alternating.train_in_steps(cfg, DefaultTrainer)
    assert path.read_bytes() == b"as it was" and [p for p in tmp_path.iterdir() if p.is_file()] == [path]


def test_what_each_of_four_steps_starts_from(steps, tmp_path):
    cfg = get_cfg()
    add_maskrcnn_config(cfg)
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = str(tmp_path), "imagenet.pkl"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("a", "b"), ("c",)
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 77, 33
    cfg.MODEL.PROPOSAL_GENERATOR.TRAINED_IN_STEPS = 4
    alternating.train_in_steps(cfg, DefaultTrainer)
    heads = str(tmp_path / "step_2_heads/model_final.pth")
    assert [step.MODEL.WEIGHTS for step in steps] == ["imagenet.pkl", "imagenet.pkl", heads, heads]
    for number in (1, 3):  # the heads' steps take the proposals of the steps right before them
        found = steps[number].DATASETS
        folder = tmp_path / f"step_{number}_proposals"
        assert (str(folder / "a.pkl"), str(folder / "b.pkl")) == found.PROPOSAL_FILES_TRAIN
        assert (found.PRECOMPUTED_PROPOSAL_TOPK_TRAIN, found.PRECOMPUTED_PROPOSAL_TOPK_TEST) == (77, 33)


def test_two_steps_give_heads_of_their_own_and_proposals_in_files(config, run, weights, tmp_path):
    results = run(config, **VALUES, **{KEY: 2})
    folder = tmp_path / "step_1_proposals"
    assert sorted(p.name for p in folder.glob("*.pkl")) == ["instances_train_train.pkl", "instances_val_test.pkl"]
    for name, count in (("instances_train_train", 20), ("instances_val_test", 10)):  # POST_NMS_TOPK_TRAIN, _TEST
        (record,) = load_proposals_into_dataset([{"image_id": 1}], str(folder / f"{name}.pkl"))
        assert 0 < len(record["proposal_boxes"]) <= count
        assert 64 < record["proposal_boxes"].max() <= 128  # in pixels of the image, not of the network's input
    assert weights().keys() == {"backbone", "roi_heads"}
    assert equal(weights()["roi_heads"], weights("step_2_heads")["roi_heads"])
    again = run(config, "--eval-only", **VALUES, **{KEY: 2, "MODEL.WEIGHTS": str(tmp_path / "model_final.pth")})
    assert again.keys() == results.keys() and again["bbox"]["AP"] == pytest.approx(results["bbox"]["AP"], nan_ok=True)


def test_what_is_done_is_not_done_again(config, run, tmp_path):
    run(config, **VALUES, **{KEY: 2})
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "step_1_proposals").iterdir()}
    (tmp_path / "step_2_heads/model_final.pth").unlink()
    (tmp_path / "step_2_heads/last_checkpoint").unlink()
    run(config, **VALUES, **{KEY: 2})
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "step_1_proposals").iterdir()} == done
    assert (tmp_path / "step_2_heads/model_final.pth").exists()


def test_steps_of_another_training_are_not_taken_over(config, run, tmp_path):
    values = {**VALUES, KEY: 2}
    run(config, **values)
    with pytest.raises(ValueError, match=r"step_1_proposals was trained with MODEL.RPN.LOSS_WEIGHT 1.0, .* now 2.0: "):
        run(config, **values, **{"MODEL.RPN.LOSS_WEIGHT": 2.0})
    run(config, **values, **{"DATALOADER.NUM_WORKERS": 1})  # no other weights come of that


def test_other_numbers_of_steps_are_refused(config, run):
    with pytest.raises(ValueError, match=f"{KEY} is 3: set 2, 4"):
        run(config, **{KEY: 3})
