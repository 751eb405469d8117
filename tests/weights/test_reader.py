"""Every format gives the same tensors, whatever the file is called; what is none says what it is."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from projects_maskrcnn.weights import CheckpointError, local_file, read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1, -2])}
ARRAYS = {name: value.numpy() for name, value in STATE.items()}


def pickled(content, protocol=2):
    return lambda path: path.write_bytes(pickle.dumps(content, protocol))


def saved(content, zipped=True):
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=zipped)


FORMATS = {
    "Detectron2's model zoo": pickled({"model": ARRAYS, "__author__": "Detectron2 Model Zoo"}),
    "its arrays in an OrderedDict": pickled({"model": OrderedDict(ARRAYS), "matching_heuristics": True}, 4),
    "Caffe2's detectors": pickled({"blobs": ARRAYS, "cfg": "MODEL: {}"}),
    "Caffe2's backbones": pickled(ARRAYS, 0),
    "arrays of the other byte order": pickled({n: a.astype(a.dtype.newbyteorder()) for n, a in ARRAYS.items()}, 5),
    "Detectron2's checkpoint": saved({"model": STATE, "iteration": 3, "trainer": {"best": np.float64(0.5)}}),
    "state_dict": saved(OrderedDict(STATE)),
    "arrays by torch.save": saved({"model": ARRAYS}),
    "torch before 1.6": saved({"model": STATE}, zipped=False),
    "DistributedDataParallel": saved({f"module.{name}": value for name, value in STATE.items()}),
    "pycls": saved({"model_state": STATE, "epoch": 1}),
    "safetensors": lambda path: save_file(STATE, path),
}


@pytest.mark.parametrize("suffix", ["pkl", "pth", "safetensors"])
@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_told_apart_by_content(tmp_path, name, suffix):
    FORMATS[name](tmp_path / f"weights.{suffix}")
    found = read_weights(str(tmp_path / f"weights.{suffix}"))["model"]
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in STATE.items())


def test_the_rest_of_a_checkpoint_comes_along(tmp_path):
    FORMATS["Detectron2's checkpoint"](tmp_path / "a.pth")
    content = read_weights(str(tmp_path / "a.pth"))
    assert content["iteration"] == 3 and content["trainer"] == {"best": 0.5}


def test_a_state_dict_keeps_its_versions(tmp_path):
    torch.save(torch.nn.BatchNorm1d(2).state_dict(), tmp_path / "a.pth")
    assert read_weights(str(tmp_path / "a.pth"))["model"]._metadata[""]["version"] == 2


def cut(write, keep):
    def write_part(path):
        write(path)
        path.write_bytes(path.read_bytes()[:keep])

    return write_part


@pytest.mark.parametrize(
    "write, found",
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(b"\x00 no weights"), "its 12 bytes start with"),
        (lambda path: path.write_text("\n<!DOCTYPE html><html>404</html>"), "a web page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (cut(saved(STATE), 1000), "cut short at 1000 bytes"),
        (cut(pickled(ARRAYS), 100), "damaged pickle"),
        (cut(lambda path: save_file(STATE, path), 60), "safetensors file, or one cut short at 60 bytes"),
        (saved({}), "an empty dictionary"),
        (saved({"epoch": 3, "state_dict": {}}), "'epoch': int, 'state_dict': dict"),
        (pickled({"model": {"lr": 0.1}}), "'lr': float"),
        (saved([torch.zeros(1)]), "a list"),
        (pickled({"w": np.array(["text"])}), "w is an array of <U4"),
    ],
)
def test_what_is_not_weights_is_said(tmp_path, write, found):
    write(tmp_path / "a.file")
    with pytest.raises(CheckpointError, match=rf"a\.file.*{found}.*MODEL\.WEIGHTS"):
        read_weights(str(tmp_path / "a.file"))


class Manager:
    """A path manager for URLs that fail, or paths that are local."""

    def __init__(self, error=None):
        self.error = error

    def get_local_path(self, path):
        if self.error:
            raise self.error
        return path


def test_a_failed_download_names_the_url_and_the_remedy():
    manager = Manager(OSError("Name or service not known"))
    with pytest.raises(CheckpointError) as raised:
        local_file("detectron2://ImageNetPretrained/MSRA/R-50.pkl", manager)
    for part in (
        "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl",
        "Name or service not known",
        "Fetch it yourself, and set MODEL.WEIGHTS",
    ):
        assert part in str(raised.value)


def test_local_files(tmp_path):
    save_file(STATE, tmp_path / "a.pth")
    assert local_file(tmp_path / "a.pth", Manager()) == str(tmp_path / "a.pth")
    assert local_file(f"{tmp_path}/a.pth?matching_heuristics=True", Manager()) == str(tmp_path / "a.pth")
    assert local_file("", Manager()) == local_file(None, Manager()) == ""
    with pytest.raises(FileNotFoundError, match="b.pth does not exist.*MODEL.WEIGHTS"):
        local_file(tmp_path / "b.pth", Manager())
    with pytest.raises(CheckpointError, match="is a folder"):
        local_file(tmp_path, Manager())
    assert os.listdir(tmp_path) == ["a.pth"]


def test_tensors_without_names_are_refused(tmp_path):
    path = tmp_path / "numbered.pth"
    torch.save({0: torch.ones(2), 1: torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="numbered.pth holds tensors without names"):
        read_weights(str(path))
