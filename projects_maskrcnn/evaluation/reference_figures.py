"""Published figures beside the measured ones."""

import logging
from collections.abc import Sequence
from numbers import Real

from tabulate import tabulate

from ..framework import CfgNode

logger = logging.getLogger(__name__)


def reference_table(references: Sequence[tuple[str, str, float]], results: dict[str, dict[str, float]]) -> str:
    """A Markdown table with a row for each metric and a column for each source; measured ones are `-` where missing.

    Args:
        references: (source, "task/metric", figure), as in `TEST.REFERENCE`.
        results: by task and metric.
    """
    sources = list(dict.fromkeys(source for source, _, _ in references))
    figures = {(metric, source): figure for source, metric, figure in references}
    rows = []
    for metric in dict.fromkeys(metric for _, metric, _ in references):
        task, _, name = metric.partition("/")
        measured = results.get(task, {}).get(name)
        row = [metric, None if measured is None else f"{measured:.1f}"]
        rows.append(row + [figures.get((metric, source)) for source in sources])
    return tabulate(rows, ["", "measured", *sources], tablefmt="pipe", missingval="-", floatfmt=".1f")


def check_figures(cfg: CfgNode) -> None:
    """Raise a ValueError where `TEST.REFERENCE` or `TEST.EXPECTED_RESULTS` are not what is read after an evaluation."""
    for key, kinds, form in (
        ("REFERENCE", (str, str, Real), '[source, "task/metric", figure]'),
        ("EXPECTED_RESULTS", (str, str, Real, Real), "[task, metric, figure, tolerance]"),
    ):
        for entry in cfg.TEST[key]:
            fits = isinstance(entry, list | tuple) and len(entry) == len(kinds)
            if not fits or not all(map(isinstance, entry, kinds)):
                raise ValueError(f"TEST.{key}: {entry!r} is not {form}")


def log_reference_figures(cfg: CfgNode, results: dict[str, dict[str, float]]) -> None:
    """Log `reference_table` of the config's `TEST.REFERENCE`, of the metrics whose task was evaluated."""
    references = [r for r in cfg.TEST.REFERENCE if r[1].partition("/")[0] in results]
    if references:
        logger.info("Measured and published figures:\n%s", reference_table(references, results))
