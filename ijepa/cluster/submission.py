"""Submission of one pretraining to a cluster or to this machine, and the job that it becomes.

Jobs are submitted through submitit and recorded in the run's folder, so that another launcher
(``ijepa.cluster.launch``) finds them.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil
import submitit

from ijepa.cluster import slurm
from ijepa.cluster.environment import forget_other_jobs
from ijepa.cluster.process import Pretraining
from ijepa.cluster.run_files import Launch, note
from ijepa.errors import UserError
from ijepa.identity import MEMO

FOREVER = 60 * 24 * 365
"""Minutes that a job on this machine may take: no limit in practice."""
SECONDS_TO_BE_KNOWN = 120
"""Time that the cluster may take to know a job after its submission."""
SECONDS_TO_SAVE = 60
"""Time that Ctrl-C gives a job on this machine to write its checkpoint."""


class Job(ABC):
    """Submitted job, which this launcher or an earlier one has started."""

    def __init__(self, launch: Launch, number: str) -> None:
        self.launch, self.number = launch, number

    def log(self) -> Path:
        """Path of the first process's log."""
        return self.launch.state / "submitit" / f"{self.number}_0_log.err"

    @abstractmethod
    def ended(self) -> slurm.State | None:
        """Final state of the job, or None while it has not ended."""

    @abstractmethod
    def cancel(self) -> None:
        """End the job; it may save first."""


class SlurmJob(Job):
    """Job of the cluster."""

    forgotten_since: float | None = None
    reason = ""

    def ended(self) -> slurm.State | None:
        """See Job. Without accounting, a job is over when Slurm does not know it any more.

        Prints the reason why the job waits whenever it changes: a held job would wait for ever.
        """
        state = slurm.state(self.number)
        if state.reason and state.reason != self.reason:
            print(f"job {self.number} waits: {state.reason}", flush=True)
        self.reason = state.reason
        if state.name != slurm.FORGOTTEN:
            self.forgotten_since = None
        elif self.forgotten_since is None:
            self.forgotten_since = time.monotonic()
            return None
        else:
            if time.monotonic() - self.forgotten_since < SECONDS_TO_BE_KNOWN:
                return None
            return slurm.State("COMPLETED" if self.launch.encoder.exists() else "FAILED")
        return None if state.name in slurm.LIVE or not state.name else state

    def cancel(self) -> None:
        """See Job."""
        slurm.cancel([self.number])


class LocalJob(Job):
    """Processes of this machine under submitit's controller, whose process id is the job id."""

    def _process(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(int(self.number))
            is_ours = str(self.launch.state) in " ".join(process.cmdline())
            return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
        return None

    def ended(self) -> slurm.State | None:
        """See Job."""
        if self._process() is not None:
            return None
        return slurm.State("COMPLETED" if self.launch.encoder.exists() else "FAILED")

    def cancel(self) -> None:
        """See Job."""
        if (process := self._process()) is not None:
            processes = [process, *process.children(recursive=True)]
            process.terminate()
            _, alive = psutil.wait_procs(processes, timeout=SECONDS_TO_SAVE)
            for survivor in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    survivor.kill()


def submit(launch: Launch) -> Job:
    """Submit a job for the run.

    If sbatch refuses it, raises Busy where a later try may succeed, else UserError.
    """
    request = launch.request
    if launch.cluster == "slurm":
        forget_other_jobs(request)
    gpus = request.gpus if launch.cluster == "slurm" else min(request.gpus, visible_gpus())
    if launch.cluster != "slurm" and 0 < gpus < request.gpus:
        print(f"this machine has {gpus} of the {request.gpus} GPUs requested", flush=True)
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
    if (memo := launch.work / MEMO).exists():  # the job need not read its start's bytes again
        shutil.copyfile(memo, launch.state / MEMO)
    executor = submitit.AutoExecutor(launch.state / "submitit", cluster=launch.cluster)
    executor.update_parameters(**parameters(launch, gpus))
    # A terminal's Ctrl-C reaches every process that was started from it. But only the launcher may
    # end the job, because it gives the job time to save. A process that is started while a signal
    # is blocked does not receive that signal. (A job on this machine must receive SIGTERM, by which
    # the launcher ends it.) The launcher itself receives the signals once the job is recorded.
    blocked = {signal.SIGINT, signal.SIGTERM} if launch.cluster == "slurm" else {signal.SIGINT}
    earlier_mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        submitted = executor.submit(work)
        note(launch, launch.cluster, submitted.job_id)
    except submitit.core.utils.FailedJobError as error:
        kind = slurm.Busy if slurm.TRANSIENT.search(str(error)) else UserError
        raise kind(f"Slurm did not take the job: {error}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier_mask)
    print(f"{launch.cluster} job {submitted.job_id} submitted", flush=True)
    if launch.cluster == "debug":
        submitted.result()
        return LocalJob(launch, submitted.job_id)
    return (SlurmJob if launch.cluster == "slurm" else LocalJob)(launch, submitted.job_id)


def parameters(launch: Launch, gpus: int) -> dict[str, Any]:
    """Parameters of the job for submitit."""
    request = launch.request
    if launch.cluster != "slurm":
        return {
            "timeout_min": FOREVER,
            "tasks_per_node": max(1, gpus),
            "gpus_per_node": gpus,
        }
    options: dict[str, Any] = {
        "nodes": request.nodes,
        "tasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus_per_gpu,
        "timeout_min": request.minutes,
        "name": launch.name,
        "slurm_comment": launch.mark,
        "slurm_signal_delay_s": request.delay,
        "slurm_use_srun": True,
        "slurm_srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={request.cpus_per_gpu}"],
        "slurm_additional_parameters": {"requeue": True, **request.extras()},
    }
    # Some clusters refuse --mem, or both forms of it.
    if request.mem_mb_per_cpu:
        options["slurm_mem_per_cpu"] = f"{request.mem_mb_per_cpu}MB"
    elif request.gb_per_gpu:
        options["mem_gb"] = request.gb_per_gpu * request.tasks_per_node
    if gpus and request.gpu_model:
        options["slurm_gpus_per_node"] = f"{request.gpu_model}:{request.tasks_per_node}"
    elif gpus:
        options["gpus_per_node"] = request.tasks_per_node
    if request.partition:
        options["slurm_partition"] = request.partition
    if request.account:
        options["slurm_account"] = request.account
    if request.qos:
        options["slurm_qos"] = request.qos
    if request.constraint:
        options["slurm_constraint"] = request.constraint
    # A script notes the job's times: the job holds its GPUs from seconds before Python starts until
    # seconds after it has ended.
    notes = f"notes={shlex.quote(str(launch.attempts.resolve()))}"
    script = shlex.quote(str(Path(__file__).with_name("note_job.sh")))
    options["slurm_setup"] = [notes, f". {script}", *([launch.setup] if launch.setup else [])]
    return options


def visible_gpus() -> int:
    """Number of GPUs that this process may use, counted without importing torch.

    As in CUDA, CUDA_VISIBLE_DEVICES ends before its first entry that names no GPU of this machine:
    a number that is too large, -1, NoDevFiles. A GPU that is named twice is one.
    """
    if shutil.which("nvidia-smi") is None:  # as in some containers
        lines = [f"GPU {path.name}" for path in Path("/dev").glob("nvidia[0-9]*")]
    else:
        command = ["nvidia-smi", "-L"]
        listing = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = listing.stdout.splitlines()
    count = sum(line.startswith("GPU ") for line in lines)
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return count

    def is_gpu(name: str) -> bool:
        if name.isdecimal():
            return int(name) < count
        # A GPU or a part of one (MIG) by its UUID, or by the begin of it.
        return name.startswith(("GPU-", "MIG-")) and any(f"UUID: {name}" in line for line in lines)

    return len(set(takewhile(is_gpu, (name.strip() for name in visible.split(",")))))
