"""The sentences that open the report, of planted results whose answer is known."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from evals.report.opening_sentences import opening_sentences
from evals.report.plan import TableSpec
from evals.report.table import Table, tabulate
from evals.report.tidy import read_external, read_results
from evals.result import packed, wilson

N = 2000
MINUTES = {"alpha": 3, "beta": 6, "random_init": 0}
SPEC = TableSpec("own", "Own", ["knn"], titles={"knn": "k-NN"})
INTERVAL = r"\[(-?[\d.]+), (-?[\d.]+)\]"


def share(right: int, shift: int = 0) -> NDArray[np.bool_]:
    """``right`` of the test images are classified correctly, from image ``shift`` on."""
    return np.roll(np.arange(N) < right, shift)


def plant(
    folder: Path, run: str, correct: NDArray[np.bool_], name: str = "knn", seed: int = 0
) -> None:
    """Result of a run as evals.run writes it, as far as tables read it."""
    trained = {"run": {"method": run}, "facts": {"train_seconds": 60.0 * MINUTES.get(run, 0)}}
    result = {
        "format": 1,
        "evaluation": "knn",
        "dataset": "tiny",
        "label": "class",
        "split": "test",
        "metric": "top1",
        "value": float(correct.mean()),
        "n": N,
        "interval": wilson(int(correct.sum()), N),
        "protocol": {},
        "images": {},
        "chosen": {},
        "correct": packed(torch.from_numpy(correct)),
        "about": {
            "data_version": "d1",
            "encoder": f"{run} {seed}",
            **({} if run == "pixels" else trained),
        },
        "machine": "2 cores",
        "commit": "c1",
    }
    path = folder / run / f"seed{seed}" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


def tidy(folder: Path) -> pd.DataFrame:
    return read_results(list(folder.glob("*/*/*.json")))


def table(folder: Path, **differs: Any) -> Table:
    return tabulate(tidy(folder), TableSpec(**{**vars(SPEC), **differs}))


def test_a_clear_lead_is_told_with_its_interval_and_its_cost(tmp_path: Path) -> None:
    plant(tmp_path, "alpha", share(1200))
    plant(tmp_path, "beta", share(1000))
    first, *others = opening_sentences([table(tmp_path)])
    found = re.fullmatch(
        rf"alpha leads in k-NN \(by 10\.0 points {INTERVAL} over beta\), "
        r"at 3\.0 minutes of pretraining \(beta 6\.0\)\.",
        first,
    )
    assert found is not None, first
    low, high = map(float, found.groups())
    # 200 of 2000 images changed, all one way: a binomial share of 10 %.
    assert low == pytest.approx(8.7, abs=0.2)
    assert high == pytest.approx(11.3, abs=0.2)
    assert not any("Not significant" in text for text in others)


def test_the_cost_is_in_gpu_hours_where_there_was_a_gpu_and_unknown_costs_are_said(
    tmp_path: Path,
) -> None:
    plant(tmp_path, "alpha", share(1200))
    plant(tmp_path, "beta", share(1000))
    frame = tidy(tmp_path)
    for hours, text in (
        ([300.0, 1200.0], ", at 300.0 GPU-hours of pretraining (beta 1,200.0)."),
        ([300.0, np.nan], ", at 300.0 GPU-hours of pretraining."),
        ([np.nan, 300.0], ", at a cost of pretraining that is not known here."),
    ):
        first, *_ = opening_sentences([tabulate(frame.assign(gpu_hours=hours), SPEC)])
        assert first.endswith(text)


def test_minutes_of_training_are_said_to_rank_no_method(tmp_path: Path) -> None:
    plant(tmp_path, "alpha", share(1200))
    plant(tmp_path, "beta", share(1000))
    frame, warning = tidy(tmp_path), "; minutes of training tell how fast a method begins"
    assert warning in opening_sentences([tabulate(frame, SPEC)])[-1]
    days = tabulate(frame.assign(train_minutes=1440.0), SPEC)
    assert not any(warning in text for text in opening_sentences([days]))


def test_a_tie_is_no_lead(tmp_path: Path) -> None:
    plant(tmp_path, "alpha", share(1004))
    plant(tmp_path, "beta", share(1000, shift=500))
    first, *_ = opening_sentences([table(tmp_path)])
    found = re.fullmatch(
        rf"Not significant is the lead in k-NN \(alpha by 0\.2 points {INTERVAL} over beta\)\.",
        first,
    )
    assert found is not None, first
    assert float(found[1]) < 0 < float(found[2])


def test_images_decide_where_both_results_have_them(tmp_path: Path) -> None:
    """Thirty images won and none lost are no noise, but two proportions cannot tell."""
    plant(tmp_path, "alpha", share(1030))
    plant(tmp_path, "beta", share(1000))
    assert opening_sentences([table(tmp_path)])[0].startswith("alpha leads in k-NN (by 1.5 points")
    for path in tmp_path.glob("*/*/*.json"):
        result = json.loads(path.read_text())
        del result["correct"]
        path.write_text(json.dumps(result))
    assert opening_sentences([table(tmp_path)])[0].startswith(
        "Not significant is the lead in k-NN (alpha by"
    )


def test_with_one_seed_the_noise_of_pretraining_is_said_to_be_unknown(tmp_path: Path) -> None:
    plant(tmp_path, "alpha", share(1200))
    plant(tmp_path, "beta", share(1000))
    assert (
        "noise of the test images alone: with one seed, nothing is known"
        in opening_sentences([table(tmp_path)])[-1]
    )
    for run, right in (("alpha", 1201), ("beta", 1001)):
        plant(tmp_path, run, share(right), seed=1)
    assert (
        "against the noise of the test images and the spread over seeds; minutes"
        in opening_sentences([table(tmp_path)])[-1]
    )


def test_a_lead_within_the_spread_over_seeds_is_not_significant(tmp_path: Path) -> None:
    """On the images alone, five points on average are far beyond noise."""
    for seed, (alpha, beta) in enumerate([(1300, 1000), (1000, 1100), (1100, 1000)]):
        plant(tmp_path, "alpha", share(alpha), seed=seed)
        plant(tmp_path, "beta", share(beta), seed=seed)
    first, *_ = opening_sentences([table(tmp_path)])
    assert re.match(r"Not significant is the lead in k-NN \(alpha by 5\.0 points \[-", first)
    for seed, (alpha, beta) in enumerate([(1100, 1000), (1110, 1005), (1105, 1003)]):
        plant(tmp_path, "alpha", share(alpha), seed=seed)
        plant(tmp_path, "beta", share(beta), seed=seed)
    assert opening_sentences([table(tmp_path)])[0].startswith("alpha leads in k-NN (by 5.1 points")


def test_encoders_that_gained_nothing_significant_are_named(tmp_path: Path) -> None:
    plant(tmp_path, "alpha", share(1200))
    plant(tmp_path, "beta", share(1003))
    plant(tmp_path, "random_init", share(1000))
    plant(tmp_path, "pixels", share(1300))
    assert opening_sentences([table(tmp_path)])[1] == (
        "Not significantly above random_init (the network untrained) is beta in k-NN; raw pixels "
        "score higher than every encoder in k-NN."
    )
    plant(tmp_path, "beta", share(1100))
    plant(tmp_path, "pixels", share(900))
    assert opening_sentences([table(tmp_path)])[1] == (
        "Every encoder is significantly above random_init (the network untrained) in every "
        "evaluation."
    )


def test_many_evaluations_are_counted_and_each_is_judged_once(tmp_path: Path) -> None:
    names = [f"e{number}" for number in range(5)]
    for name in names:
        plant(tmp_path, "alpha", share(1200), name)
        plant(tmp_path, "beta", share(1000), name)
    made = table(tmp_path, evaluations=names, titles={"e0": "probe, own"})
    first, *_, last = opening_sentences([made, made])
    assert first.startswith("alpha leads in \u201cprobe, own\u201d (by 10.0 points [")
    assert ", e1 (by" in first
    assert ") and 2 more evaluations, at 3.0 minutes" in first
    assert "5 comparisons share an error rate of 5 %" in last


def test_the_answer_is_three_sentences_however_many_runs_lead(tmp_path: Path) -> None:
    leaders = {"e0": "alpha", "e1": "alpha", "e2": "beta", "e3": "gamma", "e4": "delta"}
    runs = [*dict.fromkeys(leaders.values()), "random_init", "pixels"]
    for run in runs:
        for name in [*leaders, "tie"]:
            plant(tmp_path, run, share(1300 if leaders.get(name) == run else 1000), name)
    plant(tmp_path, "pixels", share(1400), "e4")
    made = table(tmp_path, evaluations=[*leaders, "tie"])
    leads, rest, noise = opening_sentences([made])
    assert re.fullmatch(
        rf"alpha leads in e0 \(by 15\.0 points {INTERVAL} over \w+\) and e1 \(.*?\), at 3\.0 "
        r"minutes of pretraining.*?; beta leads in e2 \(by .*?\), at 6\.0 minutes of "
        r"pretraining.*?; ahead elsewhere: gamma in e3 and delta in e4\.",
        leads,
    ), leads
    assert rest.startswith("Not significant is the lead in tie (")
    assert (
        "; not significantly above random_init (the network untrained) is alpha in 4 of 6 "
        "evaluations, beta in 5 of 6 evaluations, delta in 5 of 6 evaluations and gamma in 5 of 6 "
        "evaluations; raw pixels score higher than every encoder in e4."
    ) in rest
    assert noise.startswith("Brackets are 95 % intervals of differences, and 30 comparisons share")


def test_a_lead_that_many_comparisons_explain_is_not_significant(tmp_path: Path) -> None:
    """Seven images won and none lost: p = 0.016 alone, 0.16 as one of ten."""
    names = [f"e{number}" for number in range(10)]
    for name in names:
        plant(tmp_path, "alpha", share(1007 if name == "e0" else 1000), name)
        plant(tmp_path, "beta", share(1000), name)
    assert opening_sentences([table(tmp_path, evaluations=["e0"])])[0].startswith(
        "alpha leads in e0"
    )
    assert opening_sentences([table(tmp_path, evaluations=names)])[0].startswith(
        "Not significant are"
    )


def test_a_number_with_a_problem_is_marked(tmp_path: Path) -> None:
    plant(tmp_path, "alpha", share(1200))
    plant(tmp_path, "beta", share(1000))
    made = table(tmp_path, seeds=[0, 1])  # the second seed is missing
    assert "over beta (!))" in opening_sentences([made])[0]


def test_a_number_without_its_count_of_images_is_not_judged(tmp_path: Path) -> None:
    plant(tmp_path, "alpha", share(1200))
    (tmp_path / "mine.csv").write_text("run,evaluation,value\nmine,knn,90\n")
    frame = pd.concat([tidy(tmp_path), read_external([tmp_path / "mine.csv"])], ignore_index=True)
    first, *_ = opening_sentences([tabulate(frame, SPEC)])
    assert "(mine by 30.0 points [not judged: n is not known] over alpha)" in first


def test_decoded_pictures_are_told_by_their_share_its_interval_and_chance(tmp_path: Path) -> None:
    for run, value in (("alpha", 0.68), ("random_init", 0.5)):
        plant(tmp_path, run, share(1000))
        path = tmp_path / run / "seed0" / "knn.json"
        result = json.loads(path.read_text())
        del result["correct"]
        interval = [value - 0.03, value + 0.04]
        result |= {"metric": "identification", "value": value, "interval": interval}
        path.write_text(json.dumps(result))
    assert opening_sentences([table(tmp_path, titles={"knn": "predicted block"})]) == [
        "Share of other images that are less like a decoded picture than its own: predicted "
        "block 0.68 for alpha [0.65, 0.72] and 0.50 for random_init [0.47, 0.54]; chance is 0.50."
    ]


def test_a_single_encoder_has_no_lead(tmp_path: Path) -> None:
    plant(tmp_path, "alpha", share(1200))
    assert opening_sentences([table(tmp_path)]) == ["There are no two accuracies to compare yet."]
