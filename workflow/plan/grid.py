"""Runs, evaluations and tables of a config, the files that they need, and the jobs.

The rules take every path and job from this module; so do tests and the commands that show a plan.
It imports no torch: a plan takes milliseconds.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from evals.report.plan import ReportPlan, TableSpec
from ijepa.encoder_file import PIXELS, UNTRAINED
from ijepa.files import write_yaml
from ijepa.keep_and_start import Keep
from ijepa.strict import without_defaults
from workflow.plan.benchmark import Evaluation, Released, Run, Table
from workflow.plan.paths import Cell, Group, Paths


@dataclass(frozen=True)
class Grid(Paths):
    """The files and jobs of a benchmark: every path, and what each file is made from.

    Args:
        benchmark: The config, with defaults filled in.
        cores: Cores of the machine, for jobs that could use all.
    """

    cores: int = 1

    # The config's parts.

    @property
    def dataset(self) -> str:
        """Data set of all runs and evaluations that name no other."""
        return self.benchmark.dataset

    @property
    def threads(self) -> int:
        """Cores of a job that trains or runs a network.

        Two jobs with one thread each are done sooner than one after the other with two, where
        networks are small.
        """
        return self.benchmark.threads or self.cores

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """Every evaluation by name."""
        return {item.name: item for item in self.benchmark.evaluations}

    @cached_property
    def runs(self) -> dict[str, Run]:
        """Every run by name; last the first run's network untrained."""
        runs = {run.name: run for run in self.benchmark.runs}
        if runs:
            first = self.benchmark.runs[0]
            optim = {**first.recipe.get("optim", {}), "epochs": 0, "warmup_epochs": 0}
            recipe = {**first.recipe, "optim": optim}
            runs[UNTRAINED] = replace(first, recipe=recipe, start=None, keep=Keep())
        return runs

    @cached_property
    def kept(self) -> dict[str, tuple[str, int]]:
        """Run and epoch of every encoder that is kept of an epoch, by its name."""
        return {
            name: (run.name, epoch)
            for run in self.benchmark.runs
            for name, epoch in run.kept.items()
        }

    @cached_property
    def released(self) -> dict[str, Released]:
        """Published weights by name."""
        return {weights.name: weights for weights in self.benchmark.released}

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Every table by name."""
        return {table.name: table for table in self.benchmark.tables}

    @cached_property
    def tokenizers(self) -> dict[str, str]:
        """Tokenizer of each run that predicts token ids, by run."""
        return {name: run.tokenizer for name, run in self.runs.items() if run.tokenizer}

    def tokenizer_settings(self, run: str) -> dict[str, int | str]:
        """Settings of the tokenizer whose ids a run predicts; none for other runs."""
        return self.benchmark.tokenizers.get(self.tokenizers.get(run, ""), {})

    def seeds_of(self, encoder: str) -> list[int]:
        """Seeds of an encoder; none of one that was measured elsewhere."""
        if encoder in self.runs or encoder in self.kept:
            return self.benchmark.seeds
        return [0] if encoder in self.released or encoder == PIXELS else []

    def uses(self, encoder: str, evaluation: str) -> Literal["features", "images", "both"]:
        """``features``, ``images`` or ``both``; raw pixels have no network to run."""
        uses = self.evaluations[evaluation].uses
        return "features" if encoder == PIXELS and uses == "both" else uses

    def limit(self, dataset: str) -> dict[str, int]:
        """Splits of which only so many images are evaluated."""
        return {
            str(split): count for split, count in self.benchmark.images.get(dataset, {}).items()
        }

    # The cells.

    @cached_property
    def cells(self) -> list[Cell]:
        """Every evaluation that a table asks for, once, in the order of the tables."""
        controls = [UNTRAINED] if self.benchmark.runs else []
        encoders = [*self.benchmark.encoders, *controls, PIXELS]
        cells = {
            Cell(run, seed, evaluation): None
            for table in self.tables.values()
            for run in (encoders if table.runs is None else table.runs)
            for seed in self.seeds_of(run)
            for evaluation in table.evaluations
            if run != PIXELS or self.uses(run, evaluation) == "features"
        }
        return list(cells)

    @cached_property
    def groups(self) -> dict[Group, list[str]]:
        """Evaluations that one process makes, by group: those that use nothing but features.

        A group may have none: it extracts features for evaluations that also use images.
        """
        groups: dict[Group, list[str]] = {}
        for run, seed, evaluation in self.cells:
            if (uses := self.uses(run, evaluation)) != "images":
                group = Group(run, seed, self.evaluations[evaluation].dataset)
                groups.setdefault(group, []).extend([evaluation] if uses == "features" else [])
        return groups

    def grouped(self) -> str:
        """Sentence for a person who reads a plan: the results that one job makes, by data set."""
        names: dict[str, dict[str, None]] = {}
        for group, evaluations in self.groups.items():
            names.setdefault(group.dataset, {}).update(dict.fromkeys(evaluations))
        lists = "; ".join(
            f"{dataset}: {', '.join(results) or 'features only'}"
            for dataset, results in names.items()
        )
        return f"evaluate_features, one job an encoder and data set, makes of {lists}"

    @cached_property
    def trained(self) -> list[tuple[str, int]]:
        """Run and seed of every encoder that is trained here: shown in a table, or started from."""
        cells = [(self.trained_as(run), seed) for run, seed, _ in self.cells]
        shown = {cell: None for cell in cells if cell[0] in self.runs}
        chain = list(shown)
        for cell in chain:  # it grows: a run may start from one that starts from another
            chain += [(run, cell[1]) for run in self.origin(cell[0])]
        return sorted(set(chain))

    def trained_as(self, encoder: str) -> str:
        """Run that an encoder is of, also one that is kept of an epoch; else its own name."""
        return self.kept[encoder][0] if encoder in self.kept else encoder

    def origin(self, run: str) -> list[str]:
        """Run of this config from whose networks a run starts, if any."""
        if (start := self.runs[run].start) is None:
            return []
        path = Path(start.weights)
        return [
            name
            for name in self.runs
            if path
            in (Path(self.whole(name, "{seed}")), Path(self.epoch(name, "{seed}", path.stem)))
        ]

    def begun_from(self, run: str, seed: int | str) -> list[str]:
        """File that must be there before a run starts, if any: a run's encoder, or weights."""
        if origin := self.origin(run):
            return [str(self.encoder(origin[0], seed))]
        start = self.runs[run].start_of(int(seed))
        return [start.weights] if start else []

    @cached_property
    def trained_on(self) -> list[str]:
        """Data sets of those runs."""
        return sorted({self.runs[run].dataset for run, _ in self.trained})

    @cached_property
    def evaluated_on(self) -> list[str]:
        """Data sets of the cells."""
        return sorted({self.evaluations[cell.evaluation].dataset for cell in self.cells})

    @cached_property
    def datasets(self) -> list[str]:
        """All data sets that must be there as shards."""
        return sorted({*self.trained_on, *self.evaluated_on})

    @cached_property
    def costing(self) -> list[Run]:
        """The config's runs that are trained, without the control."""
        return [run for run in self.benchmark.runs if run.name in dict(self.trained)]

    @cached_property
    def pictured(self) -> str:
        """Data set of the report's pictures: the config's, or the first that is evaluated on."""
        if self.dataset in self.evaluated_on or not self.evaluated_on:
            return self.dataset
        return self.evaluated_on[0]

    @cached_property
    def neighbours(self) -> list[tuple[str, int]]:
        """Run and seed of encoders with features of the data set of the report's pictures."""
        return sorted(
            {
                (run, seed)
                for run, seed, evaluation in self.cells
                if run != PIXELS
                and self.uses(run, evaluation) != "images"
                and self.evaluations[evaluation].dataset == self.pictured
            }
        )

    # The files.

    @property
    def products(self) -> list[str]:
        """Files that a whole run of the workflow ends with.

        Evaluations are among them: Snakemake makes no missing file again that only files need which
        are there already, such as tables.
        """
        return [
            *self.evaluated,
            *(f"{self.results}/tables/{table}.md" for table in self.tables),
            f"{self.results}/tables/gpu_hours.md",
            f"{self.results}/metrics.json",
            f"{self.results}/report.html",
        ]

    def encoder(self, run: str, seed: int | str) -> str | None:
        """File of an encoder, trained here or published; raw pixels have none."""
        if run == PIXELS:
            return None
        if run in self.kept:
            name, epoch = self.kept[run]
            return self.epoch(name, seed, epoch)
        if run in self.released:
            return f"{self.results}/released/{run}/seed{seed}/encoder.safetensors"
        return f"{self.run_folder(run, seed)}/encoder.safetensors"

    def comes_with(self, run: str, seed: int | str) -> str | None:
        """File that is there once an encoder is: one of an epoch comes with its run's last."""
        return self.encoder(self.trained_as(run), seed)

    def single_features(self, run: str, seed: int | str, evaluation: str) -> list[str]:
        """Features that an evaluation with its own job uses beside images: one file, or none."""
        if self.uses(run, evaluation) != "both":
            return []
        return [self.features(run, seed, self.evaluations[evaluation].dataset)]

    def tokens(self, run: str) -> str | None:
        """Token cache of a run, if it predicts ids."""
        if run not in self.tokenizers:
            return None
        folder = self.shards(self.runs[run].dataset)
        return f"{folder}/tokens/{self.tokenizers[run]}.json"

    def raw(self, dataset: str) -> str:
        """Folder where the raw files of a data set lie, or are brought to."""
        folder = self.benchmark.raw.get(dataset, str(Path(self.fetched(dataset)).parent))
        return str(Path(os.path.expandvars(folder)).expanduser())

    @cached_property
    def wanted(self) -> list[str]:
        """Files of all results, sorted."""
        return sorted(map(self.result, self.cells))

    @cached_property
    def evaluated(self) -> list[str]:
        """Files that say that all results are there: markers of groups, and single results."""
        grouped = {
            Cell(group.run, group.seed, evaluation)
            for group, evaluations in self.groups.items()
            for evaluation in evaluations
        }
        single = sorted(self.result(cell) for cell in self.cells if cell not in grouped)
        return [*sorted(map(self.marker, self.groups)), *single]

    def forget_incomplete(self) -> list[str]:
        """Delete the marker of every group of which a result is gone; what is made again."""
        gone = []
        for group, evaluations in self.groups.items():
            marker = Path(self.marker(group))
            missing = [
                path
                for evaluation in evaluations
                if not Path(path := self.result(Cell(group.run, group.seed, evaluation))).exists()
            ]
            if missing and marker.exists():
                marker.unlink()
                gone += missing
        return gone

    # The files that commands read. They are written with the graph (``write_plan``), for a
    # person to read and for a command to be typed again.

    @cached_property
    def plan(self) -> str:
        """Folder of those files, named by their content: a run that is under way keeps its own."""
        content = json.dumps(without_defaults(self.benchmark), sort_keys=True).encode()
        return f"{self.work}/plan/{hashlib.sha256(content).hexdigest()[:12]}"

    def run_plan(self, run: str, seed: int | str) -> str:
        """YAML file of a run, for ijepa.cluster.launch."""
        return f"{self.plan}/runs/{run}/seed{seed}.yaml"

    def group_plan(self, run: str, seed: int | str, dataset: str) -> str:
        """YAML file of a group's evaluations, for evals.group."""
        return f"{self.plan}/evaluations/{run}/seed{seed}/{dataset}.yaml"

    def evaluation_plan(self, run: str, seed: int | str, evaluation: str) -> str:
        """YAML file of the settings of a single evaluation, for evals."""
        return f"{self.plan}/evaluations/{run}/seed{seed}/{evaluation}.settings.yaml"

    @property
    def tables_plan(self) -> str:
        """YAML file of what tables and report must know of the config."""
        return f"{self.plan}/tables.yaml"

    @property
    def config_plan(self) -> str:
        """YAML file of the whole config, for the commands of workflow.plan."""
        return f"{self.plan}/config.yaml"

    def images_option(self, dataset: str) -> str:
        """Option --images of evals and evals.features; "" where all images are used."""
        counts = [f"{split}={count}" for split, count in self.limit(dataset).items()]
        return " ".join(["--images", *counts]) if counts else ""

    def items(self, group: Group) -> list[dict[str, Any]]:
        """The evaluations of a group as ``evals.group`` takes them."""
        return [
            {
                "name": name,
                "evaluation": self.evaluations[name].evaluation,
                "label": self.evaluations[name].label,
                "config": self.evaluations[name].settings(group.run),
            }
            for name in self.groups[group]
        ]

    @cached_property
    def report_plan(self) -> ReportPlan:
        """Plan of the tables and the report."""
        benchmark = self.benchmark
        titles = {item.name: item.title for item in benchmark.evaluations if item.title}
        differs = {item.name: sorted(item.config_of) for item in benchmark.evaluations}
        specs = [
            TableSpec(
                **vars(table),
                titles=titles,
                differs=differs,
                encoders=benchmark.encoders,
                seeds=benchmark.seeds,
            )
            for table in benchmark.tables
        ]
        return ReportPlan(benchmark.name, benchmark.dataset, specs, benchmark.external)

    @cached_property
    def predicted(self) -> dict[str, Any]:
        """Everything that decides the predicted cost of pretraining."""
        runs = [{**run.config(), "name": run.name, "gpus": run.gpus} for run in self.costing]
        return {"seeds": self.benchmark.seeds, "threads": self.benchmark.threads, "runs": runs}

    def write_plan(self) -> None:
        """Write every file that commands read; a file that would not change stays as it is."""
        for run, seed in self.trained:
            write_yaml(Path(self.run_plan(run, seed)), self.runs[run].config(seed))
        for group in self.groups:
            content = {"evaluations": self.items(group), "images": self.limit(group.dataset)}
            write_yaml(Path(self.group_plan(*group)), content)
        for cell in self.cells:
            if self.uses(cell.run, cell.evaluation) != "features":
                item = self.evaluations[cell.evaluation]
                write_yaml(Path(self.evaluation_plan(*cell)), item.settings(cell.run))
        write_yaml(Path(self.tables_plan), asdict(self.report_plan))
        write_yaml(Path(self.config_plan), without_defaults(self.benchmark))

    @cached_property
    def drawn(self) -> list[str]:
        """PNG files that were put into the results' folder ``pictures``, for the report."""
        return sorted(map(str, Path(self.results, "pictures").rglob("*.png")))

    def missing_raw(self) -> list[str]:
        """``DATASET=FOLDER`` of the data sets whose shards are not made yet."""
        return [
            f"{dataset}={self.raw(dataset)}"
            for dataset in self.datasets
            if not Path(self.index(dataset)).exists()
        ]

    def missing_weights(self) -> list[str]:
        """Weights that the user must bring for token caches that are not made yet, a line each."""
        settings = self.benchmark.tokenizers
        wanted = sorted(
            {(self.tokenizers[run], run) for run, _ in self.trained if run in self.tokenizers}
        )
        lines = {
            f"{tokenizer}: {weights} (its weights: python -m ijepa.data.tokens {tokenizer} --help)"
            for tokenizer, run in wanted
            if (weights := settings.get(tokenizer, {}).get("weights"))
            and not Path(str(weights)).exists()
            and not Path(str(self.tokens(run))).exists()
        }
        return sorted(lines)
