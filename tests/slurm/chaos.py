"""Jobs killed at random for a while on a real Slurm: ``python -m tests.slurm.chaos --help``.

Two pretrainings and their evaluations run twice: once undisturbed, and once while jobs are killed,
requeued and cancelled and nodes are lost. It prints the number of each disturbance, and ends with
an error unless encoders and results are equal, no run was worked on twice at a time, and GPU-hours
are what the controller counted. It is no everyday test: it takes half an hour, and its disturbances
are drawn at random.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
import yaml
from safetensors.torch import load_file

from tests.slurm import actions
from tests.slurm.actions import CLUSTER, ROOT, lose_a_node, start, starts

RUNS = {"ijepa": 8, "mae": 4}
"""Their GPUs. The second is the shorter one: its evaluations are disturbed too."""

EVALUATIONS = ["knn", "feature_statistics"]


def workflow(folder: Path, data: Path, epochs: float) -> list[str]:
    """The command that a user would type, by the real profile, edited for this cluster."""
    mini = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())
    runs = [run for run in mini["runs"] if run["name"] in RUNS]
    for run in runs:
        length = epochs if run["name"] == "ijepa" else epochs / 3
        run["recipe"]["optim"] |= {"batch_size": 64, "epochs": length, "warmup_epochs": 0.1}
        run |= {"gpus": RUNS[run["name"]], "checkpoint_every": 50, "precision": "float32"}
    config = {
        "name": "chaos",
        "dataset": "cifar10",
        "vit": {**mini["vit"], "dim": 64, "depth": 2},
        "seeds": [0],
        "runs": runs,
        "images": {"cifar10": {"train": 1000, "test": 500}},
        "evaluations": [{"name": name} for name in EVALUATIONS],
        "tables": [{"name": "t", "title": "T", "evaluations": EVALUATIONS, "runs": [*RUNS]}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        (folder / "data").symlink_to(data)
    pretrain = {"runtime": 6, "gpus_per_node": 4, "save_seconds": 30, "poll_seconds": 2}
    return actions.workflow(folder, config, minutes=10, pretrain=pretrain)


def running() -> list[str]:
    """Ids of the running jobs of all rules."""
    return [row[0] for row in actions.slurm_rows("squeue", "-h", "-t", "R", "-o", "%A")]


def ranks() -> list[psutil.Process]:
    """The processes that train."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "name"])
        if "submitit.core._submit" in " ".join(process.info["cmdline"] or [])
    ]


class Chaos:
    """One disturbance after another of the workflow in ``folder``."""

    def __init__(self, folder: Path, command: list[str], random: random.Random) -> None:
        self.folder, self.command, self.random = folder, command, random
        self.done: collections.Counter[str] = collections.Counter()
        self.snakemake = self.begin()

    def begin(self) -> "subprocess.Popen[bytes]":
        return start(self.command, self.folder / "log")

    def for_a_job(self, *command: str) -> bool:
        jobs = running()
        if jobs:
            subprocess.run([*command, self.random.choice(jobs)], check=False)
        return bool(jobs)

    def kill_snakemake(self) -> bool:
        os.killpg(self.snakemake.pid, signal.SIGKILL)
        self.snakemake.wait()
        return True

    def interrupt_snakemake(self) -> bool:
        os.killpg(self.snakemake.pid, signal.SIGINT)
        self.snakemake.wait()
        return True

    def kill_one_launcher(self) -> bool:
        launchers = [
            process
            for process in psutil.process_iter(["cmdline"])
            if "ijepa.cluster.launch" in (process.info["cmdline"] or [])
            and "--work" in process.cmdline()
        ]
        if launchers:
            self.random.choice(launchers).kill()
        return bool(launchers)

    def kill_one_rank(self) -> bool:
        processes = ranks()
        if processes:
            self.random.choice(processes).kill()
        return bool(processes)

    def requeue(self) -> bool:
        return self.for_a_job("scontrol", "requeue")

    def warn(self) -> bool:
        return self.for_a_job("scancel", "--signal=USR2")

    def cancel(self) -> bool:
        return self.for_a_job("scancel")

    def pull_a_plug(self) -> bool:
        lose_a_node(f"a100-{self.random.randrange(4)}")
        time.sleep(self.random.uniform(2, 20))
        subprocess.run([CLUSTER, "up"], check=True, capture_output=True)
        return True

    def go_on(self, minutes: float, pause: float) -> None:
        """Disturb for ``minutes``, at most ``pause`` seconds apart; restart an ended Snakemake."""
        until = time.monotonic() + 60 * minutes
        acts: list[Callable[[], bool]] = [
            self.kill_snakemake, self.interrupt_snakemake, self.kill_one_launcher,
            self.kill_one_rank, self.requeue, self.warn, self.cancel, self.pull_a_plug,
        ]  # fmt: skip
        while time.monotonic() < until:
            time.sleep(self.random.uniform(2, pause))
            if self.snakemake.poll() is not None:
                self.snakemake = self.begin()
            act = self.random.choice(acts)
            if act():
                self.done[act.__name__] += 1
                print(time.strftime("%T"), act.__name__, flush=True)
            time.sleep(1)
            if self.snakemake.poll() is not None:
                self.snakemake = self.begin()

    def finish(self, seconds: float) -> None:
        """Wait until all is done; restart a Snakemake that an earlier disturbance has ended."""
        until = time.monotonic() + seconds
        while (code := self.snakemake.poll()) != 0 and time.monotonic() < until:
            if code is not None:
                self.done["started again in peace"] += 1
                self.snakemake = self.begin()
            time.sleep(2)
        assert self.snakemake.poll() == 0, (self.folder / "log").read_text()[-3000:]


def judge(calm: Path, rough: Path) -> list[str]:
    """Faults of the outcome, a line each."""
    faults = []
    table = pd.read_csv(rough / "results/chaos/tables/gpu_hours.csv")
    values = [
        {
            path.relative_to(folder): json.loads(path.read_text())["value"]
            for path in folder.glob("results/chaos/evaluations/*/*/*.json")
        }
        for folder in (calm, rough)
    ]
    if values[0] != values[1] or not values[0]:
        faults.append(f"evaluations differ: {values}")
    for run in RUNS:
        run_folder = f"results/chaos/runs/{run}/seed0"
        ends = [load_file(folder / run_folder / "encoder.safetensors") for folder in (calm, rough)]
        if any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0]):
            faults.append(f"{run}: the encoders differ")
        record: dict[str, Any] = json.loads((rough / run_folder / "job.json").read_text())
        numbers = [job["number"] for job in record["jobs"]]
        rows = pd.concat([starts(number) for number in numbers])
        rows = rows[rows["ElapsedRaw"].astype(int) > 0].sort_values("Start")
        spans = list(zip(rows["Start"].astype(int), rows["End"].astype(int), strict=True))
        if any(end > begin for (_, end), (begin, _) in pairwise(spans)):
            faults.append(f"{run}: two starts at the same time: {spans}")
        notes = sorted((note["begun"], note["ended"]) for note in record["attempts"])
        if any(end > begin + 1 for (_, end), (begin, _) in pairwise(notes)):
            faults.append(f"{run}: two attempts at the same time: {notes}")
        counted = rows["ElapsedRaw"].astype(int).sum() * RUNS[run] / 3600
        ours = table[(table.run == run) & (table.rule == "pretrain")].set_index("source").gpu_hours
        print(f"{run}: {len(numbers)} jobs, {len(rows)} starts, GPU-hours: table {ours.to_dict()}, "
              f"controller {counted:.4f}", flush=True)  # fmt: skip
        if abs(ours["slurm"] - counted) > 1e-3:
            faults.append(f"{run}: the table's {ours['slurm']} are not {counted} GPU-hours")
    hours = table.groupby(["rule", "source"]).gpu_hours.sum().unstack()
    in_all = actions.gpu_hours(rough)
    print(f"{hours}\ncontroller, all jobs of the folder: {in_all:.4f}", flush=True)
    if abs(hours["slurm"].sum() - in_all) > 0.001 * in_all:
        faults.append(f"all jobs took {in_all} GPU-hours, the table has {hours['slurm'].sum()}")
    return faults


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.chaos", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data/ with CIFAR-10's shards")
    parser.add_argument("--minutes", type=float, default=15, help="how long (15)")
    parser.add_argument("--pause", type=float, default=30, help="seconds between two, at most (30)")
    parser.add_argument("--epochs", type=float, default=0.7, help="length of the runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where; a temporary one by default")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    # Short: a socket's path has at most 108 characters.
    lab = tempfile.mkdtemp(prefix="lab-")
    os.environ |= {
        "SLURMLAB_DIR": lab, "SLURMLAB_NODES": "4", "SLURMLAB_GPUS": "4",
        "SLURM_CONF": f"{lab}/etc/slurm.conf", "PATH": f"{lab}/bin:{os.environ['PATH']}",
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    subprocess.run([CLUSTER, "up"], check=True)
    try:
        for name in ("calm", "rough"):
            command = workflow(folder / name, options.data.resolve(), options.epochs)
            begun = time.monotonic()
            chaos = Chaos(folder / name, command, random.Random(options.seed))
            if name == "rough":
                chaos.go_on(options.minutes, options.pause)
            chaos.finish(3600)
            print(f"{name}: {time.monotonic() - begun:.0f} s, {dict(chaos.done)}", flush=True)
        faults = judge(folder / "calm", folder / "rough")
    finally:
        subprocess.run([CLUSTER, "purge"], check=True, capture_output=True)
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
