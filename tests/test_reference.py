"""A right reproduction is told from a wrong one by the noise of repeated training."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evals.report.plan import ReportPlan, TableSpec
from evals.report.reference import Row, between_seeds, judge, publish, show
from evals.report.result_set import Results
from evals.result import packed
from ijepa.errors import UserError

N = 5000


def result(value: float, metric: str = "top1", **more: Any) -> dict[str, Any]:
    return {
        "evaluation": "knn",
        "dataset": "tiny",
        "label": "class",
        "split": "test",
        "metric": metric,
        "value": value,
        "n": N,
        "protocol": {},
        "images": {},
        "about": {"data_version": "1", "facts": {"train_seconds": 60.0}},
        **more,
    }


@pytest.fixture
def reference() -> Results:
    """Five runs of three seeds, which lie half a point apart, and the untrained network."""
    random = np.random.default_rng(0)
    runs = {f"run{number}": 0.3 + 0.05 * number for number in range(5)}
    results = {
        (run, seed, "knn"): result(value + 0.005 * float(random.standard_normal()))
        for run, value in runs.items()
        for seed in range(3)
    }
    return results | {("random_init", 0, "knn"): result(0.25)}


def test_rounding_differences_agree_and_a_wrong_result_is_named(
    reference: Results,
) -> None:
    random = np.random.default_rng(1)
    own = {
        key: result(entry["value"] + 0.005 * float(random.standard_normal()))
        for key, entry in reference.items()
        if key[1] == 0
    }
    verdict = judge(own, reference)
    assert verdict.agrees
    assert str(verdict).startswith("agrees with the published results within noise (6 compared")
    own["run2", 0, "knn"] = result(reference["run2", 0, "knn"]["value"] + 0.05)
    verdict = judge(own, reference)
    assert [row.name for row in verdict.wrong] == ["run2/seed0/knn"]
    assert "DISAGREES" in str(verdict)
    assert "run2/seed0/knn: 45" in str(verdict)


def test_an_accuracy_is_told_in_percent_and_a_rank_as_it_is() -> None:
    assert Row("a", 0.5, 0.25, 0.01).line == "a: 50.00 here, 25.00 in git"
    assert Row("a", 95.1, 90.0, 0.01, scale=1).line == "a: 95.10 here, 90.00 in git"


def test_a_reproduction_is_called_wrong_as_seldom_as_it_says(reference: Results) -> None:
    random = np.random.default_rng(2)
    times, alarms = 300, 0
    for _ in range(times):
        seeds = {
            (f"run{run}", seed, "knn"): result(0.4 + 0.005 * float(random.standard_normal()))
            for run in range(5)
            for seed in range(3)
        }
        own = {
            (f"run{run}", 0, "knn"): result(0.4 + 0.005 * float(random.standard_normal()))
            for run in range(5)
        }
        alarms += not judge(own, seeds, alpha=0.05).agrees
    assert alarms / times <= 0.05 + 2 * (0.05 * 0.95 / times) ** 0.5


def test_the_noise_between_seeds_is_pooled_over_runs_and_not_of_controls(
    reference: Results,
) -> None:
    deviation, freedom = between_seeds(reference)["knn"]
    assert freedom == 10
    assert deviation == pytest.approx(0.005, rel=0.5)


def test_a_reference_of_one_seed_says_the_noise_of_the_test_images(reference: Results) -> None:
    one_seed = {key: entry for key, entry in reference.items() if key[1] == 0}
    near = {key: result(entry["value"] + 0.01) for key, entry in one_seed.items()}
    assert judge(near, one_seed).agrees
    far = {key: result(entry["value"] + 0.06) for key, entry in one_seed.items()}
    assert len(judge(far, one_seed).wrong) == 6


def test_results_of_other_settings_are_not_compared(reference: Results) -> None:
    own = {("run0", 0, "knn"): result(0.9, protocol={"num_neighbours": 7})}
    own["elsewhere", 0, "knn"] = result(0.5)
    verdict = judge(own, reference)
    assert not verdict.agrees
    assert [*verdict.not_comparable] == ["run0/seed0/knn"]
    assert "(the first: protocol.num_neighbours 7 ->" in str(verdict)
    assert verdict.missing == ["elsewhere/seed0/knn"]
    assert "no result can be compared" in str(verdict)


def write(folder: Path, results: Results) -> None:
    for (run, seed, name), content in results.items():
        path = folder / "evaluations" / run / f"seed{seed}" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


PLAN = ReportPlan("mini", "cifar10", [TableSpec("any", "Any", ["knn"], titles={"knn": "k-NN"})])


def test_the_end_of_a_run_says_that_it_agrees_or_names_what_was_changed_by_hand(
    reference: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Path("results/mini")
    write(mine, {key: entry for key, entry in reference.items() if key[1] == 0})
    show(mine, PLAN)
    assert "git has no results of mini to compare with" in capsys.readouterr().out
    shutil.copytree(mine, "results/reference/mini")
    show(mine, PLAN)
    out = capsys.readouterr().out
    assert "mini agrees with the published results within noise (6 compared, 6 of them" in out
    assert "k-NN" in out
    path = mine / "evaluations/run3/seed0/knn.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": 0.9}))
    show(mine, PLAN)
    out = capsys.readouterr().out
    assert "mini DISAGREES with the published results beyond noise (1 of 6):" in out
    assert "run3/seed0/knn: 90.00 here" in out
    # The result contradicts its own record of each image.
    bits = packed(torch.zeros(N, dtype=torch.bool))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"correct": bits}))
    with pytest.raises(UserError, match=r"run3/seed0/knn\.json .* correct has 0 of 5000 images"):
        show(mine, PLAN)


def test_published_results_are_those_of_a_run_without_encoders_and_features(
    reference: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Path("results/mini")
    write(mine, reference)
    for name in ("tables/cifar10.md", "runs/mae/seed0/encoder.safetensors", "report.html"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).touch()
    stale = Path("results/reference/mini/evaluations/gone/seed0/knn.json")
    stale.parent.mkdir(parents=True)
    stale.touch()
    publish(mine)
    made = {str(path.relative_to("results/reference/mini")) for path in
            Path("results/reference/mini").rglob("*") if path.is_file()}  # fmt: skip
    assert made == {"tables/cifar10.md"} | {
        f"evaluations/{run}/seed{seed}/{name}.json" for run, seed, name in reference
    }
