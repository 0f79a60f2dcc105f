"""Paths of a config's files, each by what it is of. They rest on the config's name alone."""

from abc import ABC, abstractmethod
from typing import NamedTuple


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


class Paths(ABC):
    """Paths of the files that a config makes and reads."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the config, and of its folders."""

    @property
    @abstractmethod
    def plan(self) -> str:
        """Folder of the files that commands read, named by their content."""

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

    def shards(self, dataset: str) -> str:
        """Folder of a data set's shards."""
        return f"data/shards/{dataset}"

    def index(self, dataset: str) -> str:
        """Index of a data set's shards."""
        return f"{self.shards(dataset)}/index.json"

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
