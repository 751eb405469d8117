"""Round trips, what is not weights, and interrupted saves."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from projects_maskrcnn.embedded.checkpoint import CheckpointError, DetectionCheckpointer, PeriodicCheckpointer
from projects_maskrcnn.embedded.solver import LRMultiplier, WarmupParamScheduler
from projects_maskrcnn.embedded.utils import comm


def new_model(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def assert_equal(model, other):
    for (name, value), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


class Stateful:
    """A checkpointable with a state that a training has."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def training(model, state=None):
    from fvcore.common.param_scheduler import ConstantParamScheduler

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = WarmupParamScheduler(ConstantParamScheduler(1.0), 0.1, 0.5)
    return {
        "optimizer": optimizer,
        "scheduler": LRMultiplier(optimizer, schedule, 10),
        "scaler": torch.amp.GradScaler("cpu"),
        "trainer": Stateful(state),
    }


def test_a_training_round_trips_as_tensors_and_plain_values(tmp_path):
    model = new_model()
    parts = training(
        model,
        {"iteration": np.int64(7), "hooks": {"Best": {"score": np.float64(0.5), "at": (3, None, "AP")}}},
    )
    model(torch.ones(2, 4)).sum().backward()
    parts["optimizer"].step()
    parts["scheduler"].step()
    DetectionCheckpointer(model, str(tmp_path), **parts).save("model_final", iteration=7, seen=np.arange(3))

    raw = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert set(raw) == {"model", "optimizer", "scheduler", "scaler", "trainer", "iteration", "seen"}

    other = new_model(seed=1)
    restored = training(other)
    extra = DetectionCheckpointer(other, str(tmp_path), **restored).resume_or_load("", resume=True)
    assert_equal(other, model)
    assert extra["iteration"] == 7 and extra["seen"].tolist() == [0, 1, 2]
    assert restored["trainer"].state == {
        "iteration": 7,
        "hooks": {"Best": {"score": 0.5, "at": (3, None, "AP")}},
    }
    assert restored["scheduler"].last_epoch == 1
    assert restored["scaler"].state_dict() == parts["scaler"].state_dict()
    momenta = [[s["momentum_buffer"] for s in p["optimizer"].state.values()] for p in (parts, restored)]
    assert momenta[0] and all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_what_a_weights_file_may_be(tmp_path, wrap, legacy):
    model, path = new_model(), tmp_path / "weights.pt"
    torch.save(wrap(dict(model.state_dict())), path, _use_new_zipfile_serialization=not legacy)
    other = new_model(seed=1)
    DetectionCheckpointer(other).load(path)
    assert_equal(other, model)


def test_without_a_path_nothing_is_loaded():
    model = new_model()
    assert DetectionCheckpointer(model).load("") == {}
    assert_equal(model, new_model())


def test_resume_off_loads_the_model_alone(tmp_path):
    model = new_model()
    DetectionCheckpointer(model, str(tmp_path), trainer=Stateful({"iteration": 3})).save("a")
    state = Stateful()
    DetectionCheckpointer(new_model(1), str(tmp_path), trainer=state).resume_or_load(
        str(tmp_path / "a.pth"), resume=False
    )
    assert state.state is None


def test_heads_of_another_number_of_classes_are_skipped_and_reported(tmp_path, caplog):
    torch.save({**new_model().state_dict(), "old.weight": torch.zeros(1)}, tmp_path / "a.pth")
    other = new_model(seed=1, classes=8)
    other.add_module("new", nn.Linear(1, 1))
    head = other[2].weight.detach().clone()
    DetectionCheckpointer(other).load(tmp_path / "a.pth")
    assert torch.equal(other[0].weight, new_model()[0].weight)
    assert torch.equal(other[2].weight, head)
    assert "'2.weight'" in caplog.text and "(3, 5)" in caplog.text and "(8, 5)" in caplog.text
    assert "new.{bias, weight}" in caplog.text and "old.weight" in caplog.text


def test_anchors_of_old_checkpoints_are_not_reported(tmp_path, caplog):
    state = {**new_model().state_dict(), "rpn.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    torch.save(state, tmp_path / "a.pth")
    DetectionCheckpointer(new_model(1)).load(tmp_path / "a.pth")
    assert "cell_anchors" not in caplog.text


def saved(obj):
    return lambda path: torch.save(obj, path)


def cut(path):
    torch.save(new_model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "write, found",
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(os.urandom(7) * 100), "700 bytes start with"),
        (lambda path: path.write_text("\n<!DOCTYPE html><html>404</html>"), "a web page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (cut, "cut short at 1000 bytes"),
        (lambda path: path.write_bytes(pickle.dumps(Stateful)), "refused: it asks for .*Stateful"),
        (saved(new_model()), "refused: it asks for torch.nn.modules.container.Sequential"),
        (saved({}), "an empty dictionary"),
        (saved({"epoch": 3, "state_dict": {}}), "'epoch': int, 'state_dict': dict"),
        (saved({"model": {"lr": 0.1}}), "'lr': float"),
        (saved({"model": None}), "a NoneType"),
        (saved([torch.zeros(1)]), "a list"),
        (saved({"backbone.conv1.weight": torch.zeros(1)}), "another model.*backbone.conv1.weight.*0.weight"),
        (lambda path: path.mkdir(), "a folder"),
    ],
)
def test_what_is_not_weights_is_said(tmp_path, write, found):
    path, model = tmp_path / "weights.pth", new_model()
    write(path)
    with pytest.raises(CheckpointError, match=rf"weights\.pth .*{found}.*MODEL\.WEIGHTS"):
        DetectionCheckpointer(model).load(str(path))
    assert_equal(model, new_model())


def test_loading_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name, found in (("evil.pth", r"\w+\.mkdir"), ("evil.pkl", r"\w+\.mkdir")):
        with pytest.raises(CheckpointError, match=rf"{name} .*{found}.*Nothing of it was run"):
            DetectionCheckpointer(new_model()).load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_missing_files_are_named(tmp_path):
    checkpointer = DetectionCheckpointer(new_model(), str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere.pth does not exist.*MODEL.WEIGHTS"):
        checkpointer.load(tmp_path / "nowhere.pth")
    checkpointer.save("model_0000004")
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(FileNotFoundError, match=r"last_checkpoint names 'model_0000009.pth'.*Write model_0000004.pth "):
        checkpointer.resume_or_load("", resume=True)
    (tmp_path / "model_0000004.pth").rename(tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match="not in that folder. Delete .*last_checkpoint to start anew"):
        checkpointer.resume_or_load("", resume=True)
    (tmp_path / "kept").rename(tmp_path / "model_0000004.pth")
    (tmp_path / "model_0000009.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="model_0000004.pth into .*model_0000009.pth is not a weights file"):
        checkpointer.resume_or_load("", resume=True)


@pytest.mark.parametrize("interruption", [OSError("disk full"), RuntimeError("unexpected pos"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, interruption):
    model = new_model()
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")

    def half(data, f):
        f.write(b"half of it")
        raise interruption

    monkeypatch.setattr(torch, "save", half)
    expected, message = (OSError, "model_final.pth cannot be written.*disk full")
    if isinstance(interruption, KeyboardInterrupt):
        expected, message = (KeyboardInterrupt, None)
    with pytest.raises(expected, match=message):
        DetectionCheckpointer(new_model(1), str(tmp_path)).save("model_final")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"]
    restored = new_model(2)
    DetectionCheckpointer(restored, str(tmp_path)).resume_or_load("", resume=True)
    assert_equal(restored, model)


def test_a_state_that_could_not_be_read_back_is_refused(tmp_path):
    checkpointer = DetectionCheckpointer(new_model(), str(tmp_path), trainer=Stateful({"hooks": [{1}]}))
    with pytest.raises(TypeError, match=r"trainer.hooks\[0\] is a set"):
        checkpointer.save("a")
    assert not os.listdir(tmp_path)


def test_only_the_main_process_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    DetectionCheckpointer(new_model(), str(tmp_path)).save("a")
    assert not os.listdir(tmp_path)
    DetectionCheckpointer(new_model(), str(tmp_path / "new"), save_to_disk=True).save("a")
    assert sorted(os.listdir(tmp_path / "new")) == ["a.pth", "last_checkpoint"]


def test_periodic_checkpoints(tmp_path):
    periodic = PeriodicCheckpointer(
        DetectionCheckpointer(new_model(), str(tmp_path)), period=2, max_iter=7, max_to_keep=2
    )
    for iteration in range(7):
        periodic.step(iteration)
    assert sorted(os.listdir(tmp_path)) == [
        "last_checkpoint",
        "model_0000003.pth",
        "model_0000005.pth",
        "model_final.pth",
    ]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
