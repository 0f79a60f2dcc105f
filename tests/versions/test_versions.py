"""A clone, a pull, nothing to do: DVC and Snakemake agree (real dvc, git and an HTTP server)."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from evals.audit import check
from evals.provenance import trace
from ijepa.errors import UserError
from tests.versions.actions import (
    CONFIG,
    DVC,
    ROOT,
    SETTLE,
    attempt,
    bring,
    clone_of,
    finished,
    run,
)
from tests.versions.conftest import Store
from workflow.scripts.dvc_stages import text_of


def test_the_committed_stages_are_those_of_their_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "dvc.yaml").read_text()
    configs = text.splitlines()[0].split("dvc_stages ")[1].split()
    monkeypatch.chdir(ROOT)
    assert text == text_of([Path(config) for config in configs])


def test_after_a_clone_and_a_pull_there_is_nothing_to_do(
    origin: Path, store: Store, tmp_path: Path
) -> None:
    """Also where the connection is lost on the way: the same command again finishes."""
    clone = clone_of(origin, tmp_path / "clone")
    store.cut = 3
    attempt(clone, *DVC, "pull")
    store.cut = 0
    bring(clone)
    assert "up to date" in run(clone, *DVC, "status")
    same = ("data/shards/tiny", "results/tiny/runs")
    for path in (path for place in same for path in (origin / place).rglob("*.[st]a[fr]*")):
        assert (clone / path.relative_to(origin)).read_bytes() == path.read_bytes()


def test_in_a_clone_a_changed_evaluation_makes_that_evaluation_and_no_other(
    origin: Path, tmp_path: Path
) -> None:
    clone = clone_of(origin, tmp_path / "clone")
    run(clone, *DVC, "pull")
    config = (clone / CONFIG).read_text()
    (clone / CONFIG).write_text(config.replace("num_neighbours: 5", "num_neighbours: 7"))
    said = run(clone, *DVC, "repro")
    assert "Stage 'encoders-tiny' didn't change, skipping" in said
    assert finished(said).count("evaluate") == 4  # knn of two encoders and two controls
    assert {"pretrain", "extract_features", "extract_pixels"}.isdisjoint(finished(said))
    result = json.loads((clone / "results/tiny/evaluations/mae/seed0/knn.json").read_text())
    assert result["protocol"]["num_neighbours"] == 7
    shown = json.loads(run(clone, *DVC, "metrics", "diff", "--json"))
    changed = shown["results/tiny/metrics.json"]
    assert {key.split(".")[-1] for key in changed} <= {"knn"}
    assert "up to date" in run(clone, *DVC, "status")
    # Beside what DVC holds there is now what was made of it, such as the note of verified shards.
    assert (clone / "data/shards/tiny/.verified.json").exists()
    run(clone, "git", "checkout", "dvc.lock", str(CONFIG))
    run(clone, *DVC, "checkout")
    run(clone, *SETTLE)


def test_in_a_clone_a_changed_recipe_trains_that_run_and_no_other(
    origin: Path, tmp_path: Path
) -> None:
    clone = clone_of(origin, tmp_path / "clone")
    run(clone, *DVC, "pull")
    said = run(clone, *DVC, "exp", "run", "-S", f"{CONFIG}:runs.1.recipe.decoder_depth=2")
    assert finished(said).count("pretrain") == 1
    assert finished(said).count("extract_features") == 1
    assert finished(said).count("evaluate") == 2
    assert "decoder_depth: 2" in (clone / "results/tiny/runs/mae/seed0/run.yaml").read_text()
    assert "results/tiny/metrics.json" in run(clone, *DVC, "exp", "show", "--json")


def test_in_a_clone_changed_shards_make_everything_that_rests_on_them(
    origin: Path, tmp_path: Path
) -> None:
    """Also where Snakemake knows nothing of it: an encoder says on which data it was trained."""
    clone = clone_of(origin, tmp_path / "clone")
    run(clone, *DVC, "pull")
    before = (clone / "dvc.lock").read_text()
    register = clone / "data/datasets.yaml"
    register.write_text(register.read_text().replace("shard_size: 48", "shard_size: 40"))
    run(clone, *DVC, "repro", "data-tiny")
    stages = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]
    old = yaml.safe_load(before)["stages"]
    assert {name for name in stages if stages[name] != old[name]} == {"data-tiny"}
    said = run(clone, *DVC, "repro")
    assert finished(said).count("pretrain") == 3  # two runs, and the network untrained
    assert finished(said).count("evaluate") == 8
    assert {"fetch", "build_shards"}.isdisjoint(finished(said))
    assert "up to date" in run(clone, *DVC, "status")


def test_an_old_result_is_never_noted_under_new_parameters(origin: Path, tmp_path: Path) -> None:
    """Without records, times say that all is up to date: the content must say that it is not."""
    clone = clone_of(origin, tmp_path / "clone")
    run(clone, *DVC, "pull")
    run(clone, *SETTLE)
    before = (clone / "dvc.lock").read_text()
    config = (clone / CONFIG).read_text()
    (clone / CONFIG).write_text(config.replace("num_neighbours: 5", "num_neighbours: 7"))
    shutil.rmtree(clone / ".snakemake")
    for records in clone.rglob("*.records.json"):
        records.unlink()
    done = attempt(clone, *DVC, "repro", "tables-tiny", "--single-item")
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "has protocol.num_neighbours 5, not 7" in said
    assert (clone / "dvc.lock").read_text() == before


def test_a_cell_of_a_table_leads_to_its_origin(origin: Path) -> None:
    found = trace(origin / "results/tiny/tables/table", "mae")
    assert {one["evaluation"] for one in found} == {"knn", "feature_statistics"}
    for one in found:
        assert Path(one["result"]).exists()
        assert one["seed"] == "0"
        assert one["commit"] == one["commit of the encoder"] != "unknown"
        assert json.loads(one["config of the encoder"])["method"] == "mae"
    with pytest.raises(UserError, match="has no row 'maee': there are ijepa, mae"):
        trace(origin / "results/tiny/tables/table", "maee")
    with pytest.raises(UserError, match="does not exist: tables here are gpu_hours, table"):
        trace(origin / "results/tiny/tables/nope", "mae")


def test_what_an_earlier_config_left_is_named(
    origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(origin)
    with pytest.raises(UserError, match="results/tiny/runs/mae/seed0 is of an earlier config"):
        check({"encoders": {}, "folder": "results/tiny/runs"})
    names = {"results/tiny/tables": ["gpu_hours", "cost", "tidy"]}
    with pytest.raises(UserError, match=r"results/tiny/tables/table\.csv is of an earlier config"):
        check({"folder": "results/tiny/plots", "tables": names})
