"""What a config asks for: runs, evaluations and tables, the files that they need, and the jobs.

The Snakefile asks this module and nothing else; so do tests and the commands that show a plan. It
imports no torch: a plan takes milliseconds.
"""

import json
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "workflow" / "config.schema.yaml"
PIXELS = "pixels"
"""The control without a network; it is in every table that does not name its runs."""
UNTRAINED = "random_init"
"""The other control: the first run's network as it was initialised."""

LAUNCH = {
    "cluster": "local",
    "gpus_per_node": 8,
    "cpus_per_gpu": 10,
    "gb_per_gpu": 55,
    "save_seconds": 120,
    "poll_seconds": 10,
    "stage": "",
    "setup": "",
}
"""Resources of pretraining that a profile may set; by default it is a process of this machine."""


class Cell(NamedTuple):
    """One evaluation of one encoder."""

    run: str
    seed: int
    evaluation: str


class Group(NamedTuple):
    """Evaluations that one process makes: all of an encoder that use its features of a data set."""

    run: str
    seed: int
    dataset: str


@dataclass(frozen=True)
class Grid:
    """A config with every default filled in, and the path of every file that it asks for.

    Args:
        config: The config as it was read, of the shape of config.schema.yaml.
        cores: Cores of the machine, for jobs that could use all.
    """

    config: dict[str, Any]
    cores: int = 1

    # The config's parts.

    @property
    def name(self) -> str:
        """Name of the config, and of its folders."""
        return str(self.config["name"])

    @property
    def dataset(self) -> str:
        """Data set of all runs and evaluations that name no other."""
        return str(self.config["dataset"])

    @property
    def seeds(self) -> list[int]:
        """Seeds of every run."""
        return list(self.config["seeds"])

    @property
    def threads(self) -> int:
        """Cores of a job that trains or runs a network.

        Two jobs with one thread each are done sooner than one after the other with two, where
        networks are small.
        """
        return int(self.config.get("threads", self.cores))

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Every evaluation by name, with its defaults."""
        return {
            item["name"]: {
                "evaluation": item["name"],
                "dataset": self.dataset,
                "label": "class",
                "uses": "features",
                "config": {},
                "config_of": {},
                **item,
            }
            for item in self.config["evaluations"]
        }

    @cached_property
    def runs(self) -> dict[str, dict[str, Any]]:
        """Every run by name, with its defaults; last the first run's network untrained."""
        shared = {"vit": self.config["vit"]} if "vit" in self.config else {}
        runs = {
            run["name"]: {"dataset": self.dataset, **shared, "gpus": 1, **run}
            for run in self.config.get("runs", [])
        }
        if runs:
            first = next(iter(runs.values()))
            recipe = first.get("recipe", {})
            optim = {**recipe.get("optim", {}), "epochs": 0, "warmup_epochs": 0}
            runs[UNTRAINED] = {**first, "recipe": {**recipe, "optim": optim}}
        return runs

    @cached_property
    def released(self) -> dict[str, dict[str, Any]]:
        """Published weights by name."""
        return {weights["name"]: weights for weights in self.config.get("released", [])}

    @cached_property
    def tables(self) -> dict[str, dict[str, Any]]:
        """Every table by name."""
        return {table["name"]: table for table in self.config["tables"]}

    @cached_property
    def tokenizers(self) -> dict[str, str]:
        """For each run that predicts token ids, the tokenizer that they come from."""
        return {
            name: run["recipe"]["tokenizer"]
            for name, run in self.runs.items()
            if "tokenizer" in run.get("recipe", {})
        }

    def seeds_of(self, run: str) -> list[int]:
        """Seeds of an encoder; none of one that was measured elsewhere."""
        if run in self.runs:
            return self.seeds
        return [0] if run in self.released or run == PIXELS else []

    def uses(self, run: str, evaluation: str) -> str:
        """``features``, ``images`` or ``both``; raw pixels have no network to run."""
        asked = str(self.evaluations[evaluation]["uses"])
        return "features" if run == PIXELS and asked == "both" else asked

    def protocol(self, run: str, evaluation: str) -> dict[str, Any]:
        """Settings of an evaluation, with what differs for this encoder."""
        item = self.evaluations[evaluation]
        return {**item["config"], **item["config_of"].get(run, {})}

    def limit(self, dataset: str) -> dict[str, int]:
        """Splits of which only so many images are evaluated."""
        limit: dict[str, int] = self.config.get("images", {}).get(dataset, {})
        return limit

    def frozen_run(self, run: str, seed: int) -> dict[str, Any]:
        """One cell of the grid as the file that its pretraining reads."""
        frozen = {**self.runs[run], "seed": seed}
        return {key: value for key, value in frozen.items() if key not in ("name", "gpus")}

    # The cells.

    @cached_property
    def cells(self) -> list[Cell]:
        """Every evaluation that a table asks for, once, in the order of the tables."""
        encoders = [*self.runs, *self.released, PIXELS]
        cells = {
            Cell(run, seed, evaluation): None
            for table in self.tables.values()
            for run in table.get("runs", encoders)
            for seed in self.seeds_of(run)
            for evaluation in table["evaluations"]
            if run != PIXELS or self.uses(run, evaluation) == "features"
        }
        return list(cells)

    @cached_property
    def groups(self) -> dict[Group, list[str]]:
        """Evaluations that one process makes, by group: those that use nothing but features."""
        groups: dict[Group, list[str]] = {}
        for run, seed, evaluation in self.cells:
            if self.uses(run, evaluation) == "features":
                group = Group(run, seed, self.evaluations[evaluation]["dataset"])
                groups.setdefault(group, []).append(evaluation)
        return groups

    def grouped(self) -> str:
        """What one job makes, by data set, in words: for whoever reads a plan."""
        names: dict[str, dict[str, None]] = {}
        for group, evaluations in self.groups.items():
            names.setdefault(group.dataset, {}).update(dict.fromkeys(evaluations))
        told = "; ".join(f"{dataset}: {', '.join(of)}" for dataset, of in names.items())
        return f"evaluate_features, one job an encoder and data set, makes of {told}"

    @cached_property
    def trained(self) -> list[tuple[str, int]]:
        """Run and seed of every encoder that is trained here and shown in a table."""
        return sorted({(run, seed) for run, seed, _ in self.cells if run in self.runs})

    @cached_property
    def trained_on(self) -> list[str]:
        """Data sets of those runs."""
        return sorted({self.runs[run]["dataset"] for run, _ in self.trained})

    @cached_property
    def datasets(self) -> list[str]:
        """All data sets that must be there as shards."""
        evaluated = {self.evaluations[cell.evaluation]["dataset"] for cell in self.cells}
        return sorted({*self.trained_on, *evaluated})

    @cached_property
    def costing(self) -> list[dict[str, Any]]:
        """The config's runs that are trained, without the control."""
        return [run for run in self.config.get("runs", []) if run["name"] in dict(self.trained)]

    @cached_property
    def neighbours(self) -> list[tuple[str, int]]:
        """Run and seed of encoders with features of the data set that they are trained on."""
        return sorted(
            {
                (run, seed)
                for run, seed, evaluation in self.cells
                if run != PIXELS
                and self.uses(run, evaluation) != "images"
                and self.evaluations[evaluation]["dataset"] == self.dataset
            }
        )

    # The files.

    @property
    def results(self) -> str:
        """Folder of everything that this config makes."""
        return f"results/{self.name}"

    @property
    def work(self) -> str:
        """Folder of checkpoints and of what an interrupted job goes on from."""
        return f"work/{self.name}"

    @property
    def jobs(self) -> str:
        """Folder of the notes of the cluster's jobs (ijepa/note_job.sh)."""
        return f"{self.work}/jobs"

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

    def run_folder(self, run: str, seed: int | str) -> str:
        """Folder of a run's encoder, log and record."""
        return f"{self.results}/runs/{run}/seed{seed}"

    def encoder(self, run: str, seed: int | str) -> str | None:
        """File of an encoder, trained here or published; raw pixels have none."""
        if run == PIXELS:
            return None
        if run in self.released:
            return f"{self.results}/released/{run}/seed{seed}/encoder.safetensors"
        return f"{self.run_folder(run, seed)}/encoder.safetensors"

    def features(self, run: str, seed: int | str, dataset: str) -> str:
        """File that says of an encoder's features of a data set that they are there."""
        return f"{self.results}/features/{run}/seed{seed}/{dataset}/about.json"

    def result(self, cell: Cell) -> str:
        """File of one result."""
        return f"{self.results}/evaluations/{cell.run}/seed{cell.seed}/{cell.evaluation}.json"

    def marker(self, group: Group) -> str:
        """File that says of a group that all of its results are there."""
        run, seed, dataset = group
        return f"{self.results}/evaluations/{run}/seed{seed}/{dataset}.done"

    def index(self, dataset: str) -> str:
        """Index of a data set's shards."""
        return f"data/shards/{dataset}/index.json"

    def tokens(self, run: str) -> str | None:
        """Token cache of a run, if it predicts ids."""
        if run not in self.tokenizers:
            return None
        return f"data/shards/{self.runs[run]['dataset']}/tokens/{self.tokenizers[run]}.json"

    def raw(self, dataset: str) -> str:
        """Folder where the raw files of a data set lie, or are brought to."""
        return str(self.config.get("raw", {}).get(dataset, f"data/raw/{dataset}"))

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

    # What commands are told.

    def items(self, group: Group) -> str:
        """The evaluations of a group as ``evals.group`` takes them."""
        return json.dumps(
            [
                {
                    "name": name,
                    "evaluation": self.evaluations[name]["evaluation"],
                    "label": self.evaluations[name]["label"],
                    "config": self.protocol(group.run, name),
                }
                for name in self.groups[group]
            ]
        )

    @cached_property
    def asked(self) -> str:
        """What tables and report must know of the config, as JSON."""
        keys = ("name", "dataset", "seeds", "evaluations", "tables", "external")
        asked = {key: self.config[key] for key in keys if key in self.config}
        for part in ("runs", "released"):
            asked[part] = [{"name": item["name"]} for item in self.config.get(part, [])]
        return json.dumps(asked)

    @cached_property
    def predicted(self) -> str:
        """What decides the cost of pretraining, of the runs that are trained, as JSON."""
        keys = ("dataset", "vit", "seeds", "threads")
        return json.dumps(
            {key: self.config[key] for key in keys if key in self.config} | {"runs": self.costing}
        )

    def expected_encoders(self) -> dict[str, dict[str, Any]]:
        """The run of each encoder, as its file should have it."""
        return {
            f"{self.run_folder(run, seed)}/encoder.safetensors": self.frozen_run(run, seed)
            for run, seed in self.trained
        }

    def expected_features(self) -> dict[str, dict[str, Any]]:
        """What the features that evaluations ask for should say of themselves."""
        asked = sorted(
            {
                (cell.run, cell.seed, self.evaluations[cell.evaluation]["dataset"])
                for cell in self.cells
                if self.uses(cell.run, cell.evaluation) != "images"
            }
        )
        return {
            self.features(run, seed, dataset): {
                "data": f"data/shards/{dataset}",
                "images": self.limit(dataset),
                "encoder": self.encoder(run, seed),
            }
            for run, seed, dataset in asked
        }

    def expected_evaluations(self) -> dict[str, dict[str, Any]]:
        """What each result of the tables should say of itself."""
        return {
            self.result(cell): {
                "name": item["evaluation"],
                "label": item["label"],
                "config": self.protocol(cell.run, cell.evaluation),
                "images": self.limit(item["dataset"]),
                "data": f"data/shards/{item['dataset']}",
                "encoder": self.encoder(cell.run, cell.seed),
            }
            for cell in self.cells
            for item in [self.evaluations[cell.evaluation]]
        }

    def missing_raw(self) -> list[str]:
        """``DATASET=FOLDER`` of the data sets whose shards are not made yet."""
        return [
            f"{dataset}={self.raw(dataset)}"
            for dataset in self.datasets
            if not Path(self.index(dataset)).exists()
        ]

    def missing_weights(self) -> list[str]:
        """What must be brought by hand for token caches that are not made yet."""
        settings = self.config.get("tokenizers", {})
        wanted = sorted(
            {(self.tokenizers[run], run) for run, _ in self.trained if run in self.tokenizers}
        )
        lines = {
            f"{tokenizer}: {weights} (its weights: python -m ijepa.data.tokens {tokenizer} --help)"
            for tokenizer, run in wanted
            if (weights := settings.get(tokenizer, {}).get("weights"))
            and not Path(weights).exists()
            and not Path(str(self.tokens(run))).exists()
        }
        return sorted(lines)


def launch_options(gpus: int, resources: Any, threads: int) -> str:
    """The options of ijepa.launch, from a run's GPUs and the profile's resources."""
    return as_options(
        {
            "cluster": resources.cluster,
            "gpus": gpus,
            "threads": threads,
            "partition": resources.get("slurm_partition", ""),
            "account": resources.get("slurm_account", ""),
            "qos": resources.get("qos", ""),
            "constraint": resources.get("constraint", ""),
            "extra": resources.get("slurm_extra", ""),
            "minutes": resources.get("runtime", 1440),
            "gpus-per-node": resources.gpus_per_node,
            "cpus-per-gpu": resources.cpus_per_gpu,
            "gb-per-gpu": resources.gb_per_gpu,
            "save-seconds": resources.save_seconds,
            "poll": resources.poll_seconds,
            "stage": resources.stage,
            "setup": resources.setup,
        }
    )


def as_options(values: dict[str, Any]) -> str:
    """Values as a command takes them; an empty one is left out."""
    return " ".join(
        f"--{key}={shlex.quote(str(value))}" for key, value in values.items() if value != ""
    )


def faults(config: dict[str, Any]) -> Iterable[str]:
    """Every way in which a config is not of the shape of the schema, by its path."""
    import jsonschema

    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    for fault in jsonschema.Draft202012Validator(schema).iter_errors(config):
        yield f"config: {fault.json_path}: {fault.message}"


def register_entry(dataset: str) -> dict[str, Any]:
    """What the register says of a data set and decides its shards; nothing of titles, addresses."""
    path = os.environ.get("IJEPA_REGISTER", ROOT / "data" / "datasets.yaml")
    entry = yaml.safe_load(Path(path).read_text(encoding="utf-8")).get(dataset, {})
    words = {"title", "citation", "licence", "origins", "max_corrupt"}
    return {key: value for key, value in entry.items() if key not in words}
