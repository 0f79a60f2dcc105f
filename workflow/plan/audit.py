"""Whether results on disk are those that a config asks for, by what they say of themselves.

Snakemake decides by times and by its own records what must be made again. Where these are lost or
wrong, it takes an old result for a new one, and DVC would note it under the new parameters. Nothing
here looks at times or records: an encoder's header has its run, a result has its protocol and the
hash of its encoder, an index has the hash of its shards.
"""

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from evals.identity import identity_in, identity_of
from evals.protocol import configure
from ijepa.data.shards import read_index
from ijepa.encoder_file import encoder_digest, read_header
from ijepa.errors import UserError
from ijepa.files import read_json


def check(expected: dict[str, Any]) -> None:
    """Raise UserError that names every result which the config would not give.

    ``expected`` has ``encoders``, ``features`` and ``evaluations``, each of them what should be
    true by path, the ``folders`` in which nothing else may lie, and the names of the only files in
    ``tables``, by folder (workflow/rules/version.smk).
    """
    faults = [
        *_wrong_encoders(expected.get("encoders", {})),
        *_wrong_features(expected.get("features", {})),
        *_wrong_evaluations(expected.get("evaluations", {})),
        *_left_over(expected),
    ]
    if faults:
        listed = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if faults[8:] else "")
        raise UserError(
            f"{len(faults)} results are not what the config asks for: {listed}. Delete them and "
            "run again; nothing was versioned"
        )


def _wrong_encoders(expected: dict[str, Any]) -> Iterator[str]:
    # Not at the top: timm takes seconds, and a table's provenance needs none of it.
    from ijepa import config

    for path, raw in expected.items():
        header = read_header(Path(path))
        run = dataclasses.asdict(config.parse_run(raw, path))
        yield from _differences(path, _plain(run), header["run"])
        data = f"data/shards/{run['dataset']}"
        facts = {"data_version": _version(data)}
        # They are made where they are needed: whoever only pulls has none.
        tokens = Path(data, "tokens", f"{run['recipe'].get('tokenizer')}.json")
        if tokens.exists():
            facts["tokens_sha256"] = read_json(tokens)["sha256"]
        yield from _differences(path, facts, header["facts"])


def _wrong_features(expected: dict[str, Any]) -> Iterator[str]:
    for path, asked in expected.items():
        about = read_json(Path(path))
        wanted = {
            "data_version": _version(asked["data"]),
            "encoder": encoder_hash(asked["encoder"]),
        }
        yield from _differences(path, wanted, about)
        for split, shards in read_index(Path(asked["data"])).splits.items():
            note = read_json(Path(path).with_name(f"{split}.part.json"))
            have = sum(shard["num_samples"] for shard in shards)
            count = {f"{split} images": asked["images"].get(split, have)}
            yield from _differences(path, count, {f"{split} images": note["rows"]})


def _wrong_evaluations(expected: dict[str, Any]) -> Iterator[str]:
    for path, asked in expected.items():
        protocol = configure(asked["name"], asked["config"], path)
        about = {
            "data_version": _version(asked["data"]),
            "encoder": encoder_hash(asked["encoder"]),
        }
        wanted = identity_of(asked["name"], protocol, asked["label"], asked["images"], about)
        yield from _differences(path, wanted, identity_in(read_json(Path(path))))


def _left_over(expected: dict[str, Any]) -> Iterator[str]:
    """Runs, seeds and tables that lie there and are not the config's any more."""
    for folder in map(Path, expected["folders"]):
        asked = {
            Path(path).relative_to(folder).parts[:2]
            for part in ("encoders", "features", "evaluations")
            for path in expected.get(part, {})
            if Path(path).is_relative_to(folder)
        }
        for path in sorted(folder.glob("*/seed*")):
            if path.relative_to(folder).parts not in asked:
                yield f"{path} is of an earlier config"
    for tables, names in expected.get("tables", {}).items():
        for path in sorted(Path(tables).iterdir()):
            if path.stem not in names:
                yield f"{path} is of an earlier config"


def _differences(path: str, wanted: dict[str, Any], have: dict[str, Any]) -> Iterator[str]:
    for key, value in wanted.items():
        found = have.get(key)
        if isinstance(value, dict) and isinstance(found, dict):
            for inner in sorted(value.keys() | found.keys()):
                if value.get(inner) != found.get(inner):
                    yield f"{path} has {key}.{inner} {found.get(inner)!r}, not {value.get(inner)!r}"
        elif value != found:
            yield f"{path} has {key} {found!r}, not {value!r}"


def _plain(value: Any) -> Any:
    """As it is after a way through JSON."""
    return json.loads(json.dumps(value))


@cache
def _version(data: str) -> str:
    return read_index(Path(data)).version()


@cache
def encoder_hash(encoder: str | None) -> str:
    """Digest by which results name an encoder's file, read once: it may have gigabytes."""
    return encoder_digest(None if encoder is None else Path(encoder))
