"""Start one pretraining as a job, and wait until its encoder is there.

``python -m ijepa.launch RUN.yaml --cluster slurm|local|debug`` (``--help``) submits one job through
submitit: several nodes of a Slurm cluster, processes of this machine, or this process itself. The
launcher only waits, shows the job's log, and brings encoder and log to their place at the end.

- Killed or cut off from the terminal, it leaves its job alone; the same command finds it again, or
  takes what it has made meanwhile. There is never a second job on the same files. A run that is
  finished is not trained again: delete its folder in ``work`` for that.
- Ctrl-C, or SIGTERM, ends the job too. It saves what it has first, if the cluster gives it the time
  for that (KillWait, 30 seconds as a rule).
- A job that is preempted, runs out of time or loses its node goes on from its last checkpoint, as
  often as needed (``ijepa.job``).
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import submitit

from ijepa import slurm
from ijepa.errors import UserError, run_command
from ijepa.files import read_yaml, write_json, written_whole
from ijepa.job import BEGUN, Pretraining
from ijepa.slurm import Request

FOREVER = 60 * 24 * 365
"""Minutes that a job of this machine may take."""
SECONDS_TO_BE_KNOWN = 120
"""How long after its submission a job may be unknown to the cluster."""
MOST_IDLE = 3
"""How often in a row a job may be lost before it has saved anything."""
SECONDS_TO_SAVE = 60
"""How long Ctrl-C waits for a job of this machine to write its checkpoint."""


@dataclass(frozen=True)
class Launch:
    """One run, where its files are, and what its job asks for.

    Args:
        run: YAML file of the run.
        data: Folder of shards.
        work: Folder for checkpoints and for what the launcher notes, on a disk that all nodes see.
        out: File for the encoder; ``train.jsonl`` and ``job.json`` come beside it.
        cluster: ``slurm``, ``local`` or ``debug``.
        request: What a Slurm job asks for; of it, other clusters take ``gpus``.
        threads: Of each process, where there is no Slurm.
        stage: Folder on the nodes' own disks to which the shards are copied first.
        setup: Shell command that each node runs before the job.
        poll: Seconds between questions to Slurm.
    """

    run: Path
    data: Path
    work: Path
    out: Path
    cluster: str
    request: Request
    threads: int = 1
    stage: Path | None = None
    setup: str | None = None
    poll: float = 10.0

    def name(self) -> str:
        """A name for exactly this run on exactly these shards: another one has other files.

        The tokens that a recipe names belong to it: their tokenizer's settings are not in the run.
        """
        made_of = [self.run, self.data / "index.json"]
        recipe = (read_yaml(self.run) or {}).get("recipe") or {}
        if "tokenizer" in recipe:
            made_of.append(self.data / "tokens" / f"{recipe['tokenizer']}.json")
        for path in made_of:
            if not path.exists():
                raise UserError(f"{path} does not exist: make it first")
        text = b"".join(path.read_bytes() for path in made_of)
        return f"ijepa-{hashlib.sha256(text).hexdigest()[:12]}"

    def mark(self) -> str:
        """By what the queue of a cluster tells this run: in another folder it has another job."""
        return f"{self.name()} {hashlib.sha256(bytes(self.state.resolve())).hexdigest()[:12]}"

    @property
    def state(self) -> Path:
        """What belongs to this run: checkpoints, job, notes. It outlives job and launcher."""
        return self.work / self.name()

    @property
    def attempts(self) -> Path:
        """When each start of the run's jobs began and ended."""
        return self.state / "attempts"

    @property
    def record(self) -> Path:
        """What ran where: the job's numbers, and the time that each of its starts took."""
        return self.out.with_name("job.json")


class Job(ABC):
    """A submitted job, which this launcher or an earlier one has started."""

    def __init__(self, launch: Launch, number: str) -> None:
        self.launch, self.number = launch, number

    def log(self) -> Path:
        """Where the first process writes."""
        return self.launch.state / "submitit" / f"{self.number}_0_log.err"

    @abstractmethod
    def ended(self) -> slurm.State | None:
        """How the job has ended, or None."""

    @abstractmethod
    def cancel(self) -> None:
        """End the job; it may save first."""


class SlurmJob(Job):
    """A job of the cluster."""

    forgotten_since: float | None = None

    def ended(self) -> slurm.State | None:
        """See Job. A job that no accounting has noted is over when it is not known any more."""
        found = slurm.state(self.number)
        if found.name != slurm.FORGOTTEN:
            self.forgotten_since = None
        elif self.forgotten_since is None:
            self.forgotten_since = time.monotonic()
            return None
        else:
            if time.monotonic() - self.forgotten_since < SECONDS_TO_BE_KNOWN:
                return None
            return slurm.State("COMPLETED" if encoder_of(self.launch).exists() else "FAILED")
        return None if found.name in slurm.LIVE or not found.name else found

    def cancel(self) -> None:
        """See Job."""
        slurm.cancel([self.number])


class LocalJob(Job):
    """Processes of this machine, led by submitit's controller, whose number is the job's."""

    def _process(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(int(self.number))
            led = str(self.launch.state) in " ".join(process.cmdline())
            return process if led and process.status() != psutil.STATUS_ZOMBIE else None
        return None

    def ended(self) -> slurm.State | None:
        """See Job."""
        if self._process() is not None:
            return None
        return slurm.State("COMPLETED" if encoder_of(self.launch).exists() else "FAILED")

    def cancel(self) -> None:
        """See Job."""
        if (process := self._process()) is not None:
            all_of_it = [process, *process.children(recursive=True)]
            process.terminate()
            _, alive = psutil.wait_procs(all_of_it, timeout=SECONDS_TO_SAVE)
            for each in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


def encoder_of(launch: Launch) -> Path:
    """The encoder of a job that is done, before it is brought to its place."""
    return launch.state / "encoder.safetensors"


def pretrain(launch: Launch) -> None:
    """Bring the encoder of a run to ``launch.out``: by a new job, a live one, or a finished one.

    Raises UserError where the cluster will not have the job, where the job fails, and where its
    time is too short for it to get on.
    """
    if launch.cluster == "slurm":
        launch.request.check()
    # Else an encoder would be trained and could not be put down.
    launch.out.parent.mkdir(parents=True, exist_ok=True)
    with alone(launch), cancelled_by_signals() as current:
        job, idle = attached(launch), 0
        while job is not None or not encoder_of(launch).exists():
            mine = job is None
            current.job = job = job or submit(launch)
            before = progress(launch)
            end = wait(launch, job)
            number, current.job, job = job.number, None, None
            # A job that was cancelled before this launcher came says nothing of what is asked now.
            if encoder_of(launch).exists() or (end.name == "CANCELLED" and not mine):
                continue
            if not may_go_on(end):
                raise UserError(failure(launch, number, end))
            idle = idle + 1 if progress(launch) == before else 0
            if idle >= (1 if end.name == "TIMEOUT" else MOST_IDLE):
                raise UserError(
                    f"job {number} ended as {end.name} and no step was saved since it began: "
                    f"give it more than {launch.request.minutes} minutes (runtime), or more than "
                    f"{launch.request.delay} seconds to save (save_seconds)"
                )
            print(f"job {number} ended as {end.name}: the run goes on", flush=True)
        deliver(launch)


def attached(launch: Launch) -> Job | None:
    """The job of an earlier launcher that still lives, or None.

    Raises UserError where that cannot be known from here, unless its encoder is there anyway.
    """
    noted = jobs(launch)[-1:]
    # A launcher that was killed right after it had submitted has noted nothing.
    if launch.cluster == "slurm" and (live := slurm.find(launch.mark())) is not None:
        noted = [{"cluster": "slurm", "number": live, "host": ""}]
    for told in noted:
        if told["cluster"] == "debug":
            continue
        of_slurm = told["cluster"] == "slurm"
        if not slurm.here() if of_slurm else told["host"] != socket.gethostname():
            if encoder_of(launch).exists():
                continue
            what = "job" if of_slurm else "process"
            raise UserError(
                f"{launch.state / 'jobs.json'}: the last job of this run is {what} "
                f"{told['number']}, started on {told['host']}: go on there, or, where it has "
                "ended, delete this file"
            )
        job = (SlurmJob if of_slurm else LocalJob)(launch, told["number"])
        if job.ended() is None:
            print(f"job {job.number} works on this run: waiting for it", flush=True)
            note(launch, told["cluster"], job.number)
            return job
    return None


def submit(launch: Launch) -> Job:
    """Submit a job for the run."""
    request = launch.request
    gpus = request.gpus if launch.cluster == "slurm" else min(request.gpus, visible_gpus())
    if launch.cluster != "slurm" and 0 < gpus < request.gpus:
        print(f"of {request.gpus} GPUs asked for this machine has {gpus}", flush=True)
    work = Pretraining(
        launch.run.resolve(),
        launch.data.resolve(),
        launch.state.resolve(),
        launch.attempts.resolve(),
        request.cpus_per_gpu if launch.cluster == "slurm" else launch.threads,
        gpus,
        launch.stage,
        # submitit would count a machine's GPUs from 0.
        None if launch.cluster == "slurm" else os.environ.get("CUDA_VISIBLE_DEVICES"),
    )
    launch.attempts.mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(launch.state / "submitit", cluster=launch.cluster)
    executor.update_parameters(**parameters(launch, gpus))
    # A terminal's Ctrl-C reaches all that it has started. The job is to be told by the launcher
    # alone, which gives it the time to save: what ignores a signal at its start goes on doing so.
    kept = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        submitted = executor.submit(work)
    except submitit.core.utils.FailedJobError as error:
        raise UserError(f"Slurm did not take the job: {error}") from None
    finally:
        signal.signal(signal.SIGINT, kept)
    note(launch, launch.cluster, submitted.job_id)
    print(f"{launch.cluster} job {submitted.job_id} submitted", flush=True)
    if launch.cluster == "debug":
        submitted.result()
        return LocalJob(launch, submitted.job_id)
    return (SlurmJob if launch.cluster == "slurm" else LocalJob)(launch, submitted.job_id)


def parameters(launch: Launch, gpus: int) -> dict[str, Any]:
    """What submitit is to ask for."""
    request = launch.request
    if launch.cluster != "slurm":
        return {
            "timeout_min": FOREVER,
            "tasks_per_node": max(1, gpus),
            "gpus_per_node": gpus,
        }
    given: dict[str, Any] = {
        "nodes": request.nodes,
        "tasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus_per_gpu,
        "mem_gb": request.gb_per_gpu * request.tasks_per_node,
        "timeout_min": request.minutes,
        "name": launch.name(),
        "slurm_comment": launch.mark(),
        "slurm_signal_delay_s": request.delay,
        "slurm_use_srun": True,
        "slurm_srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={request.cpus_per_gpu}"],
        "slurm_additional_parameters": {"requeue": True},
    }
    if gpus:
        given["gpus_per_node"] = request.tasks_per_node
    if request.partition:
        given["slurm_partition"] = request.partition
    if request.account:
        given["slurm_account"] = request.account
    # The job has its GPUs from before Python starts until after it has ended: seconds, both.
    folder = shlex.quote(str(launch.attempts.resolve()))
    begun = f"export {BEGUN}=$(date +%s.%N) ATTEMPTS={folder}"
    ended = f"trap 'touch \"$ATTEMPTS/${BEGUN}.ended\"' EXIT"
    given["slurm_setup"] = [begun, ended, *([launch.setup] if launch.setup else [])]
    return given


def visible_gpus() -> int:
    """How many GPUs this process may use, without importing torch."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([number for number in chosen.split(",") if number.strip()])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def wait(launch: Launch, job: Job) -> slurm.State:
    """Show the job's log until it has ended; how it has."""
    seen = job.log().stat().st_size if job.log().exists() else 0
    asked = 0.0
    while True:
        seen = show(job.log(), seen)
        interval = launch.poll if launch.cluster == "slurm" else 0.5
        if time.monotonic() - asked >= interval:
            end = job.ended()
            # Slurm ends a job before it puts it back into the queue: what is over stays over.
            if end is not None and launch.cluster == "slurm" and end.name != "COMPLETED":
                time.sleep(max(launch.poll, 2.0))
                end = job.ended()
            if end is not None:
                show(job.log(), seen)
                return end
            asked = time.monotonic()
        time.sleep(0.5)


def show(log: Path, seen: int) -> int:
    """Write what came to a log since; its size."""
    if not log.exists():
        return seen
    with log.open("rb") as file:
        file.seek(seen)
        new = file.read()
    sys.stderr.write(new.decode("utf-8", errors="replace"))
    sys.stderr.flush()
    return seen + len(new)


def may_go_on(end: slurm.State) -> bool:
    """Whether a job's end says nothing against the run: its node, its time, another's priority.

    A signal that comes before the job listens to it, or one that nothing can listen to, ends a
    process, and with it the job as a failure; one that takes too much memory has a state of its
    own where Slurm watches over it.
    """
    signals = (signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL)
    return end.name in slurm.LOST or (end.name == "FAILED" and end.signal in signals)


def failure(launch: Launch, number: str, end: slurm.State) -> str:
    """What a person must know of a failed job."""
    folder = launch.state / "submitit"
    logs = sorted(folder.glob(f"{number}_*_log.*"))
    lines = [
        line
        for path in logs
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith("error: ") or "No such file" in line
    ]
    if end.name == "CANCELLED":
        return f"job {number} was cancelled; what it has saved is kept"
    if not logs:
        return (
            f"job {number} ended as {end.name} without a word in {folder}: are this folder and "
            "this environment on a disk that the nodes see too?"
        )
    told = f": {lines[0].removeprefix('error: ')}" if lines else ""
    return f"job {number} ended as {end.name}{told} (logs: {folder})"


def progress(launch: Launch) -> list[int]:
    """Changes with every checkpoint that is written."""
    return [path.stat().st_mtime_ns for path in launch.state.glob("*/checkpoint.pt")]


def deliver(launch: Launch) -> None:
    """Put encoder and log to where they are asked for, and say beside them what ran where.

    They stay in the run's folder too, as links to the same bytes where the disk has links: what
    Snakemake deletes, because it was killed before it had noted it, is brought again.
    """
    attempts = [
        json.loads(path.read_text(encoding="utf-8")) for path in launch.attempts.glob("*.json")
    ]
    for path in launch.attempts.glob("*.ended"):
        for attempt in attempts:
            if attempt["begun"] == float(path.stem):
                attempt["ended"] = max(attempt["ended"], path.stat().st_mtime)
    record = {
        "name": launch.name(),
        "request": asdict(launch.request),
        "jobs": jobs(launch),
        "attempts": sorted(attempts, key=lambda attempt: float(attempt["begun"])),
    }
    for path in (launch.state / "train.jsonl", encoder_of(launch)):
        target = launch.out if path == encoder_of(launch) else launch.out.with_name(path.name)
        with written_whole(target) as part:
            try:
                os.link(path, part)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, part)
    write_json(launch.record, record)


def jobs(launch: Launch) -> list[dict[str, str]]:
    """The jobs that were submitted for this run, in order."""
    path = launch.state / "jobs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def note(launch: Launch, cluster: str, number: str) -> None:
    """Note a job of this run."""
    before = jobs(launch)
    if (cluster, number) not in [(told["cluster"], told["number"]) for told in before]:
        told = {"cluster": cluster, "number": number, "host": socket.gethostname()}
        write_json(launch.state / "jobs.json", [*before, told])


@contextlib.contextmanager
def alone(launch: Launch) -> Iterator[None]:
    """Hold the run, after any other launcher has ended. The lock ends with its process."""
    launch.work.mkdir(parents=True, exist_ok=True)
    with (launch.work / f"{launch.name()}.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(f"launcher {file.read()} waits for the same run: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass
class Current:
    """The job that is waited for, if any."""

    job: Job | None = None


@contextlib.contextmanager
def cancelled_by_signals() -> Iterator[Current]:
    """Where SIGINT or SIGTERM come, end the current job and this process."""
    current = Current()

    def end(number: int, _frame: FrameType | None) -> None:
        # First of all: a terminal's Ctrl-C ends what reads our output, too.
        if current.job is not None:
            current.job.cancel()
        with contextlib.suppress(OSError):
            print(f"{signal.Signals(number).name}: the job was ended", flush=True)
        sys.exit(128 + number)

    kept = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield current
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ijepa.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, nargs="?", help="YAML file of one run")
    parser.add_argument("--data", type=Path, help="folder of shards")
    parser.add_argument("--work", type=Path, help="folder for checkpoints, seen by all nodes")
    parser.add_argument("--out", type=Path, help="file for the encoder")
    parser.add_argument("--cluster", choices=("slurm", "local", "debug"), default="local")
    parser.add_argument("--check", action="store_true", help="only whether Slurm would have it")
    parser.add_argument("--gpus", type=int, default=1, help="in all, one process each")
    parser.add_argument("--threads", type=int, default=1, help="of each process, without Slurm")
    parser.add_argument("--stage", type=Path, help="folder on the nodes' own disks for shards")
    parser.add_argument("--setup", help="shell command that each node runs before")
    parser.add_argument("--poll", type=float, default=10, help="seconds between questions to Slurm")
    of_slurm = parser.add_argument_group("Slurm")
    of_slurm.add_argument("--partition")
    of_slurm.add_argument("--account")
    of_slurm.add_argument("--minutes", type=int, default=60 * 24, help="of time, for each start")
    of_slurm.add_argument("--gpus-per-node", type=int, default=8)
    of_slurm.add_argument("--cpus-per-gpu", type=int, default=10)
    of_slurm.add_argument("--gb-per-gpu", type=int, default=55, help="of the nodes' memory")
    of_slurm.add_argument("--save-seconds", type=int, default=120, help="between signal and end")
    options = parser.parse_args()
    request = Request(
        options.partition or None,
        options.account or None,
        options.minutes,
        options.gpus,
        options.gpus_per_node,
        options.cpus_per_gpu,
        options.gb_per_gpu,
        options.save_seconds,
    )
    if options.check:
        request.check()
        return
    for key in ("run", "data", "work", "out"):
        if getattr(options, key) is None:
            parser.error(f"{key} is missing")
    pretrain(
        Launch(
            options.run,
            options.data,
            options.work,
            options.out,
            options.cluster,
            request,
            options.threads,
            options.stage or None,
            options.setup or None,
            options.poll,
        )
    )


if __name__ == "__main__":
    run_command(main)
