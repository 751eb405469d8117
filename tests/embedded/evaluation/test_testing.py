"""Printing, checking and flattening of results."""

from types import SimpleNamespace

import pytest

from projects_maskrcnn.embedded.evaluation import flatten_results_dict, print_csv_format, verify_results

RESULTS = {"bbox": {"AP": 40.25, "AP50": 60.0, "AP-cat": 12.0}, "segm": {"AP": float("nan")}}


def config(*expected):
    return SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=list(expected)))


@pytest.mark.parametrize(
    "expected", [[], [["bbox", "AP", 40.0, 0.25]], [["bbox", "AP50", 60, 0], ["bbox", "AP", 40.5, 0.3]]]
)
def test_verified(expected):
    assert verify_results(config(*expected), RESULTS) is True


@pytest.mark.parametrize(
    "expected, message",
    [
        (["bbox", "AP", 40.0, 0.2], "bbox/AP is 40.25, expected 40.0 +- 0.2"),
        (["bbox", "AP75", 40.0, 1], "bbox/AP75 is nan"),
        (["keypoints", "AP", 40.0, 1], "keypoints/AP is nan"),
        (["segm", "AP", 40.0, 1], "segm/AP is nan"),
    ],
)
def test_failed(expected, message, caplog):
    with pytest.raises(SystemExit) as error:
        verify_results(config(["bbox", "AP50", 60, 0], expected), RESULTS)
    assert error.value.code == 1
    assert message in caplog.text and "bbox/AP50 is" not in caplog.text


def test_print_csv_format(caplog):
    caplog.set_level("INFO")
    print_csv_format({**RESULTS, "seconds": 3})
    assert [record.getMessage() for record in caplog.records] == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 40.2500,60.0000",
        "copypaste: Task: segm",
        "copypaste: AP",
        "copypaste: nan",
        "copypaste: seconds=3",
    ]


def test_flatten_results_dict():
    assert flatten_results_dict({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a/b": 1, "a/c/d": 2, "e": 3}
