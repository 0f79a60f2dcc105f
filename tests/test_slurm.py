"""Requests of a job, and questions to Slurm, without a cluster (with one: tests/slurm)."""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit

from ijepa import distributed
from ijepa.cluster import job, jobs, launch, slurm
from ijepa.cluster.environment import forget_other_jobs
from ijepa.cluster.slurm import Request
from ijepa.errors import UserError
from tests.conftest import raw_run_of
from tests.test_launch import ONE, launched
from workflow.plan.options import LAUNCH, launch_options

TWO_NODES = replace(ONE, gpus=8, gpus_per_node=4, cpus_per_gpu=10)


@pytest.fixture
def asked(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function from a request to the options in the script of its job."""
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda *_: 1)

    def options(request: Request) -> dict[str, str]:
        task = launched(raw_run_of("mae"), data, tmp_path / "run", "slurm")
        executor: Any = submitit.AutoExecutor(tmp_path, cluster="slurm")
        given = jobs.parameters(replace(task, request=request), request.gpus)
        executor.update_parameters(**given)
        script = executor._executor._make_submission_file_text("true", "1")
        rows = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE)
        assert len(rows) == len(dict(rows)), "an option comes twice"
        return dict(rows)

    return options


def test_a_job_names_the_type_of_its_gpus_where_the_profile_does(asked: Any) -> None:
    assert asked(TWO_NODES)["gpus-per-node"] == "4"
    assert asked(replace(TWO_NODES, gpu_model="a100"))["gpus-per-node"] == "a100:4"
    assert "gpus-per-node" not in asked(replace(ONE, gpus=0, gpu_model="a100"))


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ({}, {"mem": "220GB"}),
        ({"mem_mb_per_cpu": 4000}, {"mem-per-cpu": "4000MB"}),
        ({"gb_per_gpu": 0}, {}),
        ({"gb_per_gpu": 0, "mem_mb_per_cpu": 4000}, {"mem-per-cpu": "4000MB"}),
    ],
)
def test_memory_is_asked_for_a_node_or_a_core_or_not_at_all(
    memory: dict[str, Any], expected: dict[str, str], asked: Any
) -> None:
    options = asked(replace(TWO_NODES, **memory))
    assert {key: value for key, value in options.items() if key.startswith("mem")} == expected


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("--gpus-per-node=a100:4", "gpus_per_node and gpu_model"),
        ("--gres=gpu:a100:4", "gpus_per_node and gpu_model"),
        ("--mem-per-cpu=4G", "mem_mb_per_cpu"),
        ("--mem=0", "gb_per_gpu"),
        ("--partition=gpu", "slurm_partition"),
        ("--time=60", "runtime"),
        ("--tres-per-task=gres/gpu:1", "gpus_per_node and gpu_model"),
    ],
)
def test_an_option_that_the_job_has_already_is_refused_with_its_key(option: str, key: str) -> None:
    """Slurm takes either of two lines with one option, depending on the option."""
    with pytest.raises(UserError, match=rf"slurm_extra: '{option}': .* from {key} in the profile"):
        replace(ONE, extra=f"--reservation=r {option}").extras()


@pytest.mark.parametrize("option", ["--comment=mine", "--no-requeue", "--job-name=a", "--signal=9"])
def test_an_option_by_which_a_job_is_found_again_is_refused(option: str) -> None:
    """With another comment the job would look lost, and a second one would be submitted."""
    with pytest.raises(UserError, match=rf"slurm_extra: '{option}': the launcher sets this option"):
        replace(ONE, extra=f"--exclude=n1 {option}").extras()


def test_variables_of_other_jobs_and_defaults_that_the_profile_decides_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sbatch prefers its variables to a script; srun refuses memory of two kinds."""
    kept = {"SBATCH_ACCOUNT": "site", "SBATCH_RESERVATION": "r", "SLURM_CONF": "/etc/slurm.conf"}
    forgotten = {"SLURM_MEM_PER_CPU": "4000", "SBATCH_PARTITION": "cpu", "SBATCH_TIMELIMIT": "5"}
    monkeypatch.setattr(os, "environ", {**kept, **forgotten})
    forget_other_jobs(replace(ONE, partition="gpu", account=None))
    assert dict(os.environ) == kept
    assert "SBATCH_PARTITION is not used here: the profile" in capsys.readouterr().out


def test_what_the_job_does_not_ask_for_may_stand_in_the_extra() -> None:
    assert replace(ONE, extra="--gres=lscratch:50").extras() == {"gres": "lscratch:50"}
    assert replace(ONE, gb_per_gpu=0, extra="--mem=0").extras() == {"mem": "0"}


def test_the_profile_s_type_of_gpus_and_memory_of_a_core_reach_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Resources(SimpleNamespace):
        def get(self, name: str, default: Any) -> Any:
            return getattr(self, name, default)

    def request(**resources: Any) -> Request:
        options = launch_options(8, Resources(**LAUNCH, **resources), threads=1)
        monkeypatch.setattr(sys, "argv", ["launch", "--check", *options.split()])
        checked: list[Request] = []
        with monkeypatch.context() as patch:
            patch.setattr(Request, "check", lambda self: checked.append(self))
            launch.main()
        return checked[0]

    given = request(gpu_model="a100", mem_mb_per_cpu=4000)
    assert (given.gpu_model, given.mem_mb_per_cpu) == ("a100", 4000)
    assert (request().gpu_model, request().mem_mb_per_cpu) == (None, 0)


NODES = [
    ["2", "gpu:a100:2,gpu:h100:4(S:0-1)", "1-00:00:00", "128", "160000"],
    ["2", "gpu:a100:2", "1-00:00:00", "128", "160000"],
]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"gpu_model": "h100"}, ""),
        ({"gpu_model": "v100"}, "gpu_model: 'v100' is not in partition gpu; there are a100, h100"),
        ({"gpu_model": "a100"}, r"gpus_per_node: 4 is more than a node .* has \(2\)"),
        ({"mem_mb_per_cpu": 4000}, ""),
        ({"mem_mb_per_cpu": 4001}, "mem_mb_per_cpu: 4 on a node take 160040 MB of memory"),
    ],
)
def test_gpus_and_memory_that_a_partition_does_not_have_are_refused(
    changes: dict[str, Any], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_answer", lambda *_command: NODES)
    request = replace(TWO_NODES, partition="gpu", gb_per_gpu=39, **changes)
    if fault:
        with pytest.raises(UserError, match=fault):
            request._check_partition()
    else:
        request._check_partition()


def test_a_node_whose_gpus_have_no_type_may_be_asked_for_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slurm, "_answer", lambda *_: [["2", "gpu:4", "infinite", "128", "999999"]])
    replace(TWO_NODES, partition="gpu", gpu_model="a100")._check_partition()


def test_slurm_is_asked_about_hidden_partitions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a job there would look lost, and would be submitted a second time."""
    asked: list[str] = []

    def answer(command: tuple[str, ...], **named: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[0])
        assert {named["env"][name] for name in ("SQUEUE_ALL", "SINFO_ALL")} == {"1"}
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", answer)
    slurm.find("ijepa-1")
    slurm.state("1")
    slurm.leftovers("/here")
    with pytest.raises(UserError, match="slurm_partition: 'gpu' is unknown here"):
        replace(ONE, partition="gpu")._check_partition()
    assert asked == ["squeue", "squeue", "sacct", "squeue", "sinfo", "sinfo"]


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_a_cluster_without_accounting_or_scontrol_is_asked_by_squeue_alone(
    error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not installed on its login nodes, or forbidden to its users."""

    def answer(command: tuple[str, ...], **_named: Any) -> subprocess.CompletedProcess[str]:
        if command[0] != "squeue":
            raise error(2, "No such file or directory", command[0])
        return subprocess.CompletedProcess(command, 1, "", "slurm_load_jobs: Invalid job id")

    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert slurm.state("1").name == slurm.FORGOTTEN
    assert slurm.starts(["1"]) == {}
    assert slurm.address("n1") == "n1"
    replace(ONE, account="lab")._check_account()
    with pytest.raises(UserError, match=r"Slurm does not answer \(sinfo: No such file"):
        replace(ONE, partition="gpu")._check_partition()


def test_words_of_a_command_that_fails_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = subprocess.CompletedProcess([], 1, "Access to sacctmgr is denied\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_given, **_named: refusal)
    replace(ONE, account="lab")._check_account()


def test_a_saved_job_that_cannot_ask_for_its_requeue_waits_for_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would be FAILED, and nothing would go on; its launcher submits it again."""

    class Ended(Exception):
        """The cluster ends the job."""

    def requeue(_count: int) -> None:
        raise FileNotFoundError(2, "No such file or directory", "scontrol")

    def end(_seconds: float) -> None:
        raise Ended

    monkeypatch.setattr(time, "sleep", end)
    environment = SimpleNamespace(cluster="slurm", global_rank=0, _requeue=requeue)
    signals: Any = SimpleNamespace(requeue=True, end=False)
    with pytest.raises(Ended):
        job.leave(environment, signals)


@pytest.mark.parametrize(
    ("local_rank", "visible", "task", "number"),
    [(0, 4, "0", 0), (3, 4, "3", 3), (3, 1, "3", 0), (0, 1, None, 0), (1, 1, None, None)],
)
def test_a_task_takes_the_gpu_of_its_number_or_the_one_that_it_is_bound_to(
    local_rank: int,
    visible: int,
    task: str | None,
    number: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    if task is not None:
        monkeypatch.setenv("SLURM_LOCALID", task)
    if number is None:
        with pytest.raises(UserError, match=r"process 1 .* has no GPU: there are 1"):
            distributed.gpu_of(local_rank, visible)
    else:
        assert distributed.gpu_of(local_rank, visible) == number
