"""Follow trainings in the terminal, with curves: ``python -m ijepa.watch work/mini``.

A reference log, such as that of a published run, is drawn beside a run of the same name.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ijepa.errors import UserError, program, run_command
from ijepa.logs import logs_in, read_log

CURVES = {
    "loss": "loss",
    "rankme": "RankMe",
    "feature_std": "deviation",
    "knn_top1": "k-NN",
    "linear_top1": "linear head",
    "grad_norm": "gradient",
    "lr": "learning rate",
    "momentum": "momentum",
    "images_per_s": "images/s",
}
"""Keys of a log's lines and their titles."""
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Characters of a curve."""


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog=program("ijepa.watch"), description=__doc__)
    options.add_argument("folder", type=Path, help="folder with logs, such as work/mini")
    options.add_argument("--reference", type=Path, help="folder with logs to be drawn beside them")
    options.add_argument("--every", type=float, default=5, help="seconds between looks")
    options.add_argument("--once", action="store_true", help="look once and end")
    return options


def view(folder: Path, reference: Path | None = None) -> Group:
    """All logs of a folder as tables of last values and curves."""
    logs = logs_in(folder)
    others = logs_in(reference) if reference else {}
    if not logs:
        raise UserError(f"{folder} has no train.jsonl: name a folder in which something trains")
    tables = [table_of(name, read_log(path), others.get(name)) for name, path in logs.items()]
    return Group(*tables)


def table_of(name: str, records: list[dict[str, Any]], other: Path | None) -> Table | Text:
    """Last values and curves of one log."""
    if not records:
        return Text(f"{name}: no line yet")
    last = records[-1]
    table = Table(title=f"{name}: step {last['step']:,}, {last['images']:,} images")
    for column in ("", "last", "curve", *(["reference"] if other else [])):
        table.add_column(column, no_wrap=True)
    beside = read_log(other) if other else []
    for key, title in CURVES.items():
        if not (values := [record[key] for record in records if key in record]):
            continue
        row = [title, f"{values[-1]:.4g}", curve(values)]
        if other:
            row.append(curve([record[key] for record in beside if key in record]))
        table.add_row(*row)
    return table


def curve(values: list[float], width: int = WIDTH) -> str:
    """Values as bars between their least and their greatest, at most ``width``."""
    if not values:
        return ""
    count = min(width, len(values))
    picked = [values[i * (len(values) - 1) // max(1, count - 1)] for i in range(count)]
    low, high = min(picked), max(picked)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(BARS[round((value - low) * scale)] for value in picked)


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    console = Console()
    if options.once:
        console.print(view(options.folder, options.reference))
        return
    with Live(view(options.folder, options.reference), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(options.every)
            live.update(view(options.folder, options.reference), refresh=True)


if __name__ == "__main__":
    run_command(main)
