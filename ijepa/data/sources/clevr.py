"""CLEVR in its official folders, with VTAB's two labels: number and distance of objects.

Johnson et al., "CLEVR: A Diagnostic Dataset for Compositional Language and Elementary Visual
Reasoning", CVPR 2017; Zhai et al., "A Large-scale Study of Representation Learning with the Visual
Task Adaptation Benchmark", 2019. The official test split has no scenes, so validation is the test.

``raw`` holds the official archive, or its content: ``CLEVR_v1.0/images/{train,val}`` and
``CLEVR_v1.0/scenes/CLEVR_{train,val}_scenes.json``. If ``options`` has ``generate``, with the keys
of ``ijepa.data.clevr.generate.Settings``, such files are made here instead.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ijepa.data.archives import folder_entries, unpack
from ijepa.data.clevr.format import OFFICIAL_SPLITS, image_folder, labels, scenes_file
from ijepa.data.register import Dataset
from ijepa.data.source import Entry
from ijepa.errors import UserError
from ijepa.strict import strict

ARCHIVE = "CLEVR_v1.0.zip"
HOME = "https://cs.stanford.edu/people/jcjohns/clevr/"

CHUNK = 1 << 20
"""Characters read at a time; a scene has some ten thousand."""


def missing(dataset: Dataset, raw: Path) -> list[str]:
    """Archive, if neither it nor the unpacked folders are there; nothing if generated."""
    if "generate" in dataset.options or (raw / ARCHIVE).exists():
        return []
    paths = [f(raw, split) for split in dataset.splits for f in (image_folder, scenes_file)]
    missing_paths = [str(path) for path in paths if not path.exists()]
    if not missing_paths:
        return []
    return [f"{raw / ARCHIVE} (18 GB, from {HOME}), or unpacked: {', '.join(missing_paths)}"]


def fetch(dataset: Dataset, raw: Path) -> None:
    """Generate the data set, or unpack the official archive if it is there.

    Either continues after an interruption. Raises UserError for an archive with another checksum,
    for one that is damaged, and for missing files.
    """
    if unknown := dataset.options.keys() - {"generate"}:
        raise UserError(f"{dataset.name}.options has {min(unknown)!r}: only 'generate' is known")
    if "generate" in dataset.options:
        _generate(dataset, raw)
    elif missing_files := missing(dataset, raw):
        raise UserError(f"{dataset.title} is missing: bring {'; '.join(missing_files)}")
    elif (raw / ARCHIVE).exists():
        unpack(raw / ARCHIVE, raw, dataset.checksums.get(ARCHIVE))


def entries(dataset: Dataset, raw: Path, split: str) -> Iterator[Entry]:
    """Images of a split by their official numbers, with labels ``count`` and ``distance``.

    Raises UserError if scenes and images do not match one by one, and for scenes without labels.
    """
    path, folder = scenes_file(raw, split), image_folder(raw, split)
    for needed in (path, folder):
        if not needed.exists():
            raise UserError(f"{needed} is missing: fetch {dataset.title} first")
    images = {path.name for path in folder_entries(folder)}
    table: dict[str, dict[str, int]] = {}
    for number, scene in enumerate(_scenes(path)):
        where = f"{path}: scene {number}"
        if not isinstance(scene, dict):
            raise UserError(f"{where} is {scene!r}, no scene: fetch it again")
        name = scene.get("image_filename")
        if scene.get("split") != OFFICIAL_SPLITS[split]:
            raise UserError(
                f"{where} is of split {scene.get('split')!r}, not {OFFICIAL_SPLITS[split]!r}: "
                "put the right file in its place"
            )
        if name not in images:
            raise UserError(f"{where}: its image {name!r} is not in {folder}: fetch it again")
        if name in table:
            raise UserError(f"{where}: an earlier scene has its image {name!r} too: fetch it again")
        try:
            table[name] = labels(scene)
        except ValueError as error:
            raise UserError(f"{where} ({name}): {error}: fetch the scenes again") from None
    if unlisted := images - table.keys():
        raise UserError(
            f"{path} has no scene for {folder / min(unlisted)} (and {len(unlisted) - 1} others): "
            "remove these images, or fetch the scenes again"
        )
    if not table:
        raise UserError(f"{path} has no scenes: fetch it again")
    for name in sorted(table):
        yield Entry(folder / name, 0, None, name, table[name])


def encode(dataset: Dataset, content: bytes) -> bytes:
    """Bytes unchanged: CLEVR's images are PNG files."""
    return content


def _scenes(path: Path) -> Iterator[dict[str, Any]]:
    """Scenes of a file one by one: parsed as a whole, the official file takes several GB."""
    decoder = json.JSONDecoder()
    number = 0
    # A byte that is no UTF-8 is replaced; the check of its name or number then refuses the scene.
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(CHUNK)
        begin = re.search(r'"scenes"\s*:\s*\[', text)
        if begin is None:
            raise UserError(f"{path} has no list of scenes: fetch it again")
        position = begin.end()
        while True:
            separator = re.compile(r"[\s,]*").match(text, position)
            assert separator is not None
            position = separator.end()
            if text.startswith("]", position):
                return
            try:
                scene, end = decoder.raw_decode(text, position)
            except json.JSONDecodeError:
                more = file.read(CHUNK) if len(text) - position < CHUNK else ""
                if not more:
                    raise UserError(
                        f"{path} is damaged or cut off in scene {number}: fetch it again"
                    ) from None
                text, position = text[position:] + more, 0
                continue
            yield scene
            number, position = number + 1, end


def _generate(dataset: Dataset, raw: Path) -> None:
    # Not at the top: numba takes a second to import, and reading scenes does not need it.
    from ijepa.data.clevr import generate

    where = f"{dataset.name}.options.generate"
    generate.generate(strict(generate.Settings, dataset.options["generate"], where), raw)
