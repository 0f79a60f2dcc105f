"""Reproduce a whole config: ``python -m workflow.reproduce config/mini.yaml``.

Runs Snakemake with a profile, and shows on two screens what happens: an estimate of the time, a
line for each finished job, one bar with the time that is left, and the last lines of the log of a
job that fails. Snakemake's own text goes to ``logs/snakemake.log``. At the end it shows the
results, and how they compare with those that git has for the same config. After a kill, the same
command goes on.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ijepa.cores import usable_cores
from ijepa.errors import UserError, program, run_command
from ijepa.files import ROOT, writable
from workflow.plan import session
from workflow.plan.benchmark import read_files
from workflow.plan.grid import Grid

LOG = Path("logs/snakemake.log")
LINES_OF_LOG = 12
HIDDEN = {"all"}
"""Rules that make nothing and are not shown."""
PATIENCE = 600
"""Seconds for a Snakemake to end whose command was killed: its running jobs are finished first."""
PARENT_DIED = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


@dataclass
class Job:
    """A job of Snakemake's plan that has begun."""

    rule: str
    wildcards: dict[str, str]
    log: str
    begun: float

    @property
    def key(self) -> tuple[str, ...]:
        """Name of the job in the estimate: its rule and wildcards."""
        return (self.rule, *self.wildcards.values())

    @property
    def title(self) -> str:
        """Name of the job in a line of text."""
        return " ".join(self.key)


@dataclass
class View:
    """Progress of a run, and the screen that shows it.

    ``expected`` has the seconds of each job by its key; it is empty until the estimate is made.
    """

    console: Console
    progress: Progress
    at_once: int
    expected: dict[tuple[str, ...], float] = field(default_factory=dict)
    running: dict[int, Job] = field(default_factory=dict)
    finished: list[tuple[Job, float]] = field(default_factory=list)
    failed: list[Job] = field(default_factory=list)
    total: int = 0
    begun: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.bar = self.progress.add_task("starting", total=None, left="")

    def take(self, event: dict[str, Any]) -> None:
        """Record one event, and print a line if a job has ended by it."""
        kind = event["event"]
        if kind == "run_info" and not self.total:
            self.total = sum(
                count
                for rule, count in event.get("stats", {}).items()
                if rule not in HIDDEN and rule != "total"
            )
        elif kind == "job_info" and event["rule_name"] not in HIDDEN:
            logs = event.get("log") or []
            job = Job(
                event["rule_name"],
                {key: str(value) for key, value in (event.get("wildcards") or {}).items()},
                logs[0].split(" (")[0] if logs else "",
                event["time"],
            )
            self.running[event["jobid"]] = job
        elif kind == "job_finished" and event["job_id"] in self.running:
            job = self.running.pop(event["job_id"])
            seconds = event["time"] - job.begun
            self.finished.append((job, seconds))
            line = f"{clock(event['time'] - self.begun):>7}  {job.title:<44} {clock(seconds):>5}"
            self.say(f"{line}{kept_in(Path(job.log))}")
        elif kind == "job_error" and event["jobid"] in self.running:
            job = self.running.pop(event["jobid"])
            self.failed.append(job)
            self.say(f"[red]failed[/]  {job.title}: the end of {job.log}")
            for line in last_lines(Path(job.log)):
                self.console.print(f"        {line}", markup=False, highlight=False)

    def say(self, line: str) -> None:
        """Print a line above the bar; without a terminal and its bar, the line has the progress."""
        if not self.console.is_terminal:
            line += f"   {len(self.finished)}/{self.total}, {self.left()}"
        self.console.print(line, highlight=False)

    def tick(self) -> None:
        """Move the bar by expected seconds; until these are known, by jobs."""
        names = ", ".join(job.title for job in self.running.values())
        self.progress.update(
            self.bar,
            description=f"{len(self.finished)}/{self.total or '?'}",
            total=self.whole() if self.total else None,
            completed=self.done(),
            left=f"{self.left()}   {names}"[: max(20, self.console.width - 50)],
        )

    def of(self, job: Job) -> float:
        """Seconds that a job is expected to take."""
        return self.expected.get(job.key, 1.0)

    def done(self) -> float:
        """Expected seconds of the finished jobs, and seconds of the running ones so far."""
        now = time.time()
        running = (min(now - job.begun, 0.95 * self.of(job)) for job in self.running.values())
        return sum(self.of(job) for job, _ in self.finished) + sum(running)

    def whole(self) -> float:
        """Expected seconds of the whole plan; jobs that have not begun count by their mean."""
        begun = [*(job for job, _ in self.finished), *self.running.values()]
        named = {job.key for job in begun}
        rest = [value for key, value in self.expected.items() if key not in named]
        missing = max(0, self.total - len(begun))
        mean = sum(sorted(rest)[-missing:]) / len(rest[:missing]) if rest and missing else 1.0
        return sum(map(self.of, begun)) + missing * mean

    def left(self) -> str:
        """Time that is left, in words, corrected by how long the finished jobs took."""
        if not self.expected or not self.total:
            return "time left: not known yet"
        expected = sum(self.of(job) for job, _ in self.finished)
        took = sum(seconds for _, seconds in self.finished)
        pace = (took + 30) / (expected + 30)  # the first jobs say little
        rest = max(0.0, self.whole() - self.done())
        return f"about {clock(rest * pace / self.at_once)} left"


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def last_lines(path: Path) -> list[str]:
    """Last lines of a job's log; a bar is shown as it stood last."""
    if not path.is_file():
        return ["(it has none)"]
    # Read as bytes: in text mode the carriage return that redraws a bar would end a line.
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = [line.split("\r")[-1].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-LINES_OF_LOG:]


def kept_in(log: Path) -> str:
    """Names of results that a group's job kept as they were, from its log (evals.run); or ""."""
    if not log.is_file():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.partition(":")[0] for line in lines if line.endswith(": there already")]
    return f"  (kept: {', '.join(names)})" if names else ""


def end_with_parent() -> None:
    """Make Snakemake end when this command is killed, because nobody would see it go on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGTERM)


def check_cache() -> None:
    """Raise UserError if Snakemake cannot write its cache, which it does before it reads a plan."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    try:
        writable(cache / "snakemake")
    except UserError as error:
        raise UserError(f"{error} (HOME, or XDG_CACHE_HOME, says where it is)") from None


def snakemake(configs: list[Path], profile: str, more: list[str]) -> list[str]:
    """Command that makes everything that a config asks for."""
    options = ["--configfile", *map(str, configs)]
    command = [sys.executable, "-m", "snakemake", *more, "--profile", profile]
    return [*command, "--logger", "events", *options]


def reproduce(configs: list[Path], profile: str, more: list[str]) -> int:
    """Make everything that the configs ask for; returns Snakemake's exit status."""
    config, benchmark = read_files(configs)
    cores = usable_cores()
    grid = Grid(benchmark, cores)
    console = Console(stderr=False, soft_wrap=True)
    local = "slurm" not in Path(profile).name
    check_cache()
    with session.hold(PATIENCE):
        pass
    LOG.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"{grid.name}: planning   (Snakemake's own text: {LOG})", highlight=False)
    console.print(grid.grouped(), highlight=False)

    with (
        tempfile.TemporaryDirectory() as folder,
        LOG.open("w", encoding="utf-8") as log,
        ExitStack() as at_the_end,
    ):
        events = Path(folder) / "events.jsonl"
        events.touch()
        both = Path(folder) / "config.json"  # JSON is YAML
        both.write_text(json.dumps(config), encoding="utf-8")
        paths = [str(ROOT), str(ROOT / "workflow" / "show")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "IJEPA_EVENTS": str(events)}

        def begin_estimate() -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "workflow.plan.estimate", str(both), "--json"]
            process = subprocess.Popen(
                command, env=env, text=True, stdout=subprocess.PIPE, stderr=log
            )
            at_the_end.callback(process.wait)
            at_the_end.callback(process.kill)  # the run has ended, so nobody needs it
            return process

        making = subprocess.Popen(
            snakemake(configs, profile, more),
            env=env,
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent,
        )
        columns = (
            TextColumn("{task.description}"),
            BarColumn(30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            view = View(console, progress, max(1, cores // grid.threads) if local else 1)
            follow(making, begin_estimate if local else None, events, view)
    if not making.returncode and not view.total:
        console.print("Nothing to be done: all results of this config are there.")
    elif making.returncode:
        tell_of_failure(console, view)
    return making.returncode


def follow(
    making: subprocess.Popen[bytes],
    begin_estimate: Callable[[], subprocess.Popen[str]] | None,
    events: Path,
    view: View,
) -> None:
    """Show events until Snakemake has ended. Ctrl-C reaches Snakemake too, which ends its jobs.

    The time is estimated once there is something to do: the estimate takes ten seconds of a core.
    """
    estimating = None
    with events.open(encoding="utf-8") as file:
        while True:
            try:
                over = making.poll() is not None
                for line in file:
                    view.take(json.loads(line))
                if view.total and begin_estimate:
                    estimating, begin_estimate = begin_estimate(), None
                if estimating is not None and estimating.poll() is not None:
                    show_estimate(estimating, view)
                    estimating = None
                view.tick()
                if over:
                    return
                time.sleep(0.3)
            except KeyboardInterrupt:
                view.console.print("ending: jobs save what they have")


def show_estimate(estimating: subprocess.Popen[str], view: View) -> None:
    """Print how long the whole config takes on this machine."""
    out = estimating.stdout.read() if estimating.stdout else ""
    if estimating.returncode:
        view.console.print(f"no estimate of the time: see {LOG}")
        return
    estimate = json.loads(out)
    view.expected = {tuple(key): seconds for key, seconds in estimate["jobs"]}
    view.console.print(
        f"about {estimate['wall'] / 60:.1f} minutes from scratch on this machine "
        f"({view.at_once} jobs at a time, {estimate['speed'] / 1e9:.0f} GFLOP/s each); it keeps "
        f"{estimate['bytes'] / 1e9:.2g} GB of encoders and networks",
        highlight=False,
    )


def tell_of_failure(console: Console, view: View) -> None:
    """Print why the run failed; if no job began, the end of Snakemake's own text."""
    if not view.failed:
        for line in last_lines(LOG):
            console.print(line, markup=False, highlight=False)
    console.print(
        f"[red]not finished[/]: {len(view.finished)} of {view.total or '?'} jobs are done. "
        "Mend what is named above; the same command goes on from here.",
        highlight=False,
    )


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("workflow.reproduce"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Words after -- go to Snakemake as they are.",
    )
    parser.add_argument("configs", type=Path, nargs="+", help="config/mini.yaml, and what differs")
    parser.add_argument("--profile", default="workflow/profiles/local")
    given, more = sys.argv[1:], []
    if "--" in given:
        given, more = given[: given.index("--")], given[given.index("--") + 1 :]
    options = parser.parse_args(given)
    status = reproduce(options.configs, options.profile, more)
    if status:
        sys.exit(status)
    from evals.report.reference import show  # imported here: pandas takes a second

    _, benchmark = read_files(options.configs)
    grid = Grid(benchmark)
    show(Path(grid.results), grid.report_plan)


if __name__ == "__main__":
    run_command(main)
