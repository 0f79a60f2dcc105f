"""PNG files that say what they show, and the report's pictures of them."""

from pathlib import Path

import pytest
from PIL import Image

from evals.described import read_described
from evals.report.page import embedded, pictures_left
from evals.report.plan import ReportPlan, TableSpec
from ijepa.errors import UserError
from tests.described import picture
from tests.test_reproduce import MINI
from workflow.plan.benchmark import read_benchmark
from workflow.plan.grid import Grid

SPEC = TableSpec("t", "T", ["decoded", "knn"], titles={"decoded": "whole"}, encoders=["b", "a"])


def test_a_picture_says_in_itself_what_it_shows(tmp_path: Path) -> None:
    path = picture(tmp_path / "new" / "a.png", "What samples share \u2260 noise.")
    assert read_described(path) == ("Samples", "What samples share \u2260 noise.", 70, 40)
    assert Image.open(path).size == (70, 40)
    Image.new("RGB", (3, 2)).save(tmp_path / "plain.png")
    assert read_described(tmp_path / "plain.png") == ("", "", 3, 2)


def test_a_file_that_is_no_png_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(path, format="JPEG")
    with pytest.raises(UserError, match=r"a\.png is no PNG.*make it again, or move it away"):
        read_described(path)


def test_pictures_beside_results_are_shown_of_the_first_seed_in_the_configs_order(
    tmp_path: Path,
) -> None:
    chosen = []
    for run, seed in (("a", 10), ("a", 9), ("b", 1), ("random_init", 0), ("b@epoch3", 1)):
        path = tmp_path / run / f"seed{seed}" / "decoded.json"
        picture(path.with_suffix(".png"), f"seed {seed}")
        chosen += [path, path.with_name("knn.json")]
    shown = pictures_left(ReportPlan("t", "t", [SPEC]), chosen)
    assert [(p.title, p.caption) for p in shown] == [
        ("whole: b", "seed 1"),
        ("whole: a", "seed 9"),
        ("whole: random_init", "seed 0"),
    ]
    assert len({p.name for p in shown}) == 3


def test_a_picture_is_within_the_page_and_its_room_is_known_before_it_is_decoded(
    tmp_path: Path,
) -> None:
    html = embedded(picture(tmp_path / "ijepa" / "a.png", "Read it so."), "drawn_0").html
    assert 'src="data:image/png;base64,iVBOR' in html
    for attribute in ('width="70"', 'height="40"', 'decoding="async"'):
        assert attribute in html


def test_pictures_in_a_results_folder_are_inputs_of_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid(read_benchmark(MINI))
    monkeypatch.chdir(tmp_path)
    path = picture(Path("results", MINI["name"], "pictures", "cats", "a.png"), "Read it so.")
    assert grid.drawn == [str(path)]
