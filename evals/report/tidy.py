"""Tidy data from results of evaluations: one row for each encoder, seed and evaluation.

``pool`` names the pooled tokens (evals.pooling); ``chosen_on`` is "test" where a setting was chosen
on the test images, as the papers do.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from ijepa.encoder_file import PIXELS, UNTRAINED
from ijepa.errors import UserError
from ijepa.result_file import read_result

CONTROLS = {UNTRAINED: "the network untrained", PIXELS: "no network"}
UNITS = {"top1": "top-1 %", "rankme": "RankMe", "identification": "identification"}
"""Units of the metrics that a table can show."""

NUMBERS = ["value", "low", "high", "n", "epochs", "images_seen", "train_minutes", "gpu_hours"]
TEXTS = [
    *("method", "arch", "dataset", "tokenizer", "pool", "chosen_on"),
    *("data_version", "commit", "machine", "encoder"),
]
COLUMNS = ["run", "seed", "evaluation", "metric", *NUMBERS, *TEXTS, "protocol", "source"]
"""Columns of tidy results. Accuracies are percentages, ``protocol`` is JSON, ``source`` a file."""

NO_MATTER = ["num_workers", "seed"]
"""Settings of a protocol that may differ between machines or seeds."""


def rounded(value: float, metric: str) -> str:
    """Text of an interval's end or of a mean: a decimal of percents, two of a share."""
    return f"{value:.{2 if metric == 'identification' else 1}f}"


def read_results(paths: list[Path], gpu_hours: Path | None = None) -> pd.DataFrame:
    """Tidy results of ``paths``, .../RUN/seedN/EVALUATION.json, as COLUMNS.

    The config chooses the paths: a folder may also have results of other seeds or earlier configs,
    which do not belong into a table. ``gpu_hours`` is the CSV of ``evals.report.gpu_hours``.
    """
    hours_of_run = _spent(gpu_hours) if gpu_hours is not None and gpu_hours.exists() else {}
    rows = []
    for path in sorted(paths):
        result = read_result(path)
        about = result["about"]
        run, facts = about.get("run", {}), about.get("facts", {})
        machine = facts.get("machine", result["machine"])
        name, seed = path.parts[-3], int(path.parts[-2].removeprefix("seed"))
        scale = 100 if result["metric"] == "top1" else 1
        commits = {
            stage["commit"]
            for stage in (result, about.get("features", {}), facts)
            if "commit" in stage
        }
        # These facts are unknown for published weights; pixels are not trained.
        minutes = facts.get("train_seconds", math.nan if facts else 0.0) / 60
        no_gpu = 0.0 if " core" in machine and not math.isnan(minutes) else math.nan
        row = {
            "run": name,
            "seed": seed,
            "evaluation": path.stem,
            "metric": result["metric"],
            "value": scale * _number(result["value"]),
            "low": scale * _number(result["interval"][0]),
            "high": scale * _number(result["interval"][1]),
            "n": result["n"],
            # An encoder that was kept on the way has an epoch of its own.
            "epochs": facts.get("epoch", run.get("recipe", {}).get("optim", {}).get("epochs")),
            "images_seen": facts.get("images_seen", None if facts else 0),
            "train_minutes": minutes,
            "gpu_hours": hours_of_run.get((name, seed), no_gpu),
            "method": run.get("method", "") if name not in CONTROLS else "",
            "arch": _arch(run.get("vit", {})),
            "dataset": result["dataset"],
            "tokenizer": facts.get("tokenizer", ""),
            "pool": result.get("protocol", {}).get("pool", "") if run else "",
            "chosen_on": "test" if result["chosen"].get("chosen_on") == "test" else "",
            "data_version": about["data_version"],
            "commit": " ".join(sorted(commits)),
            "machine": machine,
            "encoder": about.get("encoder", ""),
            "protocol": _protocol(result),
            "source": str(path),
        }
        rows.append(row)
    return _typed(pd.DataFrame(rows, columns=COLUMNS))


def read_external(paths: list[Path]) -> pd.DataFrame:
    """Tidy results that somebody measured elsewhere, from CSV files: see docs/tables.md.

    Their columns are COLUMNS without ``protocol`` and ``source``; run, evaluation and value are
    required. Raises UserError with file and line for an entry that cannot be read.
    """
    tables = []
    allowed = [name for name in COLUMNS if name not in ("protocol", "source")]
    for path in paths:
        if not path.exists():
            raise UserError(f"external: {path} does not exist: bring it, or name another file")
        if path.suffix != ".csv":  # external() recognises such results by it
            raise UserError(f"external: {path}: its name must end in .csv: rename it")
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
        except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise UserError(f"external: {path} is no CSV ({error}): see docs/tables.md") from None
        if not isinstance(table.index, pd.RangeIndex):  # pandas would shift the columns
            raise UserError(f"external: {path} has lines with more fields than its first: mend it")
        if missing := [name for name in ("run", "evaluation", "value") if name not in table]:
            raise UserError(f"external: {path} has no column {', '.join(missing)}: add it")
        if unknown := [str(name) for name in table if name not in allowed]:
            raise UserError(
                f"external: {path}: column {', '.join(unknown)} is unknown: allowed are "
                f"{', '.join(allowed)}"
            )
        table = table.assign(
            **{name: "" for name in allowed if name not in table},
            protocol="",
            source=str(path),
        )
        table["metric"] = table["metric"].replace("", "top1")
        table["seed"] = table["seed"].replace("", "0")
        for line, row in enumerate(table.to_dict("records"), start=2):
            if empty := [name for name in ("run", "evaluation") if not row[name].strip()]:
                raise UserError(f"external: {path}:{line}: {', '.join(empty)} is empty: write it")
            if row["metric"] not in UNITS:
                raise UserError(
                    f"external: {path}:{line}: metric {row['metric']!r} is unknown: allowed are "
                    f"{', '.join(UNITS)}"
                )
            if not row["seed"].isdecimal():
                raise UserError(
                    f"external: {path}:{line}: seed {row['seed']!r}: write a whole number"
                )
            for name in NUMBERS:
                try:
                    float(row[name] or "nan")
                except ValueError:
                    raise UserError(
                        f"external: {path}:{line}: {name} {row[name]!r}: write a number, "
                        "accuracies in percent"
                    ) from None
        tables.append(_typed(table[COLUMNS]))
    return pd.concat(tables) if tables else _typed(pd.DataFrame(columns=COLUMNS))


def external(results: pd.DataFrame) -> "pd.Series[bool]":
    """True for tidy results that were measured elsewhere (``read_external``)."""
    return results["source"].str.endswith(".csv")


def differences(protocols: dict[str, str]) -> str:
    """Settings in which the protocols of runs differ, each with its values."""
    flat = {run: _flat(json.loads(text)) for run, text in protocols.items()}
    texts = []
    for key in sorted({key for settings in flat.values() for key in settings}):
        runs_of: dict[str, list[str]] = {}
        for run, settings in flat.items():
            runs_of.setdefault(json.dumps(settings.get(key, "-")), []).append(run)
        if len(runs_of) > 1:
            values = [f"{value} of {', '.join(runs)}" for value, runs in runs_of.items()]
            texts.append(f"{key} {'; '.join(values)}")
    return "; ".join(texts)


def to_csv(results: pd.DataFrame) -> str:
    """Tidy results as CSV; a protocol is shortened to the start of its SHA-256."""
    short = results["protocol"].map(
        lambda text: hashlib.sha256(text.encode()).hexdigest()[:12] if text else ""
    )
    return results.assign(protocol=short).to_csv(index=False, float_format="%.6g")


def _spent(path: Path) -> dict[tuple[str, int], float]:
    """GPU-hours of each pretraining; the cluster's accounting is preferred to our own notes."""
    table = pd.read_csv(path, dtype={"run": str})
    table = table[table["rule"] == "pretrain"]
    hours: dict[tuple[str, int], float] = {}
    # "slurm" comes after "log", so that its hours replace those of the log.
    for _, row in table.sort_values("source").iterrows():
        hours[str(row["run"]), int(row["seed"])] = float(row["gpu_hours"])
    return hours


def _protocol(result: dict[str, Any]) -> str:
    # The pool is the encoder's: tables name it in a note of its own.
    skipped = (*NO_MATTER, "pool")
    settings = {k: v for k, v in result.get("protocol", {}).items() if k not in skipped}
    if isinstance(settings.get("finetune"), dict):
        settings["finetune"] = {k: v for k, v in settings["finetune"].items() if k not in NO_MATTER}
    facts = {key: result.get(key) for key in ("evaluation", "dataset", "label", "split", "images")}
    return json.dumps({**facts, **settings}, sort_keys=True)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _arch(vit: dict[str, Any]) -> str:
    if not {"depth", "dim", "patch_size"} <= vit.keys():
        return ""
    return f"ViT {vit['depth']}x{vit['dim']}/{vit['patch_size']}"


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    numbers = {name: pd.to_numeric(table[name]).astype(float) for name in NUMBERS}
    return table.assign(**numbers, seed=table["seed"].astype(int)).reset_index(drop=True)
