"""The report of a table: our figures and the paper's side by side, and what they say of its claims."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from tabulate import tabulate

from ..framework import FRAMEWORK
from .claims import ALIKE, CLAIMS, Claim, Judgement, Results, judge
from .rows import METRICS, Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend must be chosen first

TASKS = {"segm": "Masks", "bbox": "Boxes", "keypoints": "Keypoints"}
COLOURS = ("tab:blue", "tab:gray", "tab:orange")
LEGEND = f"""\
*Here* is the mean over seeds, with half of its 95 % interval; the noise of a run is pooled over the rows and seeds of
the table. An effect **shows** where the whole interval is above 0, or, where the paper calls rows alike (≈), within
{ALIKE:g} AP of 0. It **does not show** where the whole interval is on the other side. Else it is **within the noise**:
these runs cannot tell."""


def report(table: str, rows: Sequence[Row], results: Results, facts: dict[str, str], picture: str) -> str:
    """The report as Markdown.

    Args:
        rows: of the table, in order.
        results: of these rows, and of those of other tables that its claims compare.
        facts: what must be known to repeat it, by name.
        picture: file name.
    """
    parts = [
        f"# Table {table} at small scale",
        tabulate(facts.items(), ["", ""], tablefmt="pipe", disable_numparse=True),
        f"![Figures here and in the paper]({picture})",
    ]
    parts += [f"## {TASKS[task]}\n\n{figure_table(task, rows, results)}" for task in _tasks(rows)]
    parts.append(f"## What the paper claims\n\n{claim_table(CLAIMS[table], rows, results)}\n\n{LEGEND}")
    left_out = [row.name for row in rows if row.body() is None]
    if left_out:
        parts.append(f"Without a small counterpart, and left out: {', '.join(left_out)}.")
    return "\n\n".join(parts) + "\n"


def _tasks(rows: Sequence[Row]) -> list[str]:
    """Those that the paper has figures for."""
    published = {metric.split("/")[0] for row in rows for metric in row.published()}
    return [task for task in TASKS if task in published]


def figure_table(task: str, rows: Sequence[Row], results: Results) -> str:
    """A Markdown table: for each row the mean of each metric with its range over seeds, and the paper's figure."""
    lines = []
    for row in rows:
        runs = results.get(row.id, [])
        cells = [_spread(_measured(runs, f"{task}/{m}")) for m in METRICS]
        lines.append([row.name, len(runs), *cells, *(_number(row.published().get(f"{task}/{m}")) for m in METRICS)])
    headers = ["", "seeds", *METRICS, *(f"paper: {m}" for m in METRICS)]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def claim_table(claims: Sequence[Claim], rows: Sequence[Row], results: Results) -> str:
    """A Markdown table: for each claim the effect in the paper and here, of each seed, and the verdict."""
    published = {row.id: row.published() for row in rows}
    lines = []
    for claim in claims:
        judgement = judge(claim, results)
        metric = " − ".join(claim.metrics)
        lines.append(
            [
                claim.text,
                f"{metric} {'≈ 0' if claim.alike else '> 0'}",
                _number(claim.effect(published), sign=True),
                *_judgement_cells(judgement, claim),
            ]
        )
    headers = ["claim", "difference", "paper", "here", "each seed", "verdict"]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def _judgement_cells(judgement: Judgement | None, claim: Claim) -> list[str]:
    if judgement is None:
        return ["-", "-", f"not run: needs table {' and '.join(sorted(claim.tables()))}"]
    noise = f" ± {judgement.noise:.1f}" if np.isfinite(judgement.noise) else ""
    verdict = judgement.verdict if noise else f"{judgement.verdict} (one seed)"
    each = ", ".join(_number(value, sign=True) for value in judgement.seeds)
    return [_number(judgement.effect, sign=True) + noise, each, f"**{verdict}**"]


def _number(value: float | None, sign: bool = False) -> str:
    if value is None or np.isnan(value):
        return "-"
    return f"{value:{'+' if sign else ''}.1f}".replace("-", "−")


def _measured(runs: Sequence[Mapping[str, float]], metric: str) -> list[float]:
    """Of the runs that have it: without any detection it is missing or NaN."""
    return [run[metric] for run in runs if not np.isnan(run.get(metric, np.nan))]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = _number(float(np.mean(values)))
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def draw(rows: Sequence[Row], results: Results, path: Path) -> None:
    """Bars of the mean AP, AP50 and AP75 of each row with a dot for each seed, beside the paper's."""
    tasks = _tasks(rows)
    rows = [row for row in rows if results.get(row.id)]
    height = 1.4 + (0.8 + 0.6 * len(rows)) * len(tasks)
    figure, grid = plt.subplots(len(tasks), 2, figsize=(11, height), dpi=110, squeeze=False, sharex="row")
    for task, (ours, papers) in zip(tasks, grid, strict=True):
        for axes, title in ((ours, "here"), (papers, "paper")):
            axes.set_title(f"{TASKS[task]}, {title}", loc="left")  # the legend is on the right
            axes.set(yticks=range(len(rows)), xlabel="AP")
            axes.set_yticklabels([row.name for row in rows] if axes is ours else [])
            axes.invert_yaxis()
            axes.grid(axis="x", alpha=0.3)
        for offset, metric, colour in zip((-0.27, 0, 0.27), METRICS, COLOURS, strict=True):
            key = f"{task}/{metric}"
            places = np.arange(len(rows)) + offset
            values = [_measured(results[row.id], key) for row in rows]
            ours.barh(places, [np.mean(v or 0) for v in values], 0.25, color=colour, alpha=0.7, label=metric)
            for place, seeds in zip(places, values, strict=True):
                ours.plot(seeds, [place] * len(seeds), "k.", ms=4)
            papers.barh(places, [row.published().get(key, 0) for row in rows], 0.25, color=colour, alpha=0.7)
    figure.legend(*ours.get_legend_handles_labels(), fontsize=8, loc="upper right", ncols=len(METRICS))
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def machine(device: str) -> str:
    """The processor that the runs compute on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in _lines(info) if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def software() -> str:
    """Framework and PyTorch."""
    return f"{'Detectron2' if FRAMEWORK == 'detectron2' else 'embedded framework'}, PyTorch {torch.__version__}"
