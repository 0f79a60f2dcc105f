"""The register of data sets, ``data/datasets.yaml``, as typed entries."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ijepa.data.bands import RGB
from ijepa.errors import UserError
from ijepa.files import ROOT, read_yaml

REGISTER = Path(os.environ.get("IJEPA_REGISTER", ROOT / "data" / "datasets.yaml"))


Checksum = Annotated[
    str,
    Field(pattern="^(md5|sha1|sha224|sha256|sha384|sha512):[0-9a-fA-F]+$"),
    AfterValidator(str.lower),
]
"""Algorithm and hexadecimal digest, in small letters as hashlib writes it."""


def has_training(splits: dict[str, int | None]) -> dict[str, int | None]:
    """Return the splits unchanged; raises ValueError if there are no training images."""
    if "train" not in splits:
        raise ValueError("train is missing: every data set has training images; null if unknown")
    return splits


class Entry(BaseModel):
    """Part of the register in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Resize(Entry):
    """Size of stored images, if smaller: short side in pixels (bicubic), and JPEG quality."""

    short_side: int = Field(ge=1)
    quality: int = Field(default=95, ge=1, le=100)


class Dataset(Entry):
    """One entry: the origin of a data set, and the facts that it must fulfil.

    ``splits`` are ``train`` and ``test`` (the one that the papers evaluate on, whatever its
    official name), each with its number of images, or null if that is not known beforehand.
    ``labels`` gives for each kind of label its classes, their number, or null (the raw files decide
    then); it is empty for images without labels. ``view`` makes a whole image the square that an
    encoder sees: its centre, or all of it squashed. ``channels`` and ``bits`` (a channel) other
    than 3 and 8 must be those of every file; with these, files are converted to RGB. 16 bits are
    scaled linearly, 0 to 65535 to floats from 0 to 255 (ijepa.data.bands). ``options`` belong to
    the source.
    """

    name: str
    source: str
    title: str
    citation: str
    licence: str
    image_size: int
    splits: Annotated[dict[Literal["train", "test"], int | None], AfterValidator(has_training)]
    labels: dict[str, list[str] | int | None] = {}
    view: Literal["centre", "squash"] = "centre"
    channels: int = Field(default=3, ge=1)
    bits: Literal[8, 16] = 8
    shard_size: int = Field(default=5000, ge=1)
    resize: Resize | None = None
    max_corrupt: float = Field(default=0.0, ge=0, le=1)
    origins: list[dict[str, str]] = []
    checksums: dict[str, Checksum] = {}
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _unresized(self) -> "Dataset":
        if self.resize is not None and not self.rgb:
            raise ValueError(
                "resize stores JPEGs of three channels and 8 bits: leave it out, or leave channels "
                "and bits out"
            )
        return self

    @property
    def rgb(self) -> bool:
        """True for three channels of 8 bits, to which files are then converted."""
        return (self.channels, self.bits) == RGB

    def num_classes(self, label: str) -> int | None:
        """Number of classes of a kind of label; None if the register does not give it."""
        classes = self.labels.get(label)
        return len(classes) if isinstance(classes, list) else classes


def names() -> list[str]:
    """Names of all data sets of the register, sorted."""
    return sorted(_read())


def load_dataset(name: str) -> Dataset:
    """Entry of a data set; raises UserError with the known names for any other."""
    entries = _read()
    if name not in entries:
        raise UserError(
            f"unknown dataset {name!r}: {REGISTER.name} has {', '.join(sorted(entries))}"
        )
    try:
        return Dataset.model_validate({"name": name, **entries[name]})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (given: {e['input']!r})"
            for e in error.errors()
        )
        raise UserError(f"{REGISTER}: {name}: {faults}") from None


def _read() -> dict[str, Any]:
    """Entries by name, not to be changed: a register that stays the same is parsed once."""
    return _parsed(REGISTER, REGISTER.read_bytes() if REGISTER.is_file() else b"")


@lru_cache(maxsize=1)
def _parsed(path: Path, _content: bytes) -> dict[str, Any]:
    entries: dict[str, Any] = read_yaml(path)
    if not isinstance(entries, dict):
        raise UserError(f"{REGISTER} must hold a data set's name and keys for each")
    for name, entry in entries.items():
        if not isinstance(name, str):
            raise UserError(f"{REGISTER}: {name!r} is no text: quote it, or rename the data set")
        if not isinstance(entry, dict):
            raise UserError(f"{REGISTER}: {name}: {entry!r} must be keys and values")
    return entries
