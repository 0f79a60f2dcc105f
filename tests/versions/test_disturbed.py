"""What is killed, cut off, torn or without room: the same command again finishes."""

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.versions.actions import (
    CONFIG,
    DVC,
    SETTLE,
    UNLOCK,
    attempt,
    bring,
    clone_of,
    finished,
    killed_when,
    run,
)
from tests.versions.conftest import WHEN_KILLED


def objects(folder: Path) -> dict[str, Path]:
    """The files of a cache or remote by the MD5 that their place says, temporary ones left out."""
    found = {"".join(path.parts[-2:]).removesuffix(".dir"): path for path in folder.rglob("??/*")}
    return {name: path for name, path in found.items() if len(name) == 32 and path.is_file()}


def whole(folder: Path) -> set[str]:
    """The names of all objects, each of which has the bytes that its name says."""
    found = objects(folder)
    for name, path in found.items():
        assert hashlib.md5(path.read_bytes()).hexdigest() == name, path
    return set(found)


def leave_torn(remote: Path) -> None:
    """What a kill at the wrong moment leaves (seen once in CI): an empty object.

    DVC (3.67) tries first whether the remote's folder can share blocks, on the object's own place.
    It finds that out at the next push, but of a listing (README): these come last.
    """
    for path in remote.rglob("*.dir"):
        path.unlink()
    torn = min(objects(remote).values())
    torn.unlink()
    torn.touch()


def test_a_killed_repro_has_noted_only_what_was_complete(origin: Path) -> None:
    """The killed one was pretraining: its data have a version, its encoders none yet."""
    noted = yaml.safe_load(origin.with_name(WHEN_KILLED).read_text())["stages"]
    stages = yaml.safe_load((origin / "dvc.lock").read_text())["stages"]
    assert list(noted) == ["data-tiny"]
    assert list(stages) == ["data-tiny", "encoders-tiny", "features-tiny", "tables-tiny"]
    assert noted["data-tiny"] == stages["data-tiny"]


def test_a_killed_push_is_finished_by_the_same_command(origin: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    clone = clone_of(origin, tmp_path / "clone")
    run(clone, *DVC, "pull")
    run(clone, *DVC, "remote", "add", "folder", str(remote))
    # The first one seen may be gone again.
    killed_when(lambda: len(objects(remote)) > 3, clone, *DVC, "push", "-r", "folder")
    leave_torn(remote)
    run(clone, *DVC, "push", "-r", "folder")
    assert whole(remote) == whole(clone / ".dvc" / "cache")


def test_no_file_is_in_two_of_the_folders_that_dvc_holds(origin: Path, tmp_path: Path) -> None:
    """Of such a file whose transfer failed DVC (3.67) says later that it is pushed."""
    clone = clone_of(origin, tmp_path / "clone")
    run(clone, *DVC, "fetch")
    folders = [json.loads(path.read_text()) for path in (clone / ".dvc/cache").rglob("*.dir")]
    files = [{one["md5"] for one in folder} for folder in folders]
    assert len(files) >= 4  # shards, encoders, features, figures
    assert len(set.union(*files)) == sum(map(len, files))


def test_a_killed_pull_is_finished_by_the_same_command(origin: Path, tmp_path: Path) -> None:
    clone = clone_of(origin, tmp_path / "clone")
    killed_when(lambda: objects(clone / ".dvc" / "cache"), clone, *DVC, "pull")
    bring(clone)
    assert whole(clone / ".dvc" / "cache") == whole(origin / ".dvc" / "cache")


def test_a_torn_object_of_the_cache_is_named_and_fetched_again(
    origin: Path, tmp_path: Path
) -> None:
    """As a machine leaves it that lost power: DVC alone takes it for what its name says."""
    clone = clone_of(origin, tmp_path / "clone")
    run(clone, *DVC, "fetch")
    encoder = (origin / "results/tiny/runs/mae/seed0/encoder.safetensors").read_bytes()
    torn = objects(clone / ".dvc" / "cache")[hashlib.md5(encoder).hexdigest()]
    torn.chmod(0o644)
    os.truncate(torn, len(encoder) // 2)
    torn.chmod(0o444)
    attempt(clone, *DVC, "pull")
    done = attempt(clone, *SETTLE)
    assert done.returncode != 0
    assert "results/tiny/runs" in done.stderr
    assert "rm -r .dvc/cache results/tiny/runs" in done.stderr
    run(clone, "rm", "-r", ".dvc/cache", "results/tiny/runs")
    run(clone, *DVC, "pull")
    run(clone, *SETTLE)
    assert (clone / "results/tiny/runs/mae/seed0/encoder.safetensors").read_bytes() == encoder


@contextlib.contextmanager
def disk(kind: str, folder: Path) -> Iterator[Path]:
    """A file system of its own: XFS, whose files share blocks, or 8 MB that fill up; or a skip."""
    folder.mkdir()
    if kind == "xfs":
        image = folder.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(400_000_000)
        make = f"mkfs.xfs -q -m reflink=1 {image} && mount -o loop {image} {folder}"
    else:
        make = f"mount -t tmpfs -o size=8m none {folder}"
    made = subprocess.run(make, shell=True, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here (root, xfsprogs): {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path: Path) -> None:
    """A file that takes all room that there is."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_an_error_and_room_is_all_that_it_needs(
    origin: Path, tmp_path: Path
) -> None:
    with disk("small", tmp_path / "disk") as folder:
        clone = clone_of(origin, folder / "clone")
        filler = folder / "filler"
        fill(filler)
        os.truncate(filler, filler.stat().st_size - 100_000)
        assert attempt(clone, *DVC, "pull").returncode != 0
        filler.unlink()
        run(folder, "mount", "-o", "remount,size=200m", str(folder))
        bring(clone)
        config = (clone / CONFIG).read_text()
        (clone / CONFIG).write_text(config.replace("num_neighbours: 5", "num_neighbours: 7"))
        before = (clone / "dvc.lock").read_text()
        fill(filler)
        assert attempt(clone, *DVC, "repro").returncode != 0
        assert (clone / "dvc.lock").read_text() == before
        filler.unlink()
        run(clone, *UNLOCK)
        assert finished(run(clone, *DVC, "repro")).count("evaluate") >= 1
        assert "up to date" in run(clone, *DVC, "status")


def test_where_the_file_system_can_cache_and_folder_share_their_blocks(
    origin: Path, tmp_path: Path
) -> None:
    with disk("xfs", tmp_path / "disk") as folder:
        clone = clone_of(origin, folder / "clone")
        run(clone, *DVC, "config", "cache.type", "reflink")
        bring(clone)
        encoder = clone / "results/tiny/runs/mae/seed0/encoder.safetensors"
        extents = run(folder, "xfs_io", "-r", "-c", "fiemap -v", str(encoder))
        assert "0x2" in extents.split()[-1]  # FIEMAP_EXTENT_SHARED
