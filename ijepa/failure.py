"""Record of the step at which a run was not finite any more: ``failed.json`` in its folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ijepa.errors import UserError
from ijepa.files import read_json, write_json
from ijepa.strict import strict

NAME = "failed.json"


class NotFinite(UserError):
    """Error for a loss or a weight that is not finite at, or after, a step."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Failure:
    """Everything that decides the step, beside the run's last checkpoint.

    ``run`` is the run as plain data, ``data`` the folder of its shards; ``facts`` are the versions
    of data, tokens and start. ``processes`` shared each batch, with ``threads`` each.
    """

    step: int
    run: dict[str, Any]
    data: str
    facts: dict[str, Any]
    processes: int
    threads: int

    def write(self, folder: Path) -> None:
        """Write the record into the run's folder."""
        write_json(folder / NAME, asdict(self))


def read_failure(folder: Path) -> tuple[Path, Failure]:
    """Folder of the run that failed last in or below a folder, and its record."""
    paths = sorted(folder.rglob(NAME), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise UserError(
            f"{folder} has no {NAME}: name the folder in work/ of a run whose loss was not finite"
        )
    failure: Failure = strict(Failure, read_json(paths[-1]), str(paths[-1]))
    return paths[-1].parent, failure
