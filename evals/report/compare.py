"""Comparison of two result sets: results that are better or worse beyond noise.

A set is a folder (results/mini), or a git revision and a folder of it (v1:results/mini). A revision
alone takes the folder of the other set, or results/mini. The results of a revision are read from
git, otherwise from what DVC holds, otherwise from the reference (results/reference/mini). A DVC
experiment is given by its name or ref.

Results are paired by run, seed and evaluation, seeds are pooled, and all rows share one error rate
(Holm). evals/report/noise.py judges noise. Results of different protocols, data versions or images
are listed as not comparable, never averaged.

Exit status, for CI: 0 nothing is worse beyond noise; 1 something is; 2 wrong usage or input, or
nothing can be compared. Results that only one set has, and results that are not comparable, are
listed and do not fail.
"""

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.report import noise
from evals.report.result_set import Results, read_result_set, what_must_agree
from evals.result import unpacked
from ijepa.errors import UserError, program, run_command
from ijepa.files import to_json, write_text

VERDICTS = (
    "worse", "within noise", "better", "not judged", "not comparable", "only in A", "only in B",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One evaluation of a run in both sets; top-1 in per cent, its difference B - A in points.

    Only top-1 is judged: of other metrics neither the noise nor the better direction is known here.
    """

    run: str
    evaluation: str
    seeds: str
    verdict: str
    note: str = ""
    metric: str | None = None
    n: int | None = None
    a: float | None = None
    b: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    test: str | None = None
    p: float | None = None
    p_holm: float | None = None


def compare(a: Results, b: Results, alpha: float = 0.05) -> list[Row]:
    """Rows of every run and evaluation of either set, the worst first."""
    rows, pooled = [], defaultdict(list)
    for key in sorted(a.keys() | b.keys()):
        run, seed, evaluation = key
        if key not in a or key not in b:
            verdict = "only in A" if key in a else "only in B"
            rows.append(Row(run, evaluation, str(seed), verdict))
        elif note := differences(a, b, key):
            rows.append(Row(run, evaluation, str(seed), "not comparable", note))
        else:  # seeds are pooled if they are also comparable with one another
            facts = json.dumps(what_must_agree(a[key]), sort_keys=True)
            pooled[run, evaluation, facts].append(seed)
    judged = [judge(a, b, run, name, seeds, alpha) for (run, name, _), seeds in pooled.items()]
    rows += [row for row in judged if row.p is None]
    judged = [row for row in judged if row.p is not None]
    for row, p_holm in zip(judged, noise.holm([row.p or 0.0 for row in judged]), strict=True):
        direction = "better" if (row.difference or 0.0) > 0 else "worse"
        verdict = direction if p_holm <= alpha else "within noise"
        rows.append(dataclasses.replace(row, p_holm=p_holm, verdict=verdict))
    return sorted(rows, key=lambda row: (VERDICTS.index(row.verdict), row.difference or 0.0))


def differences(a: Results, b: Results, key: tuple[str, int, str]) -> str:
    """Facts in which two results differ, as ``protocol.num_neighbours 20 -> 10``; "" if in none."""
    facts = [what_must_agree(results[key]) for results in (a, b)]
    texts = []
    for name in sorted(facts[0].keys() | facts[1].keys()):
        old, new = (json.dumps(f[name]) if name in f else "absent" for f in facts)
        if old != new:
            texts.append(f"{name} {old} -> {new}")
    return ", ".join(texts)


def judge(a: Results, b: Results, run: str, name: str, seeds: list[int], alpha: float) -> Row:
    """Row of comparable seeds; its verdict is set later, with the p-values of all rows."""
    pairs = [(a[run, seed, name], b[run, seed, name]) for seed in seeds]
    metric, n = pairs[0][0]["metric"], pairs[0][0]["n"]
    old, new = (sum(pair[side]["value"] for pair in pairs) / len(pairs) for side in (0, 1))
    scale = 100 if metric == "top1" else 1
    row = Row(run, name, " ".join(map(str, seeds)), "not judged", metric=metric, n=n)
    row = dataclasses.replace(row, a=scale * old, b=scale * new, difference=scale * (new - old))
    if metric != "top1":
        return row
    if all("correct" in result for pair in pairs for result in pair):
        changes = np.zeros(n, np.int64)
        for before, after in pairs:
            changes += unpacked(after["correct"], n)
            changes -= unpacked(before["correct"], n)
        test, (low, high, p) = "paired", noise.paired(changes, len(pairs), alpha)
    else:
        test, (low, high, p) = "unpaired", noise.unpaired(old, new, n, alpha)
    return dataclasses.replace(row, low=scale * low, high=scale * high, test=test, p=p)


def select(results: Results, side: int, options: argparse.Namespace) -> Results:
    """Results of a set that the options select; a run of a pair takes the name of its pair."""
    pairs = options.pair or [(run, run) for run in options.runs or {run for run, _, _ in results}]
    return {
        (run if pair[0] == pair[1] else " -> ".join(pair), seed, name): result
        for (run, seed, name), result in results.items()
        for pair in pairs
        if run == pair[side] and name in (options.evaluations or [name])
    }


def check_names(a: Results, b: Results, options: argparse.Namespace) -> None:
    """Raise UserError if an option names a run or an evaluation that the sets do not have."""
    pairs = options.pair or []
    for option, names, keys, position in (
        ("--runs", options.runs, [*a, *b], 0),
        ("--pair", [old for old, _ in pairs], a, 0),
        ("--pair", [new for _, new in pairs], b, 0),
        ("--evaluations", options.evaluations, [*a, *b], 2),
    ):
        names_in_sets = {str(key[position]) for key in keys}
        if unknown := set(names or []) - names_in_sets:
            raise UserError(
                f"{option} names {', '.join(sorted(unknown))}: known are "
                f"{', '.join(sorted(names_in_sets))}"
            )


def show(rows: list[Row], title: str, alpha: float) -> None:
    """Print the compared results as a table, and below it the others."""
    console = Console()
    console = Console(width=max(console.width, 140))  # in a narrower one, cells would break
    table = Table("run", "evaluation", "seeds", title=escape(title), title_justify="left")
    for name in ("n", "A", "B", "B - A", f"{100 * (1 - alpha):g} % interval", "p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("test")
    table.add_column("verdict")
    for row in rows:
        if row.difference is None:
            continue
        cells = [row.run, row.evaluation, row.seeds, f"{row.n:,}"]
        cells += [f"{row.a:.2f}", f"{row.b:.2f}", f"{row.difference:+.2f}"]
        if row.p_holm is not None:
            p = f"{row.p_holm:.2g}" if row.p_holm >= 1e-9 else "< 1e-9"
            cells += [f"[{row.low:+.2f}, {row.high:+.2f}]", p]
        else:
            cells += ["", ""]
        cells += [row.test or "", row.verdict]
        style = {"worse": "red", "better": "green"}.get(row.verdict)
        table.add_row(*map(escape, cells), style=style)
    console.print(table)
    for row in rows:
        if row.difference is None:
            print(f"{row.verdict}: {row.run}/seed{row.seeds}/{row.evaluation} {row.note}".rstrip())
    judged = sum(row.p is not None for row in rows)
    print(
        f"{judged} results judged; their p-values are corrected for their number (Holm). "
        "The noise is that of the test images, not of the seeds."
    )


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("evals.report.compare"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="folder, REV or REV:folder: before")
    parser.add_argument("b", metavar="B", help="folder, REV or REV:folder: after")
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument("--runs", nargs="+", help="only these runs")
    selection.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar=("OLD", "NEW"),
        help="run OLD of A and run NEW of B",
    )
    parser.add_argument("--evaluations", nargs="+", help="only these evaluations")
    parser.add_argument("--alpha", type=float, default=0.05, help="error rate of all rows together")
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    options = parser.parse_args()
    try:
        if not 0 < options.alpha < 1:
            raise UserError(f"--alpha {options.alpha}: it must lie within (0, 1)")
        a, b = read_result_set(options.a, options.b), read_result_set(options.b, options.a)
        check_names(a, b, options)
        rows = compare(select(a, 0, options), select(b, 1, options), options.alpha)
        records = [dataclasses.asdict(row) for row in rows]
        if options.csv is not None:
            write_text(options.csv, pd.DataFrame(records, dtype=object).to_csv(index=False))
    except (UserError, OSError) as error:
        parser.error(str(error))  # run_command would exit with 1, which means "worse" here
    if options.json:
        head = {"a": options.a, "b": options.b, "alpha": options.alpha}
        print(to_json({**head, "rows": records}), end="")
    else:
        show(rows, f"A: {options.a}   B: {options.b}", options.alpha)
    if all(row.difference is None for row in rows):
        parser.error("no result of A is comparable with one of B: see the list for why")
    sys.exit(any(row.verdict == "worse" for row in rows))


if __name__ == "__main__":
    run_command(main)
