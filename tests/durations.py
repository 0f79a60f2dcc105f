"""Write tests/durations.csv: the seconds of each tier's slow tests, and of the others together."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

FILE = Path(__file__).with_suffix(".csv")
TIERS = ("browser", "processes", "slurm", "versions")
"""Marks of tests that ``make test`` leaves to other targets."""
SLOW = 1.0
"""Seconds, beyond which a test has a line of its own."""


class Duration(NamedTuple):
    """A line of the file."""

    tier: str
    test: str
    seconds: float


def tier(item: pytest.Item) -> str:
    """A test's tier, by its mark."""
    return next((name for name in TIERS if item.get_closest_marker(name)), "default")


def read() -> list[Duration]:
    """Durations that were recorded last."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return [Duration(tier, test, float(seconds)) for tier, test, seconds in rows]


class Recorder:
    """Adds up each test's setup, call and teardown."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the duration of one of the three."""
        named = dict(report.user_properties)
        self.seconds[str(named.get("tier", "default")), report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        rows = []
        for tier in sorted({tier for tier, _ in self.seconds}):
            of_tier = {test: s for (name, test), s in self.seconds.items() if name == tier}
            slow = sorted((s, test) for test, s in of_tier.items() if s > SLOW)[::-1]
            others = [s for s in of_tier.values() if s <= SLOW]
            rows += [(tier, test, f"{s:.1f}") for s, test in slow]
            rows.append((tier, f"the other {len(others)}", f"{sum(others):.1f}"))
        with FILE.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([Duration._fields, *rows])
