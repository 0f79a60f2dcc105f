"""The report draws kept epochs as curves, and losses over those of published runs."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evals.report.figures import epoch_curves
from evals.report.page import panels_of_epochs, picture_of_losses, pictures_of_epochs
from evals.report.plan import ReportPlan, TableSpec
from evals.report.tidy import read_results

SPEC = TableSpec(
    "all",
    "All",
    ["knn", "linear_probe"],
    titles={"knn": "k-NN"},
    encoders=["zeta@epoch5", "zeta", "alpha@epoch2", "alpha@epoch10", "alpha", "other"],
)
PLAN = ReportPlan("all", "tiny", [SPEC])


def tidy(**values: Any) -> pd.DataFrame:
    """Tidy results of k-NN, two seeds a run, one above and one below the value."""
    rows = [
        {
            "run": run.replace("_at_", "@epoch"),
            "epochs": float(run.partition("_at_")[2] or 20),
            "seed": seed,
            "evaluation": "knn",
            "metric": "top1",
            "value": value + (1 if seed else -1),
        }
        for run, value in values.items()
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_a_curve_goes_through_the_kept_epochs_in_order_to_the_finished_run() -> None:
    results = tidy(
        alpha_at_10=30, alpha_at_2=20, alpha=40, zeta_at_5=10, zeta=50,
        other=60, pixels=25, random_init=15,
    )  # fmt: skip
    (panel,) = panels_of_epochs(PLAN, results)  # the linear probe has no results
    assert panel.curves == {
        "zeta": [(5, 10), (20, 50)],
        "alpha": [(2, 20), (10, 30), (20, 40)],
    }
    assert (panel.title, panel.unit) == ("k-NN", "top-1 %")
    assert panel.controls == {"random_init": 15, "pixels": 25}
    (picture,) = pictures_of_epochs(PLAN, results)
    order = [picture.html.index(f"<!-- {name} -->") for name in ("zeta", "alpha", "random_init")]
    assert order == sorted(order), "the legend has the config's order, controls last"
    assert "<!-- other -->" not in picture.html
    assert "controls" in picture.caption


def test_without_kept_epochs_there_is_no_such_picture() -> None:
    assert pictures_of_epochs(PLAN, tidy(alpha=40, pixels=25)) == []


@pytest.mark.parametrize("number", [1, 3, 4])
def test_every_evaluation_has_a_panel(number: int) -> None:
    results = tidy(alpha_at_2=20, alpha=40)
    (panel,) = panels_of_epochs(PLAN, results)
    svg = epoch_curves([panel._replace(title=f"evaluation {n}") for n in range(number)])
    assert svg.count("<!-- evaluation ") == number


def test_an_encoder_that_was_kept_on_the_way_has_its_own_number_of_epochs(tmp_path: Path) -> None:
    """Its header holds the run, whose recipe says how long the whole run was."""
    paths = []
    for name, facts in (("mae@epoch5", {"epoch": 5}), ("mae", {})):
        paths.append(tmp_path / name / "seed0" / "knn.json")
        result = {
            "metric": "top1", "value": 0.5, "interval": [0.4, 0.6], "n": 10, "dataset": "tiny",
            "chosen": {}, "machine": "any", "commit": "a",
            "about": {
                "data_version": "v",
                "run": {"method": "mae", "recipe": {"optim": {"epochs": 20}}},
                "facts": {**facts, "images_seen": 1},
            },
        }  # fmt: skip
        paths[-1].parent.mkdir(parents=True)
        paths[-1].write_text(json.dumps(result))
    read = read_results(paths).set_index("run")["epochs"]
    assert read.to_dict() == {"mae@epoch5": 5, "mae": 20}


def test_losses_are_drawn_over_those_of_the_published_run_of_the_same_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = {run: Path(f"results/mini/runs/{run}/seed0") for run in ("mae", "new")}
    for path in runs.values():
        path.mkdir(parents=True)
        (path / "train.jsonl").write_text('{"step": 1, "images": 64, "loss": 0.5, "lr": 0.1}\n')
    alone = picture_of_losses(Path("results/mini"), runs)
    assert "<!-- published -->" not in alone.html
    assert "Pale" not in alone.caption
    reference = Path("results/reference/mini/plots/loss.csv")
    reference.parent.mkdir(parents=True)
    reference.write_text("run,seed,step,images,loss,lr\nmae,0,1,64,0.7,\nmae,0,2,128,0.6,\n")
    over = picture_of_losses(Path("results/mini"), runs)
    assert "<!-- published -->" in over.html
    assert over.html.count("stroke-opacity: 0.25") == 2, "one curve, and its key"
    assert "published runs of this config (results/reference/mini)" in over.caption
