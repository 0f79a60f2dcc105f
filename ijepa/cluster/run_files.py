"""Files of one run: its folder, the record of its jobs, and what is delivered at the end."""

import hashlib
import os
import shutil
import socket
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ijepa.cluster.slurm import Request
from ijepa.encoder_file import EPOCHS
from ijepa.errors import UserError
from ijepa.files import read_json, read_yaml, write_json, written_whole
from ijepa.identity import MEMO, run_identity, start_digest

PARTS = ("vit", "recipe", "start")
"""Keys of a run that hold keys and values themselves."""


@dataclass(frozen=True)
class Launch:
    """One run, the paths of its files, and the resources that its job requests.

    Args:
        run: YAML file of the run.
        data: Folder of shards.
        work: Folder for checkpoints and for the launcher's records, on a disk that all nodes see.
        out: File for the encoder; ``train.jsonl`` and ``job.json`` come beside it.
        cluster: ``slurm``, ``local`` or ``debug``.
        request: Resources of a Slurm job; other clusters use only its ``gpus``.
        threads: Threads of each process, without Slurm.
        stage: Folder on the nodes' own disks to which the shards are copied first.
        setup: Shell command that each node runs before the job.
        poll: Seconds between queries to Slurm.
    """

    run: Path
    data: Path
    work: Path
    out: Path
    cluster: str = "local"
    request: Request = field(default_factory=Request)
    threads: int = 1
    stage: Path | None = None
    setup: str | None = None
    poll: float = 10.0

    @cached_property
    def name(self) -> str:
        """Hash of the run's identity (ijepa.identity) and of exactly these shards, as a name.

        It is computed once, so later changes of the files do not change it. The token cache that a
        recipe names is part of it, because the tokenizer's settings are not in the run.

        The training names its folder in ``state`` by another hash of the same run, and the two
        cannot be one. A launcher has the run as the config spells it: to fill in the defaults it
        would import every method, and torch, on the login node. The training has every value. One
        name for both would also change the names of folders and of queued jobs.
        """
        hashed_files = [self.data / "index.json"]
        if tokenizer := (self._config.get("recipe") or {}).get("tokenizer"):
            hashed_files.append(self.data / "tokens" / f"{tokenizer}.json")
        for path in hashed_files:
            if not path.exists():
                raise UserError(f"{path} does not exist: make it first")
        identity = run_identity(self._config).encode()
        text = b"".join([identity, *(path.read_bytes() for path in hashed_files)])
        if start := self._config.get("start"):
            text += start_digest(start["from"], self.work / MEMO).encode()
        return f"ijepa-{hashlib.sha256(text).hexdigest()[:12]}"

    @cached_property
    def _config(self) -> dict[str, Any]:
        if not self.run.exists():
            raise UserError(f"{self.run} does not exist: make it first")
        content: dict[str, Any] = read_yaml(self.run) or {}
        parts = [content.get(key) or {} for key in PARTS] if isinstance(content, dict) else [None]
        if not all(isinstance(part, dict) for part in parts):
            raise UserError(f"{self.run} must hold keys and values, as a run of config/mini.yaml")
        if content.get("start") and "from" not in content["start"]:
            raise UserError(f"{self.run}: start.from is missing: it names the weights")
        return content

    @property
    def mark(self) -> str:
        """Comment that identifies this run's job in Slurm's queue.

        It holds a hash of the folder, because in another folder the run has another job.
        """
        return f"{self.name} {hashlib.sha256(bytes(self.state.resolve())).hexdigest()[:12]}"

    @property
    def state(self) -> Path:
        """Folder of this run: checkpoints, job, notes. It outlives job and launcher."""
        return self.work / self.name

    @property
    def encoder(self) -> Path:
        """Path of a finished job's encoder; ``out`` becomes a second name of that file."""
        return self.state / "encoder.safetensors"

    @property
    def attempts(self) -> Path:
        """Folder of notes of the times at which each start of the run's jobs began and ended."""
        return self.state / "attempts"

    @property
    def record(self) -> Path:
        """Path of ``job.json``: ids and hosts of the run's jobs, and the time of each start."""
        return self.out.with_name("job.json")


def submitted_jobs(launch: Launch) -> list[dict[str, str]]:
    """Records of the jobs that were submitted for this run, in order."""
    path = launch.state / "jobs.json"
    return read_json(path) if path.exists() else []


def note(launch: Launch, cluster: str, number: str) -> None:
    """Record a job of this run, unless it is recorded already."""
    records = submitted_jobs(launch)
    if (cluster, number) not in [(record["cluster"], record["number"]) for record in records]:
        record = {"cluster": cluster, "number": number, "host": socket.gethostname()}
        write_json(launch.state / "jobs.json", [*records, record])


def progress(launch: Launch) -> list[int]:
    """Times of the run's checkpoints, which change with every checkpoint that is written."""
    return [path.stat().st_mtime_ns for path in launch.state.glob("*/checkpoint.pt")]


def deliver(launch: Launch) -> None:
    """Put encoder and log into their place, and write the record of the run's jobs beside them.

    They stay in the run's folder too, as links to the same bytes if the disk has links. Snakemake
    deletes an output if it was killed before it had noted it; the next launch brings it again.
    """
    attempts = [read_json(path) for path in launch.attempts.glob("*.json")]
    record = {
        "name": launch.name,
        "request": asdict(launch.request),
        "jobs": submitted_jobs(launch),
        "attempts": sorted(attempts, key=lambda attempt: float(attempt["begun"])),
    }
    made = {name: launch.state / name for name in ("train.jsonl", "run.yaml")}
    for name in ("masks.json", "whole.safetensors", "optimiser.pt"):
        if (path := launch.state / name).exists():
            made[name] = path
    for path in (launch.state / EPOCHS).glob("*.safetensors"):
        made[f"{EPOCHS}/{path.name}"] = path
    for name, path in [*made.items(), (launch.out.name, launch.encoder)]:
        target = launch.out.parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as part:
            try:
                os.link(path, part)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, part)
    write_json(launch.record, record)
