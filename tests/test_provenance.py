"""Where a number says that it comes from."""

import subprocess
from pathlib import Path

import pytest

from ijepa import provenance


def test_a_commit_has_a_plus_where_code_differs_and_none_for_a_cluster_s_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == "unknown"
    profile, code = tmp_path / "workflow/profiles/slurm/config.yaml", tmp_path / "evals/knn.py"
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
