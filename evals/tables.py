"""Results in, tables out: ``python -m evals.tables write|show``.

A table has one row for every encoder, the two controls last, and for every evaluation the mean over
seeds, with the spread over seeds where there are several and else the 95 % interval of the one.
"""

import argparse
import json
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
        commits = {
            result["commit"],
            about["features"]["commit"],
            facts.get("commit", result["commit"]),
        }
        rows.append(
            {
                "run": path.parts[-3],
                "seed": int(path.parts[-2].removeprefix("seed")),
                "evaluation": result["evaluation"],
                "value": 100 * result["value"],
                "low": 100 * result["interval"][0],
                "high": 100 * result["interval"][1],
                "n": result["n"],
                "method": run.get("method", "") if path.parts[-3] not in CONTROLS else "",
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


def tabulate(results: pd.DataFrame, evaluations: list[str]) -> pd.DataFrame:
    """One row an encoder: per evaluation mean, spread or interval, and n; then provenance."""
    rows = []
    order = {name: place for place, name in enumerate(CONTROLS, start=1)}
    for run, of_run in sorted(results.groupby("run"), key=lambda g: order.get(str(g[0]), 0)):
        row: dict[str, Any] = {"run": run, "seeds": of_run["seed"].nunique()}
        for evaluation in evaluations:
            found = of_run[of_run["evaluation"] == evaluation]
            several = len(found) > 1
            row[evaluation] = found["value"].mean()
            row[f"{evaluation}_low"] = float("nan") if several else found["low"].mean()
            row[f"{evaluation}_high"] = float("nan") if several else found["high"].mean()
            row[f"{evaluation}_std"] = found["value"].std() if several else float("nan")
            row["n"] = found["n"].max()
        row["images_seen"] = of_run["images_seen"].max()
        row["tokenizer"] = of_run["tokenizer"].iloc[0]
        row["train_minutes"] = of_run.groupby("seed")["train_minutes"].first().mean()
        for name in ("data_version", "commit", "machine"):
            row[name] = " ".join(sorted(of_run[name].unique()))
        rows.append(row)
    return pd.DataFrame(rows)


def display(table: pd.DataFrame, evaluations: list[str]) -> pd.DataFrame:
    """The table as a person reads it, with each gain over the control."""
    baseline = gained_over(table)
    control = table.set_index("run").loc[baseline]
    shown = pd.DataFrame({"encoder": [_title(row) for _, row in table.iterrows()]})
    for evaluation in evaluations:
        shown[f"{evaluation.replace('_', ' ')}, top-1 %"] = [
            _accuracy(row, evaluation) for _, row in table.iterrows()
        ]
        gains = table[evaluation] - control[evaluation]
        shown[f"{evaluation.replace('_', ' ')}, gain"] = [
            "" if run == baseline else f"{gain:+.2f}"
            for run, gain in zip(table["run"], gains, strict=True)
        ]
    shown["images seen"] = [_known(seen, ",.0f") for seen in table["images_seen"]]
    shown["minutes"] = [_known(minutes, ".1f") for minutes in table["train_minutes"]]
    return shown


def gained_over(table: pd.DataFrame) -> str:
    """The control: the untrained network, or pixels where every encoder is a published one."""
    return "random_init" if "random_init" in set(table["run"]) else "pixels"


def no_gain(table: pd.DataFrame, evaluations: list[str]) -> list[str]:
    """The encoders that are below the control in an evaluation, each with those evaluations."""
    control = table.set_index("run").loc[gained_over(table)]
    rows = table[~table["run"].isin(CONTROLS)]
    behind = {
        row["run"]: [e.replace("_", " ") for e in evaluations if row[e] <= control[e]]
        for _, row in rows.iterrows()
    }
    return [f"{run} ({', '.join(found)})" for run, found in behind.items() if found]


def note(table: pd.DataFrame, evaluations: list[str]) -> str:
    """What every number of the table rests on, in one sentence; says so where commits are mixed."""
    commits = sorted({word for value in table["commit"] for word in str(value).split()})
    texts = [
        f"n = {int(table['n'].max()):,} test images",
        f"{int(table['seeds'].max())} seed(s)",
        "features are averages over patches, whatever the method's own protocol",
        f"gain is over {GAIN_OVER[gained_over(table)]}",
        "+- is the standard deviation over seeds, brackets the 95 % interval of a single seed",
        f"data version {', '.join(sorted(table['data_version'].unique()))}",
        f"machine {', '.join(sorted(table['machine'].unique()))}",
        f"commit {', '.join(commits)}",
    ]
    text = "; ".join(texts) + "."
    if behind := no_gain(table, evaluations):
        text += f" NO GAIN over {CONTROLS[gained_over(table)]} in this time: {', '.join(behind)}."
    if len(commits) > 1:
        text += " MIXED COMMITS: the rows were not all made by the same code."
    if any(commit.endswith("+") for commit in commits):
        text += ' UNCOMMITTED CODE: "+" marks a commit that the code differed from.'
    return text


def markdown(title: str, table: pd.DataFrame, evaluations: list[str]) -> str:
    """The table with its title and note, as Markdown."""
    shown = display(table, evaluations)
    lines = ["| " + " | ".join(shown.columns) + " |", "|---|" + "---:|" * (len(shown.columns) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in shown.itertuples(index=False)]
    return f"# {title}\n\n" + "\n".join(lines) + f"\n\n{note(table, evaluations)}\n"


def _title(row: Any) -> str:
    run = str(row["run"])
    remark = CONTROLS.get(run) or (f"tokenizer: {row['tokenizer']}" if row["tokenizer"] else "")
    return f"{run} ({remark})" if remark else run


def _known(value: float, form: str) -> str:
    return "-" if pd.isna(value) else f"{value:{form}}" if value else "0"


def _accuracy(row: Any, evaluation: str) -> str:
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
    write.add_argument("--tables", required=True, help="JSON list of {name, title, evaluations}")
    write.add_argument("--out", type=Path, required=True, help="folder for the tables")
    options = parser.parse_args()
    if options.command == "show":
        show(options.folder)
        return
    results = read_results(options.results)
    for spec in json.loads(options.tables):
        table = tabulate(results, spec["evaluations"])
        path = options.out / f"{spec['name']}.csv"
        write_text(path, table.to_csv(index=False, float_format="%.4f"))
        write_text(path.with_suffix(".md"), markdown(spec["title"], table, spec["evaluations"]))


if __name__ == "__main__":
    run_command(main)
