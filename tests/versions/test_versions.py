"""A clone, a pull, nothing to do: DVC and Snakemake agree (real dvc, git and an HTTP server)."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from gto.constants import name_re

from evals.report.provenance import trace
from ijepa.errors import UserError
from tests.versions.actions import (
    CONFIG,
    DVC,
    ROOT,
    SETTLE,
    USUAL,
    attempt,
    change_evaluation,
    different_files,
    finished,
    pull_and_settle,
    run,
)
from tests.versions.conftest import Changed, Store
from workflow.plan.audit import check
from workflow.scripts.dvc_stages import text_of

EVALUATIONS = "results/tiny/evaluations"
ENCODERS = ("mae", "random_init", "pixels")
NAMES = ("knn", "feature_statistics")


def test_the_committed_stages_are_those_of_their_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "dvc.yaml").read_text()
    configs = text.splitlines()[0].split("dvc_stages ")[1].split()
    monkeypatch.chdir(ROOT)
    assert text == text_of([Path(config) for config in configs])


def test_encoders_are_artifacts_with_names_that_dvc_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    content = yaml.safe_load(text_of([Path("config/mini.yaml")]))
    assert content["artifacts"].keys() == {
        f"mini-{run}-seed0" for run in ("ijepa", "mae", "data2vec")
    }
    outs = [str(next(iter(out))) for stage in content["stages"].values() for out in stage["outs"]]
    for name, artifact in content["artifacts"].items():
        assert name_re.match(name)
        assert any(artifact["path"].startswith(f"{out}/") for out in outs)


def test_a_tagged_encoder_is_got_by_its_name(origin: Path, pulled: Path, tmp_path: Path) -> None:
    run(pulled, "git", "tag", "-a", "tiny-mae-seed0@v1.0.0", "-m", "first")
    run(tmp_path, *DVC, "artifacts", "get", str(pulled), "tiny-mae-seed0", "-o", "encoder")
    expected = origin / "results/tiny/runs/mae/seed0/encoder.safetensors"
    assert (tmp_path / "encoder").read_bytes() == expected.read_bytes()
    run(pulled, "git", "tag", "-d", "tiny-mae-seed0@v1.0.0")


def test_in_a_clone_changed_shards_make_everything_that_rests_on_them(
    origin: Path, pulled: Path
) -> None:
    """Snakemake need not know of the change: an encoder says on which data it was trained.

    Over 5 s: everything after the shards is made again.
    """
    before = yaml.safe_load((pulled / "dvc.lock").read_text())["stages"]
    register = pulled / "data/datasets.yaml"
    register.write_text(register.read_text().replace("shard_size: 48", "shard_size: 40"))
    run(pulled, *DVC, "repro", "data-tiny")
    stages = yaml.safe_load((pulled / "dvc.lock").read_text())["stages"]
    assert {name for name in stages if stages[name] != before[name]} == {"data-tiny"}
    output = run(pulled, *DVC, "repro")
    assert finished(output).count("pretrain") == 2  # one run, and the network untrained
    assert finished(output).count("evaluate_features") == 3
    results = different_files(origin, pulled, EVALUATIONS)
    assert results == {f"{encoder}/seed0/{name}.json" for encoder in ENCODERS for name in NAMES}
    assert {"fetch", "build_shards"}.isdisjoint(finished(output))
    assert "up to date" in run(pulled, *DVC, "status")


def test_in_a_clone_a_changed_evaluation_makes_that_evaluation_and_no_other(
    origin: Path, changed: Changed
) -> None:
    """Over 5 s: the workflow makes the evaluation of every encoder."""
    clone, output = changed.clone, changed.output
    assert "Stage 'encoders-tiny' didn't change, skipping" in output
    assert finished(output).count("evaluate_features") == 3  # of one encoder and two controls
    assert "pretrain" not in finished(output)
    results = different_files(origin, clone, EVALUATIONS)
    assert results == {f"{encoder}/seed0/knn.json" for encoder in ENCODERS}
    # Features stay too; only their note differs, as it has the seconds that they took.
    features = different_files(origin, clone, "results/tiny/features")
    assert {Path(path).name for path in features} <= {"about.json"}
    result = json.loads((clone / EVALUATIONS / "mae/seed0/knn.json").read_text())
    assert result["protocol"]["num_neighbours"] == 7
    difference = json.loads(run(clone, *DVC, "metrics", "diff", "--json"))
    metrics = difference["results/tiny/metrics.json"]
    assert {key.split(".")[-1] for key in metrics} <= {"knn"}
    assert "up to date" in run(clone, *DVC, "status")
    # Beside DVC's files there are now files made from them, such as the note of verified shards.
    assert (clone / "data/shards/tiny/.verified.json").exists()
    run(clone, "git", "checkout", "dvc.lock", str(CONFIG))
    run(clone, *DVC, "checkout")
    run(clone, *SETTLE)
    assert different_files(origin, clone, EVALUATIONS) == set()


def test_after_a_clone_and_a_pull_there_is_nothing_to_do(
    origin: Path, clone: Path, store: Store
) -> None:
    """Also where the connection is lost on the way: the same command again finishes."""
    store.cut = 3
    attempt(clone, *DVC, "pull")
    store.cut = 0
    pull_and_settle(clone)
    assert "up to date" in run(clone, *DVC, "status")
    for folder in ("data/shards/tiny", "results/tiny/runs"):
        for path in (origin / folder).rglob("*.[st]a[fr]*"):
            assert (clone / path.relative_to(origin)).read_bytes() == path.read_bytes()


def test_in_a_clone_a_changed_recipe_trains_that_run_and_no_other(
    origin: Path, pulled: Path
) -> None:
    """Over 5 s: one run is trained and evaluated."""
    output = run(pulled, *DVC, "exp", "run", "-S", f"{CONFIG}:runs.1.recipe.decoder_depth=2")
    assert finished(output).count("pretrain") == 1
    assert finished(output).count("evaluate_features") == 1
    results = different_files(origin, pulled, EVALUATIONS)
    assert results == {f"mae/seed0/{name}.json" for name in NAMES}
    assert "decoder_depth: 2" in (pulled / "results/tiny/runs/mae/seed0/run.yaml").read_text()
    assert "results/tiny/metrics.json" in run(pulled, *DVC, "exp", "show", "--json")


def test_a_cell_of_a_table_leads_to_its_origin(origin: Path) -> None:
    origins = trace(origin / "results/tiny/tables/table", "mae")
    assert {result["evaluation"] for result in origins} == {"knn", "feature_statistics"}
    for result in origins:
        assert Path(result["result"]).exists()
        assert result["seed"] == "0"
        assert result["commit"] == result["commit of the encoder"] != "unknown"
        assert json.loads(result["config of the encoder"])["method"] == "mae"
    with pytest.raises(UserError, match="has no row 'maee': there are mae, random_init, pixels"):
        trace(origin / "results/tiny/tables/table", "maee")
    with pytest.raises(UserError, match="does not exist: tables here are gpu_hours, table"):
        trace(origin / "results/tiny/tables/nope", "mae")


def test_results_of_an_earlier_config_are_named(
    origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(origin)
    for part in ("runs", "features", "evaluations"):
        folder = f"results/tiny/{part}"
        with pytest.raises(UserError, match=f"{folder}/mae/seed0 is of an earlier config"):
            check({"encoders": {}, "folders": [folder]})
    names = {"results/tiny/tables": ["gpu_hours", "cost", "tidy"]}
    with pytest.raises(UserError, match=r"results/tiny/tables/table\.csv is of an earlier config"):
        check({"folders": ["results/tiny/plots"], "tables": names})


def test_an_old_result_is_never_noted_under_new_parameters(pulled: Path) -> None:
    """Without records, times say that all is up to date; the content shows that it is not.

    Over 5 s: Snakemake is started, and compares the content.
    """
    run(pulled, *SETTLE)
    before = (pulled / "dvc.lock").read_text()
    change_evaluation(pulled)
    shutil.rmtree(pulled / ".snakemake")
    for records in pulled.rglob("*.records.json"):
        records.unlink()
    process = attempt(pulled, *USUAL, *DVC, "repro", "tables-tiny", "--single-item")
    assert process.returncode != 0
    assert "has protocol.num_neighbours 5, not 7" in process.stdout + process.stderr
    assert (pulled / "dvc.lock").read_text() == before
