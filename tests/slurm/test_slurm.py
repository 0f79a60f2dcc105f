"""Tests on a real Slurm: disturbed jobs end as undisturbed ones, and none runs twice.

``make test-slurm``. The tests are in the order in which they use the cluster.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from evals.report.gpu_hours import tabulate
from ijepa.checkpoint import load_encoder
from ijepa.cluster import slurm
from tests.conftest import raw_run_of, wait_until
from tests.slurm import actions
from tests.slurm.actions import CLUSTER, ROOT, live, lose_a_node, start, starts

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

LAUNCH = [
    *(sys.executable, "-m", "ijepa.cluster.launch"),
    *("--cluster", "slurm", "--partition", "gpu", "--account", "lab", "--poll", "1"),
    *("--gpus", "4", "--gpus-per-node", "2", "--cpus-per-gpu", "1", "--gb-per-gpu", "2"),
]

ONE_GPU = ["--gpus", "1", "--gpus-per-node", "1"]
"""For tests that need no second process: each of Slurm's imports torch, which takes seconds."""


def long_run(steps: int) -> dict[str, Any]:
    """A run of I-JEPA that takes a while; it saves by itself only now and then."""
    raw = raw_run_of("ijepa")
    raw["recipe"]["optim"]["epochs"] = steps * raw["recipe"]["optim"]["batch_size"] / 128
    return {**raw, "log_every": 10, "monitor_every": 50, "checkpoint_every": 25}


def launch(raw: dict[str, Any], data: Path, folder: Path) -> list[str]:
    """Command that pretrains in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(raw))
    files = {"data": data, "work": folder / "work", "out": folder / "out" / "encoder.safetensors"}
    options = [word for key, path in files.items() for word in (f"--{key}", str(path))]
    return [*LAUNCH, str(folder / "run.yaml"), *options, "--minutes", "2", "--save-seconds", "20"]


def saved(folder: Path) -> int:
    """Last step in the run's log."""
    paths = list(folder.glob("work/*/*/train.jsonl"))
    lines = paths[0].read_text().splitlines() if paths else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def test_a_run_that_is_disturbed_in_every_way_ends_as_an_undisturbed_one(
    data: Path, tmp_path: Path
) -> None:
    """The run is requeued, loses its launcher, is preempted and loses a node; then it finishes.

    One process on each node: another test has two. It is started six times.
    """
    raw, sparse = long_run(steps=120), ["--gpus", "2", "--gpus-per-node", "1"]
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    command = [*launch(raw, data, calm), *sparse]
    assert start(command, calm / "log").wait(300) == 0, (calm / "log").read_text()

    command = [*launch(raw, data, rough), *sparse]
    launcher = start(command, rough / "log")
    (job,) = wait_until(lambda: saved(rough) and live())
    requeue = ["scancel", "--signal=USR2", job]
    subprocess.run(requeue, check=True)
    wait_until(lambda: len(starts(job)) == 2)

    before = saved(rough)
    wait_until(lambda: saved(rough) > before)
    launcher.kill()
    # A job that is not the launcher's takes the nodes, because its partition is more urgent.
    urgent = ["sbatch", "-p", "urgent", "-A", "lab", "-N2", "--gpus-per-node=2", "-t1"]
    subprocess.run([*urgent, "--mem=100", "-o", "/dev/null", "--wrap", "sleep 2"], check=True)
    wait_until(lambda: len(starts(job)) == 3)

    launcher = start(command, rough / "log")
    wait_until(lambda: f"job {job} works on this run" in (rough / "log").read_text())
    before = saved(rough)
    wait_until(lambda: saved(rough) > before)
    lose_a_node("a100-1")
    wait_until(lambda: slurm.state(job).name in {"PENDING", "FAILED"})
    subprocess.run([CLUSTER, "up"], check=True, capture_output=True)
    assert launcher.wait(300) == 0, (rough / "log").read_text()

    ends = [load_encoder(folder / "out" / "encoder.safetensors")[0] for folder in (calm, rough)]
    for ours, theirs in zip(*(end.state_dict().values() for end in ends), strict=True):
        assert torch.equal(ours, theirs)
    record = json.loads((rough / "out" / "job.json").read_text())
    assert record["jobs"][0]["number"] == job
    assert len(record["attempts"]) >= 4
    spans = [(attempt["begun"], attempt["ended"]) for attempt in record["attempts"]]
    assert all(end <= begin + 1 for (_, end), (begin, _) in pairwise(spans))


def test_ctrl_c_ends_the_job_and_the_next_start_goes_on_from_what_it_saved(
    data: Path, tmp_path: Path
) -> None:
    command = [*launch(long_run(steps=400), data, tmp_path), *ONE_GPU]
    launcher = start(command, tmp_path / "log")
    wait_until(lambda: saved(tmp_path))
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(60) == 130
    wait_until(lambda: not live())
    assert "stopped after step" in logs(tmp_path)

    launcher = start(command, tmp_path / "log")
    (job,) = wait_until(live)
    wait_until(lambda: re.search(r"pretrain ijepa: +[1-9]", logs(tmp_path, job)))
    os.killpg(launcher.pid, signal.SIGTERM)
    assert launcher.wait(60) == 143
    wait_until(lambda: not live())


def logs(folder: Path, job: str = "*") -> str:
    """Logs of the first processes of a run's jobs."""
    return "".join(path.read_text() for path in folder.glob(f"work/*/submitit/{job}_0_log.err"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--partition", "nope"], "slurm_partition: 'nope' is unknown here; there are gpu, urgent"),
        (["--account", "nope"], "slurm_account: 'nope' is none of yours; you have lab"),
        (["--gpus-per-node", "4"], "gpus_per_node: 4 is more than a node of partition gpu has"),
        (["--gpus", "6"], "gpus: 6 take 3 nodes of 2, partition gpu has 2"),
        (["--gpus", "3"], "gpus is 3: with 2 on a node they do not fill 2 nodes evenly"),
        (["--minutes", "3"], "runtime is 3 minutes, and save_seconds 120"),
        (
            ["--gb-per-gpu", "900"],
            r"gb_per_gpu \(of other rules: mem_mb\): 2 on a node take 1843200 MB of memory, a node",
        ),
        (
            ["--cpus-per-gpu", "20"],
            r"cpus_per_gpu \(of other rules: threads\): 2 on a node take 40 CPUs, a node",
        ),
    ],
)
def test_a_request_that_the_cluster_can_never_run_is_refused_at_once(
    options: list[str], message: str
) -> None:
    done = subprocess.run([*LAUNCH, "--check", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(f"error: {message}", done.stderr), done.stderr
    assert not live()


def test_a_job_that_fails_says_why_and_a_node_without_the_environment_too(
    data: Path, tmp_path: Path
) -> None:
    raw = raw_run_of("ijepa")
    raw["recipe"]["optim"] |= {"batch_size": 31, "accumulate": 2}
    failing = start([*launch(raw, data, tmp_path / "batch"), *ONE_GPU], tmp_path / "batch.log")
    bare = [*launch(raw_run_of("mae"), data, tmp_path / "bare"), *ONE_GPU, "--setup", "exit 127"]
    without = start(bare, tmp_path / "bare.log")
    assert (failing.wait(90), without.wait(90)) == (1, 1)
    assert "batch_size is 31: it must be a multiple of 2" in (tmp_path / "batch.log").read_text()
    assert "ended as FAILED" in (tmp_path / "bare.log").read_text()


def test_jobs_of_a_killed_snakemake_are_ended_and_their_files_stay(
    tmp_path: Path,
) -> None:
    """A rule's job is a Snakemake too: told to end, it deletes what it has written."""
    written = tmp_path / "written"
    script = f"trap 'rm -f {written}; exit' TERM; touch {written}; sleep 100 & wait"
    job = ["sbatch", "-A", "lab", "-D", str(tmp_path), "--comment=rule_evaluate", "-o", "/dev/null"]
    for wrap in (script, f"srun bash -c {shlex.quote(script)} || rm -f {written}"):
        for more in ([], ["--begin=now+1hour"]):
            subprocess.run([*job, *more, "--wrap", wrap], check=True)
        wait_until(written.exists)
        subprocess.run(
            [sys.executable, "-m", "ijepa.cluster.slurm", tmp_path], cwd=ROOT, check=True
        )
        assert not live()
        assert written.exists()
        written.unlink()


def test_a_job_that_was_submitted_twice_runs_once_at_a_time(tmp_path: Path) -> None:
    """Slurm took the first although its answer was lost; the second ends the first, then begins."""
    wait = shlex.join(["touch", f"{tmp_path}/first"]) + "; sleep 100"
    end = f"cd {ROOT} && {sys.executable} -m ijepa.cluster.slurm {tmp_path} --again && "
    look = f"squeue -h -o '%A %k' > {tmp_path}/seen"
    job = ["sbatch", "--parsable", "-A", "lab", "-D", str(tmp_path), "-o", "/dev/null"]

    def submit(comment: str, script: str) -> str:
        command = [*job, f"--comment={comment}", "--mem=200", "--wrap", script]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    other = submit("rule_evaluate_wildcards_mae_1_knn", "sleep 100")
    submit("rule_evaluate_wildcards_mae_0_knn", wait)
    wait_until((tmp_path / "first").exists)
    again = submit("rule_evaluate_wildcards_mae_0_knn", end + look)
    seen = wait_until(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_text())
    assert sorted(line.split()[0] for line in seen.splitlines()) == [other, again]
    subprocess.run(["scancel", other], check=True)
    wait_until(lambda: not live())


@pytest.fixture
def workflow(tiny: Path, tmp_path: Path) -> list[str]:
    """Mini's first run on four GPUs and an evaluation, by the real profile, edited as by a user.

    It stops at the tables: the plugin would see a minute late that a report's job has ended. All
    other waits are short: this cluster answers at once.
    """
    mini = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())
    run = mini["runs"][0]
    run["recipe"]["optim"] |= {"batch_size": 16, "epochs": 20, "warmup_epochs": 1}
    run["recipe"]["masking"] = {"group_size": 16}
    config = {
        "name": "slurm",
        "dataset": "tiny",
        "vit": {**mini["vit"], "dim": 64, "depth": 2},
        "seeds": [0],
        "raw": {"tiny": str(tiny / "raw")},
        "runs": [{**run, "gpus": 4, "checkpoint_every": 50, "precision": "float32"}],
        "evaluations": [{"name": "knn"}],
        "tables": [
            {"name": "table", "title": "A table", "evaluations": ["knn"], "runs": ["ijepa"]}
        ],
    }
    pretrain = {"runtime": 4, "gpus_per_node": 2, "save_seconds": 20, "poll_seconds": 1}
    return actions.workflow(
        tmp_path,
        config,
        minutes=5,
        pretrain=pretrain,
        targets=[f"results/slurm/tables/{name}.md" for name in ("table", "gpu_hours")],
        retries=1,
        **{
            "latency-wait": 5,
            "slurm-init-seconds-before-status-checks": 5,
            "seconds-between-status-checks": 2,
        },
    )


def test_a_rule_that_the_cluster_can_never_run_is_refused_before_the_first_job(
    workflow: list[str], tmp_path: Path
) -> None:
    profile = tmp_path / "profile/config.yaml"
    edited = yaml.safe_load(profile.read_text())
    edited["set-resources"]["evaluate_features"]["slurm_partition"] = "nope"
    profile.write_text(yaml.safe_dump(edited))
    assert start(workflow, tmp_path / "log").wait(400) == 1
    message = "slurm_partition: 'nope' is unknown here; there are gpu, urgent"
    assert f"of evaluate_features: error: {message}" in (tmp_path / "log").read_text()
    assert not live()


def test_the_workflow_goes_on_after_snakemake_was_killed_and_counts_gpu_hours(
    workflow: list[str], tmp_path: Path
) -> None:
    snakemake = start(workflow, tmp_path / "log")
    wait_until(lambda: list(tmp_path.glob("work/slurm/ijepa/*/*/*/train.jsonl")), 180)
    os.killpg(snakemake.pid, signal.SIGKILL)
    queue = actions.slurm_rows("squeue", "-h", "-o", "%A|%j|%y")
    ((pretraining, nice),) = ((job, y) for job, name, y in queue if name.startswith("ijepa-"))
    assert nice == "7"  # from the profile's slurm_extra

    assert start(workflow, tmp_path / "log").wait(400) == 0, (tmp_path / "log").read_text()
    record = json.loads((tmp_path / "results/slurm/runs/ijepa/seed0/job.json").read_text())
    assert [job["number"] for job in record["jobs"]] == [pretraining]
    table = pd.read_csv(tmp_path / "results/slurm/tables/gpu_hours.csv")
    hours = table.groupby(["rule", "source"]).gpu_hours.sum().unstack()
    on_gpus = {"pretrain", "evaluate_features"}
    assert set(hours.index) == on_gpus | {"build_shards"}
    assert (hours.loc[sorted(on_gpus), "slurm"] > 0).all()
    # Accounting counts whole seconds of a GPU, and each rule here is one job of a few seconds.
    agree = pytest.approx(hours["slurm"].tolist(), rel=0.05, abs=1 / 3600)
    assert hours["log"].tolist() == agree
    assert hours["log"].sum() == pytest.approx(hours["slurm"].sum(), rel=0.05)
    assert hours["slurm"].sum() == pytest.approx(actions.gpu_hours(tmp_path), abs=1e-5)
    again = subprocess.run([*workflow, "-n"], cwd=ROOT, capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout + again.stderr

    # A job that fails shows its log here, and is tried again with more memory.
    (tmp_path / "results/slurm/features/ijepa/seed0/tiny/train.npy").write_bytes(b"nothing")
    for made in ("evaluations/ijepa/seed0/knn.json", "tables/table.md", "tables/gpu_hours.md"):
        (tmp_path / "results/slurm" / made).unlink()
    assert start(workflow, tmp_path / "failing").wait(400) == 1
    shown = (tmp_path / "failing").read_text()
    assert "Logfile logs/results/slurm/evaluate_features/ijepa-0-tiny.log" in shown
    assert "Trying to restart job" in shown
    rows = actions.slurm_rows("sacct", "-X", "-n", "-P", "-o", "ReqMem,State")
    assert [memory for memory, state in rows if state == "FAILED"][-2:] == ["2500M", "5000M"]
    # Both tries are in the table, although they have made nothing.
    table = tabulate(tmp_path / "results/slurm", tmp_path / "work/slurm/jobs")
    retried = table[table["item"] == "ijepa_0_tiny"].set_index("source")
    assert retried.starts.tolist() == [3, 3]
    counted = table[table.source == "slurm"].gpu_hours.sum()
    assert counted == pytest.approx(actions.gpu_hours(tmp_path), abs=1e-5)
