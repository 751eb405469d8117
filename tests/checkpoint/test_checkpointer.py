"""Loading into models, reports included, and `train_net.py` on hostile files, on the framework in use."""

import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from projects_maskrcnn.checkpoint import MaskRCNNCheckpointer
from projects_maskrcnn.data import shapes
from projects_maskrcnn.weights import CheckpointError


def new_model(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def zoo(state):
    return {"model": {name: value.numpy() for name, value in state.items()}, "__author__": "Detectron2 Model Zoo"}


WRITERS = {
    "pkl": lambda state, path: path.write_bytes(pickle.dumps(zoo(state))),
    "pth": lambda state, path: torch.save({"model": state}, path),
    "ddp.pth": lambda state, path: torch.save({f"module.{name}": value for name, value in state.items()}, path),
    "safetensors": lambda state, path: save_file(state, path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_files_of_each_format_load(suffix, tmp_path, caplog):
    model, other = new_model(), new_model(seed=1)
    path = tmp_path / f"model.{suffix}"
    WRITERS[suffix](model.state_dict(), path)
    MaskRCNNCheckpointer(other).load(str(path))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_what_does_not_match_is_listed_as_detectron2_lists_it(tmp_path, caplog):
    torch.save({**new_model().state_dict(), "old.weight": torch.zeros(1)}, tmp_path / "a.pth")
    model = new_model(seed=1, classes=8)
    model.add_module("new", nn.Linear(1, 1))
    head = model[2].weight.detach().clone()
    MaskRCNNCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert torch.equal(model[0].weight, new_model()[0].weight) and torch.equal(model[2].weight, head)
    for said in (
        r"Skip loading parameter '2.weight' .* \(3, 5\) in the checkpoint but \(8, 5\) in the model",
        r"(?s)not found in the checkpoint:.*new\.\{bias, weight\}",
        r"not used by the model:\s+\S*old\.weight",
    ):
        assert re.search(said, caplog.text), said


def test_a_training_resumes_with_numpys_numbers(tmp_path):
    # as Detectron2 saves the best result so far
    import numpy as np

    model = new_model()
    torch.save({"model": model.state_dict(), "iteration": 7, "best": np.float64(0.5)}, tmp_path / "model_0000007.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    extra = MaskRCNNCheckpointer(new_model(1), str(tmp_path)).resume_or_load("", resume=True)
    assert (extra["iteration"], extra["best"]) == (7, 0.5)


def test_weights_of_another_model_are_an_error(tmp_path):
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth holds the weights of another model.*a\.weight.*0\.weight"):
        MaskRCNNCheckpointer(new_model()).load(str(tmp_path / "a.pth"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(folder, num_train=2, num_val=1)
    return folder


@pytest.mark.parametrize("how", ["--eval-only", "--resume", "train"])
def test_train_net_refuses_hostile_files(how, tmp_path, root, scenes):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    content = {"model": {name: value.numpy() for name, value in new_model().state_dict().items()}, "x": Evil()}
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(content))
    (tmp_path / "last_checkpoint").write_text("evil.pkl")
    weights = "" if how == "--resume" else tmp_path / "evil.pkl"
    command = [sys.executable, "train_net.py", "--config-file", "configs/quick/mask_rcnn_R_18_FPN_shapes.yaml"]
    command += [] if how == "train" else [how]
    command += ["OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0]
    environment = {**os.environ, "PYTHONPATH": str(root), "DETECTRON2_DATASETS": str(scenes.parent)}
    result = subprocess.run(list(map(str, command)), cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert re.search(r"evil\.pkl is refused: it asks for \w+\.mkdir", result.stderr), result.stderr[-2000:]
    assert not (tmp_path / "ran").exists()
