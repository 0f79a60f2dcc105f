"""Files are whole or not there."""

import os
from pathlib import Path

import pytest

from ijepa.errors import UserError
from ijepa.files import read_json, write_text, written_whole


def test_a_writer_on_another_machine_is_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process of this machine has its process number."""
    path = tmp_path / "note.json"
    with monkeypatch.context() as elsewhere, written_whole(path) as part:
        part.write_text("theirs")
        elsewhere.setattr("socket.gethostname", lambda: "another")
        elsewhere.setattr(os, "getpid", lambda: 2**22 + 1)
        monkeypatch.setattr("ijepa.files.is_alive", lambda _process: False)
        write_text(path, "ours")
    assert path.read_text() == "theirs"


def test_the_partial_file_of_a_killed_process_of_this_machine_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note.json"
    with monkeypatch.context() as killed:
        killed.setattr(os, "getpid", lambda: 2**22 + 1)
        killed.setattr(Path, "unlink", lambda *_given, **_named: None)
        with written_whole(path) as part:
            part.write_text("half")
            killed.setattr(Path, "replace", lambda *_given: None)
    assert part.exists()
    write_text(path, "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]


@pytest.mark.parametrize("left", [b"", b'{"job": "7", "gp', b"\x00\x00\xff"])
def test_what_a_power_cut_left_of_a_json_file_is_named(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "7-0.json"
    path.write_bytes(left)
    with pytest.raises(UserError, match=r"7-0\.json is not JSON .*: delete it"):
        read_json(path)
