"""Commands that are killed, cut off or without room: the same command again finishes."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml

from tests.versions.actions import (
    DVC,
    SETTLE,
    attempt,
    clone_of,
    disk,
    finished,
    killed_when,
    pull_and_settle,
    run,
)
from tests.versions.conftest import WHEN_KILLED, Changed, Store


def objects(folder: Path) -> dict[str, Path]:
    """Files of a cache or remote by the MD5 in their path, temporary ones left out."""
    paths = {"".join(path.parts[-2:]).removesuffix(".dir"): path for path in folder.rglob("??/*")}
    return {name: path for name, path in paths.items() if len(name) == 32 and path.is_file()}


def whole(folder: Path) -> set[str]:
    """Names of all objects, each of which must have the bytes that its name says."""
    paths = objects(folder)
    for name, path in paths.items():
        assert hashlib.md5(path.read_bytes()).hexdigest() == name, path
    return set(paths)


def leave_torn(remote: Path) -> None:
    """Leave an empty object, as a kill at the wrong moment does (seen once in CI).

    DVC (3.67) first tries, at the object's own path, whether the remote's folder can share blocks.
    The next push finds an empty object, unless it is a listing (README): listings come last.
    """
    for path in remote.rglob("*.dir"):
        path.unlink()
    torn = min(objects(remote).values())
    torn.unlink()
    torn.touch()


def test_a_killed_repro_has_noted_only_what_was_complete(origin: Path) -> None:
    """It was killed while pretraining: the data have a version, the encoders have none yet."""
    when_killed = yaml.safe_load(origin.with_name(WHEN_KILLED).read_text())["stages"]
    stages = yaml.safe_load((origin / "dvc.lock").read_text())["stages"]
    assert list(when_killed) == ["data-tiny"]
    assert list(stages) == ["data-tiny", "encoders-tiny", "tables-tiny"]
    assert when_killed["data-tiny"] == stages["data-tiny"]


def test_a_killed_push_is_finished_by_the_same_command(pulled: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    run(pulled, *DVC, "remote", "add", "folder", str(remote))
    # The first object that is seen may be gone again.
    killed_when(lambda: len(objects(remote)) > 3, pulled, *DVC, "push", "-r", "folder")
    leave_torn(remote)
    run(pulled, *DVC, "push", "-r", "folder")
    assert whole(remote) == whole(pulled / ".dvc" / "cache")


def test_no_file_is_in_two_of_the_folders_that_dvc_holds(origin: Path) -> None:
    """DVC (3.67) would later report such a file as pushed, although its transfer failed."""
    folders = [json.loads(path.read_text()) for path in (origin / ".dvc/cache").rglob("*.dir")]
    files = [{entry["md5"] for entry in folder} for folder in folders]
    assert len(files) == 6  # shards, encoders, features, evaluations, tables, figures
    assert len(set.union(*files)) == sum(map(len, files))


def test_a_killed_pull_is_finished_by_the_same_command(origin: Path, clone: Path) -> None:
    killed_when(lambda: objects(clone / ".dvc" / "cache"), clone, *DVC, "pull")
    pull_and_settle(clone)
    assert whole(clone / ".dvc" / "cache") == whole(origin / ".dvc" / "cache")


def test_a_torn_object_of_the_cache_is_named_and_fetched_again(origin: Path, clone: Path) -> None:
    """A machine that lost power leaves a torn object, and DVC alone trusts its name."""
    run(clone, *DVC, "fetch")
    encoder = (origin / "results/tiny/runs/mae/seed0/encoder.safetensors").read_bytes()
    torn = objects(clone / ".dvc" / "cache")[hashlib.md5(encoder).hexdigest()]
    torn.chmod(0o644)
    os.truncate(torn, len(encoder) // 2)
    torn.chmod(0o444)
    attempt(clone, *DVC, "pull")
    settled = attempt(clone, *SETTLE)
    assert settled.returncode != 0
    assert "results/tiny/runs" in settled.stderr
    assert "rm -r .dvc/cache results/tiny/runs" in settled.stderr
    run(clone, "rm", "-r", ".dvc/cache", "results/tiny/runs")
    run(clone, *DVC, "pull")
    run(clone, *SETTLE)
    assert (clone / "results/tiny/runs/mae/seed0/encoder.safetensors").read_bytes() == encoder


def test_a_full_disk_is_an_error_and_room_is_all_that_it_needs(changed: Changed) -> None:
    """Over 5 s: the workflow makes an evaluation of every encoder."""
    if changed.no_disk:
        pytest.skip(changed.no_disk)
    assert len(changed.when_full) == 2
    assert 0 not in changed.when_full
    assert changed.locks[0] == changed.locks[1]
    assert finished(changed.output).count("evaluate_features") >= 1
    assert "up to date" in run(changed.clone, *DVC, "status")


def test_where_the_file_system_can_cache_and_folder_share_their_blocks(
    origin: Path, store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with disk("xfs", folder) as impossible:
        if impossible:
            pytest.skip(impossible)
        clone = clone_of(origin, folder / "clone", store.address)
        run(clone, *DVC, "config", "cache.type", "reflink")
        pull_and_settle(clone)
        encoder = clone / "results/tiny/runs/mae/seed0/encoder.safetensors"
        extents = run(folder, "xfs_io", "-r", "-c", "fiemap -v", str(encoder))
        assert "0x2" in extents.split()[-1]  # FIEMAP_EXTENT_SHARED
