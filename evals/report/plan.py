"""Plan of a report: the tables to be made, and the facts of the config that they need.

The workflow writes it from a config, to work/NAME/plan/HASH/tables.yaml.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ijepa.errors import UserError
from ijepa.files import read_yaml
from ijepa.strict import strict

Rows = list[str] | dict[str, dict[str, str | int]] | None
"""Encoders of a table's rows, with ``published`` by the row that each fills; None means all."""


@dataclass(frozen=True)
class TableSpec:
    """Specification of one table.

    Args:
        name: Name of its files.
        title: Title above it.
        evaluations: Evaluations of its columns.
        published: Table of the paper whose rows it has; None for a table of its own.
        runs: Encoders of its rows.
        titles: Titles of its columns, by evaluation.
        differs: Encoders for which the config itself asks for another protocol, by evaluation.
        encoders: All encoders of the config, measured or not; None if only results are known.
        seeds: Seeds that each run should have; None for the seeds that have results.
    """

    name: str
    title: str
    evaluations: list[str]
    published: str | None = None
    runs: Rows = None
    titles: dict[str, str] = field(default_factory=dict)
    differs: dict[str, list[str]] = field(default_factory=dict)
    encoders: list[str] | None = None
    seeds: list[int] | None = None


@dataclass(frozen=True)
class ReportPlan:
    """All tables of a config, its data set, and CSV files of results measured elsewhere."""

    name: str
    dataset: str
    tables: list[TableSpec]
    external: list[str] = field(default_factory=list)

    @property
    def evaluations(self) -> list[str]:
        """Names of all evaluations of the tables, each once."""
        return list(dict.fromkeys(name for table in self.tables for name in table.evaluations))

    def title(self, evaluation: str) -> str:
        """Title of an evaluation's column."""
        return self.tables[0].titles.get(evaluation, evaluation)


def read_plan(path: Path) -> ReportPlan:
    """Read a plan from its file; raises UserError that names the key that is wrong."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold keys and values: run the workflow, which writes it")
    return strict(ReportPlan, raw, str(path))
