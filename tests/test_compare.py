"""Comparisons of result sets, on made-up results whose difference is known."""

import csv
import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from evals.report import noise
from evals.report.compare import compare, main
from evals.report.result_set import Results
from evals.result import packed
from ijepa.errors import UserError

Bits = NDArray[np.bool_]


def result(correct: Bits | None = None, **other: Any) -> dict[str, Any]:
    """Result as ``python -m evals knn`` writes it, as far as a comparison reads it."""
    made: dict[str, Any] = {
        "evaluation": "knn",
        "dataset": "tiny",
        "label": "class",
        "split": "test",
        "metric": "top1",
        "protocol": {"num_neighbours": 20, "crop": {"flip": 0.5}, "num_workers": 1},
        "images": {},
        "about": {"data_version": "9e27bb5a10f9"},
    }
    if correct is not None:
        bits = torch.from_numpy(correct)
        made |= {"value": float(correct.mean()), "n": len(bits), "correct": packed(bits)}
    return made | other


def share(right: int, n: int = 1000) -> Bits:
    """The first ``right`` of ``n`` images are right."""
    return np.arange(n) < right


def write(folder: Path, results: dict[str, dict[str, Any]]) -> Path:
    """A result set of files by RUN/seedN/EVALUATION."""
    for name, made in results.items():
        path = folder / "evaluations" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made))
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The command's exit status."""
    monkeypatch.setattr("sys.argv", ["compare", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_bootstrap_is_that_of_resampled_images() -> None:
    random = np.random.default_rng(1)
    a, b = random.random((2, 3, 400)) < np.array([[[0.5]], [[0.58]]])
    changes = b.sum(0) - a.sum(0)
    means = [changes[random.integers(0, 400, 400)].mean() / 3 for _ in range(10_000)]
    low, high, _ = noise.paired(changes, 3, 0.05)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.003)
    assert high - low == pytest.approx(2 * 1.96 * changes.std() / 3 / 20, rel=0.05)


@given(st.integers(0, 40), st.integers(0, 40))
def test_of_one_seed_the_p_value_is_mcnemars(lost: int, won: int) -> None:
    changes = np.repeat([-1, 0, 1], [lost, 50, won])
    expected = binomtest(won, lost + won).pvalue if lost + won else 1.0
    assert noise.sign_test(changes) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_of_several_seeds_the_p_value_is_the_share_of_all_signs(changes: list[int]) -> None:
    sums = [
        abs(sum(sign * change for sign, change in zip(signs, changes, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(changes))
    ]
    expected = np.mean([total >= abs(sum(changes)) for total in sums])
    assert noise.sign_test(np.array(changes)) == pytest.approx(expected, abs=1e-9)


def test_holm_corrects_the_smallest_most() -> None:
    assert noise.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert noise.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "unpaired"])
@pytest.mark.parametrize(("n", "hard"), [(400, 0.4), (60, 0.1)], ids=["many", "few"])
def test_without_a_difference_a_comparison_errs_at_most_as_often_as_alpha(
    paired: bool, n: int, hard: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight evaluations are compared together; the images that are hard are right by chance."""
    monkeypatch.setattr(noise, "RESAMPLES", 1)  # for the interval, on which no verdict depends
    random = np.random.default_rng(0)
    alarms, times, alpha = 0, 300, 0.1
    for _ in range(times):
        old: Results = {}
        new: Results = {}
        for number in range(8):
            easy = random.random(n) > hard
            for results in (old, new):
                made = result(easy | (random.random(n) < 0.5))
                made = made if paired else {key: made[key] for key in made if key != "correct"}
                results["ijepa", 0, f"knn{number}"] = made
        rows = compare(old, new, alpha)
        alarms += any(row.verdict in ("worse", "better") for row in rows)
    assert alarms / times <= alpha + 2 * (alpha * (1 - alpha) / times) ** 0.5


def test_seeds_of_the_same_images_are_no_more_images() -> None:
    """Five seeds with the same errors have the verdict of one of them."""
    one_seed = {("mae", 0, "knn"): result(share(500))}, {("mae", 0, "knn"): result(share(490))}
    five_seeds = [{("mae", s, "knn"): each["mae", 0, "knn"] for s in range(5)} for each in one_seed]
    (single,), (pooled,) = compare(*one_seed), compare(five_seeds[0], five_seeds[1])
    assert pooled.seeds == "0 1 2 3 4"
    assert (pooled.difference, pooled.p) == pytest.approx((single.difference, single.p))
    assert (pooled.low, pooled.high) == pytest.approx((single.low, single.high))


def test_image_by_image_a_difference_shows_that_the_values_alone_hide() -> None:
    a, b = ({("mae", 0, "knn"): result(share(right))} for right in (500, 488))
    (row,) = compare(a, b)
    assert (row.verdict, row.test) == ("worse", "paired")
    assert row.difference == pytest.approx(-1.2)
    del a["mae", 0, "knn"]["correct"]
    (row,) = compare(a, b)
    assert (row.verdict, row.test) == ("within noise", "unpaired")
    assert row.difference == pytest.approx(-1.2)
    assert row.low is not None
    assert row.high is not None
    assert row.low < -1.2 < 0 < row.high


def test_worse_is_1_and_better_or_the_same_is_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {f"{name}/seed0/knn": result(share(500)) for name in ("ijepa", "mae", "cae")}
    new = old | {"mae/seed0/knn": result(share(420)), "cae/seed0/knn": result(share(600))}
    a, b = write(tmp_path / "a", old), write(tmp_path / "b", new)
    assert run(monkeypatch, a, b, "--csv", tmp_path / "rows.csv") == 1
    lines = capsys.readouterr().out.splitlines()
    line_numbers = [
        next(n for n, line in enumerate(lines) if name in line) for name in ("mae", "ijepa")
    ]
    assert line_numbers == sorted(line_numbers)
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["run"], r["verdict"], float(r["difference"])) for r in rows] == [
        ("mae", "worse", pytest.approx(-8)),
        ("ijepa", "within noise", 0),
        ("cae", "better", pytest.approx(10)),
    ]
    assert run(monkeypatch, a, b, "--runs", "ijepa", "cae") == 0
    assert run(monkeypatch, a, a) == 0


def test_two_runs_of_one_set_are_compared_as_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"ijepa/seed0/knn": result(share(400)), "mae/seed0/knn": result(share(500))}
    a = write(tmp_path / "a", made | {"mae/seed1/knn": result(share(500))})
    assert run(monkeypatch, a, a, "--pair", "ijepa", "mae", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["run"], r["seeds"], r["verdict"]) for r in rows] == [
        ("ijepa -> mae", "0", "better"),
        ("ijepa -> mae", "1", "only in B"),
    ]
    assert run(monkeypatch, a, a, "--pair", "mae", "ijepa") == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"protocol": {"num_neighbours": 10}}, "protocol.num_neighbours 20 -> 10"),
        ({"protocol": {"num_neighbours": 20}}, "protocol.crop.flip 0.5 -> absent"),
        ({"about": {"data_version": "new"}}, 'data_version "9e27bb5a10f9" -> "new"'),
        ({"images": {"train": 20}}, "images.train absent -> 20"),
        ({"label": "count"}, 'label "class" -> "count"'),
        ({"n": 999, "value": 0.5}, "n 1000 -> 999"),
    ],
)
def test_results_of_different_protocols_or_data_are_not_compared(
    other: dict[str, Any], message: str
) -> None:
    a = {("mae", seed, "knn"): result(share(500)) for seed in (0, 1)}
    b = a | {("mae", 0, "knn"): result(share(100)) | other}
    rows = {row.seeds: row for row in compare(a, b)}
    assert (rows["0"].verdict, rows["0"].difference) == ("not comparable", None)
    assert message in rows["0"].note
    assert (rows["1"].verdict, rows["1"].difference) == ("within noise", 0)


def test_how_many_processes_made_the_views_does_not_matter() -> None:
    a = {("mae", 0, "knn"): result(share(500))}
    b = {("mae", 0, "knn"): result(share(500))}
    b["mae", 0, "knn"]["protocol"] = a["mae", 0, "knn"]["protocol"] | {"num_workers": 8}
    assert [row.verdict for row in compare(a, b)] == ["within noise"]


def test_what_one_set_lacks_is_listed() -> None:
    a = {("mae", 0, "knn"): result(share(500)), ("mae", 1, "knn"): result(share(500))}
    b = {("mae", 0, "knn"): result(share(500)), ("cae", 0, "knn"): result(share(500))}
    assert [(row.run, row.seeds, row.verdict) for row in compare(a, b)] == [
        ("mae", "0", "within noise"),
        ("mae", "1", "only in A"),
        ("cae", "0", "only in B"),
    ]


def test_a_metric_that_is_not_top1_is_shown_without_a_judgement() -> None:
    a, b = (
        {("mae", 0, "feature_statistics"): result(metric="rankme", value=value, n=10)}
        for value in (50.0, 5.0)
    )
    (row,) = compare(a, b)
    assert (row.verdict, row.difference, row.p) == ("not judged", -45, None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"value": float("nan")}, r"mae/seed0/knn.json of .*: value is nan, no finite number"),
        ({"value": "high"}, "mae/seed0/knn.json of .*: evaluate it anew"),
        ({"value": 0.4}, "correct has 500 of 1000 images, but value is 0.4"),
        ({"value": 50.0}, "value is 50.0 of n = 1000 images, no share"),
        ({"n": 0}, "value is 0.5 of n = 0 images"),
        ({"correct": "AAAA"}, "correct has 3 bytes, 1000 images take 125"),
        ({"correct": "?"}, "correct is not base64"),
        ({"classes": {"right": "300 100"}}, "classes have 400 of 1000 images, but value is 0.5"),
        ({"about": {}}, "knn.json of .* has no 'data_version'"),
    ],
)
def test_a_damaged_result_is_named(
    damage: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a = write(tmp_path / "a", {"mae/seed0/knn": result(share(500))})
    b = write(tmp_path / "b", {"mae/seed0/knn": result(share(500)) | damage})
    assert run(monkeypatch, a, b) == 2
    error = capsys.readouterr().err
    with pytest.raises(UserError, match=message):
        raise UserError(error)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{a}", "nowhere"], "'nowhere' is no folder, no git revision"),
        (["{a}", "{empty}"], "has no evaluations/RUN/seedN/NAME.json"),
        (["{a}", "{a}", "--alpha", "1"], "--alpha 1.0: it must lie within"),
        (["{a}", "{a}", "--runs", "mea"], "--runs names mea: known are ijepa, mae"),
        (["{a}", "{a}", "--evaluations", "kn"], "--evaluations names kn: known are knn"),
        (["{a}", "{a}", "--pair", "mae", "cae"], "--pair names cae: known are ijepa, mae"),
        (["{a}", "{other}"], "no result of A is comparable"),
        (["{a}"], "the following arguments are required: B"),
    ],
)
def test_wrong_usage_is_2_and_never_1(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = {f"{name}/seed0/knn": result(share(500)) for name in ("ijepa", "mae")}
    folders = {
        "a": write(tmp_path / "a", made),
        "other": write(tmp_path / "other", {"mae/seed0/knn": result(share(500), label="count")}),
        "empty": tmp_path,
    }
    assert run(monkeypatch, *(word.format(**folders) for word in words)) == 2
    assert message in capsys.readouterr().err


def test_a_set_is_read_from_a_revision_and_from_an_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also from a subfolder; the working tree stays as it is."""

    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    def values() -> tuple[float, float]:
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        return row["a"], row["b"]

    git("init")
    for number, right in enumerate((500, 400, 300)):
        write(tmp_path / "results" / "mini", {"mae/seed0/knn": result(share(right))})
        (tmp_path / "results" / "mini" / "evaluations" / "other.json").write_text("no result")
        git("add", ".")
        git("commit", "-m", str(number))
        git("tag", f"v{number}")
    git("update-ref", "refs/exps/ab/cdef/bold-trial", "v0")
    write(tmp_path / "results" / "mini", {"mae/seed0/knn": result(share(450))})
    (tmp_path / "results" / "sub").mkdir()

    for folder in (tmp_path, tmp_path / "results" / "sub"):
        monkeypatch.chdir(folder)
        assert run(monkeypatch, "v0", "v1:results/mini", "--json") == 1
        assert values() == (50, 40)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "HEAD", "results/mini", "--json") == 0
    assert values() == (30, 45)
    assert run(monkeypatch, "bold-trial", "results/mini", "--json") == 1
    assert values() == (50, 45)
    assert run(monkeypatch, "refs/exps/ab/cdef/bold-trial", "v2", "--json") == 1
    assert values() == (50, 30)
    assert run(monkeypatch, "v0:results/maxi", "v1") == 2
    assert "'v0' has no results/maxi/evaluations in git" in capsys.readouterr().err
    git("update-ref", "refs/exps/12/3456/bold-trial", "v1")
    assert run(monkeypatch, "bold-trial", "v1") == 2
    assert "refs/exps/12/3456/bold-trial and refs/exps/ab/cdef" in capsys.readouterr().err
