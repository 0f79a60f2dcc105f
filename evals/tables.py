"""Results in, tables out: ``python -m evals.tables write|show``.

A table has one row for every encoder, the two controls last, and for every evaluation the mean over
seeds, with the spread over seeds where there are several and else the 95 % interval of the one.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from ijepa.errors import UserError, run_command
from ijepa.files import write_text

CONTROLS = {"random_init": "the network untrained", "pixels": "no network"}
GAIN_OVER = {
    "random_init": "the untrained network of the first run; the others' have other positions, "
    "[cls] and initial weights",
    "pixels": "raw pixels",
}


def read_results(paths: list[Path]) -> pd.DataFrame:
    """Tidy results: one row for each encoder, seed and evaluation.

    ``paths`` are .../RUN/seedN/EVALUATION.json, chosen by the config: what else lies in a folder,
    from other seeds or earlier configs, is none of a table's business.
    """
    rows = []
    for path in sorted(paths):
        result = json.loads(path.read_text(encoding="utf-8"))
        about = result["about"]
        run, facts = about.get("run", {}), about.get("facts", {})
        scale = 100 if result["metric"] == "top1" else 1
        commits = {
            made["commit"]
            for made in (result, about.get("features", {}), facts)
            if "commit" in made
        }
        rows.append(
            {
                "run": path.parts[-3],
                "seed": int(path.parts[-2].removeprefix("seed")),
                "evaluation": path.stem,
                "metric": result["metric"],
                "value": scale * result["value"],
                "low": scale * result["interval"][0],
                "high": scale * result["interval"][1],
                "n": result["n"],
                "method": run.get("method", "") if path.parts[-3] not in CONTROLS else "",
                "dataset": result["dataset"],
                "tokenizer": facts.get("tokenizer", ""),
                # Of published weights neither is known; pixels have seen nothing.
                "images_seen": facts.get("images_seen", None if facts else 0),
                "train_minutes": facts.get("train_seconds", float("nan") if facts else 0.0) / 60,
                "data_version": about["data_version"],
                "commit": " ".join(sorted(commits)),
                "machine": facts.get("machine", result["machine"]),
            }
        )
    if not rows:
        raise UserError("there are no results for the tables: run the evaluations first")
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Column:
    """One evaluation of a table: its name in the config, its metric and its title."""

    name: str
    metric: str
    title: str

    @property
    def unit(self) -> str:
        """What the numbers are."""
        return {"top1": "top-1 %", "rankme": "RankMe"}[self.metric]


@dataclass(frozen=True)
class Table:
    """One row an encoder: per evaluation mean, and spread or interval.

    Rows stand as the config names them, or by name with the controls last.

    ``control`` is the encoder over which gains are told, None where the table has no control.
    """

    title: str
    columns: list[Column]
    rows: pd.DataFrame
    control: str | None
    texts: list[str]


def tabulate(results: pd.DataFrame, spec: dict[str, Any]) -> Table:
    """The table of a config's item: ``title``, ``evaluations``, and ``runs`` where not all."""
    results = results[results["evaluation"].isin(spec["evaluations"])]
    if "runs" in spec:
        results = results[results["run"].isin(spec["runs"])]
    metrics = results.groupby("evaluation")["metric"].first()
    columns = [
        Column(name, metrics[name], spec.get("titles", {}).get(name, name.replace("_", " ")))
        for name in spec["evaluations"]
        if name in metrics
    ]
    rows = []
    named = spec.get("runs", [*sorted({*results["run"]} - {*CONTROLS}), *CONTROLS])
    for run, of_run in sorted(results.groupby("run"), key=lambda group: named.index(group[0])):
        row: dict[str, Any] = {"run": run, "seeds": of_run["seed"].nunique()}
        for column in columns:
            found = of_run[of_run["evaluation"] == column.name]
            several = len(found) > 1
            row[column.name] = found["value"].mean()
            row[f"{column.name}_low"] = float("nan") if several else found["low"].mean()
            row[f"{column.name}_high"] = float("nan") if several else found["high"].mean()
            row[f"{column.name}_std"] = found["value"].std() if several else float("nan")
            row[f"{column.name}_n"] = found["n"].max()
        row["images_seen"] = of_run["images_seen"].max()
        row["tokenizer"] = of_run["tokenizer"].iloc[0]
        row["train_minutes"] = of_run.groupby("seed")["train_minutes"].first().mean()
        for name in ("data_version", "commit", "machine"):
            row[name] = " ".join(sorted(of_run[name].unique()))
        rows.append(row)
    table = pd.DataFrame(rows)
    control = next((name for name in CONTROLS if name in set(table["run"])), None)
    return Table(spec["title"], columns, table, control, _provenance(results, columns))


def _provenance(results: pd.DataFrame, columns: list[Column]) -> list[str]:
    """What the numbers rest on."""
    texts = []
    for dataset, found in results.groupby("dataset"):
        names = [column.title for column in columns if column.name in set(found["evaluation"])]
        counts = " or ".join(f"{n:,}" for n in sorted(found["n"].unique()))
        versions = ", ".join(sorted(found["data_version"].unique()))
        texts.append(f"{', '.join(names)}: n = {counts} images of {dataset} {versions}")
    return [
        *texts,
        f"{results['seed'].nunique()} seed(s)",
        f"machine {', '.join(sorted(results['machine'].unique()))}",
    ]


def display(table: Table) -> pd.DataFrame:
    """The table as a person reads it, with each gain over the control."""
    rows = table.rows
    shown = pd.DataFrame({"encoder": [_title(row) for _, row in rows.iterrows()]})
    for column in table.columns:
        shown[f"{column.title}, {column.unit}"] = [
            _value(row, column.name) for _, row in rows.iterrows()
        ]
        if table.control is not None and column.metric == "top1":
            (control,) = rows.loc[rows["run"] == table.control, column.name]
            gains = rows[column.name] - control
            shown[f"{column.title}, gain"] = [
                "" if run == table.control or pd.isna(gain) else f"{gain:+.2f}"
                for run, gain in zip(rows["run"], gains, strict=True)
            ]
    shown["images seen"] = [_known(seen, ",.0f") for seen in rows["images_seen"]]
    shown["minutes"] = [_known(minutes, ".1f") for minutes in rows["train_minutes"]]
    return shown


def no_gain(table: Table) -> list[str]:
    """The encoders that are not above the control in an evaluation, each with those evaluations."""
    if table.control is None:
        return []
    control = table.rows.set_index("run").loc[table.control]
    behind = {
        row["run"]: [
            column.title
            for column in table.columns
            if column.metric == "top1" and row[column.name] <= control[column.name]
        ]
        for _, row in table.rows.iterrows()
        if row["run"] not in CONTROLS
    }
    return [f"{run} ({', '.join(found)})" for run, found in behind.items() if found]


def note(table: Table) -> str:
    """What every number of the table rests on, in one sentence; says so where commits are mixed."""
    commits = sorted({word for value in table.rows["commit"] for word in str(value).split()})
    texts = [
        *table.texts,
        "frozen features are averages over patches, whatever the method's own protocol",
        "+- is the standard deviation over seeds, brackets the 95 % interval of a single seed",
        f"commit {', '.join(commits)}",
    ]
    if table.control is not None:
        texts.insert(-1, f"gain is over {GAIN_OVER[table.control]}")
    text = "; ".join(texts) + "."
    if behind := no_gain(table):
        assert table.control is not None
        text += f" NO GAIN over {CONTROLS[table.control]} in this time: {', '.join(behind)}."
    if len(commits) > 1:
        text += " MIXED COMMITS: the rows were not all made by the same code."
    if any(commit.endswith("+") for commit in commits):
        text += ' UNCOMMITTED CODE: "+" marks a commit that the code differed from.'
    return text


def markdown(table: Table) -> str:
    """The table with its title and note, as Markdown."""
    shown = display(table)
    lines = ["| " + " | ".join(shown.columns) + " |", "|---|" + "---:|" * (len(shown.columns) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in shown.itertuples(index=False)]
    return f"# {table.title}\n\n" + "\n".join(lines) + f"\n\n{note(table)}\n"


def _title(row: Any) -> str:
    run = str(row["run"])
    remark = CONTROLS.get(run) or (f"tokenizer: {row['tokenizer']}" if row["tokenizer"] else "")
    return f"{run} ({remark})" if remark else run


def _known(value: float, form: str) -> str:
    return "-" if pd.isna(value) else f"{value:{form}}" if value else "0"


def _value(row: Any, evaluation: str) -> str:
    value = row[evaluation]
    if pd.isna(value):
        return "-"
    if not pd.isna(spread := row[f"{evaluation}_std"]):
        return f"{value:.2f} +- {spread:.2f}"
    return f"{value:.2f} [{row[f'{evaluation}_low']:.1f}, {row[f'{evaluation}_high']:.1f}]"


def show(folder: Path) -> None:
    """Print every table of a results folder, and where the report lies."""
    console = Console()
    console = Console(width=max(console.width, 110))  # narrower, every cell would break
    for path in sorted((folder / "tables").glob("*.md")):
        console.print(Markdown(path.read_text(encoding="utf-8")))
    console.print(f"\nReport: {folder / 'report.html'}", highlight=False)


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m evals.tables", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("show", help="print the tables of a results folder")
    shown.add_argument("folder", type=Path, help="for example results/mini")
    write = commands.add_parser("write", help="write tables from results")
    write.add_argument("results", type=Path, nargs="+", help="results of evaluations, JSON")
    write.add_argument("--tables", required=True, help="JSON list of the config's tables")
    write.add_argument("--out", type=Path, required=True, help="folder for the tables")
    options = parser.parse_args()
    if options.command == "show":
        show(options.folder)
        return
    results = read_results(options.results)
    for spec in json.loads(options.tables):
        table = tabulate(results, spec)
        path = options.out / f"{spec['name']}.csv"
        write_text(path, table.rows.to_csv(index=False, float_format="%.4f"))
        write_text(path.with_suffix(".md"), markdown(table))


if __name__ == "__main__":
    run_command(main)
