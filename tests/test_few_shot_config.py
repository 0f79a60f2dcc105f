"""config/fewshot.yaml: eight data sets, 1, 10 and all images, two protocols, published numbers."""

from pathlib import Path

import pytest

from evals.protocol import configure
from evals.report import published
from evals.report.table import tabulate
from evals.report.table_view import note
from ijepa.errors import UserError
from tests.tidy_results import tidy
from workflow.plan.benchmark import Benchmark, read_benchmark, read_files
from workflow.plan.check import check
from workflow.plan.grid import Grid

FOLDER = Path(__file__).parents[1] / "config"
PATHS = [FOLDER / "fewshot.yaml", FOLDER / "fewshot_released.yaml"]
DATASETS = ["dtd", "aircraft", "cars", "cifar10", "cifar100", "flowers102", "food101", "pets"]
SHOTS = {"1": 1, "10": 10, "all": None}

pytestmark = pytest.mark.usefixtures("real_register")


def released() -> Benchmark:
    """The config of published weights, with a checksum written into it."""
    raw, _ = read_files(PATHS)
    raw["released"] = [{**item, "sha256": "0" * 64} for item in raw["released"]]
    return read_benchmark(raw)


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("shots", SHOTS)
def test_a_table_has_the_eight_data_sets_by_its_protocol(shots: str, ours: bool) -> None:
    _, benchmark = read_files(PATHS[:1])
    grid = Grid(benchmark)
    table = grid.tables[f"shots_{shots}{'_ours' * ours}"]
    evaluations = [grid.evaluations[name] for name in table.evaluations]
    assert [item.dataset for item in evaluations] == DATASETS
    for item in evaluations:
        assert item.name == f"{item.dataset}_{shots}{'_ours' * ours}"
        config = configure(item.evaluation, item.config, item.name)
        assert config.per_class == SHOTS[shots]
        assert config.head == ("logistic" if ours else "linear")


def test_published_weights_can_be_evaluated_once_their_checksum_is_written() -> None:
    check(released())


def test_published_weights_are_measured_by_either_tower_and_nothing_is_pretrained() -> None:
    benchmark = released()
    assert {item.name: item.tower for item in benchmark.released} == {
        "ijepa_vith14_context": "context",
        "ijepa_vith14_target": "target",
    }
    grid = Grid(benchmark)
    runs = {cell.run for cell in grid.cells}
    assert runs == {"ijepa_vith14_context", "ijepa_vith14_target"}
    assert len(grid.cells) == 2 * 2 * len(DATASETS) * len(SHOTS)
    _, without_checksum = read_files(PATHS)
    with pytest.raises(UserError, match=r"ijepa_vith14_context\.sha256: '\?' is no SHA-256"):
        check(without_checksum)


@pytest.mark.parametrize("shots", SHOTS)
def test_published_numbers_have_the_means_that_were_published_with_them(shots: str) -> None:
    rows = published.rows_of(f"lejepa_{shots}")
    assert rows[["method", "arch", "epochs"]].to_numpy().tolist() == [
        ["lejepa", "ViT-L", "100"],
        ["ijepa", "ViT-H", "300"],
    ]
    means = rows[[f"{name}_{shots}" for name in DATASETS]].mean(axis=1)
    assert (means - rows[f"mean_{shots}"]).abs().max() < 0.0101
    for name in DATASETS:
        assert published.dataset_of(f"{name}_{shots}") == name


def test_published_numbers_stand_beside_what_is_measured() -> None:
    (spec,) = (table for table in Grid(released()).report_plan.tables if table.name == "shots_1")
    table = tabulate(tidy(), spec)
    assert list(table.rows["run"]) == ["", "ijepa_vith14_context", "ijepa_vith14_target"]
    assert table.rows["pets_1_published"].tolist()[:2] == [46.11, 53.38]
    assert "lejepa_1 of results/published/lejepa_few_shot.csv" in note(table)


def test_the_measured_rows_are_of_the_published_recipes() -> None:
    _, benchmark = read_files(PATHS[:1])
    (spec,) = (t for t in Grid(benchmark).report_plan.tables if t.name == "shots_all")
    table = tabulate(tidy(), spec).rows
    assert dict(zip(table["run"], table["arch"], strict=True)) == {
        "lejepa_vitl14": "ViT-L",
        "ijepa_vith14": "ViT-H",
    }


def test_minis_encoders_are_measured_by_both_protocols_on_the_data_that_mini_has() -> None:
    _, benchmark = read_files([FOLDER / "mini.yaml", FOLDER / "fewshot_mini.yaml"])
    check(benchmark)
    _, mini = read_files([FOLDER / "mini.yaml"])
    assert (benchmark.runs, benchmark.vit, benchmark.images) == (mini.runs, mini.vit, mini.images)
    assert benchmark.name != mini.name
    grid = Grid(benchmark)
    assert grid.datasets == ["cifar10"]
    suite = Grid(read_files(PATHS[:1])[1]).evaluations
    for item in benchmark.evaluations:
        of_suite = suite[item.name]
        assert (item.evaluation, item.config) == (of_suite.evaluation, of_suite.config)
    assert {name for table in benchmark.tables for name in table.evaluations} == {
        f"cifar10_{shots}{ours}" for shots in SHOTS for ours in ("", "_ours")
    }


def test_a_report_needs_no_data_set_that_nothing_is_evaluated_on() -> None:
    """The config's own data set is ImageNet, of which published weights need nothing here."""
    grid = Grid(released())
    assert grid.dataset not in grid.datasets
    assert grid.pictured in grid.evaluated_on
    assert {run for run, _ in grid.neighbours} <= {item.name for item in grid.benchmark.released}
