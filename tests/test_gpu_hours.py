"""GPU-hours: of the log always, of the cluster's accounting where there is one."""

import json
from pathlib import Path
from typing import Any

import pytest

from evals import gpu_hours


def write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run on four GPUs that was started twice, its features on a GPU, an evaluation on a CPU."""
    attempts = [
        {"job": "7", "host": "a", "gpus": 4, "begun": 0.0, "ended": 3600.0},
        {"job": "7", "host": "b", "gpus": 4, "begun": 4000.0, "ended": 5800.0},
    ]
    job = {"name": "ijepa-1", "jobs": [{"cluster": "slurm", "number": "7"}], "attempts": attempts}
    write(tmp_path / "runs/mae/seed1/job.json", job)
    about = {"feature_seconds": 360, "features": {"machine": "1 x NVIDIA A100", "job": "8"}}
    write(tmp_path / "features/mae/seed1/cifar10/about.json", about)
    told = {"seconds": 36.0, "gpu_seconds": 0.0, "machine": "2 cores of a processor"}
    write(tmp_path / "evaluations/mae/seed1/knn.json", told)
    return tmp_path


def test_without_accounting_the_logs_are_counted(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ijepa.slurm.gpu_seconds", lambda _jobs: {})
    table = gpu_hours.tabulate(results)
    assert set(table.source) == {"log"}
    told = {row["rule"]: row for row in table.to_dict("records")}
    assert told["pretrain"] | {"starts": 2, "hours": 1.5, "gpu_hours": 6.0} == told["pretrain"]
    extracted = told["extract_features"]
    assert (extracted["run"], extracted["seed"], extracted["gpu_hours"]) == ("mae", 1, 0.1)
    evaluated = told["evaluate"]
    assert (evaluated["item"], evaluated["hours"], evaluated["gpu_hours"]) == ("knn", 0.01, 0.0)


def test_accounting_stands_beside_the_logs_for_the_jobs_that_it_knows(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []

    def known(jobs: set[str]) -> dict[str, tuple[float, float, int]]:
        asked.append(jobs)
        return {"7": (5400.0, 21_700.0, 2)}

    monkeypatch.setattr("ijepa.slurm.gpu_seconds", known)
    table = gpu_hours.tabulate(results)
    assert asked == [{"7", "8"}]
    slurm = table[table.source == "slurm"]
    assert slurm.rule.tolist() == ["pretrain"]
    assert slurm.gpu_hours.tolist() == pytest.approx([21_700 / 3600])
    assert len(table) == 4
    assert "| mae | pretrain | log | 1.500 | 6.000 |" in gpu_hours.markdown(table)


def test_every_start_of_a_requeued_job_counts_and_its_gpus_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ijepa import slurm

    both = "billing=4,cpu=4,gres/gpu:a100=4,gres/gpu=4,mem=8G"
    rows = [["7", "34", both], ["7", "53", both], ["9", "10", "cpu=1"], ["10", "0", both]]
    monkeypatch.setattr("ijepa.slurm._rows", lambda *_command: rows)
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/sacct")
    found = slurm.gpu_seconds(["7", "9", "10"])
    assert found == {"7": (87.0, 348.0, 2), "9": (10.0, 0.0, 1), "10": (0.0, 0.0, 0)}


def test_a_job_that_did_more_or_only_a_part_tells_nothing_of_a_run(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole workflow within one allocation; a run that began without Slurm."""
    for name in ("knn", "linear_probe"):
        told = {"seconds": 36.0, "gpu_seconds": 36.0, "machine": "1 x NVIDIA A100", "job": "9"}
        write(results / f"evaluations/mae/seed1/{name}.json", told)
    path = results / "runs/mae/seed1/job.json"
    job = json.loads(path.read_text())
    write(path, job | {"jobs": [{"cluster": "local", "number": "12"}, *job["jobs"]]})
    everything = {number: (7200.0, 14_400.0, 1) for number in ("7", "8", "9", "12")}
    monkeypatch.setattr("ijepa.slurm.gpu_seconds", lambda _jobs: everything)
    table = gpu_hours.tabulate(results)
    assert table[table.source == "slurm"].rule.tolist() == ["extract_features"]
