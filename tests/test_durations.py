"""The tests' own time, by what was recorded last (make durations): no clock is read here."""

import importlib

from tests import durations

BUDGET = 6 * 60
"""Seconds that ``make test`` may take."""
WORKERS = 2
LONG = 5.0
"""Seconds, beyond which a test says why."""


def docstring(test: str) -> str:
    """A test's docstring; ``test`` is its id in pytest."""
    path, name = test.split("[")[0].split("::")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    return str(getattr(module, name, None).__doc__ or "")


def test_the_default_tier_fits_into_six_minutes() -> None:
    recorded = [row for row in durations.read() if row.tier == "default"]
    total = sum(row.seconds for row in recorded)
    slowest = "\n".join(f"{row.seconds:6.1f} s  {row.test}" for row in recorded[:10])
    assert total <= BUDGET * WORKERS, f"make one faster or give it a tier (DESIGN.md):\n{slowest}"


def test_a_test_of_more_than_five_seconds_says_why() -> None:
    silent = [
        f"{row.test}: {row.seconds} s. Make it faster, move it to another tier, or say in its "
        "docstring why it takes so long. If it is faster or gone already: make durations"
        for row in durations.read()
        if row.seconds > LONG and "::" in row.test and "5 s" not in docstring(row.test)
    ]
    assert not silent, "\n".join(silent)
