"""GPU-hours: of the log always, of the cluster's accounting where there is one."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evals.report import gpu_hours
from ijepa.cluster import slurm
from ijepa.cluster.slurm import Start
from tests.conftest import wait_until

SCRIPT = Path(__file__).parents[1] / "ijepa/cluster/note_job.sh"
TRAINED = ((2.0, 3601.0), (3700.0, 24.0), (4001.0, 1800.0))
"""Begin and seconds of the starts that accounting has of the run below."""


def write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def note(results: Path, folder: str, job: str, seconds: float, gpus: int = 1) -> None:
    """Write the note of a job that lived for some seconds, as ijepa/cluster/note_job.sh does."""
    begun = 1000.0 + int(job)
    content = {"job": job, "host": "a", "gpus": gpus, "begun": begun, "ended": begun + seconds}
    write(results / "jobs" / folder / f"{job}-0.json", content)


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
    result = {"seconds": 36.0, "gpu_seconds": 0.0, "machine": "2 cores of a processor"}
    write(tmp_path / "evaluations/mae/seed1/knn.json", result)
    return tmp_path


def tabulate(results: Path, monkeypatch: pytest.MonkeyPatch, *accounted: Start) -> pd.DataFrame:
    """The table if accounting has these starts, and no others of their jobs."""

    def starts(jobs: set[str]) -> dict[str | None, list[Start]]:
        numbers = {start.job for start in accounted if start.job in jobs}
        return {job: [start for start in accounted if start.job == job] for job in numbers}

    monkeypatch.setattr("ijepa.cluster.slurm.starts", starts)
    return gpu_hours.tabulate(results, results / "jobs")


def counted(job: str, seconds: float, gpus: int = 1, begun: float = 1000.0) -> Start:
    return Start(job, begun, seconds, gpus)


def of(table: pd.DataFrame, rule: str, source: str) -> dict[str, Any]:
    """The one row of a rule that a source has."""
    (row,) = table[(table.rule == rule) & (table.source == source)].to_dict("records")
    return {str(name): value for name, value in row.items()}


def test_without_accounting_the_logs_are_counted(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tabulate(results, monkeypatch)
    assert set(table.source) == {"log"}
    trained = of(table, "pretrain", "log")
    assert trained | {"starts": 2, "hours": 1.5, "gpu_hours": 6.0} == trained
    extracted = of(table, "evaluate_features", "log")
    assert (extracted["run"], extracted["seed"], extracted["gpu_hours"]) == ("mae", 1, 0.1)
    evaluated = of(table, "evaluate", "log")
    assert (evaluated["item"], evaluated["hours"], evaluated["gpu_hours"]) == ("knn", 0.01, 0.0)


def test_accounting_stands_beside_the_logs_for_the_jobs_that_it_knows(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accounting also has a start that ended before the job could note it."""
    accounted = [counted("7", seconds, gpus=4, begun=begun) for begun, seconds in TRAINED]
    table = tabulate(results, monkeypatch, *accounted)
    slurm = table[table.source == "slurm"]
    assert (slurm.rule.tolist(), slurm.starts.tolist()) == (["pretrain"], [3])
    assert slurm.gpu_hours.tolist() == pytest.approx([4 * 5425 / 3600])
    assert len(table) == 4
    assert "| mae | pretrain | log | 1.500 | 6.000 |" in gpu_hours.markdown(table)


def test_a_job_that_no_launcher_noted_and_one_that_was_over_at_once_count_too(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = results / "runs/mae/seed1/job.json"
    record = json.loads(path.read_text())
    record["attempts"] += [
        {"job": "5", "host": "a", "gpus": 4, "begun": 100.0, "ended": 160.0},
        {"job": "6", "host": "a", "gpus": 4, "begun": 200.0, "ended": 200.3},
    ]
    write(path, record)
    starts = {"7": [counted("7", 3600, gpus=4, begun=0)], "5": [counted("5", 60, gpus=4, begun=99)]}
    monkeypatch.setattr("ijepa.cluster.slurm.starts", lambda _: {**starts, "6": []})
    table = gpu_hours.tabulate(results, results / "jobs")
    of_slurm = table[table.source == "slurm"]
    assert (of_slurm.jobs.tolist(), of_slurm.starts.tolist()) == (["7 5 6"], [2])
    assert of_slurm.gpu_hours.tolist() == pytest.approx([4 * 3660 / 3600])

    record["attempts"][-1]["ended"] += 100  # accounting would know such a long one
    write(path, record)
    assert set(gpu_hours.tabulate(results, results / "jobs").source) == {"log"}


def test_a_job_of_another_cluster_with_the_same_number_is_not_taken_for_this_one(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounted = [counted("7", seconds, gpus=4, begun=begun + 1e6) for begun, seconds in TRAINED]
    assert set(tabulate(results, monkeypatch, *accounted).source) == {"log"}


def test_all_tries_of_a_job_count_from_its_begin_to_its_end(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Job 6 failed. The time that job 8's process records is a part of the job's time."""
    note(results, "rule_evaluate_features/mae_1_cifar10", "6", seconds=40)
    note(results, "rule_evaluate_features/mae_1_cifar10", "8", seconds=400)
    table = tabulate(results, monkeypatch, counted("6", 41), counted("8", 401))
    for source, seconds in (("log", 440), ("slurm", 442)):
        row = of(table, "evaluate_features", source)
        assert (row["jobs"], row["starts"], row["run"]) == ("6 8", 2, "mae")
        assert row["gpu_hours"] * 3600 == pytest.approx(seconds)


def test_a_result_made_without_the_cluster_after_failed_jobs_is_in_the_log_alone(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(results, "rule_evaluate/mae_1_knn", "6", seconds=40)
    table = tabulate(results, monkeypatch, counted("6", 41))
    row = of(table, "evaluate", "log")
    assert (row["starts"], row["hours"] * 3600) == (2, pytest.approx(76))
    assert "evaluate" not in set(table[table.source == "slurm"].rule)


def test_the_time_of_a_group_s_job_is_counted_once(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The times of its evaluations are a part of it; an evaluation made later counts by itself."""
    note(results, "rule_evaluate_features/mae_1_cifar10", "8", seconds=400)
    record = {"seconds": 36.0, "gpu_seconds": 36.0, "machine": "1 x NVIDIA A100"}
    write(results / "evaluations/mae/seed1/knn.json", record | {"job": "8"})
    write(results / "evaluations/mae/seed1/linear_probe.json", record | {"job": "9"})
    table = tabulate(results, monkeypatch, counted("8", 400))
    for source in ("log", "slurm"):
        assert of(table, "evaluate_features", source)["gpu_hours"] * 3600 == pytest.approx(400)
    record = of(table, "evaluate", "log")
    assert (record["item"], record["gpu_hours"]) == ("linear_probe", 0.01)


def test_jobs_of_no_run_have_rows_of_their_own(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(results, "rule_tokenise/cifar10-dalle", "5", seconds=30, gpus=2)
    note(results, "rule_predict_cost", "4", seconds=20, gpus=0)
    table = tabulate(results, monkeypatch, counted("5", 30, gpus=2), counted("4", 20, gpus=0))
    row = of(table, "tokenise", "slurm")
    assert (row["run"], row["item"], row["gpu_hours"] * 60) == ("", "cifar10-dalle", 1.0)
    assert of(table, "predict_cost", "log")["hours"] * 3600 == pytest.approx(20)
    assert "| - | tokenise | log | 0.008 | 0.017 |" in gpu_hours.markdown(table)


def test_accounting_that_counts_no_gpus_is_not_believed_to_have_seen_none(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounted = [counted("7", seconds, gpus=0, begun=begun) for begun, seconds in TRAINED]
    assert set(tabulate(results, monkeypatch, *accounted).source) == {"log"}


def test_every_start_of_a_requeued_job_counts_and_its_gpus_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = "billing=4,cpu=4,gres/gpu:a100=4,gres/gpu=4,mem=8G"
    rows = [["7", "100", "34", both], ["7", "150", "53", both], ["9", "1", "10", "cpu=1"]]
    rows += [["10", "Unknown", "0", both]]
    monkeypatch.setattr("ijepa.cluster.slurm._rows", lambda *_command: rows)
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/sacct")
    assert slurm.starts(["7", "9", "10"]) == {
        "7": [Start("7", 100.0, 34.0, 4), Start("7", 150.0, 53.0, 4)],
        "9": [Start("9", 1.0, 10.0, 0)],
        "10": [],
    }


def test_an_allocation_that_did_more_and_a_run_that_began_elsewhere_tell_nothing(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workflow within one allocation; a run that began without Slurm."""
    result = {"seconds": 36.0, "gpu_seconds": 36.0, "machine": "1 x NVIDIA A100", "job": "9"}
    write(results / "evaluations/mae/seed1/linear_probe.json", result)
    path = results / "runs/mae/seed1/job.json"
    job = json.loads(path.read_text())
    write(path, job | {"jobs": [{"cluster": "local", "number": "12"}, *job["jobs"]]})
    accounted = [counted(job, 7200) for job in ("7", "8", "9", "12")]
    assert set(tabulate(results, monkeypatch, *accounted).source) == {"log"}


@pytest.mark.parametrize("end", [None, signal.SIGKILL])
def test_a_job_notes_how_long_it_lives_whatever_ends_it(
    end: signal.Signals | None, tmp_path: Path
) -> None:
    log = tmp_path / "logs/rule_evaluate/mae_1_knn/31.log"
    log.parent.mkdir(parents=True)
    env = {"SLURM_JOB_ID": "31", "SLURM_GPUS_ON_NODE": "2", "SLURM_NNODES": "2"}
    env |= {"SLURM_RESTART_COUNT": "1", "SLURMD_NODENAME": "a"}
    seconds = 5 if end else 3  # it notes that it lives every 2 s
    with log.open("w") as file:
        begun = time.time()
        job = subprocess.Popen(
            ["sh", "-c", f"notes='{tmp_path}/a b' && . {SCRIPT} && sleep {seconds}"],
            env={**os.environ, **env},
            stdout=file,
            start_new_session=True,
        )
    note = tmp_path / "a b/rule_evaluate/mae_1_knn/31-1.json"
    first = wait_until(lambda: note.exists() and note.read_text())
    if end:
        wait_until(lambda: note.read_text() != first)
        os.killpg(job.pid, end)
    assert job.wait() == (-end if end else 0)
    record = json.loads(note.read_text())
    assert (record["job"], record["gpus"], record["host"]) == ("31", 4, "a")
    assert record["begun"] == pytest.approx(begun, abs=1)
    assert record["ended"] == pytest.approx(time.time(), abs=1 if end is None else 3)


def test_a_pretrainings_notes_lie_where_its_launcher_looks_for_them(tmp_path: Path) -> None:
    """Its log is not a rule's, whatever the folders above are called."""
    log = tmp_path / "rule_of_thumb/submitit/31_0_log.out"
    log.parent.mkdir(parents=True)
    env = {**os.environ, "SLURM_JOB_ID": "31", "SLURMD_NODENAME": "a"}
    with log.open("w") as file:
        command = ["bash", "-c", f"notes='{tmp_path}/attempts'\n. {SCRIPT}"]
        subprocess.run(command, env=env, stdout=file, check=True)
    assert [path.name for path in (tmp_path / "attempts").iterdir()] == ["31-0.json"]
