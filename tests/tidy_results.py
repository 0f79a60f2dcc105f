"""Tidy results, and the tables of a config that they fill."""

import json
import math
from typing import Any

import pandas as pd
import yaml

from evals.report import (
    tables,
)
from evals.report.plan import ReportPlan, TableSpec
from evals.report.table import Table
from evals.report.tidy import COLUMNS, NUMBERS, TEXTS
from ijepa.files import ROOT
from workflow.plan.benchmark import read_benchmark
from workflow.plan.grid import Grid

PAPER: dict[str, Any] = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())


def entry(run: str, seed: int, evaluation: str, value: float, **differs: Any) -> dict[str, Any]:
    """A tidy result."""
    return {
        **dict.fromkeys(TEXTS, ""),
        **dict.fromkeys(NUMBERS, math.nan),
        "run": run,
        "seed": seed,
        "evaluation": evaluation,
        "metric": "top1",
        "value": value,
        "low": value - 1,
        "high": value + 1,
        "n": 1000,
        "method": "ijepa",
        "dataset": "imagenet",
        "data_version": "d1",
        "commit": "c1",
        "encoder": f"{run} {seed}",
        "protocol": json.dumps({"epochs": 28, "finetune": {"lr": 1}}),
        "source": f"{run}/seed{seed}/{evaluation}.json",
        **differs,
    }


def tidy(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def plan_of(config: dict[str, Any]) -> ReportPlan:
    return Grid(read_benchmark(config)).report_plan


def of_paper(name: str, frame: pd.DataFrame) -> Table:
    specs = [table for table in PAPER["tables"] if table["name"] == name]
    return tables.tables_of(plan_of({**PAPER, "tables": specs}), frame)[name]


SPEC = TableSpec("own", "Own", ["knn"], seeds=[0, 1])
PAIR = [entry(run, seed, "knn", 50 + seed) for run in ("a", "b") for seed in (0, 1)]
