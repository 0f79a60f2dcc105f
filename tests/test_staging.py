"""The copy of the shards on a node's own disk."""

from pathlib import Path

import pytest

from ijepa.cluster.staging import staged
from ijepa.errors import UserError


def test_shards_are_copied_to_a_nodes_disk_once(data: Path, tmp_path: Path) -> None:
    waits: list[None] = []
    copy = staged(data, tmp_path, True, lambda: waits.append(None))
    files = {path.name: path.stat().st_ino for path in copy.glob("*.tar")}
    assert len(files) == len(list(data.glob("*.tar"))) > 1
    torn = next(copy.glob("*.tar"))
    torn.write_bytes(torn.read_bytes()[:-1])
    assert staged(data, tmp_path, True, lambda: waits.append(None)) == copy
    assert staged(data, tmp_path, False, lambda: waits.append(None)) == copy
    again = {path.name: path.stat().st_ino for path in copy.glob("*.tar")}
    assert [name for name in files if files[name] != again[name]] == [torn.name]
    assert len(waits) == 3


def test_a_nodes_disk_may_be_a_variable_of_the_node(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISK", str(tmp_path))
    assert staged(data, Path("$DISK/ijepa"), False, lambda: None).parent == tmp_path / "ijepa"
    with pytest.raises(UserError, match=r"stage: \$NONE/ijepa names a variable that"):
        staged(data, Path("$NONE/ijepa"), False, lambda: None)


def test_a_disk_that_is_too_small_for_the_shards_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match=r"has 0\.0 GB free, the shards of .* take"):
        staged(data, tmp_path, True, lambda: None)
