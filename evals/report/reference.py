"""Comparison with the results that git has: ``python -m evals.report.reference show FOLDER``.

``results/CONFIG`` has one's own results and is not in git; ``results/reference/CONFIG`` is in git
and has the published results of the same config. ``show`` prints one's own results and whether they
agree with the reference within noise. ``publish`` copies evaluations, tables and metrics to the
reference, to be committed.

The noise is that of training again. Another machine rounds differently, and after some hundred
steps a run that was rounded differently is as far away as a run of another seed. So a difference is
judged by the standard deviation between seeds of the reference, pooled over its runs for each
evaluation. If the reference has only one seed, the noise of the test images is used instead. A
correct reproduction is called wrong with a probability of ALPHA at most, over all results (Holm).
"""

import argparse
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from evals.report import noise
from evals.report.compare import differences
from evals.report.plan import ReportPlan, read_plan
from evals.report.result_set import Results, read_result_set
from evals.report.tidy import CONTROLS, rounded
from ijepa.errors import UserError, program, run_command
from ijepa.log_reader import REFERENCE

ALPHA = 0.01
PUBLISHED = (
    *("evaluations/*/seed*/*.json", "metrics.json", "plots/*.csv"),
    *("tables/*.csv", "tables/*.md", "tables/*.svg"),
)


@dataclass(frozen=True)
class Row:
    """One result and the reference's of the same run, seed and evaluation, in its own unit."""

    name: str
    own: float
    reference: float
    p: float
    scale: int = 100

    @property
    def line(self) -> str:
        """Row in words: an accuracy in percent, another number as it is."""
        own, reference = self.scale * self.own, self.scale * self.reference
        return f"{self.name}: {own:.2f} here, {reference:.2f} in git"


@dataclass(frozen=True)
class Verdict:
    """Comparison with the reference: results judged, wrong, not comparable, without a reference.

    Those that are not comparable have the facts in which they differ.
    """

    judged: int
    wrong: list[Row]
    not_comparable: dict[str, str]
    missing: list[str]
    identical: int = 0

    @property
    def agrees(self) -> bool:
        """True if every result that can be compared agrees, and at least one can."""
        return self.judged > 0 and not self.wrong

    def __str__(self) -> str:
        """Verdict in one sentence, and a line for each result that disagrees."""
        lines = []
        if not self.judged:
            lines.append("no result can be compared with the published ones")
        elif self.agrees:
            remark = f", {self.identical} of them to the last digit" if self.identical else ""
            lines.append(
                f"agrees with the published results within noise ({self.judged} compared{remark})"
            )
        else:
            lines.append(
                f"DISAGREES with the published results beyond noise "
                f"({len(self.wrong)} of {self.judged}):"
            )
            lines += [f"  {row.line}" for row in self.wrong]
            lines.append(
                "  (evaluations/RUN/seedN/EVALUATION.json: delete a file, and the same command "
                "makes it anew; ijepa-bench provenance leads to its origin)"
            )
        if self.not_comparable:
            lines.append(
                f"not comparable, of other settings or data: {listed([*self.not_comparable])} "
                f"(the first: {next(iter(self.not_comparable.values()))}, here -> in git)"
            )
        if self.missing:
            lines.append(f"without a published result: {listed(self.missing)}")
        return "\n".join(lines)


def judge(own: Results, reference: Results, alpha: float = ALPHA) -> Verdict:
    """Compare results with a reference, each with the one of its own run, seed and evaluation."""
    deviation = between_seeds(reference)
    rows, not_comparable, missing, identical = [], dict[str, str](), [], 0
    for key, result in sorted(own.items()):
        run, seed, evaluation = key
        name = f"{run}/seed{seed}/{evaluation}"
        if key not in reference:
            missing.append(name)
        elif facts := differences(own, reference, key):
            not_comparable[name] = facts
        else:
            value, published = result["value"], reference[key]["value"]
            identical += value == published
            p = probability(result, value - published, published, deviation.get(evaluation))
            scale = 100 if result["metric"] == "top1" else 1
            rows.append(Row(name, value, published, p, scale))
    corrected = noise.holm([row.p for row in rows])
    wrong = [row for row, p in zip(rows, corrected, strict=True) if p <= alpha]
    return Verdict(len(rows), wrong, not_comparable, missing, identical)


def between_seeds(reference: Results) -> dict[str, tuple[float, int]]:
    """Standard deviation between seeds and its degrees of freedom, for each evaluation."""
    values: dict[str, dict[str, list[float]]] = {}
    for (run, _, evaluation), result in reference.items():
        if run not in CONTROLS:  # controls are not trained
            values.setdefault(evaluation, {}).setdefault(run, []).append(result["value"])
    deviations = {}
    for evaluation, runs in values.items():
        freedom = sum(len(seeds) - 1 for seeds in runs.values())
        if freedom:
            squares = sum(float(np.var(seeds)) * len(seeds) for seeds in runs.values())
            deviations[evaluation] = (math.sqrt(squares / freedom), freedom)
    return deviations


def probability(
    result: dict[str, Any], difference: float, published: float, deviation: tuple[float, int] | None
) -> float:
    """Probability of so large a difference between two runs of the same distribution.

    The noise is that between seeds, if it is known, but at least a tenth of the test images' noise:
    the deviation between three seeds may be 0 by chance.
    """
    if not difference:
        return 1.0
    if result["metric"] != "top1":  # the reference of other metrics needs several seeds
        spread, freedom = deviation if deviation is not None else (abs(published) / 100, 1)
        return student(difference, max(spread, abs(published) / 1000) * math.sqrt(2), freedom)
    images = math.sqrt(max(published * (1 - published), 0.01) / result["n"])
    if deviation is None:
        return noise.unpaired(published, published + difference, result["n"], ALPHA)[2]
    spread, freedom = deviation
    return student(difference, max(spread, 0.1 * images) * math.sqrt(2), freedom)


def student(difference: float, error: float, freedom: int) -> float:
    """Two-sided p-value of Student's t."""
    from scipy.special import stdtr  # scipy.stats takes seconds to import

    return float(2 * stdtr(freedom, -abs(difference) / error))


def listed(names: list[str]) -> str:
    """First four names, and the number of the others."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def summary(results: Results, titles: dict[str, str]) -> Table:
    """Table of every run's mean over seeds in every evaluation, shares in percent."""
    names = list(dict.fromkeys(name for name in titles if any(k[2] == name for k in results)))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("encoder", no_wrap=True)
    for name in names:
        table.add_column(titles[name], justify="right", overflow="fold")
    table.add_column("minutes", justify="right", overflow="fold")
    runs = sorted({run for run, _, _ in results}, key=lambda run: (run in CONTROLS, run))
    for run in runs:
        cells, minutes = [], [0.0]
        for name in names:
            cell = [r for (of, _, e), r in results.items() if (of, e) == (run, name)]
            minutes = [
                r["about"].get("facts", {}).get("train_seconds", 0.0) / 60 for r in cell
            ] or minutes
            metric = cell[0]["metric"] if cell else ""
            values = [(100 if metric == "top1" else 1) * r["value"] for r in cell]
            cells.append(rounded(sum(values) / len(values), metric) if values else "-")
        table.add_row(run, *cells, f"{sum(minutes) / len(minutes):.1f}")
    return table


def show(folder: Path, plan: ReportPlan | None = None) -> None:
    """Print a folder's results, the path of its report, and the comparison with the reference."""
    console = Console(soft_wrap=True)
    reference = Path(REFERENCE / folder.name)
    try:  # raises if a result was changed by hand and contradicts itself
        own = read_result_set(str(folder), str(folder))
    except UserError as error:
        raise UserError(f"{error} (delete the file, and the same command makes it)") from None
    names = plan.evaluations if plan else sorted({evaluation for _, _, evaluation in own})
    titles = {name: plan.title(name) if plan else name for name in names}
    own = {key: result for key, result in own.items() if key[2] in titles}
    console.print(summary(own, titles))
    console.print(f"report: {folder / 'report.html'}   tables: {folder / 'tables'}")
    if not reference.is_dir():
        console.print(f"git has no results of {folder.name} to compare with")
        return
    verdict = judge(own, read_result_set(str(reference), str(reference)))
    console.print(f"{folder.name} {verdict}", style=None if verdict.agrees else "red")


def publish(folder: Path) -> None:
    """Copy the files of a folder's results that git is to have to the reference."""
    target = Path(REFERENCE / folder.name)
    paths = [path for pattern in PUBLISHED for path in sorted(folder.glob(pattern))]
    if not paths:
        raise UserError(f"{folder} has no results: make reproduce makes them")
    read_result_set(str(folder), str(folder))  # raises if one of them is damaged
    shutil.rmtree(target, ignore_errors=True)
    for path in paths:
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    print(f"{len(paths)} files in {target}: git add {target}")


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("evals.report.reference"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["show", "publish"])
    parser.add_argument("folder", type=Path, help="for example results/mini")
    parser.add_argument("--plan", type=Path, help="tables.yaml of work/NAME/plan/HASH, for titles")
    options = parser.parse_args()
    if options.command == "publish":
        publish(options.folder)
        return
    show(options.folder, read_plan(options.plan) if options.plan else None)


if __name__ == "__main__":
    run_command(main)
