"""Requests of a job, and questions to Slurm, without a cluster (with one: tests/slurm)."""

import contextlib
import os
import re
import shlex
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
from ijepa.cluster import launch, process, slurm, submission
from ijepa.cluster.environment import forget_other_jobs
from ijepa.cluster.launch import pretrain
from ijepa.cluster.slurm import Request, minutes
from ijepa.errors import UserError
from tests.conftest import raw_run_of
from tests.test_launch import ONE, launched
from workflow.plan.command_options import check_options, launch_options
from workflow.plan.slurm_preparation import check_job_age, first_command

TWO_NODES = replace(ONE, gpus=8, gpus_per_node=4, cpus_per_gpu=10)


@pytest.fixture
def asked(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function from a request to the options in the script of its job."""
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda *_: 1)

    def options(request: Request) -> dict[str, str]:
        task = launched(raw_run_of("mae"), data, tmp_path / "run", "slurm")
        executor: Any = submitit.AutoExecutor(tmp_path, cluster="slurm")
        given = submission.parameters(replace(task, request=request), request.gpus)
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
        ("--gpus_per_node=2", "gpus_per_node and gpu_model"),
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


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--part=debug", "--partition"),
        ("--acc=lab", "--account"),
        ("--tim=9", "--time"),
        ("--cpus=2", "--cpus-per-task"),
        ("--com=mine", "--comment"),
        ("--no-req", "--no-requeue"),
    ],
)
def test_an_abbreviation_of_an_option_that_the_job_has_is_refused(option: str, name: str) -> None:
    """Sbatch takes it for the whole name, after ours."""
    with pytest.raises(UserError, match=rf"slurm_extra: '{option}': .* for {name}: write"):
        replace(ONE, extra=option).extras()


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
    for option in ("time-min=60", "mem-bind=local", "gres-flags=disable-binding", "exclude=n1"):
        assert list(replace(ONE, extra=f"--{option}").extras()) == [option.partition("=")[0]]
    assert replace(ONE, extra="--gres=lscratch:50").extras() == {"gres": "lscratch:50"}
    assert replace(ONE, gb_per_gpu=0, extra="--mem=0").extras() == {"mem": "0"}


def requested(options: str, monkeypatch: pytest.MonkeyPatch) -> Request:
    """The request that the launcher checks with these options."""
    monkeypatch.setattr(sys, "argv", ["launch", "--check", *shlex.split(options)])
    checked: list[Request] = []
    with monkeypatch.context() as patch:
        patch.setattr(Request, "check", lambda self: checked.append(self))
        launch.main()
    return checked[0]


def test_the_profile_s_type_of_gpus_and_memory_of_a_core_reach_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def request(**resources: Any) -> Request:
        return requested(launch_options(8, resources, threads=1), monkeypatch)

    given = request(gpu_model="a100", mem_mb_per_cpu=4000)
    assert (given.gpu_model, given.mem_mb_per_cpu) == ("a100", 4000)
    assert request() == Request(gpus=8)


def test_a_job_of_any_rule_is_checked_as_the_profile_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resources = {"slurm_partition": "gpu", "qos": "long", "constraint": "a100&ib", "runtime": 60}
    of_all = Request("gpu", minutes=60, qos="long", constraint="a100&ib")
    assert requested(launch_options(1, resources, 1), monkeypatch) == of_all
    on_two = replace(of_all, gpus=2, gpus_per_node=2, cpus_per_gpu=2, gb_per_gpu=2, delay=0)
    given = check_options({**resources, "gpu": 2, "mem_mb": 2049}, threads=4)
    assert requested(given, monkeypatch) == on_two
    assert requested(check_options({}, threads=4), monkeypatch) == Request(
        minutes=1, gpus=0, gpus_per_node=0, cpus_per_gpu=4, gb_per_gpu=0, delay=0
    )


@pytest.mark.parametrize(("age", "refused"), [(None, False), (50, False), (60, True), (300, False)])
def test_a_controller_that_forgets_jobs_between_two_checks_is_refused(
    age: int | None, refused: bool
) -> None:
    settings = SimpleNamespace(status_command="squeue", init_seconds_before_status_checks=20)
    remedy = r"MinJobAge.* in the profile: slurm-init-seconds-before-status-checks: 21$"
    with pytest.raises(UserError, match=remedy) if refused else contextlib.nullcontext():
        check_job_age(settings, age)
    settings.status_command = "sacct"
    check_job_age(settings, age)


def test_a_job_first_notes_its_time_also_in_a_folder_with_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    grid: Any = SimpleNamespace(jobs="results/jobs")
    words = shlex.split(first_command(grid))
    assert words[0] == f"notes={tmp_path}/a b/results/jobs"
    assert words[-2:] == [f"{tmp_path}/a b", "--again"]


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


@pytest.mark.parametrize(
    ("gpus", "on_a_node", "nodes", "tasks"),
    [(16, 8, 2, 8), (4, 8, 1, 4), (1, 8, 1, 1), (8, 4, 2, 4)],
)
def test_a_run_takes_as_many_nodes_as_its_gpus_need(
    gpus: int, on_a_node: int, nodes: int, tasks: int
) -> None:
    request = Request("gpu", None, 60, gpus, on_a_node, 10, 55)
    assert (request.nodes, request.tasks_per_node) == (nodes, tasks)


def test_slurms_limits_are_read() -> None:
    assert [minutes(text) for text in ("30:00", "1:00:00", "2-12:30:00")] == [30, 60, 3630]
    assert {minutes(text) for text in ("infinite", "UNLIMITED", "n/a", "")} == {None}


def test_why_a_job_waits_is_said_once_for_each_reason(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = launched(raw_run_of("mae"), data, tmp_path / "run", "slurm")
    states = ["Priority", "Priority", "", "JobHeldUser"]
    left = iter([slurm.State("PENDING", reason=reason) for reason in states])
    monkeypatch.setattr(slurm, "state", lambda _job: next(left))
    job = submission.SlurmJob(task, "5")
    assert [job.ended() for _ in states] == [None] * len(states)
    assert capsys.readouterr().out == "job 5 waits: Priority\njob 5 waits: JobHeldUser\n"


def test_a_job_asks_for_whatever_else_the_profile_says(data: Path, tmp_path: Path) -> None:
    task = launched(raw_run_of("mae"), data, tmp_path / "run", "slurm")
    extra = "--reservation=r --exclusive --mail-user='a b'"
    given = submission.parameters(replace(task, request=replace(ONE, extra=extra)), gpus=1)
    expected = {"requeue": True, "reservation": "r", "exclusive": True, "mail-user": "a b"}
    assert given["slurm_additional_parameters"] == expected
    with pytest.raises(UserError, match=r"slurm_extra: '-w' in '-w n1': write each option as"):
        replace(ONE, extra="-w n1").extras()
    with pytest.raises(UserError, match='slurm_extra: "--comment=\'a": No closing quotation'):
        replace(ONE, extra="--comment='a").extras()


def test_a_job_ends_what_was_submitted_before_it_to_make_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends no other job: no later one, no other folder's, no array's task, no pretraining."""
    knn = "rule_evaluate_wildcards_mae_0_knn"
    queue = [
        ["7", "RUNNING", "/here", "1", knn],
        ["8", "RUNNING", "/here", "N/A", knn],
        ["9", "RUNNING", "/here", "N/A", "rule_evaluate_wildcards_cae_0_knn"],
        ["10", "RUNNING", "/here", "N/A", knn],
        ["11", "PENDING", "/here", "N/A", knn],
        ["12", "RUNNING", "/there", "N/A", knn],
        ["13", "RUNNING", "/here", "N/A", "ijepa-1 2"],
        ["14", "COMPLETED", "/here", "N/A", knn],
    ]
    monkeypatch.setattr(slurm, "_queue", lambda _columns: queue)
    assert slurm.leftovers("/here", "10") == ["8"]
    assert slurm.leftovers("/here", "11") == ["8", "10"]
    assert slurm.leftovers("/here", "15") == []  # not in the queue, so nothing is known of it
    assert slurm.leftovers("/here", "7") == []
    assert slurm.leftovers("/here") == ["7", "8", "9", "10", "11"]


def test_a_job_asks_for_the_profiles_qos_and_constraint(data: Path, tmp_path: Path) -> None:
    task = launched(raw_run_of("mae"), data, tmp_path / "run", "slurm")
    task = replace(task, request=replace(ONE, qos="long", constraint="a100&ib"))
    given = submission.parameters(task, gpus=1)
    assert (given["slurm_qos"], given["slurm_constraint"]) == ("long", "a100&ib")
    assert (
        not {"slurm_qos", "slurm_constraint"}
        & submission.parameters(replace(task, request=ONE), gpus=1).keys()
    )


@pytest.mark.parametrize(
    ("gres", "enough"),
    [
        ("gpu:a100:4", True),
        ("gpu:nvidia_a100-sxm4-80gb:4(S:0-1)", True),
        ("gpu:4,nvme:1", True),
        ("gpu:a100:2", False),
        ("(null)", False),
    ],
)
def test_the_gpus_of_a_node_are_read_as_sites_name_them(
    gres: str, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [["2", gres, "1-00:00:00", "128", "1000000+"]]
    monkeypatch.setattr(slurm, "_answer", lambda *_command: rows)
    request = Request("gpu", None, 60, 8, 4, 10, 55)
    if enough:
        request._check_partition()
    else:
        with pytest.raises(UserError, match="gpus_per_node: 4 is more than a node"):
            request._check_partition()


def test_a_controller_that_does_not_answer_is_no_leave_for_a_second_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = subprocess.CompletedProcess([], 1, "", "Unable to contact slurm controller")
    monkeypatch.setattr(slurm, "_run", lambda *_command: silent)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with pytest.raises(slurm.Busy, match=r"Slurm does not answer \(Unable to contact"):
        slurm.find("ijepa-1")
    with pytest.raises(slurm.Busy, match=r"Slurm does not answer \(Unable to contact"):
        replace(ONE, partition="gpu")._check_partition()
    assert slurm.state("1") == slurm.State("")


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
        process.leave(environment, signals)


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


def test_a_job_that_slurm_will_never_accept_is_an_error_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise submitit.core.utils.FailedJobError("sbatch: error: Invalid qos specification")

    monkeypatch.setattr(submitit.AutoExecutor, "submit", refused)
    with pytest.raises(UserError, match=r"Slurm did not take the job: .*Invalid qos"):
        pretrain(launched(raw_run_of("mae"), data, tmp_path / "run", "debug"))
