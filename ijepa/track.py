"""Send logs of trainings to a tracker: ``python -m ijepa.track results/mini --to tensorboard``.

A tracker is imported only if it is asked for. The logs stay as they are, so they can be sent again,
or to another one.
"""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ijepa.errors import UserError, program, run_command
from ijepa.files import read_yaml
from ijepa.log_reader import logs_in, read_log

Log = Callable[[dict[str, float], int], None]
STEP = "step"


def to_tensorboard(tracker: ModuleType, project: str, name: str, config: Any, out: Path) -> Any:
    """Event files below a folder, one folder a run; those of an earlier time are replaced."""
    for earlier in (out / name).glob("events.out.tfevents.*"):
        earlier.unlink()
    writer = tracker.SummaryWriter(str(out / name))

    def log(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return log, writer.close


def to_wandb(tracker: ModuleType, project: str, name: str, config: Any, out: Path) -> Any:
    """A run of Weights & Biases, or of trackio, which has the same calls."""
    run = tracker.init(project=project, name=name, config=config)
    return (lambda values, step: run.log(values, step=step)), run.finish


def to_mlflow(tracker: ModuleType, project: str, name: str, config: Any, out: Path) -> Any:
    """A run of MLflow."""
    tracker.set_experiment(project)
    tracker.start_run(run_name=name)
    tracker.log_dict(config, "run.yaml")
    return (lambda values, step: tracker.log_metrics(values, step=step)), tracker.end_run


TRACKERS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard", to_tensorboard),
    "wandb": ("wandb", "wandb", to_wandb),
    "mlflow": ("mlflow", "mlflow", to_mlflow),
    "trackio": ("trackio", "trackio", to_wandb),
}
"""Module, package to be installed, and function of each tracker."""


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(prog=program("ijepa.track"), description=__doc__)
    options.add_argument("folder", type=Path, help="folder with logs, such as results/mini")
    options.add_argument("--to", choices=list(TRACKERS), required=True)
    options.add_argument("--project", help="name of the project (default: the folder's)")
    options.add_argument("--out", type=Path, default=Path("work/tracked"), help="for tensorboard")
    return options


def track(folder: Path, to: str, project: str, out: Path) -> int:
    """Send every log below a folder; returns their number.

    Raises UserError if the tracker is not installed, refuses, or does not answer.
    """
    module, package, begin = TRACKERS[to]
    try:
        tracker = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{to} is not installed ({error}): pip install {package}") from None
    if not (logs := logs_in(folder)):
        raise UserError(f"{folder} has no train.jsonl: name a folder of results or of work")
    for name, path in logs.items():
        beside = path.with_name("run.yaml")
        config = read_yaml(beside) if beside.exists() else {}
        try:
            log, end = begin(tracker, project, name, config, out)
            for record in read_log(path):
                values = {key: value for key, value in record.items() if key != STEP}
                log(values, record[STEP])
            end()
        except UserError:
            raise
        except Exception as error:  # each tracker has errors of its own
            raise UserError(
                f"{to} does not take {name} ({error}): the logs are untouched"
            ) from None
    return len(logs)


def main() -> None:
    """Entry point of the command line."""
    options = parser().parse_args()
    project = options.project or options.folder.resolve().name
    number = track(options.folder, options.to, project, options.out)
    print(f"{number} runs of {options.folder} are in {options.to}")


if __name__ == "__main__":
    run_command(main)
