"""Write environment.yml with the pins of requirements.lock, for conda users and clusters."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def environment(lock: str) -> str:
    """The conda environment that installs exactly the pins of a lock file."""
    pins = [line for line in lock.splitlines() if line and not line.lstrip().startswith("#")]
    content = {
        "name": "ijepa-bench",
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": ["python=3.11", "pip", "make", {"pip": pins}],
    }
    header = "# Written by make lock from requirements.lock: the same pins.\n"
    return header + str(yaml.safe_dump(content, sort_keys=False, width=200))


if __name__ == "__main__":
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    (ROOT / "environment.yml").write_text(environment(lock), encoding="utf-8")
