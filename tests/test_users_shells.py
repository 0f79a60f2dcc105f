"""Shells, homes and modes as users have them."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba.core.caching
import pytest
import torch
from safetensors.torch import save_file

from ijepa.data.clevr import geometry
from ijepa.errors import UserError
from ijepa.files import ROOT, written_whole
from workflow import reproduce
from workflow.scripts import preflight


def test_a_file_of_safetensors_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    """Safetensors makes it for the user alone, and colleagues could not read an encoder."""
    (tmp_path / "other").touch()
    with written_whole(tmp_path / "encoder") as part:
        save_file({"a": torch.ones(1)}, part)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("encoder", "other")]
    assert modes[0] == modes[1]


def test_nothing_is_left_of_a_file_that_nobody_wrote(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "a"):
        pass
    assert not any(tmp_path.iterdir())


def test_a_reader_that_goes_away_ends_a_command_quietly() -> None:
    code = (
        "from ijepa.errors import run_command\n"
        "run_command(lambda: [print('x' * 1000) for _ in range(10000)] and None)"
    )
    command = f'{sys.executable} -c "{code}" | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_any_other_broken_pipe_keeps_its_traceback() -> None:
    code = "from ijepa.errors import run_command\ndef f(): raise BrokenPipeError\nrun_command(f)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" in done.stderr


def test_a_checkout_with_a_colon_in_its_path_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    (folder / "workflow" / "scripts").mkdir(parents=True)
    assert "a colon divides the folders" in str(preflight.fault("run", str(folder)))
    script = folder / "workflow" / "scripts" / "ijepa-bench"
    shutil.copy(ROOT / "workflow" / "scripts" / "ijepa-bench", script)
    done = subprocess.run(["sh", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "a:b: a colon divides" in done.stderr


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_a_home_that_cannot_be_written_is_one_line(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake would end with a traceback before it reads the Snakefile."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file.* cannot be written .*HOME, or XDG_CACHE_HOME"):
        reproduce.check_cache()


FOREIGN = {"PYTHONHOME": "/opt/python3.6", "PYTHONPATH": "/opt/python3.6", "PYTHONSAFEPATH": "1"}
SHOW = "$PYTHONHOME:$PYTHONPATH"


def test_make_keeps_a_cluster_s_python_out_of_the_environment() -> None:
    """A module of Python sets these; numpy of another version would be imported, or nothing."""
    show = f"show: ; @echo {SHOW}:$PYTHONSAFEPATH".replace("$", "$$")
    command = ["make", "--no-print-directory", "--eval", show, "show"]
    env = {**os.environ, **FOREIGN}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "::\n"


def test_the_door_to_all_commands_keeps_it_out_too(tmp_path: Path) -> None:
    door, python = tmp_path / "workflow/scripts/ijepa-bench", tmp_path / ".venv/bin/python"
    for path in (door, python):
        path.parent.mkdir(parents=True)
    shutil.copy(ROOT / "workflow/scripts/ijepa-bench", door)
    python.write_text(f"#!/bin/sh\necho {SHOW}\n")
    python.chmod(0o755)
    env = {**os.environ, **FOREIGN}
    done = subprocess.run(["sh", door], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f":{tmp_path}\n"


@pytest.mark.parametrize("packages", [True, False, None])
def test_without_venv_the_door_takes_the_python_of_the_path(
    packages: bool | None, tmp_path: Path
) -> None:
    """Conda's environment and the containers have no .venv; None is no python at all."""
    door, programs = tmp_path / "workflow/scripts/ijepa-bench", tmp_path / "bin"
    for folder in (door.parent, programs):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "workflow/scripts/ijepa-bench", door)
    for name in ("dirname", "readlink"):
        (programs / name).symlink_to(shutil.which(name) or "")
    python = programs / "python"
    if packages is not None:
        python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && echo "$@" || exit {int(not packages)}\n')
        python.chmod(0o755)
    command, env = ["/bin/sh", str(door), "plan", "a b"], {"PATH": str(programs)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if packages:
        assert (done.returncode, done.stdout, done.stderr) == (0, "-m workflow plan a b\n", "")
    else:
        of_path = "python" if packages is None else python
        expected = (
            f"error: {tmp_path} has no .venv, and {of_path} of PATH lacks our packages: make "
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith(expected)


def test_code_is_compiled_where_no_folder_can_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that cannot be written, and a HOME that cannot, either."""
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])

    def twice(number: float) -> float:
        return 2 * number

    compiled: Any = geometry.compiled(twice)
    assert compiled(2.0) == 4
    assert type(compiled).__name__ == "CPUDispatcher"
