"""Printing results, and checking them against those that a config expects."""

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

from ..config import CfgNode

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Logs each task's main metrics as comma-separated lines, to paste into a spreadsheet.

    Per-category metrics (``AP-person``) are left out. Stands for Detectron2's `print_csv_format`.
    """
    for task, scores in results.items():
        if not isinstance(scores, Mapping):
            logger.info("copypaste: %s=%s", task, scores)
            continue
        main = {metric: score for metric, score in scores.items() if "-" not in metric}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{score:.4f}" for score in main.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compares results with TEST.EXPECTED_RESULTS, a list of ``[task, metric, value, tolerance]``.

    Stands for Detectron2's `verify_results`.

    Returns:
        True. Where a result is missing, not finite or out of tolerance, logs which and exits with status 1.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    failures = []
    for task, metric, value, tolerance in expected:
        actual = results.get(task, {}).get(metric, math.nan)
        if not abs(actual - value) <= tolerance:  # NaN fails too
            failures.append(f"{task}/{metric} is {actual}, expected {value} +- {tolerance}")
    if failures:
        logger.error("Result verification failed!\n%s", "\n".join(failures))
        logger.error("Expected Results: %s", expected)
        logger.error("Actual Results: %s", pprint.pformat(results))
        sys.exit(1)
    if expected:
        logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """``{"bbox": {"AP": 40}}`` to ``{"bbox/AP": 40}``, at any depth."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{name}": score for name, score in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
