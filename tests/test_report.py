"""Tables from results, and the page in a real browser."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from playwright.sync_api import Page, sync_playwright

from evals import tables
from evals.__main__ import evaluate
from evals.features import extract
from evals.report import report
from evals.subject import Subject
from ijepa.config import parse
from ijepa.errors import UserError
from ijepa.train import train

EVALUATIONS = ["linear_probe", "knn"]
SPEC = {
    "name": "tiny",
    "title": "Tiny, frozen features",
    "evaluations": EVALUATIONS,
    "titles": {"linear_probe": "linear"},
}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "linear_probe": {"preset": "cifar100", "batch_size": 32, "epochs": 2, "milestones": []},
    "knn": {},
}


@pytest.fixture(scope="module")
def results(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder as the workflow leaves it: one run, two controls."""
    folder = tmp_path_factory.mktemp("results") / "tiny"
    run = {
        "method": "ijepa",
        "dataset": "tiny",
        "vit": {"image_size": 32, "patch_size": 4, "dim": 32, "depth": 1, "num_heads": 2},
        "recipe": {
            "optim": {"batch_size": 32, "epochs": 2, "warmup_epochs": 0},
            "masking": {"mode": "fixed", "min_keep": 3, "group_size": 16},
            "predictor_dim": 16,
            "predictor_depth": 1,
        },
        "log_every": 1,
    }
    # Left by another config: none of this report's business.
    (folder / "runs" / "abandoned" / "seed0").mkdir(parents=True)
    untrained = {"epochs": 0, "warmup_epochs": 0, "batch_size": 32}
    for name, epochs in (("ijepa", run["recipe"]["optim"]), ("random_init", untrained)):  # type: ignore[index]
        of_run = folder / "runs" / name / "seed0"
        of_run.mkdir(parents=True)
        raw: dict[str, Any] = {**run, "recipe": {**run["recipe"], "optim": epochs}}  # type: ignore[dict-item]
        (of_run / "run.yaml").write_text(yaml.safe_dump(raw))
        train(parse(raw), data, folder / "work", of_run / "encoder.safetensors")
    for name in ("ijepa", "random_init", "pixels"):
        encoder = folder / "runs" / name / "seed0" / "encoder.safetensors"
        features = folder / "features" / name / "seed0" / "tiny" / "about.json"
        extract(encoder if encoder.exists() else None, data, 32, features)
        for evaluation in EVALUATIONS:
            out = folder / "evaluations" / name / "seed0" / f"{evaluation}.json"
            subject = Subject(data, "class", features_of=features)
            evaluate(evaluation, PROTOCOLS[evaluation], subject, out)
    return folder


def seeded(results: Path, folder: Path, values: list[float]) -> pd.DataFrame:
    """The results with one run repeated over seeds, its k-NN accuracies given."""
    shutil.copytree(results / "evaluations", folder / "evaluations")
    source = folder / "evaluations" / "ijepa" / "seed0" / "knn.json"
    result = json.loads(source.read_text())
    for seed, value in enumerate(values):
        path = folder / "evaluations" / "ijepa" / f"seed{seed}" / "knn.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**result, "value": value}))
    return tables.read_results(found(folder))


def found(folder: Path) -> list[Path]:
    return list(folder.glob("evaluations/*/*/*.json"))


def test_a_table_has_every_run_and_then_the_two_controls(results: Path) -> None:
    table = tables.tabulate(tables.read_results(found(results)), SPEC).rows
    assert table["run"].tolist() == ["ijepa", "random_init", "pixels"]
    result = json.loads((results / "evaluations/ijepa/seed0/knn.json").read_text())
    assert table["knn"][0] == pytest.approx(100 * result["value"])
    assert table["knn_n"].tolist() == [32, 32, 32]


def test_a_table_that_names_its_runs_has_no_others_and_no_gains(results: Path) -> None:
    tidy = tables.read_results(found(results))
    table = tables.tabulate(tidy, {**SPEC, "runs": ["ijepa"]})
    assert table.rows["run"].tolist() == ["ijepa"]
    assert "gain" not in tables.markdown(table)
    assert "| linear, top-1 % | knn, top-1 % |" in tables.markdown(table)


def test_an_evaluation_that_an_encoder_does_not_have_is_a_dash(
    results: Path, tmp_path: Path
) -> None:
    """Raw pixels cannot be fine-tuned."""
    shutil.copytree(results / "evaluations", tmp_path / "evaluations")
    (tmp_path / "evaluations" / "pixels" / "seed0" / "linear_probe.json").unlink()
    table = tables.tabulate(tables.read_results(found(tmp_path)), SPEC)
    assert "| pixels (no network) | - |  |" in tables.markdown(table)


def test_what_is_no_accuracy_is_shown_as_it_is(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "evaluations", tmp_path / "evaluations")
    for path in (tmp_path / "evaluations").glob("*/*/knn.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"metric": "rankme", "value": 12.5}))
    text = tables.markdown(tables.tabulate(tables.read_results(found(tmp_path)), SPEC))
    assert "| knn, RankMe |" in text
    assert "| 12.50 [" in text


def test_seeds_are_averaged_and_their_spread_is_told(results: Path, tmp_path: Path) -> None:
    table = tables.tabulate(seeded(results, tmp_path, [0.2, 0.4, 0.6]), SPEC)
    row = table.rows.set_index("run").loc["ijepa"]
    assert (row["knn"], row["knn_std"], row["seeds"]) == pytest.approx((40, 20, 3))
    assert "40.00 +- 20.00" in tables.markdown(table)


def test_mixed_commits_and_uncommitted_code_are_flagged(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "evaluations", tmp_path / "evaluations")
    for number, path in enumerate(sorted((tmp_path / "evaluations").glob("*/*/*.json"))):
        text = path.read_text()
        commit = json.loads(text)["commit"]
        path.write_text(text.replace(f'"{commit}"', '"aaaa"' if number else '"bbbb+"'))
    note = tables.note(tables.tabulate(tables.read_results(found(tmp_path)), SPEC))
    assert "MIXED COMMITS" in note
    assert "UNCOMMITTED CODE" in note


def test_an_encoder_that_gained_nothing_is_named(results: Path, tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    table = tables.tabulate(seeded(results, tmp_path / "low", [0.0, 0.0]), SPEC)
    assert "NO GAIN over the network untrained" in tables.note(table)
    assert "knn)" in tables.note(table)
    table.rows.loc[table.rows["run"] == "ijepa", EVALUATIONS] = 100.0
    assert "NO GAIN" not in tables.note(table)


def test_no_results_are_an_error() -> None:
    with pytest.raises(UserError, match="run the evaluations first"):
        tables.read_results([])


@pytest.mark.browser
def test_the_page_opens_from_disk_without_console_errors(
    results: Path, data: Path, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's chromium is not installed (apt-get install chromium)")
    page_file = tmp_path / "report.html"
    report(results, found(results), data, [SPEC], page_file)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for width, scheme in ((1280, "light"), (390, "dark")):
            viewport = {"width": width, "height": 900}
            page = browser.new_page(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
            look_at(page, page_file)
            page.close()
        browser.close()


def look_at(page: Page, file: Path) -> None:
    """Open the file and check that it is whole, silent, and asks for nothing but itself."""
    events: list[str] = []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("request", lambda request: events.append(request.url))
    page.goto(file.as_uri())
    assert events == [file.as_uri()]
    assert page.locator("table tbody tr").count() == 3
    figures = page.locator("figure svg")
    assert figures.count() == 4
    assert figures.evaluate_all("f => f.every(s => s.getBoundingClientRect().height > 100)")
    assert page.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    ), "something is wider than the page"
