"""Result set: checked results of a folder or a git revision, for evals.report.compare."""

import io
import json
import math
import subprocess
import tarfile
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from evals.result import unpacked
from ijepa.errors import UserError
from ijepa.files import check_format
from ijepa.log_reader import REFERENCE
from ijepa.result_file import FORMAT

DEFAULT = "results/mini"

Results = dict[tuple[str, int, str], dict[str, Any]]
"""Results by run, seed and evaluation."""
RESULT = "*/seed*/*.json"


def read_result_set(spec: str, other: str) -> Results:
    """Results of a folder, ``REV`` or ``REV:folder``; a bare REV takes the folder of ``other``.

    Results of a revision may be in git or in DVC's cache. Raises UserError if there are none, or if
    one of them is damaged.
    """
    files: list[tuple[PurePath, bytes]]
    if (folder := Path(spec)).is_dir():
        files = [(path, path.read_bytes()) for path in folder.glob("evaluations/*/seed*/*.json")]
    else:
        revision, _, inside = spec.partition(":")
        inside = inside or other.partition(":")[2] or (other if Path(other).is_dir() else DEFAULT)
        files = in_revision(revision, inside.rstrip("/"))
    results = {}
    for path, content in files:
        try:
            run, seed = path.parts[-3], int(path.parts[-2].removeprefix("seed"))
            results[run, seed, path.stem] = checked(check_format(json.loads(content), FORMAT, path))
        except KeyError as error:
            raise UserError(f"{path} of {spec} has no {error}: evaluate it anew") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} of {spec}: {error}: evaluate it anew") from None
    if not results:
        raise UserError(f"{spec} has no evaluations/RUN/seedN/NAME.json: name another folder")
    return results


def checked(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result; raises if a key is missing, is not a number, or contradicts another."""
    value, n = result["value"], result["n"]
    what_must_agree(result)
    if not math.isfinite(value):
        raise ValueError(f"value is {value}, no finite number")
    if n < 1 or (result["metric"] == "top1" and not 0 <= value <= 1):
        raise ValueError(f"value is {value} of n = {n} images, no share of them")
    if "classes" in result:
        right = sum(map(int, result["classes"]["right"].split()))
        if right / n != value:
            raise ValueError(f"classes have {right} of {n} images, but value is {value}")
    if "correct" in result:
        try:
            right = int(unpacked(result["correct"], n).sum())
        except ValueError as error:
            raise ValueError(f"correct {error}") from None
        if right / n != value:
            raise ValueError(f"correct has {right} of {n} images, but value is {value}")
    return result


def what_must_agree(result: dict[str, Any]) -> dict[str, Any]:
    """Facts, by dotted key, that two results share if they are comparable."""
    facts: dict[str, Any] = {"data_version": result["about"]["data_version"]}

    def put(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                put(f"{key}.{name}", inner)
        # Views are functions of seed, epoch and image, whatever the number of worker processes.
        elif not key.endswith(".num_workers"):
            facts[key] = value

    for name in ("evaluation", "dataset", "label", "split", "metric", "n", "protocol", "images"):
        put(name, result[name])
    return facts


def in_revision(revision: str, inside: str) -> list[tuple[PurePath, bytes]]:
    """Every result of a folder in a git revision or an experiment of DVC, without a checkout."""
    if not (commit := git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")):
        refs = (git("for-each-ref", "--format=%(refname)", "refs/exps") or b"").decode().split()
        refs = [ref for ref in refs if ref.rpartition("/")[2] == revision]
        if len(refs) != 1:
            raise UserError(
                f"{revision!r} is no folder, no git revision, and the name of "
                f"{' and '.join(refs) or 'no experiment'}: give a folder, such as {DEFAULT}, a "
                "revision, such as HEAD~1, or an experiment's whole ref"
            )
        commit = git("rev-parse", refs[0])
    assert commit is not None
    # Run git from the top: within a subfolder, it would look for that subfolder in the tree.
    top = (git("rev-parse", "--show-toplevel") or b".").decode().strip()
    name = commit.decode().strip()
    folders = [inside]
    if (folder := PurePosixPath(inside)).parent == REFERENCE.parent:
        # results/CONFIG itself is not in git, its reference is.
        folders.append(str(REFERENCE / folder.name))
    for candidate in folders:
        tree = git("-C", top, "archive", f"{name}:{candidate}/evaluations")
        if tree is not None:
            return in_archive(tree)
        if results := in_dvc(Path(top), name, candidate):
            return results
    raise UserError(
        f"{revision!r} has no {inside}/evaluations in git: name a folder that it has, as "
        f"{revision}:{DEFAULT}, or commit the results first"
    )


def in_archive(tree: bytes) -> list[tuple[PurePath, bytes]]:
    """Every result of a tar file that git has written."""
    results: list[tuple[PurePath, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(tree)) as archive:
        for member in archive:
            path, file = PurePosixPath(member.name), archive.extractfile(member)
            if file is not None and path.match(RESULT):
                results.append((path, file.read()))
    return results


def in_dvc(top: Path, commit: str, folder: str) -> list[tuple[PurePath, bytes]]:
    """Every result of a folder that DVC holds for a revision; none if it holds no such folder.

    Raises UserError if DVC knows the results, but they are only in its remote.
    """
    if not (top / ".dvc").is_dir():
        return []
    from dvc.api import DVCFileSystem  # not at the top: most comparisons do not need it
    from dvc_data.index.index import DataIndexDirError

    files = DVCFileSystem(str(top), rev=commit)
    try:
        if not files.exists(f"{folder}/evaluations"):
            return []
        paths = [PurePosixPath(path) for path in files.find(f"{folder}/evaluations")]
        return [(path, files.read_bytes(str(path))) for path in paths if path.match(RESULT)]
    except (FileNotFoundError, DataIndexDirError) as error:
        raise UserError(
            f"{folder} of {commit[:12]} is in DVC's remote, not here ({error}): dvc fetch "
            "--all-commits, or compare with what git has"
        ) from None


def git(*words: str) -> bytes | None:
    """Output of a git command; None if it fails."""
    try:
        process = subprocess.run(["git", *words], capture_output=True)
    except FileNotFoundError:
        raise UserError("git is not installed: install it, or give two folders") from None
    return process.stdout if process.returncode == 0 else None
