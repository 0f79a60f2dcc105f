"""The benchmark of speed measures every subject, and writes a file and a table."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import bench


@pytest.mark.usefixtures("real_register")
def test_a_small_benchmark_measures_every_subject_and_its_table_has_a_row_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of so few images say nothing. Over 5 s: it starts loaders, and counts FLOPs."""
    page = tmp_path / "costs.md"
    page.write_text(f"before\n{bench.MARK}\nan older table\n<!-- end -->\nafter\n")
    monkeypatch.setattr(bench, "COSTS", page)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    command = ["bench", "--shapes", "mini", "--batch-size", "8", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    (path,) = (tmp_path / "results").glob("*.json")
    record = json.loads(path.read_text())
    assert {"commit", "torch", "timm", "python", "machine"} <= record.keys()
    facts = record["shapes"]["mini"]
    subjects = {"step", "loader", "masks", "probe", "evaluation"}
    assert subjects <= facts["subjects"].keys()
    assert all(row["images_per_s"] > 0 for row in facts["subjects"].values())
    parts = facts["subjects"]["step"]["parts_ms"]
    assert {"data wait", "target", "context", "predictor", "backward", "optimiser"} <= parts.keys()

    monkeypatch.setattr(sys, "argv", ["bench", "--table"])
    bench.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "older" not in text
    rows = [line.split(" | ")[2] for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == "subject"
    assert subjects <= set(rows)
