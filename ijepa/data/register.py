"""The register of data sets, ``data/datasets.yaml``, as typed entries."""

import os
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from ijepa.errors import UserError

ROOT = Path(__file__).parents[2]
REGISTER = Path(os.environ.get("IJEPA_REGISTER", ROOT / "data" / "datasets.yaml"))


class Dataset(BaseModel):
    """One entry: where a data set comes from and what must be true of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    title: str
    citation: str
    licence: str
    image_size: int
    classes: list[str]
    splits: dict[str, int]
    shard_size: int
    origins: list[dict[str, str]]
    sha1: dict[str, str]


def load(name: str) -> Dataset:
    """The entry of a data set; raises UserError with the known names for any other."""
    entries = yaml.safe_load(REGISTER.read_text(encoding="utf-8"))
    if name not in entries:
        raise UserError(
            f"unknown dataset {name!r}: {REGISTER.name} has {', '.join(sorted(entries))}"
        )
    return Dataset.model_validate(entries[name])
