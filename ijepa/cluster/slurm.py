"""What Slurm says, and what is asked of it, through its own commands."""

import argparse
import contextlib
import getpass
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ijepa.errors import UserError, run_command

LIVE = {
    "PENDING", "RUNNING", "REQUEUED", "COMPLETING", "SUSPENDED", "RESIZING", "CONFIGURING",
    "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT",
}  # fmt: skip
"""States in which a job has not ended; "" (nothing is known of it yet) is none of Slurm's."""

SECONDS_TO_END = 120
"""How long jobs that were cancelled may take to be gone."""

LOST = {"PREEMPTED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}
"""Ends that say nothing against the job: it may be submitted again."""


TRANSIENT = re.compile(
    r"SubmitJob|Socket timed out|Unable to contact slurm controller|temporarily unable"
)
"""In errors: that as many jobs wait as one may submit, or that the controller is busy or away."""

FORGOTTEN = "FORGOTTEN"
"""A job that neither the controller nor accounting, if there is any, knows."""


class Busy(UserError):
    """What Slurm does not do now, and may do soon."""


class State(NamedTuple):
    """What a job is, the signal that ended it, or one of its processes, and why it waits."""

    name: str
    signal: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Start:
    """One start of a job, or of a process in none: when, how many seconds, on how many GPUs."""

    job: str | None
    begun: float
    seconds: float
    gpus: int


@dataclass(frozen=True)
class Request:
    """What one job asks for. ``minutes`` of time; ``delay`` seconds between a signal and the end.

    ``gpus`` in all, ``gpus_per_node`` on each node, one process for each; 0 GPUs are one process.
    ``extra`` are other options of sbatch, each ``--name=value`` or ``--name``.
    """

    partition: str | None
    account: str | None
    minutes: int
    gpus: int
    gpus_per_node: int
    cpus_per_gpu: int
    gb_per_gpu: int
    delay: int = 120
    qos: str | None = None
    constraint: str | None = None
    extra: str | None = None

    @property
    def nodes(self) -> int:
        """Nodes that have so many GPUs together."""
        return max(1, -(-self.gpus // self.gpus_per_node)) if self.gpus_per_node else 1

    @property
    def tasks_per_node(self) -> int:
        """Processes on each node."""
        return max(1, self.gpus // self.nodes)

    def extras(self) -> dict[str, str | bool]:
        """Names and values of ``extra``; True where there is none. Raises UserError."""
        found: dict[str, str | bool] = {}
        try:
            words = shlex.split(self.extra or "")
        except ValueError as error:
            raise UserError(f"slurm_extra: {self.extra!r}: {error}: close it") from None
        for word in words:
            name, _, value = word.partition("=")
            if not name.startswith("--"):
                raise UserError(
                    f"slurm_extra: {word!r} in {self.extra!r}: write each option as --name=value"
                )
            found[name.removeprefix("--")] = value or True
        return found

    def check(self) -> None:
        """Raise UserError for what this cluster will never run, before anything waits in a queue.

        Nodes count whether they are up or not: a job may wait for them. (``sbatch --test-only``
        would refuse it.)
        """
        installed()
        self.extras()
        if self.gpus_per_node and self.gpus % self.nodes:
            raise UserError(
                f"gpus is {self.gpus}: with {self.gpus_per_node} on a node they do not fill "
                f"{self.nodes} nodes evenly: ask for a multiple of gpus_per_node"
            )
        if self.minutes * 60 < 2 * self.delay:
            raise UserError(
                f"runtime is {self.minutes} minutes, and save_seconds {self.delay}: a job would be "
                "told to save before it has begun: raise runtime, or lower save_seconds"
            )
        self._check_partition()
        self._check_account()

    def _check_partition(self) -> None:
        if not self.partition:
            return
        found = _answer("sinfo", "-h", "-p", self.partition, "-o", "%D|%G|%l|%c|%m")
        if not found:
            known = sorted({row[0] for row in _answer("sinfo", "-h", "-o", "%R")})
            raise UserError(
                f"slurm_partition: {self.partition!r} is unknown here; there are {', '.join(known)}"
            )
        gpus = [int(n) for row in found for n in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", row[1])]
        if self.gpus and self.tasks_per_node > max(gpus, default=0):
            raise UserError(
                f"gpus_per_node: {self.tasks_per_node} is more than a node of partition "
                f"{self.partition} has ({max(gpus, default=0)}): lower it"
            )
        nodes = sum(int(row[0]) for row in found)
        if self.nodes > nodes:
            raise UserError(
                f"gpus: {self.gpus} take {self.nodes} nodes of {self.gpus_per_node}, partition "
                f"{self.partition} has {nodes}: ask for fewer GPUs"
            )
        for key, asked, column, unit in (
            ("cpus_per_gpu (of other rules: threads)", self.cpus_per_gpu, 3, "CPUs"),
            ("gb_per_gpu (of other rules: mem_mb)", self.gb_per_gpu * 1024, 4, "MB of memory"),
        ):
            have = max(int(row[column].rstrip("+")) for row in found)
            if asked * self.tasks_per_node > have:
                raise UserError(
                    f"{key}: {self.tasks_per_node} on a node take {asked * self.tasks_per_node} "
                    f"{unit}, a node of partition {self.partition} has {have}: lower it"
                )
        limits = [minutes(row[2]) for row in found]
        if None not in limits and self.minutes > max(limit for limit in limits if limit):
            raise UserError(
                f"runtime: {self.minutes} minutes are more than partition {self.partition} allows "
                f"({found[0][2]}): lower it; a job that runs out of time saves and goes on"
            )

    def _check_account(self) -> None:
        if not self.account:
            return
        asked = ("sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}")
        known = sorted({row[0] for row in _rows(*asked, "format=account")})
        if known and self.account not in known:
            raise UserError(
                f"slurm_account: {self.account!r} is none of yours; you have {', '.join(known)}"
            )


def here() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def installed() -> None:
    """Raise UserError where there is no Slurm."""
    if not here():
        raise UserError(
            "there is no Slurm on this machine (no sbatch in PATH): log in to the cluster, or use "
            "--profile workflow/profiles/local"
        )


def state(job: str) -> State:
    """What a job is; an empty name where nobody answers."""
    now = _run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T|%r")
    name, _, reason = now.stdout.strip().partition("|")
    if name in LIVE:
        waits = name not in ("RUNNING", "COMPLETING") and reason != "None"
        return State(name, reason=reason if waits else "")
    if now.returncode and "Invalid job id" not in now.stderr:
        return State("")  # the controller does not answer: nothing is known
    # Accounting also knows the signal, and jobs that the controller has forgotten.
    ended = _rows("sacct", "-D", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode")
    if not ended:
        return State(name or FORGOTTEN)
    name = ended[-1][0].split()[0]
    code, _, ended_by = ended[-1][1].partition(":")
    # srun ends with the number of the signal that has ended one of its processes, or 128 more.
    return State(name, int(ended_by or 0) or (int(code) % 128 if int(code) > 1 else 0))


def find(comment: str) -> str | None:
    """The live job of this user with this comment, if there is one."""
    for number, name, told in _queue("%A|%T|%k"):
        if told == comment and name in LIVE:
            return number
    return None


def leftovers(folder: str, job: str | None = None) -> list[str]:
    """Live jobs of a folder's rules, not of pretraining: what a killed Snakemake has submitted.

    Of ``job``, one of them: those that were submitted before it to make the same. Slurm may take a
    job although its answer is lost, and Snakemake then submits another.
    """
    rows = [
        (number, task, told)
        for number, name, where, task, told in _queue("%A|%T|%Z|%K|%k")
        if name in LIVE and where == folder and told.startswith("rule_")
    ]
    if job is None:
        return [number for number, *_ in rows]
    # All tasks of an array (slurm-array-jobs) say what the first one makes.
    makes = {number: told for number, task, told in rows if task == "N/A"}
    return [n for n, told in makes.items() if told == makes.get(job) and int(n) < int(job)]


def cancel(jobs: Iterable[str]) -> None:
    """End jobs; those that have ended already are no error. Raises Busy if Slurm does not hear."""
    done = _run("scancel", *jobs)
    if done.returncode and TRANSIENT.search(done.stderr):
        raise Busy(f"Slurm does not answer ({done.stderr.strip()}): try again later")


def starts(jobs: Iterable[str]) -> dict[str, list[Start]]:
    """Of each job what accounting knows of its starts, in order.

    Every start of a requeued job (``-D``); steps repeat their job's allocation and are left out
    (``-X``); of AllocTRES ``gres/gpu`` is the sum over models. Jobs that this machine's accounting
    does not know, if it has any, are left out; of those that it knows others may be meant: numbers
    are given again, and other clusters have the same.
    """
    found: dict[str, list[Start]] = {}
    asked = ",".join(jobs)
    if not asked or shutil.which("sacct") is None:
        return found
    columns = "JobIDRaw,Start,ElapsedRaw,AllocTRES"
    rows = _rows("sacct", "-D", "-X", "-n", "-P", "-j", asked, "-o", columns)
    for job, begun, elapsed, tres in rows:
        told = found.setdefault(job, [])
        if float(elapsed or 0):  # else it never ran
            gpus = re.search(r"(?:^|,)gres/gpu=(\d+)", tres)
            told.append(Start(job, float(begun), float(elapsed), int(gpus[1]) if gpus else 0))
    return found


def address(node: str) -> str:
    """Where a node is reached: its name, unless the cluster's configuration has another address."""
    done = _run("scontrol", "show", "node", node, "-o")
    found = re.search(r"NodeAddr=(\S+)", done.stdout)
    return found[1] if found else node


def minutes(limit: str) -> int | None:
    """Slurm's [days-]hours:minutes:seconds in minutes; None for none."""
    if limit == "infinite":
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, mins, _ = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + mins


def main() -> None:
    """End what a killed Snakemake has left in a folder, and wait until it is gone.

    With --again, in a job: what was submitted before it to make the same.

    At once, by a signal that nothing in them handles: told to end, a rule's Snakemake deletes its
    output, finished or not, with which the one that starts now may have planned.
    """
    parser = argparse.ArgumentParser(prog="python -m ijepa.cluster.slurm", description=main.__doc__)
    parser.add_argument("folder", help="where Snakemake was started")
    parser.add_argument("--again", action="store_true", help="only what this job makes again")
    options = parser.parse_args()
    left = partial(leftovers, options.folder, os.environ["SLURM_JOB_ID"] if options.again else None)
    installed()
    if jobs := left():
        _run("scancel", "--state=RUNNING", "--full", "--signal=USR1", *jobs)
        time.sleep(2)
    until = time.monotonic() + SECONDS_TO_END
    while jobs := left():
        with contextlib.suppress(Busy):  # it is asked again, until SECONDS_TO_END are over
            cancel(jobs)
        if time.monotonic() > until:
            raise UserError(
                f"jobs {' '.join(jobs)} that nobody waits for do not end: look at them "
                "with squeue, and start again when they are gone"
            )
        time.sleep(2)


def _queue(columns: str) -> list[list[str]]:
    """Columns of all live jobs of this user."""
    return _answer("squeue", "-h", "--me", "-o", columns)


def _answer(*command: str) -> list[list[str]]:
    """The rows of what ends with its columns; raises Busy where the controller is silent.

    No answer is not "none": it would be taken for leave to submit a second job.
    """
    for pause in (0, 0, 5):
        time.sleep(pause)
        done = _run(*command)
        if done.returncode == 0:
            return _split(done.stdout, command[-1].count("|"))
    kind = Busy if TRANSIENT.search(done.stderr) else UserError
    raise kind(f"Slurm does not answer ({done.stderr.strip()}): try again later")


def _rows(*command: str) -> list[list[str]]:
    return _split(_run(*command).stdout)


def _split(text: str, most: int = -1) -> list[list[str]]:
    return [line.strip().split("|", most) for line in text.splitlines() if line.strip()]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SLURM_TIME_FORMAT": "%s"}  # seconds since 1970
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


if __name__ == "__main__":
    run_command(main)
