"""Result of an evaluation as a JSON file: its format, and its one reader."""

from pathlib import Path
from typing import Any

from ijepa.files import check_format, read_json

FORMAT = 1
"""Layout of a result's JSON file, in its key ``format``."""


def read_result(path: Path) -> dict[str, Any]:
    """Content of a result's JSON file (evals.run.evaluate); raises UserError for a damaged one."""
    return check_format(read_json(path), FORMAT, path)
