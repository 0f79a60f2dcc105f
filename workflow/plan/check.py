"""Check of a whole benchmark's config before its first job.

``python -m workflow.plan.check config/mini.yaml`` prints nothing, or what is wrong.
"""

import argparse
import re
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from ijepa.errors import UserError, program, run_command


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog=program("workflow.plan.check"), description=__doc__)
    options.add_argument("config", type=Path, nargs="+", help="one file, or several to be merged")
    return options


if __name__ == "__main__":
    parser().parse_args()  # answers --help before the imports, which take seconds

from evals.pooling import resolved
from evals.protocol import Facts, configure, load_evaluation
from evals.protocol import check as check_protocol
from evals.report import published
from evals.report.tidy import read_external
from evals.run import facts_of
from evals.subject import Subject
from ijepa.config import parse_run
from ijepa.cost.predict import Planned
from ijepa.data import register, tokenizer
from ijepa.data.shards import check_limit
from ijepa.data.source import load_source
from ijepa.encoder_file import PIXELS, UNTRAINED
from ijepa.released.layouts import LAYOUTS, TOWERS
from workflow.plan.benchmark import Benchmark, Evaluation, Run, Table, read_files
from workflow.plan.grid import Grid

TAKEN = {"tidy", "cost", "gpu_hours"}
"""Names of other files in the folder of a config's tables."""


def check(benchmark: Benchmark) -> None:
    """Raise UserError unless every run, evaluation and table of the config can be carried out."""
    tokenizers = dict(benchmark.tokenizers)
    for weights in benchmark.released:
        where = f"released.{weights.name}"
        if not re.fullmatch("[0-9a-fA-F]{64}", weights.sha256):
            raise UserError(
                f"{where}.sha256: {weights.sha256!r} is no SHA-256: fetch the file once by "
                "hand, make sure that it is the right one, and write here what sha256sum says of it"
            )
        if weights.tower not in (None, *TOWERS):
            raise UserError(
                f"{where}.tower: {weights.tower!r} is unknown: allowed are {', '.join(TOWERS)}"
            )
        if "://" not in weights.address and not Path(weights.address).is_file():
            raise UserError(
                f"{where}.address: {weights.address} is no file here, and no address: correct it"
            )
        if (layout := weights.layout or "auto") not in ("auto", *LAYOUTS):
            raise UserError(
                f"{where}.layout: {layout!r} is unknown: allowed are auto, {', '.join(LAYOUTS)}"
            )
    for run in benchmark.runs:
        if (tokens_of := planned(run).run.recipe.tokens) is not None:
            if run.tokenizer is None:
                raise UserError(
                    f"runs.{run.name}.recipe.tokenizer: write the default, "
                    f"{tokens_of.tokenizer!r}, or another one: the workflow makes what is named"
                )
            tokenizers.setdefault(tokens_of.tokenizer, {})
    for name, settings in tokenizers.items():
        tokenizer.configure(name, settings, f"tokenizers.{name}")
    encoders = {*benchmark.encoders, PIXELS}
    encoders |= {UNTRAINED} if benchmark.runs else set()
    for item in benchmark.evaluations:
        _check_evaluation(item, encoders)
    used = {run.dataset for run in benchmark.runs}
    used |= {item.dataset for item in benchmark.evaluations}
    for dataset in sorted(used):
        load_source(register.load_dataset(dataset).source)
    for key, names in (("images", benchmark.images), ("raw", benchmark.raw)):
        for dataset in names:
            if dataset not in used:
                raise UserError(
                    f"{key}.{dataset}: no run and no evaluation uses it: leave it out, or correct "
                    f"the name; used are {', '.join(sorted(used))}"
                )
    for dataset, counts in benchmark.images.items():
        for split, count in counts.items():
            available = register.load_dataset(dataset).splits.get(split, 0)
            if available is not None and count > available:
                raise UserError(
                    f"images.{dataset}.{split}: {count} cannot be had; {dataset} has {available}"
                )
        if Path((grid := Grid(benchmark)).index(dataset)).exists():
            check_limit(grid.limit(dataset), Path(grid.shards(dataset)))
    datasets = {item.name: item.dataset for item in benchmark.evaluations}
    external = _check_external(benchmark, {*datasets}, encoders)
    methods = {run.name: run.method for run in benchmark.runs}
    for table in benchmark.tables:
        _check_table(table, datasets, encoders | external, methods)
    _check_cells(Grid(benchmark))


def _check_cells(grid: Grid) -> None:
    """Raise UserError if an evaluation of an encoder is impossible, as far as is known now."""
    plans = {name: planned(run).run for name, run in grid.runs.items()}
    facts_of_data = cache(lambda dataset, label: _facts(grid, dataset, label))
    for run, evaluation in dict.fromkeys((run, name) for run, _, name in grid.cells):
        item = grid.evaluations[evaluation]
        where = f"evaluations.{item.name}.config"
        config = configure(item.evaluation, item.settings(run), where)
        facts = replace(facts_of_data(item.dataset, item.label), uses=grid.uses(run, evaluation))
        try:
            if run in plans:
                vit, variant = plans[run].vit, plans[run].recipe.variant
                facts = replace(
                    facts,
                    depth=vit.depth,
                    class_token=variant.class_token,
                    channels=vit.channels,
                    square=vit.is_square,
                )
                config = resolved(config, {"variant": asdict(variant)}, where)
            elif run in grid.released:  # every layout has three
                facts = replace(facts, channels=3)
            check_protocol(item.evaluation, config, facts, where)
        except UserError as error:
            raise UserError(f"{error} ({run})") from None


def _facts(grid: Grid, dataset: str, label: str) -> Facts:
    """Facts of a labelled data set: those of its shards if they are there, else the register's."""
    limit = grid.limit(dataset)
    if Path(grid.index(dataset)).exists():
        return facts_of(Subject(Path(grid.shards(dataset)), label, limit=limit), {})
    entry = register.load_dataset(dataset)
    counts = [n for n in (entry.splits.get("train"), limit.get("train")) if n is not None]
    images, num_classes = min(counts, default=None), entry.num_classes(label)
    subsets = getattr(load_source(entry.source), "subsets", lambda *_: ())
    return Facts(
        uses="features",
        pixels=(entry.channels, entry.bits),
        images=images,
        # One class of several has at most an equal share.
        rarest=images // num_classes if images and num_classes else None,
        subsets=tuple(subsets(entry, Path(grid.raw(dataset)))),
    )


def planned(run: Run) -> Planned:
    """A run with its method's defaults; raises UserError if its GPUs don't divide its batch."""
    config = parse_run(run.config(), f"runs.{run.name}")
    optim = config.recipe.optim
    if optim.batch_size % (run.gpus * optim.accumulate):
        raise UserError(
            f"runs.{run.name}.gpus: {run.gpus} (times recipe.optim.accumulate {optim.accumulate}) "
            f"does not divide recipe.optim.batch_size {optim.batch_size}: choose a divisor"
        )
    return Planned(config, run.gpus)


def _check_table(
    table: Table,
    evaluations: dict[str, str],
    encoders: set[str],
    methods: dict[str, str],
) -> None:
    """Raise UserError unless the table can be made and compares only like with like.

    ``evaluations`` has the data set of each evaluation.
    """
    if table.name in TAKEN:
        raise UserError(f"tables: {table.name} is another file's name: give it another")
    where = f"tables.{table.name}"
    if missing := set(table.evaluations) - evaluations.keys():
        raise UserError(
            f"{where}: {', '.join(sorted(missing))} is not among evaluations "
            f"({', '.join(sorted(evaluations))})"
        )
    if missing := set(table.runs or []) - encoders:
        raise UserError(
            f"{where}.runs: {', '.join(sorted(missing))} is not among the encoders "
            f"({', '.join(sorted(encoders))})"
        )
    filled = published.fill(table.name, table.published, table.runs)
    if not filled or table.published is None:
        return
    rows = published.rows_of(table.published)
    if not {*table.evaluations} & {*rows}:
        raise UserError(
            f"{where}.evaluations: {table.published} has none of them: it has "
            f"{', '.join(str(name) for name in rows if name not in published.IDENTITY)}"
        )
    for evaluation in {*table.evaluations} & {*rows}:
        if (published_on := published.dataset_of(evaluation)) != evaluations[evaluation]:
            raise UserError(
                f"{where}.evaluations: {evaluation} is on {evaluations[evaluation]}, the published "
                f"numbers are on {published_on}: give it another name, or make a table without "
                "published"
            )
    for run, number in filled.items():
        method = rows["method"][number]
        if methods.get(run, method) != method:
            raise UserError(
                f"{where}.runs.{run}: it is a run of {methods[run]}, the row is of {method}: state "
                "another row, or {} for one that the paper does not have"
            )


def _check_external(benchmark: Benchmark, evaluations: set[str], encoders: set[str]) -> set[str]:
    """Names of runs that were measured elsewhere; raises UserError if no table can show one."""
    table = read_external([Path(path) for path in benchmark.external])
    for _, row in table.iterrows():
        if row["evaluation"] not in evaluations:
            raise UserError(
                f"external: {row['source']}: evaluation {row['evaluation']!r} is not among "
                f"evaluations ({', '.join(sorted(evaluations))})"
            )
        if row["run"] in encoders or row["run"] == UNTRAINED:
            raise UserError(
                f"external: {row['source']}: run {row['run']!r} is one of this config: give it "
                "another name"
            )
    return set(table["run"])


def _check_evaluation(item: Evaluation, encoders: set[str]) -> None:
    """Raise UserError unless the evaluation can be carried out."""
    where = f"evaluations.{item.name}"
    allowed = load_evaluation(item.evaluation).USES
    if item.uses not in allowed:
        raise UserError(
            f"{where}.uses: {item.uses} is impossible: {item.evaluation} uses "
            f"{' or '.join(allowed)}"
        )
    if unknown := item.config_of.keys() - encoders:
        raise UserError(
            f"{where}.config_of: {', '.join(sorted(unknown))} is not among the encoders "
            f"({', '.join(sorted(encoders))})"
        )
    for encoder in ("", *item.config_of):
        path = f"{where}.config_of.{encoder}" if encoder else f"{where}.config"
        configure(item.evaluation, item.settings(encoder), path)
    entry = register.load_dataset(item.dataset)
    if item.label not in entry.labels:
        labels = ", ".join(entry.labels) or "none: its images have no labels"
        raise UserError(f"{where}.label: {entry.name} has no label {item.label!r}; it has {labels}")
    if "test" not in entry.splits:
        raise UserError(f"{where}.dataset: {entry.name} has no test images")


def main() -> None:
    """Entry point of the command line."""
    _, benchmark = read_files(parser().parse_args().config)
    check(benchmark)


if __name__ == "__main__":
    run_command(main)
