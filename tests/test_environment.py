"""requirements.lock, environment.yml and pyproject.toml say the same."""

import re
import tomllib
from pathlib import Path

from workflow.scripts.conda_environment import environment

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()


def test_the_conda_environment_has_the_pins_of_the_lock() -> None:
    assert (ROOT / "environment.yml").read_text() == environment(LOCK), "run make lock"


def test_the_lock_pins_everything_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["dev"]
    pinned = set(re.findall(r"^([\w.-]+)==", LOCK, re.MULTILINE))
    assert {re.split(r"[><=]", name)[0] for name in requirements} <= pinned


def test_the_lock_names_no_index() -> None:
    assert "://" not in LOCK
    assert "--" not in LOCK
