"""Start one pretraining as a job, and wait until its encoder is there.

``python -m ijepa.cluster.launch RUN.yaml --cluster slurm|local|debug`` (``--help``) submits one job
through submitit: several nodes of a Slurm cluster, processes of this machine, or this process
itself. The launcher waits, shows the job's log, and at the end puts encoder and log into their
place.

- If the launcher is killed or cut off from the terminal, its job runs on. The same command finds
  the job again, or takes the encoder that it has made meanwhile. There is never a second job on the
  same files. A finished run is not trained again; to do so, delete its folder in ``work``.
- Ctrl-C, or SIGTERM, ends the job too. The job first saves a checkpoint, if the cluster gives it
  the time (KillWait, usually 30 seconds).
- A job that is preempted, runs out of time or loses its node goes on from its last checkpoint, as
  often as needed (``ijepa.cluster.process``), unless nothing was saved (``MOST_IDLE``).
"""

import argparse
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import FrameType
from typing import TypeVar

from ijepa.cluster import slurm
from ijepa.cluster.run_files import Launch, deliver, note, progress, submitted_jobs
from ijepa.cluster.slurm import Request
from ijepa.cluster.submission import Job, LocalJob, SlurmJob, submit
from ijepa.errors import UserError, program, run_command
from ijepa.files import read_json
from ijepa.lock import held

T = TypeVar("T")

MOST_IDLE = 3
"""Losses in a row without a new checkpoint at which a run fails; one is enough if time ran out.

Slurm's own requeues of a job do not count.
"""
SECONDS_TO_TRY_AGAIN = 60
"""Time between tries if Slurm does not answer, or has as many of the user's jobs as it allows."""


def pretrain(launch: Launch) -> None:
    """Bring the encoder of a run to ``launch.out``: by a new job, a live one, or a finished one.

    Raises UserError if the cluster refuses the job, if the job fails, or if its time is too short
    to save a step.
    """
    if launch.cluster == "slurm":
        patiently(launch.request.check)
    # Made first, lest an encoder is trained that cannot be written.
    launch.out.parent.mkdir(parents=True, exist_ok=True)
    message = "launcher {process} waits for the same run"
    with (
        cancelled_by_signals(launch) as current,
        held(launch.work / f"{launch.name}.lock", message),
    ):
        job, idle = patiently(lambda: attached(launch)), 0
        if launch.cluster == "slurm":
            tell_of_others(launch)
        while job is not None or not launch.encoder.exists():
            # If we re-attached to an older launcher's job, CANCELLED and FAILED are not errors: the
            # user may have cancelled it, or the launcher died before it had written the job's
            # pickle.
            forgiven: tuple[str, ...] = ("CANCELLED", "FAILED")
            if job is None:
                job, forgiven = patiently(lambda: submitted(launch))
            current.job = job
            # Unknown for an older job, which may have saved long ago.
            earlier_progress = None if forgiven else progress(launch)
            end = wait(launch, job)
            number, current.job, job = job.number, None, None
            if launch.encoder.exists():
                continue
            if end.name not in forgiven and not may_go_on(end):
                raise UserError(failure(launch, number, end))
            idle = idle + 1 if progress(launch) == earlier_progress else 0
            if idle >= (1 if end.name == "TIMEOUT" else MOST_IDLE):
                raise UserError(
                    f"job {number} ended as {end.name} and no step was saved since it began: "
                    f"give it more than {launch.request.minutes} minutes (runtime), or more than "
                    f"{launch.request.delay} seconds to save (save_seconds)"
                )
            print(f"job {number} ended as {end.name}: the run goes on", flush=True)
        deliver(launch)


def patiently(ask: Callable[[], T]) -> T:
    """Answer of ``ask``, which is repeated while Slurm is busy."""
    while True:
        try:
            return ask()
        except slurm.Busy as busy:
            print(f"{busy}: trying again every {SECONDS_TO_TRY_AGAIN} seconds", flush=True)
            time.sleep(SECONDS_TO_TRY_AGAIN)


def attached(launch: Launch) -> Job | None:
    """Live job of an earlier launcher, or None."""
    job = live(launch)
    if job is not None:
        print(f"job {job.number} works on this run: waiting for it", flush=True)
    return job


def queued(launch: Launch) -> Job | None:
    """Job of the run that is in Slurm's queue, or None; it is recorded as this run's."""
    number = slurm.find(launch.mark) if launch.cluster == "slurm" else None
    if number is None:
        return None
    # A launcher that was killed right after the submission has not recorded the job.
    note(launch, "slurm", number)
    return SlurmJob(launch, number)


def submitted(launch: Launch) -> tuple[Job, tuple[str, ...]]:
    """Job of the run that this launcher has submitted, and its final states that are no errors.

    Slurm may have accepted a job whose submission seemed to fail. That job lacks the pickle, which
    submitit writes after Slurm's answer, so it may end as FAILED.
    """
    job = queued(launch)
    return (submit(launch), ()) if job is None else (job, ("FAILED",))


def tell_of_others(launch: Launch) -> None:
    """Name the jobs that work on this run with other settings: no launcher waits for them."""
    for path in launch.work.glob("ijepa-*/jobs.json"):
        last = read_json(path)[-1]
        if path.parent == launch.state or last["cluster"] != "slurm":
            continue
        if slurm.state(last["number"]).name in slurm.LIVE:
            print(
                f"job {last['number']} still works on this run with other settings "
                f"({path.parent}): scancel {last['number']}, unless you want these settings again",
                flush=True,
            )


def live(launch: Launch) -> Job | None:
    """Job that works on a run now, or None.

    Raises UserError if this machine cannot know that, unless the run's encoder is there anyway.
    """
    if (job := queued(launch)) is not None:
        return job
    for record in submitted_jobs(launch)[-1:]:
        if record["cluster"] == "debug":
            continue
        on_slurm = record["cluster"] == "slurm"
        if not slurm.is_here() if on_slurm else record["host"] != socket.gethostname():
            if launch.encoder.exists():
                continue
            kind = "job" if on_slurm else "process"
            raise UserError(
                f"{launch.state / 'jobs.json'}: the last job of this run is {kind} "
                f"{record['number']}, started on {record['host']}: go on there, or, if it has "
                "ended, delete this file"
            )
        job = (SlurmJob if on_slurm else LocalJob)(launch, record["number"])
        if job.ended() is None:
            return job
    return None


def wait(launch: Launch, job: Job) -> slurm.State:
    """Show the job's log until the job has ended; returns its final state."""
    offset = job.log().stat().st_size if job.log().exists() else 0
    asked_at = 0.0
    while True:
        offset = show(job.log(), offset)
        interval = launch.poll if launch.cluster == "slurm" else 0.5
        if time.monotonic() - asked_at >= interval:
            end = job.ended()
            # Slurm ends a job before it requeues it: only an end that is still there later counts.
            if end is not None and launch.cluster == "slurm" and end.name != "COMPLETED":
                time.sleep(max(launch.poll, 2.0))
                end = job.ended()
            if end is not None:
                show(job.log(), offset)
                return end
            asked_at = time.monotonic()
        time.sleep(0.5)


def show(log: Path, offset: int) -> int:
    """Print a log from byte ``offset`` on; returns the log's size."""
    if not log.exists():
        return offset
    with log.open("rb") as file:
        file.seek(offset)
        new = file.read()
    sys.stderr.write(new.decode("utf-8", errors="replace"))
    sys.stderr.flush()
    return offset + len(new)


def may_go_on(end: slurm.State) -> bool:
    """True if a job's end is no fault of the run: a lost node, the time limit, or preemption.

    A signal that comes before the job handles it, or that cannot be handled, ends a process, and
    with it the job as FAILED. A process that takes too much memory has a state of its own, if Slurm
    watches its memory.
    """
    # SIGABRT: if a node dies, NCCL's watchdog aborts the processes on the other nodes.
    signals = (signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL, signal.SIGABRT)
    return end.name in slurm.LOST or (end.name == "FAILED" and end.signal in signals)


def failure(launch: Launch, number: str, end: slurm.State) -> str:
    """Error message for a failed job: its state, the first error in its logs, and their folder."""
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
            f"job {number} ended as {end.name} without a log in {folder}: are this folder and "
            "this environment on a disk that the nodes see too?"
        )
    cause = f": {lines[0].removeprefix('error: ')}" if lines else ""
    return f"job {number} ended as {end.name}{cause} (logs: {folder})"


@dataclass
class Current:
    """Job that the launcher waits for, if any."""

    job: Job | None = None


@contextlib.contextmanager
def cancelled_by_signals(launch: Launch) -> Iterator[Current]:
    """End the run's job, whoever has started it, and this process at SIGINT or SIGTERM."""
    current = Current()

    def end(number: int, _frame: FrameType | None) -> None:
        # Print only after the cancel: a terminal's Ctrl-C also ends the reader of our output, so
        # print may fail.
        with contextlib.suppress(OSError):
            try:
                job = current.job or live(launch)
                if job is not None:
                    job.cancel()
                    print(f"{signal.Signals(number).name}: the job was ended", flush=True)
            except UserError as error:
                print(f"the run's job may run on (see squeue, scancel): {error}", flush=True)
        sys.exit(128 + number)

    handlers = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield current
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("ijepa.cluster.launch"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, nargs="?", help="YAML file of one run")
    parser.add_argument("--data", type=Path, help="folder of shards")
    parser.add_argument("--work", type=Path, help="folder for checkpoints, seen by all nodes")
    parser.add_argument("--out", type=Path, help="file for the encoder")
    parser.add_argument("--cluster", choices=("slurm", "local", "debug"))
    parser.add_argument("--check", action="store_true", help="only check if Slurm would accept it")
    parser.add_argument("--gpus", type=int, help="number in all, one process for each")
    parser.add_argument("--threads", type=int, help="of each process, without Slurm")
    parser.add_argument("--stage", type=Path, help="folder on the nodes' own disks for shards")
    parser.add_argument("--setup", help="shell command that each node runs before the job")
    parser.add_argument("--poll", type=float, help="seconds between queries to Slurm")
    of_slurm = parser.add_argument_group("Slurm")
    of_slurm.add_argument("--partition")
    of_slurm.add_argument("--account")
    of_slurm.add_argument("--qos")
    of_slurm.add_argument("--constraint")
    of_slurm.add_argument("--extra", help="other options of sbatch: '--reservation=r --exclude=n1'")
    of_slurm.add_argument("--minutes", type=int, help="time limit of each start")
    of_slurm.add_argument("--gpus-per-node", type=int)
    of_slurm.add_argument("--gpu-model", help="where the cluster wants it, such as a100")
    of_slurm.add_argument("--cpus-per-gpu", type=int)
    of_slurm.add_argument("--gb-per-gpu", type=int, help="of the node's memory (0: do not ask)")
    of_slurm.add_argument("--mem-mb-per-cpu", type=int, help="in place of --gb-per-gpu")
    of_slurm.add_argument("--save-seconds", type=int, dest="delay", help="from signal to job's end")
    defaults = {field.name: field.default for field in (*fields(Launch), *fields(Request))}
    parser.set_defaults(**{k: v for k, v in defaults.items() if v is not MISSING})
    options = parser.parse_args()
    values = vars(options)
    values["request"] = Request(**{field.name: values[field.name] for field in fields(Request)})
    if options.check:
        options.request.check()
        return
    for key in ("run", "data", "work", "out"):
        if values[key] is None:
            parser.error(f"{key} is missing")
    pretrain(Launch(**{field.name: values[field.name] for field in fields(Launch)}))


if __name__ == "__main__":
    run_command(main)
