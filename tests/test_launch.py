"""The launcher on one machine: it finds its job again, ends it, and never starts a second one.

On a real Slurm: tests/slurm.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import submitit
import torch
import yaml

from ijepa import distributed, identity
from ijepa.cluster import launch, slurm, submission
from ijepa.cluster.launch import pretrain
from ijepa.cluster.process import SECONDS_FOR_THE_CAUSE, Pretraining
from ijepa.cluster.run_files import Launch, note, submitted_jobs
from ijepa.cluster.slurm import Request
from ijepa.encoder_file import read_header
from ijepa.errors import UserError
from ijepa.files import digest, write_json
from tests.conftest import Trained, raw_run_of, wait_until
from tests.test_train import log_of, run, weights

ROOT = Path(__file__).parents[1]
ONE = Request(None, None, 1440, 1, 8, 10, 55)


def lasting(steps: int = 120) -> dict[str, Any]:
    """A run that takes some seconds and saves seldom."""
    raw = raw_run_of("ijepa")
    raw["recipe"]["optim"]["epochs"] = steps * raw["recipe"]["optim"]["batch_size"] / 128
    return {**raw, "checkpoint_every": 1000}


def launched(raw: dict[str, Any], data: Path, folder: Path, cluster: str = "local") -> Launch:
    folder.mkdir(exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    out = folder / "out" / "encoder.safetensors"
    return Launch(path, data, folder / "work", out, cluster, ONE)


def start(task: Launch) -> subprocess.Popen[bytes]:
    """The launcher in a process group of its own, as a shell starts it."""
    files = [str(task.run), "--data", str(task.data), "--work", str(task.work)]
    with (task.work.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ijepa.cluster.launch", *files, "--out", str(task.out)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def steps_of(task: Launch) -> str:
    """Lines that the running job has logged."""
    return "".join(path.read_text() for path in task.state.glob("*/train.jsonl"))


def processes(task: Launch) -> list[int]:
    """Processes of this machine that work on a run."""
    state = str(task.state)
    candidates = psutil.process_iter(["cmdline", "status"])
    return [
        p.pid
        for p in candidates
        if state in " ".join(p.info["cmdline"] or []) and p.info["status"] != "zombie"
    ]


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore everything that a job changes in this process."""
    for name in distributed.VARIABLES:
        monkeypatch.setenv(name, "0")
    handlers = {n: signal.getsignal(n) for n in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored")
def test_a_job_in_this_process_makes_what_training_makes(data: Path, tmp_path: Path) -> None:
    raw = raw_run_of("mae")
    task = launched(raw, data, tmp_path / "launched", "debug")
    pretrain(task)
    alone = run(raw, data, tmp_path / "alone")
    assert log_of(task.out) == log_of(alone)
    assert all(w.equal(weights(alone)[k]) for k, w in weights(task.out).items())
    record = json.loads(task.record.read_text())
    assert [job["cluster"] for job in record["jobs"]] == ["debug"]
    (attempt,) = record["attempts"]
    assert attempt["ended"] > attempt["begun"]


@pytest.mark.usefixtures("restored")
def test_the_weights_that_a_job_starts_from_are_hashed_once(
    data: Path, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher does it: a file of gigabytes on a shared disk takes a minute in each process."""
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return digest(path)

    monkeypatch.setattr(identity, "digest", counted)
    weights = trained("mae").with_name("whole.safetensors")
    task = launched({**raw_run_of("mae"), "start": {"from": str(weights)}}, data, tmp_path, "debug")
    pretrain(task)
    assert hashed == [weights]
    assert read_header(task.out)["facts"]["start_sha256"] == digest(weights)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, as launched processes do: two threads add in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.processes
@pytest.mark.usefixtures("one_thread")
def test_a_killed_launcher_finds_its_job_again_and_ends_as_an_undisturbed_one(
    data: Path, tmp_path: Path
) -> None:
    """Over 5 s: three launchers and their job each start Python, and the job trains 120 steps."""
    raw = lasting()
    task = launched(raw, data, tmp_path / "killed")
    first = start(task)
    wait_until(lambda: steps_of(task))
    first.kill()
    first.wait()
    second, third = start(task), start(task)
    assert (second.wait(120), third.wait(120)) == (0, 0)
    log = (task.work.parent / "log").read_text()
    assert "works on this run: waiting for it" in log
    assert "waits for the same run: waiting for it" in log
    assert len(json.loads(task.record.read_text())["jobs"]) == 1
    alone = run(raw, data, tmp_path / "alone")
    assert all(w.equal(weights(alone)[k]) for k, w in weights(task.out).items())


@pytest.mark.processes
def test_ctrl_c_saves_and_ends_the_job_and_the_next_start_goes_on(
    data: Path, tmp_path: Path
) -> None:
    """Over 5 s: a launcher and its job start Python twice, and train a while before each end."""
    task = launched(lasting(2000), data, tmp_path / "stopped")
    launcher = start(task)
    wait_until(lambda: steps_of(task))
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(60) == 130
    assert not processes(task)
    done = len(steps_of(task).splitlines())
    assert list(task.state.glob("*/checkpoint.pt"))

    launcher = start(task)
    wait_until(lambda: len(steps_of(task).splitlines()) > done)
    launcher.terminate()
    assert launcher.wait(60) == 143
    assert not processes(task)
    assert [json.loads(line)["step"] for line in steps_of(task).splitlines()][:5] == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip


@pytest.mark.usefixtures("restored")
def test_the_encoder_of_a_job_that_nobody_waited_for_is_delivered_without_a_new_job(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = launched(raw_run_of("mae"), data, tmp_path / "run", "debug")
    with monkeypatch.context() as patch:
        patch.setattr(launch, "deliver", lambda _launch: None)
        pretrain(task)
    assert not task.out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(launch, "submit", lambda _launch: pytest.fail("a second job"))
        pretrain(task)
    assert task.out.exists()


def test_another_run_and_other_shards_have_files_of_their_own(data: Path, tmp_path: Path) -> None:
    task = launched(raw_run_of("mae"), data, tmp_path / "run")
    name = task.name
    assert launched(raw_run_of("mae"), data, tmp_path / "run").name == name
    assert launched({**raw_run_of("mae"), "seed": 1}, data, tmp_path / "run").name != name


def test_other_tokens_are_another_run(data: Path, tmp_path: Path) -> None:
    """The settings of its tokenizer stand elsewhere in the config."""
    copy = tmp_path / "shards"
    copy.mkdir()
    shutil.copy(data / "index.json", copy)
    with pytest.raises(UserError, match=r"tokens/small\.json does not exist"):
        launched(raw_run_of("cae"), copy, tmp_path / "run").name  # noqa: B018
    (copy / "tokens").mkdir()
    names = set()
    for stride in (4, 8):
        write_json(copy / "tokens" / "small.json", {"settings": {"stride": stride}})
        names.add(launched(raw_run_of("cae"), copy, tmp_path / "run").name)
    assert len(names) == 2


@pytest.mark.parametrize("run", ["- method: mae", "recipe: tiny", "start: {parts: all}"])
def test_a_run_that_is_no_run_is_named(run: str, data: Path, tmp_path: Path) -> None:
    task = launched(raw_run_of("mae"), data, tmp_path)
    task.run.write_text(run)
    with pytest.raises(UserError, match=r"run\.yaml"):
        _ = task.name


def test_the_same_run_in_another_folder_has_a_job_of_its_own(data: Path, tmp_path: Path) -> None:
    first, other = (launched(raw_run_of("mae"), data, tmp_path / name) for name in ("a", "b"))
    assert first.name == other.name
    assert first.mark != other.mark
    assert submission.parameters(first, 0).keys().isdisjoint({"slurm_comment"})
    on_slurm = launched(raw_run_of("mae"), data, tmp_path / "a", "slurm")
    assert submission.parameters(on_slurm, 0)["slurm_comment"] == first.mark


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_a_finished_encoder_is_delivered_even_if_its_job_cannot_be_queried(
    cluster: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher has no Slurm or is on another machine, where the run may still be going on."""
    monkeypatch.setattr(slurm, "is_here", lambda: False)
    task = launched(raw_run_of("mae"), data, tmp_path / "run")
    job = {"cluster": cluster, "number": "7", "host": "elsewhere"}
    write_json(task.state / "jobs.json", [job])
    with pytest.raises(UserError, match=r"(job|process) 7, started on elsewhere: go on there"):
        pretrain(task)
    for name in ("encoder.safetensors", "train.jsonl", "run.yaml"):
        (task.state / name).write_text("made")
    pretrain(task)
    assert task.out.read_text() == "made"


def test_a_job_that_fails_says_why(data: Path, tmp_path: Path) -> None:
    """Over 5 s: the default tier's one job in a process of its own, which imports torch."""
    raw = raw_run_of("mae")
    raw["recipe"]["optim"]["batch_size"] = 1000
    with pytest.raises(UserError, match=r"job \d+ ended as FAILED: .*batch_size: 1000 is more"):
        pretrain(launched(raw, data, tmp_path / "run"))


def test_without_a_cluster_there_is_one_clear_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no Slurm on this machine .*profiles/local"):
        pretrain(launched(raw_run_of("mae"), data, tmp_path / "run", "slurm"))


def test_a_run_goes_on_after_an_end_that_is_not_its_own_fault() -> None:
    go_on = ["PREEMPTED", "TIMEOUT", "NODE_FAIL"]
    assert all(launch.may_go_on(slurm.State(name)) for name in go_on)
    assert launch.may_go_on(slurm.State("FAILED", signal.SIGUSR2))
    assert launch.may_go_on(slurm.State("FAILED", signal.SIGKILL))
    assert launch.may_go_on(slurm.State("FAILED", signal.SIGABRT))
    assert not any(launch.may_go_on(slurm.State(name)) for name in ("FAILED", "CANCELLED"))
    assert not launch.may_go_on(slurm.State("CANCELLED", signal.SIGTERM))


@pytest.mark.usefixtures("restored")
def test_a_job_that_never_gets_on_is_given_up_with_the_remedy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = launched(raw_run_of("mae"), data, tmp_path / "run", "debug")
    failures = ["NODE_FAIL"] * launch.MOST_IDLE
    for ends in (["TIMEOUT"], failures, ["NODE_FAIL", "TIMEOUT"]):
        left = iter(ends)
        monkeypatch.setattr(launch, "submit", lambda task: submission.LocalJob(task, "1"))
        monkeypatch.setattr(launch, "wait", lambda _task, _job, left=left: slurm.State(next(left)))
        with pytest.raises(UserError, match=r"no step was saved .*more than 1440 minutes"):
            pretrain(task)
        assert not list(left)


@pytest.mark.usefixtures("restored")
def test_a_job_of_an_earlier_launcher_that_fails_is_followed_by_one_of_this(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job may lack a file, because its launcher was killed before it had written it."""
    task = launched(raw_run_of("mae"), data, tmp_path / "run", "debug")
    wait = launch.wait
    monkeypatch.setattr(launch, "attached", lambda task: submission.LocalJob(task, "77"))
    monkeypatch.setattr(
        launch,
        "wait",
        lambda task, job: slurm.State("FAILED") if job.number == "77" else wait(task, job),
    )
    pretrain(task)
    assert task.out.exists()


def test_a_job_that_slurm_has_forgotten_is_waited_for_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without accounting, the job may have ended long ago: another one is submitted."""
    task = launched(raw_run_of("mae"), data, tmp_path / "run", "slurm")
    note(task, "slurm", "5")
    waited = []

    def wait(_: Launch, job: submission.Job) -> slurm.State:
        waited.append(job.number)
        return slurm.State("FAILED")

    monkeypatch.setattr(Request, "check", lambda _: None)
    monkeypatch.setattr(slurm, "is_here", lambda: True)
    monkeypatch.setattr(slurm, "find", lambda _mark: None)
    monkeypatch.setattr(slurm, "state", lambda _job: slurm.State(slurm.FORGOTTEN))
    monkeypatch.setattr(launch, "submit", lambda task: submission.SlurmJob(task, "6"))
    monkeypatch.setattr(launch, "wait", wait)
    with pytest.raises(UserError, match="job 6 ended as FAILED"):
        pretrain(task)
    assert waited == ["5", "6"]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("accepted", ["", "CANCELLED", "FAILED"])
def test_a_job_that_slurm_does_not_accept_now_is_submitted_later_and_never_twice(
    accepted: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submit limit refuses the job; a controller that is slow to answer may have taken it.

    Such a job may lack the file that submitit writes after the answer. A cancelled one was
    cancelled on purpose.
    """
    task = launched(raw_run_of("mae"), data, tmp_path / "run", "debug")
    errors = ["sbatch: error: QOSMaxSubmitJobPerUserLimit", "Socket timed out on send/recv"]
    submit, left = submitit.AutoExecutor.submit, iter(errors)

    def refused_at_first(*arguments: Any) -> Any:
        for error in left:
            raise submitit.core.utils.FailedJobError(error)
        return submit(*arguments)

    queue = iter([None] * 3 + [submission.LocalJob(task, "77") if accepted else None, None])
    monkeypatch.setattr(submitit.AutoExecutor, "submit", refused_at_first)
    monkeypatch.setattr(launch, "queued", lambda _: next(queue))
    monkeypatch.setattr(launch, "SECONDS_TO_TRY_AGAIN", 0)
    wait = launch.wait
    monkeypatch.setattr(
        launch,
        "wait",
        lambda task, job: slurm.State(accepted) if job.number == "77" else wait(task, job),
    )
    if accepted == "CANCELLED":
        with pytest.raises(UserError, match="job 77 was cancelled"):
            pretrain(task)
        assert not submitted_jobs(task)
    else:
        pretrain(task)
        assert task.out.exists()
    assert not list(left)


def test_a_job_of_other_settings_that_still_works_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (5, 6):
        raw = {**raw_run_of("mae"), "seed": seed}
        task = launched(raw, data, tmp_path / "run", "slurm")
        note(task, "slurm", str(seed))
    monkeypatch.setattr(slurm, "state", lambda _job: slurm.State("RUNNING"))
    launch.tell_of_others(task)
    assert "job 5 still works on this run with other settings" in capsys.readouterr().out
    monkeypatch.setattr(slurm, "state", lambda _job: slurm.State("COMPLETED"))
    launch.tell_of_others(task)
    assert not capsys.readouterr().out


def test_a_signal_during_a_submission_is_heard_when_there_is_a_job_to_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = launched(raw_run_of("mae"), data, tmp_path / "run", "debug")
    events: list[str] = []

    def submit(*_: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        events.append("submitted")
        return SimpleNamespace(job_id="77")

    class Job:
        def cancel(self) -> None:
            events.append("cancelled")

    monkeypatch.setattr(submitit.AutoExecutor, "submit", submit)
    monkeypatch.setattr(launch, "live", lambda _: Job() if events else None)
    with pytest.raises(SystemExit) as end:
        pretrain(task)
    assert (end.value.code, events) == (130, ["submitted", "cancelled"])


def test_a_process_that_is_lost_before_the_first_step_is_told_from_a_fault_of_this_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processes are still finding one another, or wait for the copy of the shards."""

    def fail() -> Any:
        raise torch.distributed.DistNetworkError("Connection closed by peer")

    monkeypatch.setattr(distributed, "joined", fail)
    waits: list[float] = []
    monkeypatch.setattr("ijepa.cluster.process.time.sleep", waits.append)
    threads = torch.get_num_threads()
    work = Pretraining(tmp_path / "run.yaml", data, tmp_path, tmp_path, threads, gpus=2)
    environment = SimpleNamespace(num_tasks=2, cluster="slurm")
    signals: Any = SimpleNamespace(stop=lambda: False)
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        work._finished(environment, signals)
    assert waits == [SECONDS_FOR_THE_CAUSE]
    assert "another process of this job is gone" in capsys.readouterr().err
