"""A stage of dvc.yaml, and what makes Snakemake agree with files that DVC has brought.

``python -m workflow.scripts.versioned make encoders config/mini.yaml`` lets Snakemake make the
stage, compares what is there with the config (workflow/plan/audit.py), and keeps Snakemake's
records of it in a file that DVC versions with it. ``... settle`` follows ``dvc pull`` and ``dvc
checkout``; ``... unlock`` precedes them where DVC was killed in the middle of writing its locks.

Two things of Snakemake's do not survive a checkout. Times: it makes again what is older than its
input, and DVC writes files in any order; so all get one and the same time. Records: without them it
does not see that a parameter has changed since; so they are put back.
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
from ijepa.errors import UserError, run_command
from ijepa.files import read_json, read_yaml, to_json, write_text
from workflow.scripts.dvc_stages import stages_of

METADATA = Path(".snakemake/metadata")
SETTLED = Path(".snakemake/settled")
"""What was last put back or kept, one file a stage: another one on disk came by DVC."""
STAGES = ["encoders", "tables"]
"""Rules of the same names (workflow/rules/version.smk) make them."""
KINDS = ["outs", "metrics", "plots"]
RECORDS = "records.json"


def make(stage: str, config: Path, dataset: str | None) -> None:
    """Make a stage, or what is missing of it; raise UserError if it is not the config's."""
    wanted = stages_of(config)
    have = read(Path("dvc.yaml")).get("stages", {})
    if different := [name for name in wanted if not fits(have.get(name), wanted[name])]:
        raise UserError(
            f"dvc.yaml: {', '.join(different)} is not what {config} asks for now: python -m "
            f"workflow.scripts.dvc_stages {config} (and the other configs that are versioned here)"
        )
    settle(only_new=True)
    target = f"data/shards/{dataset}/index.json" if dataset else stage
    profile = os.environ.get("IJEPA_PROFILE", "workflow/profiles/local")
    # The target first: --configfile would take it for one more.
    command = [sys.executable, "-m", "snakemake", target, "--profile", profile]
    done = subprocess.run([*command, "--configfile", str(config)], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    if dataset is not None:
        verify(Path("data/shards") / dataset)
    name = f"data-{dataset}" if dataset else f"{stage}-{read(config)['name']}"
    outs = [Path(next(iter(out))) for kind in KINDS for out in have[name].get(kind, [])]
    text = to_json(records_of(outs))
    write_text(next(path for path in outs if path.name.endswith(RECORDS)), text)
    write_text(SETTLED / name, text)


def fits(have: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    """Whether a stage has what it should; a data set's may belong to another config."""
    return have is not None and all(
        have.get(key) == value for key, value in wanted.items() if key not in ("cmd", "desc")
    )


def settle(only_new: bool = False) -> int:
    """Give Snakemake back its records of the files in dvc.lock, and these files one time.

    ``only_new``: of those stages whose records are not what was kept here last. Returns how many
    files there were. Raises UserError where DVC has not brought all bytes of what it holds.
    """
    files: list[Path] = []
    stages = read(Path("dvc.yaml")).get("stages", {})
    for name, stage in read(Path("dvc.lock")).get("stages", {}).items():
        outs = [Path(out["path"]) for out in stage.get("outs", [])]
        records = next((path for path in outs if path.name.endswith(RECORDS)), None)
        if records is None or not records.exists():
            continue
        text = records.read_text(encoding="utf-8")
        kept = SETTLED / name
        if only_new and kept.exists() and kept.read_text(encoding="utf-8") == text:
            continue
        whole(stage["outs"], held_by_dvc(stages.get(name, {})))
        for old in records_of(outs):
            (METADATA / old).unlink()
        for record, content in json.loads(text).items():
            write_text(METADATA / record, json.dumps(content))
        write_text(kept, text)
        for out in outs:
            files += [out] if out.is_file() else out.rglob("*")
    now = time.time_ns()
    for path in files:
        os.utime(path, ns=(now, now))
    return len(files)


def held_by_dvc(stage: dict[str, Any]) -> set[str]:
    """The outputs of a stage that are in DVC's cache and not in git."""
    outs = (out for kind in KINDS for out in stage.get(kind, []))
    return {path for out in outs for path, how in out.items() if how.get("cache", True)}


def whole(outs: list[dict[str, Any]], held: set[str]) -> None:
    """Raise UserError unless the outputs have the size that dvc.lock says.

    DVC takes an object of its cache for what its name says (it is read-only), also where a machine
    that lost power has left a half of it. What .dvcignore names does not count here either.
    """
    with Repo() as repo:
        for out in outs:
            if out["path"] not in held:  # git's own
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
    found = {}
    for record in sorted(METADATA.rglob("*")) if METADATA.exists() else []:
        if record.is_dir():
            continue
        name = record.relative_to(METADATA)
        # Long names are cut into folders that begin with "@".
        path = Path(urlsafe_b64decode("".join(name.parts).replace("@", "")).decode())
        if any(path == out or out in path.parents for out in outs):
            content = read_json(record)
            # The environment's whole text, which decides nothing here (rerun-triggers).
            found[str(name)] = {key: content[key] for key in content if key != "conda_env"}
    return found


def unlock() -> None:
    """Delete DVC's file of locks if a kill has torn it.

    DVC writes it in place, also as its last act when its command was killed; torn, no stage of the
    repository is made, pulled or checked out again (treeverse/dvc issue 7615). Whole, it stays:
    DVC itself drops the locks of processes that are gone.
    """
    with Repo() as repo:
        folder = Path(str(repo.tmp_dir))
    locks = folder / RWLOCK_FILE
    with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):  # DVC's own, around each edit
        try:
            json.loads(locks.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except json.JSONDecodeError:
            locks.unlink()
            print(f"{locks}: torn when DVC was killed, deleted", file=sys.stderr)


def read(path: Path) -> dict[str, Any]:
    """A YAML file, or nothing where there is none."""
    return (read_yaml(path) if path.exists() else None) or {}


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m workflow.scripts.versioned",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("make", help="make one stage (IJEPA_PROFILE: another profile)")
    one.add_argument("stage", choices=["data", *STAGES])
    one.add_argument("config", type=Path)
    one.add_argument("--dataset", help="of the stage data")
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
        make(options.stage, options.config, options.dataset)


if __name__ == "__main__":
    run_command(main)
