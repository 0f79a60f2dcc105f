"""Make a stage of dvc.yaml, and make Snakemake agree with files that DVC has brought.

``python -m workflow.scripts.versioned make encoders config/mini.yaml`` lets Snakemake make the
stage, compares the files with the config (workflow/plan/audit.py), and keeps Snakemake's records of
them in a file that DVC versions with them. Run ``... settle`` after ``dvc pull`` and ``dvc
checkout``. Run ``... unlock`` before them if DVC was killed while it was writing its locks.

Two things that Snakemake needs do not survive a checkout. The first are modification times:
Snakemake makes a file again that is older than its input, and DVC writes files in any order, so all
files get one and the same time. The second are Snakemake's records: without them it does not see
that a parameter has changed, so they are put back.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

from ijepa.data.shards import verify
from ijepa.errors import UserError, program, run_command
from ijepa.files import read_json, read_yaml, to_json, write_text
from workflow.plan.grid import Grid
from workflow.scripts.dvc_stages import stages_of

METADATA = Path(".snakemake/metadata")
SETTLED = Path(".snakemake/settled")
"""Copies of the records that were last put back or kept here, one file a stage.

Records on disk that differ from their copy were brought by DVC.
"""
STAGES = ["encoders", "tables"]
"""Rules of the same names (workflow/rules/version.smk) make them."""
KINDS = ["outs", "metrics", "plots"]
RECORDS = "records.json"


def make(stage: str, config: Path, dataset: str | None) -> None:
    """Make the missing files of a stage; raises UserError if dvc.yaml does not fit the config."""
    wanted = stages_of(config)
    stages = read(Path("dvc.yaml")).get("stages", {})
    if different := [name for name in wanted if not fits(stages.get(name), wanted[name])]:
        raise UserError(
            f"dvc.yaml: {', '.join(different)} is not what {config} asks for now: python -m "
            f"workflow.scripts.dvc_stages {config} (and the other configs that are versioned here)"
        )
    settle(only_new=True)
    target = Grid.index(dataset) if dataset else stage
    profile = os.environ.get("IJEPA_PROFILE", "workflow/profiles/local")
    # The target comes first: after --configfile it would be taken for one more config.
    command = [sys.executable, "-m", "snakemake", target, "--profile", profile]
    done = subprocess.run([*command, "--configfile", str(config)], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    if dataset is not None:
        verify(Path(Grid.shards(dataset)))
    name = f"data-{dataset}" if dataset else f"{stage}-{read(config)['name']}"
    outs = [Path(next(iter(out))) for kind in KINDS for out in stages[name].get(kind, [])]
    text = to_json(records_of(outs))
    write_text(next(path for path in outs if path.name.endswith(RECORDS)), text)
    write_text(SETTLED / name, text)


def fits(stage: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    """True if a stage is as it should be; a data set's stage may be another config's."""
    return stage is not None and all(
        stage.get(key) == value for key, value in wanted.items() if key not in ("cmd", "desc")
    )


def settle(only_new: bool = False) -> int:
    """Put back Snakemake's records of the files in dvc.lock, and give all these files one time.

    ``only_new``: only for stages whose records differ from those that were last kept here. Returns
    the number of files. Raises UserError if DVC has not brought all bytes of its files.
    """
    files: list[Path] = []
    stages = read(Path("dvc.yaml")).get("stages", {})
    for name, stage in read(Path("dvc.lock")).get("stages", {}).items():
        outs = [Path(out["path"]) for out in stage.get("outs", [])]
        records = next((path for path in outs if path.name.endswith(RECORDS)), None)
        if records is None or not records.exists():
            continue
        text = records.read_text(encoding="utf-8")
        settled = SETTLED / name
        if only_new and settled.exists() and settled.read_text(encoding="utf-8") == text:
            continue
        whole(stage["outs"], held_by_dvc(stages.get(name, {})))
        for old in records_of(outs):
            (METADATA / old).unlink()
        for record, content in json.loads(text).items():
            write_text(METADATA / record, json.dumps(content))
        write_text(settled, text)
        for out in outs:
            files += [out] if out.is_file() else out.rglob("*")
    now = time.time_ns()
    for path in files:
        os.utime(path, ns=(now, now))
    return len(files)


def held_by_dvc(stage: dict[str, Any]) -> set[str]:
    """The outputs of a stage that are in DVC's cache and not in git."""
    outs = (out for kind in KINDS for out in stage.get(kind, []))
    return {path for out in outs for path, options in out.items() if options.get("cache", True)}


def whole(outs: list[dict[str, Any]], held: set[str]) -> None:
    """Raise UserError unless the outputs have the size that dvc.lock says.

    An object of DVC's cache is named after its hash. DVC trusts that name because the object is
    read-only, even if a machine that lost power has left only half of the bytes. Files that
    .dvcignore names do not count.
    """
    with Repo() as repo:
        for out in outs:
            if out["path"] not in held:  # git has it
                continue
            path = Path(out["path"])
            files = [path] if path.is_file() else repo.dvcignore.find(repo.fs, out["path"])
            size = sum(Path(file).stat().st_size for file in files)
            if size != out["size"]:
                raise UserError(
                    f"{path} has {size:,} bytes, but dvc.lock says {out['size']:,}: DVC has not "
                    "brought all of it, or a part of its cache is torn: dvc pull; if that does not "
                    f"help, and all was pushed, rm -r .dvc/cache {path} and dvc pull"
                )


def records_of(outs: list[Path]) -> dict[str, Any]:
    """Snakemake's records of the files in these folders, by their names in its own folder."""
    records = {}
    for record in sorted(METADATA.rglob("*")) if METADATA.exists() else []:
        if record.is_dir():
            continue
        name = record.relative_to(METADATA)
        # Long names are cut into folders that begin with "@".
        path = Path(urlsafe_b64decode("".join(name.parts).replace("@", "")).decode())
        if any(path == out or out in path.parents for out in outs):
            content = read_json(record)
            # Without the environment's whole text: no rerun-trigger of the profiles reads it.
            records[str(name)] = {key: content[key] for key in content if key != "conda_env"}
    return records


def unlock() -> None:
    """Delete DVC's file of locks if a kill has torn it.

    DVC writes it in place, even as the last act of a killed command. With a torn file, DVC makes,
    pulls and checks out no stage of the repository any more (treeverse/dvc issue 7615). A file that
    is whole stays: DVC itself drops the locks of processes that are gone.
    """
    with Repo() as repo:
        folder = Path(str(repo.tmp_dir))
    locks = folder / RWLOCK_FILE
    # DVC takes this lock around each edit.
    with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):
        try:
            json.loads(locks.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except json.JSONDecodeError:
            locks.unlink()
            print(f"{locks}: torn when DVC was killed, deleted", file=sys.stderr)


def read(path: Path) -> dict[str, Any]:
    """Content of a YAML file; empty if there is no such file."""
    return (read_yaml(path) if path.exists() else None) or {}


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("workflow.scripts.versioned"),
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="make one stage (IJEPA_PROFILE: another profile)")
    maker.add_argument("stage", choices=["data", *STAGES])
    maker.add_argument("config", type=Path)
    maker.add_argument("--dataset", help="of the stage data")
    commands.add_parser("settle", help="after dvc pull or dvc checkout")
    commands.add_parser("unlock", help="before dvc repro or dvc pull, after a kill of DVC")
    options = parser.parse_args()
    if options.command == "settle":
        if not Path("dvc.lock").exists():
            raise UserError("there is no dvc.lock here: dvc repro makes it, or a clone has it")
        print(f"settled {settle()} files", file=sys.stderr)
    elif options.command == "unlock":
        unlock()
    else:
        if (options.stage == "data") != (options.dataset is not None):
            parser.error("give --dataset with the stage data, and with no other")
        make(options.stage, options.config, options.dataset)


if __name__ == "__main__":
    run_command(main)
