"""The plan of a config, and the session's checks: asked of workflow.plan in this process."""

import errno
import os
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snakemake.resources import Resources
from snakemake.settings.types import ResourceSettings

from ijepa.errors import UserError
from ijepa.files import ROOT
from workflow.plan import session
from workflow.plan.__main__ import main
from workflow.plan.benchmark import read_benchmark
from workflow.plan.grid import Grid
from workflow.plan.paths import Group


def test_a_group_has_every_evaluation_that_uses_features_and_no_other(mini: dict[str, Any]) -> None:
    (low_shot,) = (item for item in mini["evaluations"] if item["name"] == "low_shot")
    low_shot["uses"] = "both"  # fine-tuned too
    grid = Grid(read_benchmark(mini))
    of_mae = {group.dataset: names for group, names in grid.groups.items() if group.run == "mae"}
    assert of_mae == {
        "cifar10": ["linear_probe", "linear_own", "knn"],
        "clevr_tiny": ["clevr_count", "clevr_dist"],
    }
    # Raw pixels have no network to fine-tune.
    own = ["linear_probe", "linear_own", "knn", "low_shot"]
    assert grid.groups[Group("pixels", 0, "cifar10")] == own
    single = {path for path in grid.evaluated if path.endswith(".json")}
    assert {Path(path).parts[3:] for path in single} == {
        (run, "seed0", "low_shot.json") for run in ("ijepa", "mae", "data2vec", "random_init")
    }


def test_every_result_of_a_table_is_planned_once(mini: dict[str, Any]) -> None:
    grid = Grid(read_benchmark({**mini, "seeds": [0, 1]}))
    runs = ("ijepa", "mae", "data2vec", "random_init")
    assert len(grid.wanted) == len(set(grid.wanted)) == 6 * (2 * len(runs) + 1)
    assert len(grid.evaluated) == 2 * (2 * len(runs) + 1)


def test_a_group_of_which_a_result_is_gone_is_made_again(
    mini: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = Grid(read_benchmark(mini))
    for path in (*grid.wanted, *grid.evaluated):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    assert grid.forget_incomplete() == []
    deleted = "results/mini/evaluations/mae/seed0/knn.json"
    Path(deleted).unlink()
    assert grid.forget_incomplete() == [deleted]
    left = [path for path in grid.evaluated if not Path(path).exists()]
    assert left == ["results/mini/evaluations/mae/seed0/cifar10.done"]
    # A product by name: for tables that exist, Snakemake would not make it again.
    assert set(left) <= set(grid.products)


def test_a_run_that_no_table_asks_for_costs_nothing_and_needs_nothing(hour: dict[str, Any]) -> None:
    """It needs neither its data nor its tokens, not even to predict the cost of the other runs."""
    hour["runs"].append({**hour["runs"][1], "name": "elsewhere", "dataset": "cifar100"})
    assert "cifar100" in Grid(read_benchmark(hour)).datasets
    assert Grid(read_benchmark(hour)).tokenizers.keys() & {
        run for run, _ in Grid(read_benchmark(hour)).trained
    } == {"cae"}
    for table in hour["tables"]:
        table["runs"] = ["ijepa", "mae"]
    grid = Grid(read_benchmark(hour))
    assert grid.trained == [("ijepa", 0), ("mae", 0)]
    assert [run["name"] for run in grid.predicted["runs"]] == ["ijepa", "mae"]
    assert "cifar100" not in grid.datasets


def test_settings_of_one_encoder_leave_the_other_keys_of_a_nested_setting(
    hour: dict[str, Any],
) -> None:
    hour["evaluations"].append(
        {
            "name": "few_labels",
            "evaluation": "low_shot",
            "config": {"share": 0.5, "finetune": {"epochs": 3, "batch_size": 8}},
            "config_of": {"mae": {"finetune": {"epochs": 4}}, "dino": {"finetune": None}},
        }
    )
    item = Grid(read_benchmark(hour)).evaluations["few_labels"]
    assert item.settings("mae") == {"share": 0.5, "finetune": {"epochs": 4, "batch_size": 8}}
    assert item.settings("dino") == {"share": 0.5, "finetune": None}


@pytest.mark.usefixtures("real_register")
def test_show_takes_several_configs_and_the_name_of_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [str(ROOT / "config" / name) for name in ("mini.yaml", "seeds.yaml")]
    for names, line in (
        (configs[:1], "mini: seeds 0"),
        (configs, "mini: seeds 0, 1, 2"),
        ([*configs, "mae"], "method: mae"),
    ):
        monkeypatch.setattr("sys.argv", ["plan", "show", *names])
        main()
        assert line in capsys.readouterr().out.splitlines()


def test_an_unknown_key_of_the_grid_is_refused(mini: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"config\.sedes: unknown key \(did you mean seeds\?\)"):
        read_benchmark({**mini, "sedes": [1]})


def test_how_many_gpus_share_a_run_does_not_change_which_run_it_is(mini: dict[str, Any]) -> None:
    before = Grid(read_benchmark(mini)).runs["ijepa"].config(0)
    mini["runs"][0]["gpus"] = 4
    frozen = Grid(read_benchmark(mini)).runs["ijepa"].config(0)
    assert frozen == before
    assert frozen.keys() == {"method", "dataset", "vit", "recipe", "seed"}


def read_profile(rule: str | None, partition: str) -> tuple[Any, Any]:
    """A profile's resources, of one rule or of all: as Snakemake has parsed and as it uses them."""
    assigned = [f"slurm_partition={partition}", "runtime=10 * attempt"]
    resources = Resources.parse(assigned, allow_expressions=True)
    kinds = {"overwrite_resources": {rule: resources}, "default_resources": Resources()}
    settings = ResourceSettings(**(kinds if rule else {"default_resources": resources}))
    if rule:
        return settings._parsed_overwrite_resources[rule], resources
    return settings._parsed_default_resources, resources


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("all", "all"),
        ("2024-15", "2024-15"),
        ("2024-01-15", "2024-01-15"),
        ("a,b", "a,b"),
        ("1e5", "1e5"),
        ("input", "input"),
        ("a100&ib", "a100&ib"),
        ("'2024_15'", "2024_15"),
        ("'a' if attempt == 1 else 'b'", "a"),
    ],
)
@pytest.mark.parametrize("rule", [None, "pretrain"])
def test_names_in_a_profile_are_taken_as_they_are(text: str, value: str, rule: str | None) -> None:
    """Snakemake takes them for Python: ``all`` for a function, ``2024-15`` for 2009."""
    parsed, resources = read_profile(rule, text)
    session.take_names_as_they_are(parsed)
    context = {"wildcards": {}, "input": [], "attempt": 1, "threads": 1, "async_run": None}
    assert resources["slurm_partition"].evaluate(rulename="any", **context).value == value
    assert resources["runtime"].evaluate(rulename="any", **context).value == 10


@pytest.mark.parametrize("text", ["on", "null"])
def test_a_name_that_yaml_takes_for_another_value_is_to_be_quoted(text: str) -> None:
    parsed, _ = read_profile(None, str(yaml.safe_load(text)))
    with pytest.raises(UserError, match="slurm_partition in the profile: YAML takes this word"):
        session.take_names_as_they_are(parsed)


def test_a_raw_folder_in_which_no_mark_can_be_left_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark tells Snakemake that the raw files were fetched."""

    marked = tempfile.TemporaryFile

    def refuse(dir: Path) -> Any:
        if Path(dir) == Path("data/raw/tiny"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return marked(dir=dir)

    monkeypatch.chdir(tmp_path)
    grid: Any = SimpleNamespace(missing_raw=lambda: ["tiny=/shared/tiny"])
    session.check_folders(grid)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    expected = r"data/raw/tiny cannot be written .*name its target in the config's `raw:`"
    with pytest.raises(UserError, match=expected):
        session.check_folders(grid)


def test_a_workflow_that_is_ending_is_waited_for_and_one_that_goes_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = session.hold()
    other.__enter__()
    words = r"another snakemake works in this folder \(process \d+\): wait for it, or end it"
    with pytest.raises(UserError, match=words), session.hold():
        pass
    ending = threading.Timer(0.3, other.__exit__, (None, None, None))
    ending.start()
    with session.hold(patience=60):
        assert "waiting for it" in capsys.readouterr().out
    ending.join()
