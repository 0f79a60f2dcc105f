"""One pretraining as a job: the function that runs in each process that the launcher requested.

Slurm announces the end of a job by a signal: SIGUSR2 before its time limit and when it is
preempted; SIGTERM when it is cancelled (or preempted on a cluster that sends nothing else). After
either signal the processes finish their current step, and the first one writes a checkpoint. After
SIGUSR2 the first process then requeues the job. After SIGTERM it waits for the end: a cancelled job
must not run again, and a preempted one is requeued by Slurm itself.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import submitit

from ijepa.cluster import slurm
from ijepa.errors import in_one_line
from ijepa.files import write_json

SECONDS_FOR_THE_CAUSE = 1800
"""Time that Slurm may take to notice that a node is gone (SlurmdTimeout), with room to spare."""
SECONDS_BETWEEN_NOTES = 2.0
"""Time between two notes, which is the most that a killed job leaves out."""


@dataclass(frozen=True)
class Pretraining:
    """Function that submitit calls in each process; it is pickled, so it holds plain data.

    Args:
        run: YAML file of the run.
        data: Folder of shards.
        state: Folder for checkpoints and for the finished encoder.
        attempts: Folder for the notes of the time used, without Slurm.
        threads: CPU threads of each process.
        gpus: Number of GPUs in all, for the notes.
        stage: Folder on each node's own disk to which the shards are copied first.
        visible: CUDA_VISIBLE_DEVICES of the launcher, for processes of its machine.
    """

    run: Path
    data: Path
    state: Path
    attempts: Path
    threads: int
    gpus: int
    stage: Path | None = None
    visible: str | None = None

    def __call__(self) -> None:
        """Train from the last checkpoint until the encoder is there or a signal asks to stop."""
        with in_one_line():
            self._train()

    def _train(self) -> None:
        signals = Signals()
        environment = submitit.JobEnvironment()
        join(environment)
        first = environment.global_rank == 0
        takes_notes = first and environment.cluster != "slurm"
        notes = Notes(self.attempts, environment.job_id, self.gpus) if takes_notes else None
        with notes or contextlib.nullcontext():
            if not self._finished(environment, signals):
                leave(environment, signals)

    def _finished(self, environment: Any, signals: "Signals") -> bool:
        """Train; True if the encoder is there, False if training was stopped and saved."""
        out = self.state / "encoder.safetensors"
        if out.exists():  # the job was requeued during its last steps
            return True
        if self.visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible

        import torch

        from ijepa import distributed, train
        from ijepa.cluster.staging import staged
        from ijepa.config import read_run

        torch.set_num_threads(self.threads)
        try:
            with distributed.joined() as world:
                data = self.data
                if self.stage is not None:
                    data = staged(data, self.stage, world.local_rank == 0, distributed.wait)
                train.train(read_run(self.run), data, self.state, out, world, signals.stop)
        except train.Stopped as stopped:
            print(f"{stopped}", file=sys.stderr, flush=True)
            return False
        except RuntimeError as error:
            if environment.num_tasks == 1 or not distributed.lost_another(error):
                raise
            # The lost process, or its node, shows the cause. The first process that ends with an
            # error decides the job's state, and so whether Slurm requeues it: let that be the lost
            # one.
            print(f"another process of this job is gone: {error}", file=sys.stderr, flush=True)
            if environment.cluster == "slurm":
                time.sleep(SECONDS_FOR_THE_CAUSE)
            raise
        return True


class Signals:
    """Record of the signals that ask for an end; it replaces submitit's handlers."""

    def __init__(self) -> None:
        self.requeue = self.end = False
        signal.signal(signal.SIGUSR2, self._note)
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            self.requeue = True
        else:
            self.end = True

    def stop(self) -> bool:
        """True if this process was asked to end."""
        return self.requeue or self.end


def join(environment: Any) -> None:
    """Set torchrun's variables: the place of this process, and the address of the first one."""
    os.environ |= {
        "RANK": str(environment.global_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_RANK": str(environment.local_rank),
    }
    if environment.num_tasks > 1:
        first = environment.hostnames[0]
        on_slurm = environment.cluster == "slurm"
        os.environ["MASTER_ADDR"] = slurm.address(first) if on_slurm else "127.0.0.1"
        # The port is the same on every node, differs from job to job, and is not one of those that
        # Linux gives to outgoing connections.
        port = random.Random(environment.job_id).randint(10_000, 32_000)
        os.environ["MASTER_PORT"] = str(port)


def leave(environment: Any, signals: Signals) -> None:
    """End a job whose state is saved: requeue it after SIGUSR2, and wait for its end on Slurm."""
    if environment.cluster != "slurm":
        if signals.requeue and not signals.end:
            environment._requeue(0)
        sys.exit(128 + signal.SIGTERM)
    # An exit status would make the job FAILED, which Slurm does not requeue: so wait to be ended.
    # The requeue is repeated, because the signal may reach this process after another one, and
    # because the controller may not answer at once.
    while True:
        if signals.requeue and not signals.end and environment.global_rank == 0:
            with contextlib.suppress(subprocess.SubprocessError, OSError):  # no scontrol here
                environment._requeue(0)
        time.sleep(5)


class Notes:
    """Note of the time at which a process began and of its last sign of life, for GPU-hours.

    A thread rewrites the note every few seconds, because a process may be killed. On Slurm the
    job's script does so, from before Python starts until after it has ended (``note_job.sh``).
    """

    def __init__(self, folder: Path, job: str, gpus: int) -> None:
        number = sum(1 for _ in folder.glob(f"{job}-*.json"))
        self.path = folder / f"{job}-{number}.json"
        self.record = {
            "job": job,
            "host": socket.gethostname(),
            "gpus": gpus,
            "begun": psutil.Process().create_time(),
        }
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_error: object) -> None:
        self.over.set()
        self.thread.join()

    def _write(self) -> None:
        over = False
        while not over:
            over = self.over.wait(SECONDS_BETWEEN_NOTES)
            write_json(self.path, self.record | {"ended": time.time()})
