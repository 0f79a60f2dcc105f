"""One pretraining as a job: what runs on the nodes that ``ijepa.cluster.launch`` has asked for.

Slurm says beforehand that a job is to end: SIGUSR2 before its time limit and where it is preempted,
SIGTERM where it is cancelled (or preempted on a cluster that sends nothing else). After either the
processes finish the step they are in, and the first one writes a checkpoint. After SIGUSR2 it then
puts the job back into the queue. After SIGTERM it waits for the end: of a cancelled job there is
none but that, and a preempted one Slurm itself puts back.
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
"""How long Slurm may take to notice that a node is gone (SlurmdTimeout), with room to spare."""
SECONDS_BETWEEN_NOTES = 2.0
"""How much of its time a killed job may not have noted."""


@dataclass(frozen=True)
class Pretraining:
    """The function that submitit calls in each process; it is pickled, so it holds plain data.

    Args:
        run: YAML file of the run.
        data: Folder of shards.
        state: Folder for checkpoints and for the finished encoder.
        attempts: Folder for the notes of the time used, where there is no Slurm.
        threads: Of each process on the CPU.
        gpus: In all; for the notes.
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
        """Train, from the last checkpoint on, until the encoder is there or a signal says stop."""
        with in_one_line():
            self._train()

    def _train(self) -> None:
        asked = Signals()
        environment = submitit.JobEnvironment()
        join(environment)
        first = environment.global_rank == 0
        ours = first and environment.cluster != "slurm"
        notes = Notes(self.attempts, environment.job_id, self.gpus) if ours else None
        with notes or contextlib.nullcontext():
            if not self._finished(environment, asked):
                leave(environment, asked)

    def _finished(self, environment: Any, asked: "Signals") -> bool:
        """Whether the encoder is there; else its state is saved."""
        out = self.state / "encoder.safetensors"
        if out.exists():  # the job was put back into the queue on its last steps
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
                train.train(read_run(self.run), data, self.state, out, world, asked.stop)
        except train.Stopped as stopped:
            print(f"{stopped}", file=sys.stderr, flush=True)
            return False
        except RuntimeError as error:
            if environment.num_tasks == 1 or not distributed.lost_another(error):
                raise
            # It, or its node, tells why: the first to end with an error decides what is said of
            # the job, and whether Slurm starts it again.
            print(f"another process of this job is gone: {error}", file=sys.stderr, flush=True)
            if environment.cluster == "slurm":
                time.sleep(SECONDS_FOR_THE_CAUSE)
            raise
        return True


class Signals:
    """Notes the signals that ask for an end, instead of ending; submitit's handlers give way."""

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
        """Whether this process was asked to end."""
        return self.requeue or self.end


def join(environment: Any) -> None:
    """Say in torchrun's variables which process this is, and where the first one is."""
    os.environ |= {
        "RANK": str(environment.global_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_RANK": str(environment.local_rank),
    }
    if environment.num_tasks > 1:
        first = environment.hostnames[0]
        slurms = environment.cluster == "slurm"
        os.environ["MASTER_ADDR"] = slurm.address(first) if slurms else "127.0.0.1"
        # The same on every node, another one for every job, none that Linux gives to a caller.
        port = random.Random(environment.job_id).randint(10_000, 32_000)
        os.environ["MASTER_PORT"] = str(port)


def leave(environment: Any, asked: Signals) -> None:
    """End a job whose state is saved, as its end was asked for."""
    if environment.cluster != "slurm":
        if asked.requeue and not asked.end:
            environment._requeue(0)
        sys.exit(128 + signal.SIGTERM)
    # An exit code would make it a failed job, which Slurm does not start again. The signal may come
    # to this process after it came to another, and the controller may not answer at once.
    while True:
        if asked.requeue and not asked.end and environment.global_rank == 0:
            with contextlib.suppress(subprocess.SubprocessError):
                environment._requeue(0)
        time.sleep(5)


class Notes:
    """Writes when the process began and until when it has lived, for GPU-hours.

    A thread writes it now and again: a process may be killed. On Slurm the job's script does so,
    from before Python starts until after it has ended (``note_job.sh``).
    """

    def __init__(self, folder: Path, job: str, gpus: int) -> None:
        number = sum(1 for _ in folder.glob(f"{job}-*.json"))
        self.path = folder / f"{job}-{number}.json"
        self.told = {
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
            write_json(self.path, self.told | {"ended": time.time()})
