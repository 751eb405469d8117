"""Proposal files: what is written is what the framework reads."""

import pickle

import pytest
import torch

from projects_maskrcnn.evaluation import ProposalWriter
from projects_maskrcnn.framework import Boxes, BoxMode, Instances, load_proposals_into_dataset


def proposals(boxes, logits):
    fields = {"proposal_boxes": Boxes(torch.tensor(boxes)), "objectness_logits": torch.tensor(logits)}
    return {"proposals": Instances((40, 60), **fields)}


def test_the_framework_reads_what_is_written(tmp_path):
    path = tmp_path / "folder/proposals.pkl"
    writer = ProposalWriter(path)
    writer.process([{"image_id": 7}], [proposals([[9.0, 9.0, 9.0, 9.0]], [1.0])])
    writer.reset()
    outputs = [
        proposals([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], [-1.0, 2.0]),
        proposals([[0.0, 0.0, 9.0, 9.0]], [0.5]),
    ]
    writer.process([{"image_id": 7}, {"image_id": "000012"}], outputs)
    assert writer.evaluate() == {}
    assert [p.name for p in path.parent.iterdir()] == ["proposals.pkl"]
    first, second = load_proposals_into_dataset([{"image_id": "000012"}, {"image_id": 7}], str(path))
    assert first["proposal_boxes"].tolist() == [[0, 0, 9, 9]] and first["proposal_objectness_logits"].tolist() == [0.5]
    assert second["proposal_boxes"].tolist() == [[5, 6, 7, 8], [1, 2, 3, 4]]  # by decreasing score
    assert second["proposal_objectness_logits"].tolist() == [2, -1]
    assert second["proposal_bbox_mode"] == BoxMode.XYXY_ABS


def test_an_interrupted_writer_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "proposals.pkl"
    path.write_bytes(b"as it was")

    def half(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pickle, "dump", half)
    writer = ProposalWriter(path)
    writer.process([{"image_id": 7}], [proposals([[9.0, 9.0, 9.0, 9.0]], [1.0])])
    with pytest.raises(OSError, match="disk full"):
        writer.evaluate()
    assert path.read_bytes() == b"as it was" and list(tmp_path.iterdir()) == [path]
