"""Logs of trainings: the files ``train.jsonl`` below a folder, by the run's name.

Logs of our own runs are in git as one small CSV file for each config, ``plots/loss.csv``.
"""

import csv
import json
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from ijepa.errors import UserError

REFERENCE = PurePosixPath("results/reference")
"""Folder of the results in git, by config; one's own results are in ``results/CONFIG``."""
Records = list[dict[str, Any]]
"""Lines of a log."""


def logs_in(folder: Path) -> dict[str, Path]:
    """The newest log of every run below a folder, by RUN/seedN, sorted.

    Results have one of each run; a folder of checkpoints may have logs of earlier settings too.
    """
    newest: dict[str, Path] = {}
    for path in sorted(folder.rglob("train.jsonl"), key=lambda path: path.stat().st_mtime):
        newest[name_of(path, folder)] = path
    return dict(sorted(newest.items()))


def name_of(path: Path, folder: Path) -> str:
    """Run and seed of a log; its own folder if the path tells none."""
    parts = path.parts
    seeds = [number for number, part in enumerate(parts) if part.startswith("seed")]
    if seeds and seeds[-1] > 0:
        return "/".join(parts[seeds[-1] - 1 : seeds[-1] + 1])
    return str(path.parent.relative_to(folder))


def read_log(path: Path) -> Records:
    """Lines of a log; one that is just being written is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no log of a training ({error}): name its folder") from None


def published_logs(folder: Path) -> dict[str, Records]:
    """Logs in git of the config that a folder of work or results is of, by RUN/seedN.

    The folder's path tells the config: work/CONFIG, results/CONFIG or a folder below. There are
    none if git has none.
    """
    parts = folder.resolve().parts
    names = [name for above, name in pairwise(parts) if above in ("work", "results")]
    path = Path(REFERENCE / names[-1] / "plots" / "loss.csv") if names else None
    if path is None or not path.exists():
        return {}
    logs: dict[str, Records] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            run, seed = row.pop("run"), row.pop("seed")
            record = {name: float(value) for name, value in row.items() if value}
            logs.setdefault(f"{run}/seed{seed}", []).append(record)
    return logs


def published_of(name: str, logs: dict[str, Records]) -> Records:
    """Published log of a run, RUN/seedN: that of its seed, else that of the run's first; or []."""
    run = name.partition("/")[0]
    seeds = sorted(other for other in logs if other.partition("/")[0] == run)
    return logs.get(name) or next((logs[other] for other in seeds), [])
