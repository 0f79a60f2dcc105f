"""A benchmark's config as types: every key, its default, and the values that it may have.

``read_benchmark`` is the one door. What a recipe or an evaluation's settings may hold is the
business of the method's and the evaluation's own ``Config`` (workflow.plan.check). It imports no
torch, as the Snakefile reads it.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from ijepa.encoder_file import PIXELS, UNTRAINED
from ijepa.errors import UserError
from ijepa.files import read_yaml
from ijepa.keep_and_start import Keep, Start
from ijepa.ranges import Compile, Count, NotNegativeInt, Pixels, Precision
from ijepa.strict import merged, strict, without_defaults
from workflow.plan.paths import Paths


def not_a_control(name: str) -> str:
    """The name of an encoder; raises ValueError for a control's."""
    if name in (PIXELS, UNTRAINED):
        raise ValueError(f"{name} is the name of a control: choose another")
    return name


def names_a_folder(dataset: str) -> str:
    """The name of a data set; raises ValueError for one that the workflow's paths cannot hold."""
    if not re.fullmatch(f"({DATASET_NAME})?", dataset):
        raise ValueError(
            f"{dataset!r} is no name for a data set: rename it in datasets.yaml and here, to "
            "letters, digits, _ and - (not first)"
        )
    return dataset


DATASET_NAME = "[A-Za-z0-9_][A-Za-z0-9_-]*"
"""Pattern of the names that data sets may have; the Snakefile's wildcard follows it."""
DatasetName = Annotated[str, AfterValidator(names_a_folder)]
Name = Annotated[str, Field(pattern="^[a-z0-9_]+$")]
EncoderName = Annotated[Name, AfterValidator(not_a_control)]
Settings = dict[str, Any]
"""Keys and values that another type checks."""


@dataclass(frozen=True)
class Run:
    """One pretraining.

    ``dataset`` and ``vit`` are the config's by default. Other keys that are left out have
    ijepa.config.RunConfig's defaults. ``gpus`` train the run together, one process each: a cluster
    takes as many nodes as that needs, a machine what it has. They share the batch, so the result is
    the same up to rounding. ``start.from`` is an earlier run of the config, released weights of
    it, or a path, in which ``{seed}`` is the run's seed.
    """

    name: EncoderName
    method: str
    dataset: DatasetName = ""
    vit: Settings = field(default_factory=dict)
    recipe: Settings = field(default_factory=dict)
    gpus: Count = 1
    precision: Precision | None = None
    activation_checkpointing: bool | None = None
    compile: Compile | None = None
    pixels: Pixels | None = None
    num_workers: NotNegativeInt | None = None
    log_every: Count | None = None
    monitor_every: Count | None = None
    checkpoint_every: Count | None = None
    keep: Keep = field(default_factory=Keep)
    start: Start | None = None

    @property
    def kept(self) -> dict[str, int]:
        """Epochs whose encoders are evaluated like runs, by the name of each."""
        return {f"{self.name}@epoch{epoch}": epoch for epoch in self.keep.epochs}

    @property
    def tokenizer(self) -> str | None:
        """Tokenizer whose ids the run predicts, if any."""
        name: str | None = self.recipe.get("tokenizer")
        return name

    def config(self, seed: int = 0) -> Settings:
        """The run as ijepa.config.parse_run takes it: the content of a run's YAML file."""
        given = {**without_defaults(replace(self, start=self.start_of(seed))), "seed": seed}
        return {key: value for key, value in given.items() if key not in ("name", "gpus")}

    def start_of(self, seed: int) -> Start | None:
        """Start with the path of one seed, if the run has any."""
        if self.start is None:
            return None
        return replace(self.start, weights=self.start.weights.replace("{seed}", str(seed)))


@dataclass(frozen=True)
class Released:
    """Published weights to evaluate; ``address`` may be a path on this machine.

    ``ijepa-bench download --help`` and ``ijepa-bench weights import --help`` explain the others.
    """

    name: EncoderName
    address: str
    sha256: str
    licence: str
    layout: str | None = None
    tower: str | None = None
    image_size: Count | None = None
    num_heads: Count | None = None
    keep: Literal["encoder", "whole"] | None = None

    def options(self) -> Settings:
        """Options of ``python -m ijepa.released.weights import`` that are given."""
        names = ("layout", "tower", "image_size", "num_heads", "keep")
        return {
            name.replace("_", "-"): value
            for name in names
            if (value := getattr(self, name)) is not None
        }


@dataclass(frozen=True)
class Evaluation:
    """One column of tables.

    ``evaluation`` is the module in evals/protocols, by default the item's name. ``dataset`` is the
    config's by default. ``uses``: stored features, images that the encoder is run on, or both.
    ``config_of`` has settings that differ, by encoder.
    """

    name: Name
    evaluation: str = ""
    title: str | None = None
    dataset: DatasetName = ""
    label: str = "class"
    uses: Literal["features", "images", "both"] = "features"
    config: Settings = field(default_factory=dict)
    config_of: dict[str, Settings] = field(default_factory=dict)

    def settings(self, encoder: str) -> Settings:
        """Settings with those that differ for this encoder, nested ones too."""
        return merged(self.config, self.config_of.get(encoder, {}))


@dataclass(frozen=True)
class Table:
    """One table.

    ``published`` is a table of the CSV files in results/published, whose rows it has and beside
    whose numbers it stands. ``runs`` are its rows, by default all runs, published weights and
    controls. With ``published`` it is a mapping: for each run the values of the published row that
    it fills, as many as tell it from the others, {} for a row of its own.
    """

    name: Name
    title: str
    evaluations: Annotated[list[str], Field(min_length=1)]
    published: str | None = None
    runs: (
        Annotated[list[str], Field(min_length=1)]
        | Annotated[dict[str, dict[str, str | int]], Field(min_length=1)]
        | None
    ) = None


@dataclass(frozen=True)
class Benchmark:
    """A whole config.

    ``threads`` are the cores of each job that trains or runs a network: by default all, one job
    after the other. ``raw`` says where a data set's raw files lie, by default data/raw/NAME.
    ``images`` keeps only the first images of a data set's split for evaluation. ``tokenizers`` are
    settings of the token caches that runs name in recipe.tokenizer. ``external`` are CSV files of
    results that were measured elsewhere.
    """

    name: Name
    dataset: DatasetName
    seeds: Annotated[list[NotNegativeInt], Field(min_length=1)]
    evaluations: Annotated[list[Evaluation], Field(min_length=1)]
    tables: Annotated[list[Table], Field(min_length=1)]
    vit: Settings = field(default_factory=dict)
    threads: Count | None = None
    runs: list[Run] = field(default_factory=list)
    released: list[Released] = field(default_factory=list)
    raw: dict[str, str] = field(default_factory=dict)
    images: dict[str, dict[Literal["train", "test"], Count]] = field(default_factory=dict)
    tokenizers: dict[str, dict[str, int | str]] = field(default_factory=dict)
    external: list[str] = field(default_factory=list)

    @property
    def encoders(self) -> list[str]:
        """Names of all runs, each after its epochs that are kept, and published weights."""
        runs = [name for run in self.runs for name in (*run.kept, run.name)]
        return runs + [weights.name for weights in self.released]

    def __post_init__(self) -> None:
        if not self.runs and not self.released:
            raise ValueError("runs or released: at least one encoder is needed")
        for part, names in (
            ("runs and released", self.encoders),
            ("evaluations", [item.name for item in self.evaluations]),
            ("tables", [item.name for item in self.tables]),
            ("seeds", [str(seed) for seed in self.seeds]),
        ):
            if doubled := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{part}: {', '.join(doubled)} is there twice: one name, one item")


def read_benchmark(raw: Any, where: str = "config") -> Benchmark:
    """A config with every default filled in; raises UserError that names each wrong key.

    ``where`` names the config in errors, such as its path.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{where} must hold keys and values, as config/mini.yaml does")
    for run in raw.get("runs") or []:
        if isinstance(run, dict) and "seed" in run:
            raise UserError(
                f"{where}.runs.{run.get('name')}.seed: a run has none of its own, or the rows of a "
                "table could not be compared: set seeds for the whole config"
            )
    given: Benchmark = strict(Benchmark, raw, where)
    for run in given.runs:
        if not isinstance(run.recipe.get("optim", {}), dict):
            raise UserError(
                f"{where}.runs.{run.name}.recipe.optim: {run.recipe['optim']!r} must be keys and "
                "values"
            )
    return replace(
        given,
        runs=[
            replace(
                run,
                dataset=run.dataset or given.dataset,
                vit=run.vit or given.vit,
                start=_located(run, given, f"{where}.runs.{run.name}.start"),
            )
            for run in given.runs
        ],
        evaluations=[
            replace(
                item,
                evaluation=item.evaluation or item.name,
                dataset=item.dataset or given.dataset,
            )
            for item in given.evaluations
        ],
    )


def _located(run: Run, benchmark: Benchmark, where: str) -> Start | None:
    """Start of a run with the path of what it names; raises UserError for what cannot be there."""
    if run.start is None:
        return None
    name = run.start.weights
    if name in [weights.name for weights in benchmark.released]:
        return replace(run.start, weights=Paths.weights(name))
    runs = [other.name for other in benchmark.runs]
    of, _, epoch = name.partition("@epoch")
    if of not in runs:
        return run.start
    if runs.index(of) >= runs.index(run.name):
        raise UserError(f"{where}.from: {of} must stand before {run.name} in runs: move it")
    origin = benchmark.runs[runs.index(of)]
    paths = Paths(benchmark)
    if not epoch:
        if not origin.keep.whole:
            raise UserError(f"{where}.from: {of} keeps no networks: set its keep.whole: true")
        return replace(run.start, weights=paths.whole(of, "{seed}"))
    if name not in origin.kept:
        raise UserError(f"{where}.from: {of} keeps no epoch {epoch}: add it to its keep.epochs")
    if run.start.parts != "encoder":
        raise UserError(f"{where}.parts: of an epoch the encoder alone is kept: say parts: encoder")
    return replace(run.start, weights=paths.epoch(of, "{seed}", epoch))


def _there(missing: Path) -> str:
    """Config beside a missing one that it was meant for, or all of them."""
    names = sorted(file.name for file in missing.parent.glob("*.yaml"))
    if close := difflib.get_close_matches(missing.name, names, 1):
        return f"did you mean {missing.with_name(close[0])}?"
    return f"{missing.parent} has {', '.join(names) or 'no config'}"


def read_files(paths: Iterable[Path]) -> tuple[Settings, Benchmark]:
    """Config of one file, or of several merged as Snakemake does: as plain data and as types."""
    raw: Settings = {}
    paths = list(paths)
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist: {_there(path)}")
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} must hold keys and values, as config/mini.yaml does")
        raw = merged(raw, content)
    return raw, read_benchmark(raw, str(paths[0]))


def schema() -> Settings:
    """JSON schema of a config, for editors: ``python -m workflow.plan schema``."""
    return TypeAdapter(Benchmark).json_schema()
