"""Tables from results, and the page in a real browser."""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
import yaml
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from evals.features import extract
from evals.report import page as page_module
from evals.report.page import pictures_of_classes, report
from evals.report.plan import ReportPlan, TableSpec
from evals.report.table import tabulate
from evals.report.table_view import markdown, note
from evals.report.tidy import read_results
from evals.run import evaluate
from evals.subject import Subject
from ijepa.config import parse_run
from ijepa.errors import UserError
from ijepa.train import train
from tests.described import picture

EVALUATIONS = ["linear_probe", "knn"]
SPEC = TableSpec("tiny", "Tiny, frozen features", EVALUATIONS, titles={"linear_probe": "linear"})
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
    # Left by another config: the report must ignore it.
    (folder / "runs" / "abandoned" / "seed0").mkdir(parents=True)
    untrained = {"epochs": 0, "warmup_epochs": 0, "batch_size": 32}
    for name, epochs in (("ijepa", run["recipe"]["optim"]), ("random_init", untrained)):  # type: ignore[index]
        of_run = folder / "runs" / name / "seed0"
        of_run.mkdir(parents=True)
        raw: dict[str, Any] = {**run, "recipe": {**run["recipe"], "optim": epochs}}  # type: ignore[dict-item]
        (of_run / "run.yaml").write_text(yaml.safe_dump(raw))
        train(parse_run(raw), data, folder / "work", of_run / "encoder.safetensors")
    for name in ("ijepa", "random_init", "pixels"):
        encoder = folder / "runs" / name / "seed0" / "encoder.safetensors"
        features = folder / "features" / name / "seed0" / "tiny" / "about.json"
        extract(encoder if encoder.exists() else None, data, features)
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
    return read_results(result_paths(folder))


def result_paths(folder: Path) -> list[Path]:
    return list(folder.glob("evaluations/*/*/*.json"))


def test_a_table_has_every_run_and_then_the_two_controls(results: Path) -> None:
    table = tabulate(read_results(result_paths(results)), SPEC).rows
    assert table["run"].tolist() == ["ijepa", "random_init", "pixels"]
    result = json.loads((results / "evaluations/ijepa/seed0/knn.json").read_text())
    assert table["knn"][0] == pytest.approx(100 * result["value"])
    assert table["knn_n"].tolist() == [32, 32, 32]


def test_a_table_that_names_its_runs_has_no_others_and_no_gains(results: Path) -> None:
    tidy = read_results(result_paths(results))
    table = tabulate(tidy, replace(SPEC, runs=["ijepa"]))
    assert table.rows["run"].tolist() == ["ijepa"]
    assert "gain" not in markdown(table)
    assert "| linear, top-1 % | knn, top-1 % |" in markdown(table)


def test_an_evaluation_that_an_encoder_does_not_have_is_a_dash(
    results: Path, tmp_path: Path
) -> None:
    """Raw pixels cannot be fine-tuned."""
    shutil.copytree(results / "evaluations", tmp_path / "evaluations")
    (tmp_path / "evaluations" / "pixels" / "seed0" / "linear_probe.json").unlink()
    table = tabulate(read_results(result_paths(tmp_path)), SPEC)
    assert "| pixels (no network) | - |  |" in markdown(table)


def test_a_value_that_is_no_accuracy_is_not_shown_in_percent(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "evaluations", tmp_path / "evaluations")
    for path in (tmp_path / "evaluations").glob("*/*/knn.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"metric": "rankme", "value": 12.5}))
    text = markdown(tabulate(read_results(result_paths(tmp_path)), SPEC))
    assert "| knn, RankMe |" in text
    assert "| 12.50 [" in text


def test_seeds_are_averaged_and_their_spread_is_told(results: Path, tmp_path: Path) -> None:
    table = tabulate(seeded(results, tmp_path, [0.2, 0.4, 0.6]), SPEC)
    row = table.rows.set_index("run").loc["ijepa"]
    assert (row["knn"], row["knn_std"], row["seeds"]) == pytest.approx((40, 20, 3))
    assert "40.00 +- 20.00" in markdown(table)


def test_mixed_commits_and_uncommitted_code_are_flagged(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "evaluations", tmp_path / "evaluations")
    for number, path in enumerate(sorted((tmp_path / "evaluations").glob("*/*/*.json"))):
        text = path.read_text()
        commit = json.loads(text)["commit"]
        path.write_text(text.replace(f'"{commit}"', '"aaaa"' if number else '"bbbb+"'))
    first, *_, last = tabulate(read_results(result_paths(tmp_path)), SPEC).problems
    assert first.startswith("mixed commits: not all rows were made by the same code (aaaa: ")
    assert last == 'uncommitted code: "+" marks a commit that it differed from (bbbb+)'


def test_an_encoder_that_gained_nothing_is_named(results: Path, tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    table = tabulate(seeded(results, tmp_path / "low", [0.0, 0.0]), SPEC)
    assert "NO GAIN over the network untrained" in note(table)
    assert "knn)" in note(table)
    table.rows.loc[table.rows["run"] == "ijepa", EVALUATIONS] = 100.0
    assert "NO GAIN" not in note(table)


def test_no_results_are_an_error() -> None:
    with pytest.raises(UserError, match="run the evaluations first"):
        tabulate(read_results([]), SPEC)


@pytest.fixture(scope="module")
def page_file(results: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a table whose run has a second seed, which the control lacks."""
    folder = Path(shutil.copytree(results, tmp_path_factory.mktemp("page") / "tiny"))
    seeds = folder / "evaluations" / "ijepa"
    shutil.copytree(seeds / "seed0", seeds / "seed1")
    picture(seeds / "seed0" / "knn.png", "What all samples share is in the features.")
    file = folder / "report.html"
    spec = TableSpec("tiny", SPEC.title, EVALUATIONS, encoders=["ijepa"], seeds=[0, 1])
    drawn = [picture(folder / "pictures" / "cats" / "components.png", "A colour means the same.")]
    plan = ReportPlan("tiny", "tiny", [spec])
    report(folder, result_paths(folder), data, plan, file, drawn=drawn)
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("width", "scheme"), [(375, "dark"), (800, "light"), (1400, "light"), (1400, "dark")]
)
def test_the_page_opens_from_disk_at_every_width_without_console_errors(
    page_file: Path, browser: Browser, width: int, scheme: Literal["dark", "light"]
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    events: list[str] = []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("request", lambda request: events.append(request.url))
    page.goto(page_file.as_uri())
    # The page is whole, silent, and asks for nothing but itself.
    assert events == [page_file.as_uri()]
    assert results_of(page).locator("tbody tr").count() == 3
    figures = page.locator("figure svg:visible")
    assert figures.count() == 8
    files = sorted(path.stem for path in (page_file.parent / "figures").iterdir())
    of_runs = [
        f"{kind}_{run}" for kind in ("neighbours", "patches") for run in ("ijepa", "random_init")
    ]
    assert files == ["classes_linear_probe", "masks_ijepa", *of_runs, "pretraining"]
    assert figures.evaluate_all("f => f.every(s => s.getBoundingClientRect().height > 40)")
    embedded = page.locator("figure img:visible")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert embedded.evaluate_all("i => i.map(x => x.naturalWidth)") == [70, 70]
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(fits), "something is wider than the page"
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1047})  # A4 within margins of 1 cm
    assert page.evaluate(fits), "something is wider than the sheet"
    assert page.locator("input:visible, nav:visible, .close:visible").count() == 0
    assert page.locator(".gallery figcaption:visible").count() == 9


@pytest.mark.browser
@pytest.mark.parametrize("width", [375, 800, 1400])
def test_the_page_begins_with_the_answer_and_its_contents_stay_in_sight(
    page_file: Path, browser: Browser, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(page_file.as_uri())
    for before, after in itertools.pairwise(("#answer h1", "#answer p", "#answer figure", "h2")):
        tops = [page.locator(part).first.bounding_box() for part in (before, after)]
        assert tops[0]["y"] < tops[1]["y"]  # type: ignore[index]
    assert "significantly above random_init" in page.locator("#answer").inner_text()
    contents = page.get_by_role("navigation", name="Contents")
    targets = contents.get_by_role("link").evaluate_all("l => l.map(a => a.hash)")
    assert targets == ["#answer", "#table-tiny", "#pictures", "#problems"]
    for target in targets:
        assert page.locator(target).count() == 1
    link = contents.get_by_role("link", name="Pictures")
    link.focus()
    page.keyboard.press("Enter")
    heading = page.get_by_role("heading", name="Pictures")
    expect(heading).to_be_in_viewport(ratio=1)
    expect(link).to_be_in_viewport(ratio=1)
    assert heading.evaluate(COVERED) is False


COVERED = """e => {
  const box = e.getBoundingClientRect();
  return document.elementFromPoint(box.x + 5, box.y + box.height / 2) !== e;
}"""


@pytest.mark.browser
@pytest.mark.parametrize(
    ("title", "selector", "reading"),
    [
        ("Patch features of ijepa", "#picture-patches_ijepa svg", "principal comp"),
        ("knn: ijepa", "#picture-left_knn_ijepa img", "all samples share"),
    ],
)
def test_a_picture_opens_large_and_closes_by_keyboard(
    title: str, selector: str, reading: str, page_file: Path, browser: Browser
) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(page_file.as_uri())
    button = page.get_by_role("button", name=title)
    drawing = page.locator(selector)
    button.focus()
    small = drawing.bounding_box()
    assert small is not None
    page.keyboard.press("Enter")
    large = drawing.bounding_box()
    assert large is not None
    assert large["width"] > 2 * small["width"]
    expect(page.locator(f"{selector.split()[0]} figcaption")).to_contain_text(reading)
    page.keyboard.press("Escape")
    assert drawing.bounding_box() == small
    expect(button).to_be_focused()
    page.mouse.click(small["x"] + 20, small["y"] + 5)  # the picture itself is the button
    assert drawing.bounding_box() == large
    page.get_by_role("button", name="Close").click()
    assert drawing.bounding_box() == small


@pytest.mark.browser
def test_warnings_come_first_below_a_table(page_file: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    kinds = page.locator("#table-tiny .notes li").evaluate_all("n => n.map(x => x.className)")
    assert kinds[0] == "warning"
    assert kinds == sorted(kinds, reverse=True)


def test_only_long_tables_are_folded_and_never_the_first(
    results: Path, data: Path, page_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 5 s: the page is made twice."""
    assert "<summary>" not in page_file.read_text()
    monkeypatch.setattr(page_module, "LONG_TABLE", 2)
    specs = [replace(SPEC, name=name) for name in ("first", "second")]
    plan = ReportPlan("tiny", "tiny", specs)
    report(results, result_paths(results), data, plan, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<summary>Show 3 rows</summary>") == 1
    assert text.index("<summary>") > text.index('id="table-second"')


def test_pictures_that_evaluations_or_users_made_are_in_the_gallery_and_open_like_the_others(
    page_file: Path,
) -> None:
    text = page_file.read_text()
    gallery = text[text.index('<div class="gallery">') :]
    assert gallery.count("<img ") == 2
    assert gallery.count("src=") == gallery.count('src="data:image/png;base64,')
    for name, title, reading in (
        ("left_knn_ijepa", "knn: ijepa", "What all samples share is in the features."),
        ("drawn_0", "Samples: cats", "A colour means the same."),
    ):
        assert f'popovertarget="picture-{name}">{title}</button>' in gallery
        assert f'<figure popover id="picture-{name}">' in gallery
        assert f"<figcaption>{title}. {reading}</figcaption>" in gallery


def encoders(page: Page) -> list[str]:
    return [text.split()[0] for text in results_of(page).locator("tbody th").all_inner_texts()]


def results_of(page: Page) -> Locator:
    """The page's first table."""
    return page.locator("table").first


@pytest.mark.browser
def test_the_tables_sort_and_filter_by_keyboard(page_file: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    assert encoders(page) == ["ijepa", "random_init", "pixels"]
    cells = results_of(page).locator("tbody tr td:nth-child(2)")
    shown = {
        name: float(value or "nan")
        for name, value in zip(
            encoders(page), cells.evaluate_all("c => c.map(x => x.dataset.order)"), strict=True
        )
    }
    header = results_of(page).locator("thead th").nth(1)
    focused = header.locator("[tabindex='0']")
    for key, direction in (("Enter", "ascending"), ("Enter", "descending")):
        focused.focus()
        assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        page.keyboard.press(key)
        expect(header).to_have_attribute("aria-sort", direction)  # DataTables sorts a moment later
        values = [shown[name] for name in encoders(page)]
        assert values == sorted(values, reverse=direction == "descending")
    page.get_by_label("Filter").first.fill("pixels")
    expect(results_of(page).locator("tbody th")).to_have_count(1)
    assert encoders(page) == ["pixels"]


@pytest.mark.browser
def test_a_number_leads_by_keyboard_to_where_it_comes_from(
    page_file: Path, browser: Browser
) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    results_of(page).locator("thead th [tabindex='0']").nth(1).press("Enter")  # rows change places
    expect(results_of(page).locator("thead th").nth(1)).to_have_attribute("aria-sort", "ascending")
    row = results_of(page).locator("tbody tr").filter(has_text="ijepa")
    number = row.get_by_role("button").first
    number.focus()
    page.keyboard.press("Enter")
    shown = page.locator(".provenance:visible")
    result = json.loads(
        (page_file.parent / "evaluations/ijepa/seed0/linear_probe.json").read_text()
    )
    for text in (
        "ijepa: linear probe",
        result["about"]["encoder"],
        result["about"]["data_version"],
        result["commit"],
        result["machine"],
        "GPU-hours",
        "evaluations/ijepa/seed1/linear_probe.json",
    ):
        assert text in shown.inner_text()
    page.keyboard.press("Escape")
    expect(page.locator(".provenance:visible")).to_have_count(0)


@pytest.mark.browser
def test_the_axis_of_the_figure_switches(page_file: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    for name, other in (("log", "linear"), ("linear", "log")):
        page.locator(f"#{name}-tiny").check()
        assert page.locator(f".card.{name} svg").is_visible()
        assert not page.locator(f".card.{other} svg").is_visible()


@pytest.mark.browser
def test_what_is_wrong_is_marked_and_listed_at_the_end(page_file: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    listed = page.locator("#problems + ul li").all_inner_texts()
    assert any("random_init: seed 1 is missing" in text for text in listed)
    assert any("the same encoder" in text for text in listed)
    marked = results_of(page).locator("tr", has_text="random_init").get_by_role("button")
    assert all("(!)" in text for text in marked.all_inner_texts())
    assert f"{len(listed)} problems in these results" in page.inner_text("body")


def test_classes_are_told_one_by_one_and_counts_by_what_they_are_taken_for(tmp_path: Path) -> None:
    """A picture for each kind of label, of the first evaluation that has it, controls last."""
    counted = {"images": "4 2", "right": "3 0", "confusion": ["3 1", "2 0"]}
    evaluations = {"knn": "class", "linear_probe": "class", "clevr_count": "count"}
    paths = []
    for run in ("pixels", "random_init", "zeta", "alpha"):
        for name, label in evaluations.items():
            paths.append(tmp_path / run / "seed0" / f"{name}.json")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            result = {"dataset": "any", "label": label, "classes": counted}
            paths[-1].write_text(json.dumps(result))
    spec = TableSpec("any", "Any", [*evaluations], encoders=["zeta", "alpha"])
    made = pictures_of_classes(ReportPlan("any", "any", [spec]), paths)
    assert [picture.name for picture in made] == ["classes_knn", "confusion_clevr_count"]
    runs = ("zeta", "alpha", "random_init", "pixels")  # the config's order, controls last
    order = [made[1].html.index(f"<!-- {run} -->") for run in runs]
    assert order == sorted(order)
