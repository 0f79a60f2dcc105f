"""Paths of a config's files, each by what it is of. They rest on the config's name alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ijepa.encoder_file import EPOCHS

if TYPE_CHECKING:
    from workflow.plan.benchmark import Benchmark


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
class Paths:
    """Paths of the files that a config makes and reads."""

    benchmark: "Benchmark"

    @property
    def name(self) -> str:
        """Name of the config, and of its folders."""
        return self.benchmark.name

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
        """Folder of the notes of the cluster's jobs (ijepa/cluster/note_job.sh)."""
        return f"{self.work}/jobs"

    def run_folder(self, run: str, seed: int | str) -> str:
        """Folder of a run's encoder, log and record."""
        return f"{self.results}/runs/{run}/seed{seed}"

    def whole(self, run: str, seed: int | str) -> str:
        """File of all networks of a run, which comes with its encoder."""
        return f"{self.run_folder(run, seed)}/whole.safetensors"

    def epoch(self, run: str, seed: int | str, epoch: int | str) -> str:
        """File of an encoder that a run kept after an epoch."""
        return f"{self.run_folder(run, seed)}/{EPOCHS}/{epoch}.safetensors"

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

    # Files that configs share.

    @staticmethod
    def fetched(dataset: str) -> str:
        """Mark that raw files are there, in the folder that they have by default."""
        return f"data/raw/{dataset}/fetched"

    @staticmethod
    def shards(dataset: str) -> str:
        """Folder of a data set's shards."""
        return f"data/shards/{dataset}"

    @staticmethod
    def index(dataset: str) -> str:
        """Index of a data set's shards."""
        return f"{Paths.shards(dataset)}/index.json"

    @staticmethod
    def weights(name: str) -> str:
        """File of published weights."""
        return f"data/weights/{name}"
