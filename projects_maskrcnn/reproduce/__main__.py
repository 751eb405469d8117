"""Train the rows of one of the paper's tables at a small scale, and report which of its effects show.

    python -m projects_maskrcnn.reproduce 2c --budget 5 --seeds 3

Every row trains a small model of its kind for equally many iterations: as many as the slowest row does in `--budget`
minutes, or `--iterations`, which repeats a report. All start from weights that `start.py` trains first. A run is a
folder of `train_net.py`, `output/reproduction/table_2c/ROW/seed_N`; the same command goes on where it was stopped. The
report, `table_2c.md` and `table_2c.png`, is written after every run. Needs a clone of the repository.
"""

import argparse
import itertools
import json
import logging
import math
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from ..show import read_metrics
from ..weights import CheckpointError
from .claims import CLAIMS, Results
from .report import draw, machine, report, software
from .rows import ROOT, SMALL, Row, default_data, known_data, rows_of
from .start import BATCH, ITERATIONS, starting_weights

logger = logging.getLogger(__name__)

TIMED_ITERATIONS = 20
SHOWN_ERROR = 2000
"""Characters of a failed run's output."""


def train(config: dict, folder: Path) -> None:
    """Run `train_net.py`, or go on with a run that was stopped.

    Raises:
        ChildProcessError: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, console = folder / "row.yaml", folder / "console.txt"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(file), "--resume"]
    with console.open("a") as output:
        done = subprocess.run([*command, "OUTPUT_DIR", str(folder)], stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        raise ChildProcessError(f"{shlex.join(command)} failed; {console} ends:\n{console.read_text()[-SHOWN_ERROR:]}")


def figures(folder: Path) -> dict[str, float] | None:
    """By "task/metric", what a finished run measured, and its seconds per iteration as "time"; else None."""
    latest = {name: value for line in read_metrics(folder) for name, value in line.items()}
    return latest if any(name.endswith("/AP") for name in latest) else None


def seconds_per_iteration(row: Row, data: str, device: str) -> float:
    """Of a run of a few iterations."""
    config = row.small_config(data, device, TIMED_ITERATIONS, seed=1)
    config["DATASETS"]["TEST"] = []
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder))
        return next(line["time"] for line in reversed(read_metrics(Path(folder))) if "time" in line)


def plan(rows: Sequence[Row], folder: Path, data: str, device: str, length: dict[str, float]) -> dict:
    """What all runs of the table have in common: written to `plan.json` at first, read from it later.

    Args:
        length: "iterations" of a run; or its "budget" in minutes, from which they follow by timing every row.

    Raises:
        FileExistsError: the folder holds runs of another plan.
    """
    file = folder / "plan.json"
    wanted = {"data": data, "device": device, **length}
    if file.is_file():
        present = json.loads(file.read_text())
        pairs = [(key, present.get(key), value) for key, value in wanted.items()]
        others = [f"{key} {there}, not {value}" for key, there, value in pairs if there != value]
        if others:
            raise FileExistsError(
                f"{folder} holds runs with {'; '.join(others)}: repeat that, or give another --output"
            )
        return present
    if "budget" in length:
        seconds = {}
        for row in rows:
            seconds[row.name] = seconds_per_iteration(row, data, device)
            logger.info("%s: %.3f s an iteration", row.id, seconds[row.name])
        wanted["iterations"] = max(1, int(60 * length["budget"] / max(seconds.values())))
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(wanted))
    return wanted


def table_folder(output: Path, table: str) -> Path:
    """Where the runs of a table lie."""
    return output / f"table_{table}"


def run_folder(output: Path, row: Row, seed: int) -> Path:
    """Where one run lies."""
    return table_folder(output, row.table) / row.name / f"seed_{seed}"


def collect(output: Path, rows: Sequence[Row]) -> Results:
    """The figures of the finished runs of each row, by seed from 1 on."""
    found = {}
    for row in rows:
        runs = (figures(run_folder(output, row, seed)) for seed in itertools.count(1))
        found[row.id] = list(itertools.takewhile(lambda run: run is not None, runs))
    return found


def write_report(output: Path, table: str, plan: dict, command: str) -> Path:
    """Write the report of what has been run so far; returns its path."""
    tables = {table}.union(*(claim.tables() for claim in CLAIMS[table]))
    results = collect(output, [row for name in sorted(tables) for row in rows_of(name)])
    rows = rows_of(table)
    runs = [run for row in rows for run in results[row.id]]
    solver = yaml.safe_load((SMALL / "Base.yaml").read_text())["SOLVER"]
    minutes = sum(run.get("time", 0.0) for run in runs) * plan["iterations"] / 60
    facts = {
        "command": f"`{command}`",
        "machine": machine(plan["device"]),
        "software": software(),
        "data": f"`{plan['data']}`",
        "start": f"a backbone that classified crops of objects for {ITERATIONS} iterations of {BATCH}",
        "a run": f"{plan['iterations']} iterations of {solver['IMS_PER_BATCH']} images, the same for all rows",
        "runs": f"{len(runs)}, seeds 1 to {max(len(results[row.id]) for row in rows)}, {minutes:.0f} minutes in all",
    }
    path = table_folder(output, table) / f"table_{table}.md"
    draw(rows, results, path.with_suffix(".png"))
    path.write_text(report(table, rows, results, facts, path.with_suffix(".png").name))
    return path


def reproduce(
    table: str, output: Path, data: str, device: str, length: dict[str, float], seeds: int, command: str
) -> Path:
    """Run what is missing; returns the report's path."""
    rows = [row for row in rows_of(table) if row.body() is not None]
    common = plan(rows, table_folder(output, table), data, device, length)
    for seed, row in itertools.product(range(1, seeds + 1), rows):
        folder = run_folder(output, row, seed)
        if figures(folder) is None:
            weights = output / "start" / f"{data}_R_{row.small_depth()}.pth"
            starting_weights(weights, data, row.small_depth(), device)
            logger.info("%s, seed %d: %d iterations in %s", row.id, seed, common["iterations"], folder)
            train(row.small_config(data, device, common["iterations"], seed, str(weights.resolve())), folder)
            write_report(output, table, common, command)
    return write_report(output, table, common, command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m projects_maskrcnn.reproduce", description=__doc__.split("\n")[0])
    parser.add_argument("table", help=f"of the paper: {', '.join(CLAIMS)}")
    parser.add_argument("--data", help="X for registered datasets X_train and X_val; default: shapes, drawn by rule")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--budget", type=float, default=5.0, help="minutes of training a run (default %(default)s)")
    length.add_argument("--iterations", type=int, help="of training a run")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each row (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("output/reproduction"), help="default %(default)s")
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments)
    if args.table not in CLAIMS:
        parser.error(f"there is no table {args.table} at small scale; there are {', '.join(CLAIMS)}")
    if args.seeds < 1 or not 0 < args.budget < math.inf or (args.iterations is not None and args.iterations < 1):
        parser.error("--seeds and --iterations must be 1 or more, and --budget some minutes")
    if not (ROOT / "configs/paper").is_dir():
        parser.error(f"there are no configs in {ROOT}: run it from a clone of the repository")
    data = args.data or default_data(args.table)
    if data not in known_data():
        parser.error(f"there is no dataset {data}; registered are {', '.join(known_data())}")
    command = shlex.join(["python", "-m", "projects_maskrcnn.reproduce", *arguments])
    try:
        length = {"budget": args.budget} if args.iterations is None else {"iterations": args.iterations}
        path = reproduce(args.table, args.output, data, args.device, length, args.seeds, command)
    except (OSError, CheckpointError) as error:
        parser.exit(1, f"{error}\n")
    print(path.read_text())
    print(f"Report: {path}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main()
