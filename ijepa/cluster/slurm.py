"""Queries and commands to Slurm, through its own command line."""

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

from ijepa.errors import UserError, program, run_command

LIVE = {
    "PENDING", "RUNNING", "REQUEUED", "COMPLETING", "SUSPENDED", "RESIZING", "CONFIGURING",
    "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT",
}  # fmt: skip
"""States in which a job has not ended; "" (not known yet) is a state of ours, not of Slurm's."""

SECONDS_TO_END = 120
"""Time that cancelled jobs may take to be gone."""

LOST = {"PREEMPTED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}
"""Final states that are no fault of the job: it may be submitted again."""


TRANSIENT = re.compile(
    r"SubmitJob|Socket timed out|Unable to contact slurm controller|temporarily unable"
)
"""Pattern of errors that pass: the user has too many jobs, or the controller is busy or away."""

OF_THE_PROFILE = {
    "--nodes": "gpus_per_node",
    "--ntasks": "gpus_per_node",
    "--ntasks-per-node": "gpus_per_node",
    "--ntasks-per-gpu": "gpus_per_node",
    "--gpus": "gpus_per_node and gpu_model",
    "--gpus-per-node": "gpus_per_node and gpu_model",
    "--gpus-per-task": "gpus_per_node and gpu_model",
    "--gres": "gpus_per_node and gpu_model",
    "--tres-per-task": "gpus_per_node and gpu_model",
    "--cpus-per-task": "cpus_per_gpu",
    "--cpus-per-gpu": "cpus_per_gpu",
    "--mem": "gb_per_gpu",
    "--mem-per-gpu": "gb_per_gpu",
    "--mem-per-cpu": "mem_mb_per_cpu",
    "--time": "runtime",
    "--partition": "slurm_partition",
    "--account": "slurm_account",
    "--qos": "qos",
    "--constraint": "constraint",
}
"""Options of a job that stand in it already, and the keys of the profile that decide them."""

OF_THE_LAUNCHER = (
    "--comment", "--job-name", "--signal", "--requeue", "--no-requeue", "--output", "--error",
    "--open-mode", "--array", "--wait", "--chdir", "--test-only",
)  # fmt: skip
"""Options by which the launcher finds its job again, and the job goes on."""

EVERYTHING = {"SQUEUE_ALL": "1", "SINFO_ALL": "1"}
"""Variables by which squeue and sinfo show hidden partitions too, and the jobs there."""

FORGOTTEN = "FORGOTTEN"
"""State of a job that neither the controller nor accounting, if there is any, knows."""


class Busy(UserError):
    """Error of a request that Slurm refuses now and may grant soon."""


class State(NamedTuple):
    """State of a job, the signal that ended it or one of its processes, and why it waits."""

    name: str
    signal: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Start:
    """One start of a job, or of a process outside one: its begin, seconds and number of GPUs."""

    job: str | None
    begun: float
    seconds: float
    gpus: int


@dataclass(frozen=True)
class Request:
    """Resources of one job: ``minutes`` of time, ``delay`` seconds from the signal to the end.

    The defaults are those of the launcher's options, where a profile says nothing.

    ``gpus`` is the number in all, ``gpus_per_node`` that on each node. Each GPU has one process; 0
    GPUs mean one process. ``extra`` holds other options of sbatch, each ``--name=value`` or
    ``--name``. Memory is asked for by ``mem_mb_per_cpu``, else by ``gb_per_gpu``, or not at all if
    both are 0.
    """

    partition: str | None = None
    account: str | None = None
    minutes: int = 60 * 24
    gpus: int = 1
    gpus_per_node: int = 8
    cpus_per_gpu: int = 10
    gb_per_gpu: int = 55
    delay: int = 120
    qos: str | None = None
    constraint: str | None = None
    extra: str | None = None
    gpu_model: str | None = None
    mem_mb_per_cpu: int = 0

    @property
    def nodes(self) -> int:
        """Number of nodes that have ``gpus`` GPUs together."""
        return max(1, -(-self.gpus // self.gpus_per_node)) if self.gpus_per_node else 1

    @property
    def tasks_per_node(self) -> int:
        """Number of processes on each node."""
        return max(1, self.gpus // self.nodes)

    @property
    def memory(self) -> int:
        """Memory that is asked for, in whichever unit; 0 if it is not."""
        return self.gb_per_gpu or self.mem_mb_per_cpu

    def extras(self) -> dict[str, str | bool]:
        """Names and values of the options in ``extra``; True without a value. Raises UserError."""
        options: dict[str, str | bool] = {}
        try:
            words = shlex.split(self.extra or "")
        except ValueError as error:
            raise UserError(f"slurm_extra: {self.extra!r}: {error}: close it") from None
        for word in words:
            name, _, value = word.partition("=")
            name = name.replace("_", "-")  # as submitit writes it
            if not name.startswith("--"):
                raise UserError(
                    f"slurm_extra: {word!r} in {self.extra!r}: write each option as --name=value"
                )
            ours = [*OF_THE_PROFILE, *OF_THE_LAUNCHER]
            if name not in ours and any(option.startswith(name) for option in ours):
                raise UserError(
                    f"slurm_extra: {word!r}: sbatch takes abbreviations, this one perhaps for "
                    f"{next(o for o in ours if o.startswith(name))}: write the option out"
                )
            if name in OF_THE_LAUNCHER:
                raise UserError(
                    f"slurm_extra: {word!r}: the launcher sets this option itself: leave it out"
                )
            of_gpus = "gpu" in value
            conditions = {"--gres": of_gpus, "--tres-per-task": of_gpus, "--mem": self.memory}
            of_the_job = conditions.get(name, True)
            if of_the_job and (key := OF_THE_PROFILE.get(name)):
                raise UserError(
                    f"slurm_extra: {word!r}: the job has this option from {key} in the profile: "
                    "set that, and leave it out here"
                )
            options[name.removeprefix("--")] = value or True
        return options

    def check(self) -> None:
        """Raise UserError for a request that this cluster can never run, before anything is queued.

        Nodes that are down count too, because a job may wait for them. (``sbatch --test-only``
        would refuse such a job.)
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
        rows = _answer("sinfo", "-h", "-p", self.partition, "-o", "%D|%G|%l|%c|%m")
        if not rows:
            partitions = sorted({row[0] for row in _answer("sinfo", "-h", "-o", "%R")})
            raise UserError(
                f"slurm_partition: {self.partition!r} is unknown here; there are "
                f"{', '.join(partitions)}"
            )
        kinds = [kind for row in rows for kind in re.findall(r"gpu(?::([^:,()]+))?:(\d+)", row[1])]
        models = sorted({model for model, _ in kinds if model})
        if self.gpus and self.gpu_model and models and self.gpu_model not in models:
            raise UserError(
                f"gpu_model: {self.gpu_model!r} is not in partition {self.partition}; there are "
                f"{', '.join(models)}"
            )
        gpus = [int(n) for model, n in kinds if self.gpu_model in (None, model) or not model]
        if self.gpus and self.tasks_per_node > max(gpus, default=0):
            raise UserError(
                f"gpus_per_node: {self.tasks_per_node} is more than a node of partition "
                f"{self.partition} has ({max(gpus, default=0)}): lower it"
            )
        nodes = sum(int(row[0]) for row in rows)
        if self.nodes > nodes:
            raise UserError(
                f"gpus: {self.gpus} take {self.nodes} nodes of {self.gpus_per_node}, partition "
                f"{self.partition} has {nodes}: ask for fewer GPUs"
            )
        memory_key, memory = "gb_per_gpu (of other rules: mem_mb)", self.gb_per_gpu * 1024
        if self.mem_mb_per_cpu:
            memory_key, memory = "mem_mb_per_cpu", self.mem_mb_per_cpu * self.cpus_per_gpu
        for key, amount, column, unit in (
            ("cpus_per_gpu (of other rules: threads)", self.cpus_per_gpu, 3, "CPUs"),
            (memory_key, memory, 4, "MB of memory"),
        ):
            available = max(int(row[column].rstrip("+")) for row in rows)
            if amount * self.tasks_per_node > available:
                raise UserError(
                    f"{key}: {self.tasks_per_node} on a node take {amount * self.tasks_per_node} "
                    f"{unit}, a node of partition {self.partition} has {available}: lower it"
                )
        limits = [minutes(row[2]) for row in rows]
        if None not in limits and self.minutes > max(limit or 0 for limit in limits):
            raise UserError(
                f"runtime: {self.minutes} minutes are more than partition {self.partition} allows "
                f"({rows[0][2]}): lower it; a job that runs out of time saves and goes on"
            )

    def _check_account(self) -> None:
        if not self.account:
            return
        command = ("sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}")
        accounts = sorted({row[0] for row in _rows(*command, "format=account")})
        if accounts and self.account not in accounts:
            raise UserError(
                f"slurm_account: {self.account!r} is none of yours; you have {', '.join(accounts)}"
            )


def is_here() -> bool:
    """True if this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def installed() -> None:
    """Raise UserError if this machine has no Slurm."""
    if not is_here():
        raise UserError(
            "there is no Slurm on this machine (no sbatch in PATH): log in to the cluster, or use "
            "--profile workflow/profiles/local"
        )


def state(job: str) -> State:
    """State of a job; its name is empty if the controller does not answer."""
    queue = _run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T|%r")
    name, _, reason = queue.stdout.strip().partition("|")
    if name in LIVE:
        waits = name not in ("RUNNING", "COMPLETING") and reason != "None"
        return State(name, reason=reason if waits else "")
    if queue.returncode and "Invalid job id" not in queue.stderr:
        return State("")  # the controller does not answer: nothing is known
    # Accounting also knows the signal, and jobs that the controller has forgotten.
    records = _rows("sacct", "-D", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode")
    if not records:
        return State(name or FORGOTTEN)
    name = records[-1][0].split()[0]
    code, _, ended_by = records[-1][1].partition(":")
    # srun ends with the number of the signal that has ended one of its processes, or 128 more.
    return State(name, int(ended_by or 0) or (int(code) % 128 if int(code) > 1 else 0))


def find(comment: str) -> str | None:
    """Id of this user's live job with this comment, if there is one."""
    for number, name, job_comment in _queue("%A|%T|%k"):
        if job_comment == comment and name in LIVE:
            return number
    return None


def leftovers(folder: str, job: str | None = None) -> list[str]:
    """Ids of live jobs that a killed Snakemake has submitted in a folder: of rules, no pretraining.

    With ``job``, the id of one of them: only those that were submitted before it to make the same
    output. Slurm may accept a job although its answer is lost, and Snakemake then submits another.
    """
    rows = [
        (number, task, comment)
        for number, name, where, task, comment in _queue("%A|%T|%Z|%K|%k")
        if name in LIVE and where == folder and comment.startswith("rule_")
    ]
    if job is None:
        return [number for number, *_ in rows]
    # All tasks of an array (slurm-array-jobs) have the comment of the first one: leave them out.
    comments = {number: comment for number, task, comment in rows if task == "N/A"}
    return [n for n, c in comments.items() if c == comments.get(job) and int(n) < int(job)]


def cancel(jobs: Iterable[str]) -> None:
    """End jobs; a job that has ended already is no error. Raises Busy if Slurm does not answer."""
    done = _run("scancel", *jobs)
    if done.returncode and TRANSIENT.search(done.stderr):
        raise Busy(f"Slurm does not answer ({done.stderr.strip()}): try again later")


def starts(jobs: Iterable[str]) -> dict[str, list[Start]]:
    """Starts of each job in accounting, in order.

    A requeued job has several starts (``-D``). Steps repeat their job's allocation and are left out
    (``-X``). In AllocTRES ``gres/gpu`` is the sum over models. Jobs that this machine's accounting
    does not know, if it has any, are left out. A job that it knows may be another one: Slurm reuses
    job ids, and ids of another cluster mean nothing here.
    """
    result: dict[str, list[Start]] = {}
    ids = ",".join(jobs)
    if not ids or shutil.which("sacct") is None:
        return result
    columns = "JobIDRaw,Start,ElapsedRaw,AllocTRES"
    rows = _rows("sacct", "-D", "-X", "-n", "-P", "-j", ids, "-o", columns)
    for job, begun, elapsed, tres in rows:
        job_starts = result.setdefault(job, [])
        if float(elapsed or 0):  # else it never ran
            gpus = re.search(r"(?:^|,)gres/gpu=(\d+)", tres)
            job_starts.append(Start(job, float(begun), float(elapsed), int(gpus[1]) if gpus else 0))
    return result


def address(node: str) -> str:
    """Address of a node: its name, unless the cluster's configuration has another address."""
    done = _run("scontrol", "show", "node", node, "-o")
    match = re.search(r"NodeAddr=(\S+)", done.stdout)
    return match[1] if match else node


def minutes(limit: str) -> int | None:
    """Whole minutes of Slurm's [days-]hours:minutes:seconds; None for a word: there is no limit."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", limit):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, mins, _ = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + mins


def main() -> None:
    """End the jobs that a killed Snakemake has left in a folder, and wait until they are gone.

    With --again, in a job: only the jobs that were submitted before it to make the same output.

    SIGUSR1 kills them at once. SIGTERM would let the inner Snakemake clean up, that is, delete
    outputs that this run has already planned with.
    """
    parser = argparse.ArgumentParser(prog=program("ijepa.cluster.slurm"), description=main.__doc__)
    parser.add_argument("folder", help="folder in which Snakemake was started")
    parser.add_argument("--again", action="store_true", help="only earlier jobs like this one")
    options = parser.parse_args()
    this_job = os.environ["SLURM_JOB_ID"] if options.again else None
    live_jobs = partial(leftovers, options.folder, this_job)
    installed()
    if jobs := live_jobs():
        _run("scancel", "--state=RUNNING", "--full", "--signal=USR1", *jobs)
        time.sleep(2)
    until = time.monotonic() + SECONDS_TO_END
    while jobs := live_jobs():
        with contextlib.suppress(Busy):  # repeated until SECONDS_TO_END are over
            cancel(jobs)
        if time.monotonic() > until:
            raise UserError(
                f"jobs {' '.join(jobs)} that nobody waits for do not end: look at them "
                "with squeue, and start again when they are gone"
            )
        time.sleep(2)


def _queue(columns: str) -> list[list[str]]:
    """Rows with these columns, one for each live job of this user."""
    return _answer("squeue", "-h", "--me", "-o", columns)


def _answer(*command: str) -> list[list[str]]:
    """Rows of a command whose last argument names its columns; raises Busy without an answer.

    A silent controller must not look like an empty queue: a second job would be submitted.
    """
    for pause in (0, 0, 5):
        time.sleep(pause)
        done = _run(*command)
        if done.returncode == 0:
            return _split(done.stdout, command[-1].count("|"))
    kind = Busy if TRANSIENT.search(done.stderr) else UserError
    raise kind(f"Slurm does not answer ({done.stderr.strip()}): try again later")


def _rows(*command: str) -> list[list[str]]:
    """Rows of a command that may be absent or forbidden, as accounting is on some clusters."""
    done = _run(*command)
    return [] if done.returncode else _split(done.stdout)


def _split(text: str, most: int = -1) -> list[list[str]]:
    return [line.strip().split("|", most) for line in text.splitlines() if line.strip()]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command's answer; of one that is not installed, or forbidden, its absence."""
    env = {**os.environ, **EVERYTHING, "SLURM_TIME_FORMAT": "%s"}  # seconds since 1970
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    except (FileNotFoundError, PermissionError) as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    run_command(main)
