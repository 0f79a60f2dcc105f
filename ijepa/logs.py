"""Logs of trainings: the files ``train.jsonl`` below a folder, by the run's name."""

import json
from pathlib import Path
from typing import Any

from ijepa.errors import UserError


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


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a log; one that is just being written is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no log of a training ({error}): name its folder") from None
