"""Follow trainings in the terminal, with curves: ``python -m ijepa.watch work/mini``.

Beside a run stands the published one of the same config and name, if git has it
(results/reference/CONFIG), or one of another folder. Both curves of a line have one scale, and
one's own is as long as the images that it has seen so far.
"""

import argparse
import math
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ijepa.errors import UserError, program, run_command
from ijepa.log_reader import Records, logs_in, published_logs, published_of, read_log

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
    options.add_argument(
        "--reference", type=Path, help="folder with logs to be drawn beside them (default: git's)"
    )
    options.add_argument("--every", type=float, default=5, help="seconds between looks")
    options.add_argument("--once", action="store_true", help="look once and end")
    return options


def view(folder: Path, reference: Path | None = None) -> Group:
    """All logs of a folder as tables of last values and curves."""
    logs = logs_in(folder)
    if not logs:
        raise UserError(f"{folder} has no train.jsonl: name a folder in which something trains")
    others, heading = published_logs(folder), "published"
    if reference:
        paths, heading = logs_in(reference), "reference"
        others = {name: read_log(path) for name, path in paths.items()}
    tables = [
        table_of(name, read_log(path), published_of(name, others), heading)
        for name, path in logs.items()
    ]
    return Group(*tables)


def table_of(name: str, records: Records, other: Records, heading: str) -> Table | Text:
    """Last values and curves of one log, and those of ``other`` under ``heading`` if it has any."""
    if not records:
        return Text(f"{name}: no line yet")
    last = records[-1]
    table = Table(title=f"{name}: step {last['step']:,}, {last['images']:,} images")
    for column in ("", "last", "curve", *([heading] if other else [])):
        table.add_column(column, no_wrap=True)
    widths = [WIDTH, WIDTH]
    if other:
        longest = max(last["images"], other[-1]["images"])
        widths = [math.ceil(WIDTH * log[-1]["images"] / longest) for log in (records, other)]
    for key, title in CURVES.items():
        values, beside = (
            [record[key] for record in log if math.isfinite(record.get(key, math.nan))]
            for log in (records, other)
        )
        if not values:
            continue
        limits = min(values + beside), max(values + beside)
        row = [title, f"{values[-1]:.4g}", curve(values, widths[0], limits)]
        table.add_row(*row, *([curve(beside, widths[1], limits)] if other else []))
    return table


def curve(
    values: list[float], width: int = WIDTH, limits: tuple[float, float] | None = None
) -> str:
    """Values as bars, at most ``width``, between ``limits`` or their least and their greatest."""
    if not values:
        return ""
    count = min(width, len(values))
    picked = [values[i * (len(values) - 1) // max(1, count - 1)] for i in range(count)]
    low, high = limits or (min(picked), max(picked))
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
