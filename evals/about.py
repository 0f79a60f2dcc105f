"""Reader of about.json, the provenance of an encoder's features of a data set."""

from pathlib import Path
from typing import Any

from ijepa.files import check_format, read_json

FORMAT = 1
"""Layout of about.json, in its key ``format``."""


def read_about(path: Path) -> dict[str, Any]:
    """Encoder, run, data set and its version, and the process that extracted the features."""
    return check_format(read_json(path), FORMAT, path)
