"""What one pretraining asks of a cluster or of this machine, and the job that it becomes.

Jobs are submitted through submitit and noted in the run's folder, so that another launcher
(``ijepa.cluster.launch``) finds them.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import submitit
import yaml

from ijepa.cluster import slurm
from ijepa.cluster.job import Pretraining
from ijepa.cluster.slurm import Request
from ijepa.errors import UserError
from ijepa.files import read_json, read_yaml, write_json
from ijepa.identity import run_identity

FOREVER = 60 * 24 * 365
"""Minutes that a job of this machine may take."""
SECONDS_TO_BE_KNOWN = 120
"""How long after its submission a job may be unknown to the cluster."""
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

    @cached_property
    def name(self) -> str:
        """A name for what this run learns (ijepa.identity) from exactly these shards.

        It stays while the launcher lives, whatever is written to its files then. The tokens that a
        recipe names belong to it: their tokenizer's settings are not in the run.
        """
        return self._named(run_identity(self._config).encode())

    def earlier(self) -> "Launch":
        """The run as versions until 2026-11 named it, by all bytes of its file."""
        launch = replace(self)
        text = yaml.safe_dump(self._config).encode()
        launch.__dict__["name"] = self._named(text)
        return launch

    @cached_property
    def _config(self) -> dict[str, Any]:
        if not self.run.exists():
            raise UserError(f"{self.run} does not exist: make it first")
        content: dict[str, Any] = read_yaml(self.run) or {}
        return content

    def _named(self, run: bytes) -> str:
        made_of = [self.data / "index.json"]
        if tokenizer := (self._config.get("recipe") or {}).get("tokenizer"):
            made_of.append(self.data / "tokens" / f"{tokenizer}.json")
        for path in made_of:
            if not path.exists():
                raise UserError(f"{path} does not exist: make it first")
        text = b"".join([run, *(path.read_bytes() for path in made_of)])
        return f"ijepa-{hashlib.sha256(text).hexdigest()[:12]}"

    @property
    def mark(self) -> str:
        """By what the queue of a cluster tells this run: in another folder it has another job."""
        return f"{self.name} {hashlib.sha256(bytes(self.state.resolve())).hexdigest()[:12]}"

    @property
    def state(self) -> Path:
        """What belongs to this run: checkpoints, job, notes. It outlives job and launcher."""
        return self.work / self.name

    @property
    def encoder(self) -> Path:
        """The encoder of a job that is done, before it is brought to its place."""
        return self.state / "encoder.safetensors"

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
    reason = ""

    def ended(self) -> slurm.State | None:
        """See Job. A job that no accounting has noted is over when it is not known any more.

        Says why it waits, each time that it is for another reason: for one that is held, for ever.
        """
        found = slurm.state(self.number)
        if found.reason and found.reason != self.reason:
            print(f"job {self.number} waits: {found.reason}", flush=True)
        self.reason = found.reason
        if found.name != slurm.FORGOTTEN:
            self.forgotten_since = None
        elif self.forgotten_since is None:
            self.forgotten_since = time.monotonic()
            return None
        else:
            if time.monotonic() - self.forgotten_since < SECONDS_TO_BE_KNOWN:
                return None
            return slurm.State("COMPLETED" if self.launch.encoder.exists() else "FAILED")
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
        return slurm.State("COMPLETED" if self.launch.encoder.exists() else "FAILED")

    def cancel(self) -> None:
        """See Job."""
        if (process := self._process()) is not None:
            all_of_it = [process, *process.children(recursive=True)]
            process.terminate()
            _, alive = psutil.wait_procs(all_of_it, timeout=SECONDS_TO_SAVE)
            for each in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


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
    # alone, which gives it the time to save: what begins with a signal blocked does not hear it
    # (SIGTERM is how processes of this machine are told). Here it is heard when the job is noted.
    blocked = {signal.SIGINT, signal.SIGTERM} if launch.cluster == "slurm" else {signal.SIGINT}
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        submitted = executor.submit(work)
        note(launch, launch.cluster, submitted.job_id)
    except submitit.core.utils.FailedJobError as error:
        kind = slurm.Busy if slurm.TRANSIENT.search(str(error)) else UserError
        raise kind(f"Slurm did not take the job: {error}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)
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
        "name": launch.name,
        "slurm_comment": launch.mark,
        "slurm_signal_delay_s": request.delay,
        "slurm_use_srun": True,
        "slurm_srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={request.cpus_per_gpu}"],
        "slurm_additional_parameters": {"requeue": True, **request.extras()},
    }
    if gpus:
        given["gpus_per_node"] = request.tasks_per_node
    if request.partition:
        given["slurm_partition"] = request.partition
    if request.account:
        given["slurm_account"] = request.account
    if request.qos:
        given["slurm_qos"] = request.qos
    if request.constraint:
        given["slurm_constraint"] = request.constraint
    # The job has its GPUs from before Python starts until after it has ended: seconds, both.
    notes = f"notes={shlex.quote(str(launch.attempts.resolve()))}"
    script = shlex.quote(str(Path(__file__).with_name("note_job.sh")))
    given["slurm_setup"] = [notes, f". {script}", *([launch.setup] if launch.setup else [])]
    return given


def visible_gpus() -> int:
    """How many GPUs this process may use, without importing torch."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([number for number in chosen.split(",") if number.strip()])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def jobs(launch: Launch) -> list[dict[str, str]]:
    """The jobs that were submitted for this run, in order."""
    path = launch.state / "jobs.json"
    return read_json(path) if path.exists() else []


def note(launch: Launch, cluster: str, number: str) -> None:
    """Note a job of this run."""
    before = jobs(launch)
    if (cluster, number) not in [(told["cluster"], told["number"]) for told in before]:
        told = {"cluster": cluster, "number": number, "host": socket.gethostname()}
        write_json(launch.state / "jobs.json", [*before, told])
