"""Plan, tables and schema of a config: ``python -m workflow.plan show|tables|schema CONFIG``."""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ijepa.errors import UserError, program, run_command
from workflow.plan.benchmark import Benchmark, read_files, schema
from workflow.plan.grid import Grid


def show_benchmark(benchmark: Benchmark) -> Iterator[str]:
    """Runs, evaluations and tables of a config, a line each."""
    grid = Grid(benchmark)
    yield f"{benchmark.name}: seeds {', '.join(map(str, benchmark.seeds))}"
    yield "runs (show CONFIG RUN: every value of one)"
    for run in benchmark.runs:
        yield f"  {run.name}: {run.method} on {run.dataset}, {run.gpus} GPU"
    for weights in benchmark.released:
        yield f"  {weights.name}: published weights, {weights.licence}"
    yield "evaluations"
    for item in benchmark.evaluations:
        uses = f"{item.evaluation} of {item.label} on {item.dataset}, uses {item.uses}"
        yield f"  {item.name}: {uses}"
    yield "tables"
    for table in benchmark.tables:
        yield f"  {table.name}: {', '.join(table.evaluations)}"
    yield f"{len(grid.trained)} pretrainings, {len(grid.cells)} results"
    if not grid.trained:
        return
    # Not at the top: torch takes seconds, and the lines above need none of it.
    from ijepa.cost.disk import in_words
    from workflow.plan.estimate import disk_of_runs, kept_bytes

    yield "kept on disk, of each seed (keep: of a run changes it)"
    for name, disk in disk_of_runs(grid).items():
        yield f"  {name}: {disk}"
    yield f"  {in_words(kept_bytes(grid))} in all"


def show_run(benchmark: Benchmark, name: str) -> Iterator[str]:
    """A run as YAML with every default filled in; a comment has the preset's value if it differs.

    Raises UserError for an unknown name.
    """
    runs = Grid(benchmark).runs
    if name not in runs:
        raise UserError(f"{name!r} is no run of {benchmark.name}: it has {', '.join(runs)}")
    # Not at the top: torch takes seconds, and the other commands need none of it.
    from ijepa.config import as_plain, parse_run
    from ijepa.cost.disk import disk

    given = runs[name].config(benchmark.seeds[0])
    preset = {key: given["recipe"][key] for key in ["preset"] if key in given.get("recipe", {})}
    size = {key: given["vit"][key] for key in ["size"] if key in given.get("vit", {})}
    # With this config's size of network or image, the published recipe may not pass its checks.
    published = parse_run(
        {**given, "recipe": preset, "vit": given.get("vit", {})}, name, checked=False
    )
    defaults = as_plain(published)
    defaults["vit"] = as_plain(parse_run({**given, "recipe": preset, "vit": size}, name, False))[
        "vit"
    ]
    source = f"preset {preset['preset']}" if preset else "the published recipe"
    yield f"# {name} of {benchmark.name}; a comment has the value of {source} where it is another"
    run = parse_run(given, name)
    yield f"# kept on disk, of each seed: {disk(run)}"
    yield from lines_of(as_plain(run), defaults)


def lines_of(values: dict[str, Any], defaults: Any, indent: str = "") -> Iterator[str]:
    """Lines of YAML of nested values; a comment has the default of a value that differs from it."""
    for key, value in values.items():
        default = defaults.get(key) if isinstance(defaults, dict) else None
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from lines_of(value, default, indent + "  ")
            continue
        line = f"{indent}{key}: {inline(value)}"
        yield line if value == default else f"{line}  # {inline(default)}"


def inline(value: Any) -> str:
    """YAML of a value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("...\n").strip()


def keys_in_words() -> str:
    """Markdown tables of all keys of a config, for config/README.md."""
    from ijepa.config import RunConfig  # which imports torch

    whole = schema()
    parts = {"Benchmark": whole, **whole["$defs"]}
    with_default = [
        f for f in dataclasses.fields(RunConfig) if f.default is not dataclasses.MISSING
    ]
    of_runs = {field.name: field.default for field in with_default}
    lines = []
    for name, title in SECTIONS.items():
        kind = parts[name]
        lines += [f"## {title}", "", *kind["description"].replace("``", "`").splitlines(), ""]
        lines += ["| key | value | default |", "|---|---|---|"]
        for key, value in kind["properties"].items():
            default = value.get("default")
            if name == "Run" and default is None:
                default = of_runs.get(key)
            shown = "" if default in (None, "", {}, []) else f"`{inline(default)}`"
            shown = "required" if key in kind.get("required", []) else shown
            lines.append(f"| `{key}` | {type_in_words(value)} | {shown} |")
        lines.append("")
    return "\n".join(lines)


SECTIONS = {
    "Benchmark": "A config",
    "Run": "An item of `runs`",
    "Keep": "`keep` of a run",
    "Start": "`start` of a run",
    "Released": "An item of `released`",
    "Evaluation": "An item of `evaluations`",
    "Table": "An item of `tables`",
}


WORDS = {
    "object": "keys and values",
    "integer": "whole number",
    "string": "text",
    "boolean": "yes or no",
}


def type_in_words(value: dict[str, Any]) -> str:
    """Allowed values of a key, from its JSON schema."""
    if "anyOf" in value:
        words = [type_in_words(kind) for kind in value["anyOf"] if kind.get("type") != "null"]
        return " or ".join(words)
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{word}`" for word in value["enum"])
    if "$ref" in value:
        return "keys and values as below"
    if value.get("type") == "array":
        return f"list: {type_in_words(value['items'])}"
    text = WORDS[value["type"]]
    if "minimum" in value:
        text += f", at least {value['minimum']}"
    return f"{text} of a-z, 0-9, _" if "pattern" in value else text


def write_tables(benchmark: Benchmark) -> str:
    """Write the tables of everything measured so far; returns a message that names their folder."""
    from evals.report.tables import tidy_results, write_tables

    grid = Grid(benchmark)
    paths = [path for path in map(Path, grid.wanted) if path.exists()]
    out = Path(grid.results) / "tables"
    results = tidy_results(grid.report_plan, paths, out / "gpu_hours.csv")
    write_tables(grid.report_plan, results, out)
    return f"{len(paths)} of {len(grid.wanted)} results; tables in {out}"


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(prog=program("workflow.plan"), description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="runs, evaluations and tables, or every value of a run")
    show.add_argument(
        "config",
        nargs="+",
        help="one file, or several to be merged; then, to see every value of a run, its name",
    )
    tables = commands.add_parser("tables", help="write the tables of what is measured so far")
    tables.add_argument("config", type=Path, nargs="+", help="one file, or several to be merged")
    commands.add_parser("schema", help="JSON schema of a config, for editors")
    commands.add_parser("keys", help="tables of all keys of a config, as config/README.md has them")
    options = parser.parse_args()
    if options.command == "schema":
        print(json.dumps(schema(), indent=1))
    elif options.command == "keys":
        print(keys_in_words())
    elif options.command == "tables":
        print(write_tables(read_files(options.config)[1]))
    else:
        configs, run = options.config, None
        if len(configs) > 1 and not Path(configs[-1]).suffix:  # a run's name has no ending
            *configs, run = configs
        _, benchmark = read_files(map(Path, configs))
        lines = show_run(benchmark, run) if run else show_benchmark(benchmark)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
