"""Comparison of results on disk with a config: ``python -m workflow.plan.audit tables CONFIG``.

Snakemake decides by modification times and by its own records what must be made again. If these are
lost or wrong, it takes an old result for a new one, and DVC would record it under the new
parameters. Nothing here looks at times or records: an encoder's header has its run, a result has
its protocol and the hash of its encoder, an index has the hash of its shards.
"""

import argparse
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from evals.about import read_about
from evals.identity import identity_in, identity_of
from evals.pooling import resolved
from evals.protocol import configure
from ijepa.data.shards import read_index
from ijepa.encoder_file import encoder_digest, read_header
from ijepa.errors import UserError, program, run_command
from ijepa.files import read_json
from ijepa.identity import learned, start_digest
from ijepa.result_file import read_result
from workflow.plan.benchmark import read_files
from workflow.plan.grid import Grid


def check(expected: dict[str, Any]) -> None:
    """Raise UserError that names every result which the config would not give.

    In ``expected``, the ``encoders``, ``features`` and ``evaluations`` have, by path, the values
    that each file should record. Nothing else may lie in its ``folders``. Its ``tables`` have, by
    folder, the names of the only files there.
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


def expected_encoders(grid: Grid) -> dict[str, Any]:
    """Encoders of a config, each with the run that its file should have."""
    return {
        "encoders": {
            grid.encoder(run, seed): grid.runs[run].config(seed) for run, seed in grid.trained
        },
        "folders": [f"{grid.results}/runs"],
    }


def expected_tables(grid: Grid) -> dict[str, Any]:
    """Features, results and tables of a config, with what each file should say of itself."""
    features, evaluations = {}, {}
    for cell in grid.cells:
        item = grid.evaluations[cell.evaluation]
        made_from = {
            "data": grid.shards(item.dataset),
            "images": grid.limit(item.dataset),
            "encoder": grid.encoder(cell.run, cell.seed),
        }
        if grid.uses(cell.run, cell.evaluation) != "images":
            features[grid.features(cell.run, cell.seed, item.dataset)] = made_from
        settings = {
            "name": item.evaluation,
            "label": item.label,
            "config": item.settings(cell.run),
        }
        evaluations[grid.result(cell)] = {**made_from, **settings}
    return {
        "features": features,
        "evaluations": evaluations,
        "folders": [f"{grid.results}/features", f"{grid.results}/evaluations"],
        "tables": {f"{grid.results}/tables": [*grid.tables, "gpu_hours", "cost", "tidy"]},
    }


def _wrong_encoders(expected: dict[str, Any]) -> Iterator[str]:
    # Imported here: timm takes seconds to import, and the stage tables does not need it.
    from ijepa import config

    for path, raw in expected.items():
        header = read_header(Path(path))
        run = config.as_plain(config.parse_run(raw, path))
        wanted = {"start": None, **learned(run)}  # a file that began from weights says so
        yield from _differences(path, wanted, learned(header["run"]))
        data = Grid.shards(run["dataset"])
        facts = {"data_version": _version(data)}
        # A clone that only pulled results has neither tokens nor published weights.
        tokens = Path(data, "tokens", f"{run['recipe'].get('tokenizer')}.json")
        if tokens.exists():
            facts["tokens_sha256"] = read_json(tokens)["sha256"]
        weights = run.get("start", {}).get("from")
        if weights and Path(weights).exists():
            facts["start_sha256"] = start_digest(weights)
        yield from _differences(path, facts, header["facts"])


def _wrong_features(expected: dict[str, Any]) -> Iterator[str]:
    for path, entry in expected.items():
        about = read_about(Path(path))
        wanted = {
            "data_version": _version(entry["data"]),
            "encoder": encoder_hash(entry["encoder"]),
        }
        yield from _differences(path, wanted, about)
        for split, shards in read_index(Path(entry["data"])).splits.items():
            note = read_json(Path(path).with_name(f"{split}.part.json"))
            num_images = sum(shard["num_samples"] for shard in shards)
            count = {f"{split} images": entry["images"].get(split, num_images)}
            yield from _differences(path, count, {f"{split} images": note["rows"]})


def _wrong_evaluations(expected: dict[str, Any]) -> Iterator[str]:
    for path, entry in expected.items():
        encoder = entry["encoder"]
        header = {} if encoder is None else read_header(Path(encoder))
        protocol = resolved(configure(entry["name"], entry["config"], path), header, path)
        about = {
            "data_version": _version(entry["data"]),
            "encoder": encoder_hash(entry["encoder"]),
        }
        wanted = identity_of(entry["name"], protocol, entry["label"], entry["images"], about)
        yield from _differences(path, wanted, identity_in(read_result(Path(path))))


def _left_over(expected: dict[str, Any]) -> Iterator[str]:
    """A line for every run, seed and table on disk that the config no longer has."""
    for folder in map(Path, expected["folders"]):
        seeds = {
            Path(path).relative_to(folder).parts[:2]
            for part in ("encoders", "features", "evaluations")
            for path in expected.get(part, {})
            if Path(path).is_relative_to(folder)
        }
        for path in sorted(folder.glob("*/seed*")):
            if path.relative_to(folder).parts not in seeds:
                yield f"{path} is of an earlier config"
        # Results of an evaluation, or features of a data set, that the config has no more.
        files = {*expected.get("features", {}), *expected.get("evaluations", {})}
        if not any(Path(file).is_relative_to(folder) for file in files):
            continue
        for path in sorted([*folder.glob("*/seed*/*.json"), *folder.glob("*/seed*/*/about.json")]):
            if path.relative_to(folder).parts[:2] in seeds and str(path) not in files:
                yield f"{path} is of an earlier config"
    for tables, names in expected.get("tables", {}).items():
        for path in sorted(Path(tables).iterdir()):
            if path.stem not in names:
                yield f"{path} is of an earlier config"


def _differences(path: str, wanted: dict[str, Any], recorded: dict[str, Any]) -> Iterator[str]:
    for key, value in wanted.items():
        has = recorded.get(key)
        if isinstance(value, dict) and isinstance(has, dict):
            for inner in sorted(value.keys() | has.keys()):
                if value.get(inner) != has.get(inner):
                    yield f"{path} has {key}.{inner} {has.get(inner)!r}, not {value.get(inner)!r}"
        elif value != has:
            yield f"{path} has {key} {has!r}, not {value!r}"


@cache
def _version(data: str) -> str:
    return read_index(Path(data)).version()


@cache
def encoder_hash(encoder: str | None) -> str:
    """Digest by which results name an encoder's file, read once: it may have gigabytes."""
    return encoder_digest(None if encoder is None else Path(encoder))


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog=program("workflow.plan.audit"), description=__doc__)
    parser.add_argument("stage", choices=["encoders", "tables"])
    parser.add_argument("config", type=Path, nargs="+", help="one file, or several to be merged")
    options = parser.parse_args()
    _, benchmark = read_files(options.config)
    expected = {"encoders": expected_encoders, "tables": expected_tables}[options.stage]
    check(expected(Grid(benchmark)))


if __name__ == "__main__":
    run_command(main)
