"""`python -m projects_maskrcnn.convert` on files of each origin."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from projects_maskrcnn.convert import convert
from projects_maskrcnn.weights import CheckpointError, load_for

SOURCES = {
    "model zoo": {"model": {"backbone.fpn_output2.bias": np.float32([1, 2])}, "__author__": "Detectron2 Model Zoo"},
    "Caffe2": {"blobs": {"cls_score_w": np.float32([[0], [1], [2]]), "cls_score_w_momentum": np.zeros((3, 1), "f")}},
}
EXPECTED = {
    "model zoo": {"backbone.fpn_output2.bias": [1, 2]},
    "Caffe2": {"box_predictor.cls_score.weight": [[1], [2], [0]]},
}


def test_the_source_is_not_written_over(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {"w": torch.ones(2)}, "iteration": 3}, path)
    with pytest.raises(ValueError, match="model.pth is the source itself"):
        convert(str(path), path)
    assert torch.load(path)["iteration"] == 3


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_cannot_be_written_leaves_what_was_there(suffix, tmp_path, monkeypatch):
    source, destination = tmp_path / "source.pth", tmp_path / f"out{suffix}"
    torch.save({"model": {"w": torch.ones(2)}}, source)
    destination.write_bytes(b"as it was")

    def full(content, path, *metadata):
        path.write_bytes(b"half")
        raise RuntimeError("no space left")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match=f"out{suffix} cannot be written .no space left"):
        convert(str(source), destination)
    assert destination.read_bytes() == b"as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"out{suffix}", "source.pth"]


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    path = tmp_path / "source.pkl"
    path.write_bytes(pickle.dumps(SOURCES[request.param]))
    return request.param, str(path)


def test_pth(source, tmp_path):
    name, path = source
    convert(path, tmp_path / "new" / "model.pth")
    content = torch.load(tmp_path / "new" / "model.pth", weights_only=True)
    assert {key: value.tolist() for key, value in content["model"].items()} == EXPECTED[name]
    # Detectron2's key for names that are but the ends of its own
    assert content.get("matching_heuristics", False) == (name == "Caffe2")


def test_safetensors_and_back(source, tmp_path):
    name, path = source
    convert(path, tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    assert {key: value.tolist() for key, value in tensors.items()} == EXPECTED[name]
    convert(str(tmp_path / "model.safetensors"), tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_ends_of_names_are_completed_as_before(suffix, tmp_path):
    """Beside names that are whole, as some of Caffe2's are: these alone would not tell that others are not."""
    model = torch.nn.ModuleDict()
    for layer, conv in {"proposal_generator.rpn_head.conv": (1, 2), "backbone.stem.conv1": (3, 4)}.items():
        outer, middle, inner = layer.split(".")
        model[outer] = torch.nn.ModuleDict({middle: torch.nn.ModuleDict({inner: torch.nn.Linear(*conv)})})
    blobs = {"conv_rpn_w": np.ones((2, 1), "f"), "conv1_w": np.ones((4, 3), "f")}
    (tmp_path / "source.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    convert(str(tmp_path / "source.pkl"), tmp_path / f"model{suffix}")
    convert(str(tmp_path / f"model{suffix}"), tmp_path / "again.pth")
    for file in (f"model{suffix}", "again.pth"):
        found = load_for(model, str(tmp_path / file))["model"]
        assert found.keys() == {"proposal_generator.rpn_head.conv.weight", "backbone.stem.conv1.weight"}


def run(root, *arguments):
    command = [sys.executable, "-m", "projects_maskrcnn.convert", *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_the_command_says_what_torchvisions_weights_need(tmp_path, root):
    state = {"conv1.weight": torch.rand(64, 3, 7, 7), "layer1.0.bn1.weight": torch.ones(64), "bn1.bias": torch.ones(64)}
    torch.save(state, tmp_path / "resnet.pth")
    result = run(root, tmp_path / "resnet.pth", tmp_path / "model.pth")
    assert result.returncode == 0, result.stderr
    assert "model.pth: 3 tensors" in result.stdout
    output = result.stdout + result.stderr
    for part in ("BGR images of mean [103.53, 116.28, 123.675]", "MODEL.RESNETS.STRIDE_IN_1X1 False"):
        assert part in output
    model = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert model.keys() == {"stem.conv1.weight", "res2.0.conv1.norm.weight", "stem.conv1.norm.bias"}
    # red, which is first there and last here, in units of its deviation there and of one here
    torch.testing.assert_close(model["stem.conv1.weight"][:, 2], state["conv1.weight"][:, 0] / (0.229 * 255))


def test_bad_arguments_are_said(tmp_path, root):
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for arguments, message in [
        ((tmp_path / "none.pkl", tmp_path / "b.pth"), "none.pkl does not exist"),
        ((tmp_path / "evil.pkl", tmp_path / "b.pth"), "it asks for os.system"),
        ((tmp_path / "evil.pkl", tmp_path / "b.pkl"), "b.pkl: name a file that ends in one of .pth, .safetensors"),
    ]:
        result = run(root, *arguments)
        assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "b.pth").exists()
