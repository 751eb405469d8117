"""Published figures beside the measured ones."""

import logging

import pytest

from projects_maskrcnn.evaluation import check_figures, log_reference_figures, reference_table
from projects_maskrcnn.framework import CfgNode

REFERENCES = [["paper", "segm/AP", 30.3], ["paper", "segm/AP50", 51.2], ["model zoo", "segm/AP", 32.2]]


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_table():
    header, _, ap, ap50 = cells(reference_table(REFERENCES, {"segm": {"AP": 31.04, "AP75": 1.0}, "bbox": {"AP": 2.0}}))
    assert header == ["", "measured", "paper", "model zoo"]
    assert ap == ["segm/AP", "31.0", "30.3", "32.2"]
    assert ap50 == ["segm/AP50", "-", "51.2", "-"]


@pytest.mark.parametrize("key", ["REFERENCE", "EXPECTED_RESULTS"])
@pytest.mark.parametrize("entry", [1, "abc", ["a", "b"], ["a", 1, 2.0], ["a", "b", "c"], ["a", "b", 1, "c"]])
def test_what_is_no_figure_is_named(key, entry):
    lists = {"REFERENCE": REFERENCES, "EXPECTED_RESULTS": [["bbox", "AP", 38.5, 0.2]]}
    check_figures(CfgNode({"TEST": lists}))
    with pytest.raises(ValueError, match=f"TEST.{key}: "):
        check_figures(CfgNode({"TEST": {**lists, key: [*lists[key], entry]}}))


def test_only_what_was_evaluated_is_logged(caplog):
    caplog.set_level(logging.INFO)
    cfg = CfgNode({"TEST": {"REFERENCE": [*REFERENCES, ["paper", "segm_TTA/AP", 41.8]]}})
    logging.getLogger("projects_maskrcnn").propagate = True
    log_reference_figures(cfg, {"segm": {"AP": 31.0}})
    assert "30.3" in caplog.text and "41.8" not in caplog.text
    caplog.clear()
    log_reference_figures(cfg, {})
    log_reference_figures(CfgNode({"TEST": {"REFERENCE": []}}), {"segm": {"AP": 31.0}})
    assert not caplog.text
