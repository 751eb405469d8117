"""The check that an installation is sound."""

import re

import pytest
import torch

from projects_maskrcnn import selftest
from projects_maskrcnn.ops import native as native_operators
from projects_maskrcnn.ops import reference


def test_every_operator_is_sound(native, capsys):
    assert selftest.main() == 0
    report = capsys.readouterr().out
    assert f"torch {torch.__version__}" in report
    for name in ("roi_align, torch.float32", "roi_pool, torch.bfloat16", "nms", "paste_masks", "masks_to_rle"):
        assert f"cpu: {name}: ok" in report


def test_without_the_operators_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(native_operators, "DEVICES", frozenset())
    assert selftest.main() == 0
    assert "not built" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("operator", "wrong", "complaint"),
    [
        ("roi_average", lambda right: lambda *args: right(*args) + 1, "roi_align, torch.float32: values are off by 1"),
        ("nms", lambda right: lambda *args: right(*args).flip(0), "nms: other boxes are kept"),
        ("paste_masks", lambda right: lambda *args: ~right(*args), "paste_masks: .* pixels differ"),
        ("encode", lambda right: lambda *args: right(*args)[:-1], "masks_to_rle: the encoding differs"),
    ],
)
def test_a_disagreement_is_reported(native, monkeypatch, capsys, operator, wrong, complaint):
    monkeypatch.setattr(reference, operator, wrong(getattr(reference, operator)))
    assert selftest.main() == 1
    assert re.search(complaint, capsys.readouterr().out)
