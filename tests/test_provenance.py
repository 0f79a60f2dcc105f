"""Origins of results and of the numbers in tables."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from evals.report.provenance import trace
from ijepa import provenance
from ijepa.errors import UserError


def test_a_commit_has_a_plus_where_code_differs_and_none_for_a_cluster_s_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == "unknown"
    profile, code = (
        tmp_path / "workflow/profiles/slurm/config.yaml",
        tmp_path / "evals/protocols/knn.py",
    )
    for path in (profile, code):
        path.parent.mkdir(parents=True)
        path.write_text("old")
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], [*name, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    committed = provenance.commit()
    assert len(committed) == 12
    profile.write_text("partition: ours")
    assert provenance.commit() == committed
    code.write_text("new")
    assert provenance.commit() == f"{committed}+"


def test_the_commit_of_a_repository_around_the_project_is_not_the_project_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*name, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "link")
    assert len(provenance.commit()) == 12
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(provenance, "ROOT", project)
    assert provenance.commit() == "unknown"
    assert "project lies unpacked in another repository" in capsys.readouterr().err


GIT = subprocess.run(["git", "--version"], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(
    [int(part) for part in re.findall(r"\d+", GIT)[:2]] < [2, 38],
    reason="an older git takes no leave from its command line",
)
def test_the_commit_of_another_user_s_checkout_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*name, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    committed = provenance.commit()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert provenance.commit() == committed != "unknown"


def test_where_an_old_git_refuses_another_user_s_checkout_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: str) -> str:
        error = "fatal: unsafe repository; git config --global --add safe.directory X"
        raise subprocess.CalledProcessError(128, "git", stderr=error)

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "_git", refuse)
    assert provenance.commit() == "unknown"
    assert f"git config --global --add safe.directory {tmp_path}" in capsys.readouterr().err


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """A copy of the committed results of mini."""
    committed = Path(__file__).parents[1] / "results/reference/mini"
    for name in ("tables", "evaluations"):
        shutil.copytree(committed / name, tmp_path / name)
    return tmp_path


def test_seeds_that_a_table_does_not_have_are_not_traced(mini: Path) -> None:
    origins = trace(mini / "tables/cifar10", "mae")
    shutil.copytree(mini / "evaluations/mae/seed0", mini / "evaluations/mae/seed1")
    assert trace(mini / "tables/cifar10", "mae") == origins
    assert {origin["evaluation"] for origin in origins} == {"linear_probe", "linear_own", "knn"}


def test_a_result_that_is_not_that_of_the_table_is_named(mini: Path) -> None:
    path = mini / "evaluations/mae/seed0/knn.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": 0.99}))
    with pytest.raises(
        UserError, match=r"tidy\.csv: mae, knn is .* says 99\.0000: make the tables"
    ):
        trace(mini / "tables/cifar10", "mae")


def test_a_cell_with_a_problem_leads_to_its_results_too(mini: Path) -> None:
    """The cell has no number, and nobody needs its origin more."""
    edit(mini / "tables/cifar10.csv", "mae", {"knn": ""})
    assert "knn" in {origin["evaluation"] for origin in trace(mini / "tables/cifar10", "mae")}


def test_a_result_from_outside_leads_to_its_file(mini: Path) -> None:
    for name in ("cifar10", "tidy"):
        edit(mini / f"tables/{name}.csv", "mae", {"run": "mine", "source": "elsewhere/mine.csv"})
    origins = trace(mini / "tables/cifar10", "mine")
    assert {origin["result"] for origin in origins} == {"elsewhere/mine.csv"}
    assert {origin["evaluation"] for origin in origins} >= {"linear_probe", "knn"}


def edit(path: Path, run: str, new: dict[str, str]) -> None:
    """Change a run's rows of a table, where it has such columns."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["run"] == run:
            row |= {key: value for key, value in new.items() if key in row}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
