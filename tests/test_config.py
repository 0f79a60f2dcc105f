"""Text in, types or one clear error out."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ijepa.config import parse_run
from ijepa.errors import UserError
from ijepa.method import load_method, method_names
from ijepa.methods import ijepa
from ijepa.strict import without_defaults
from workflow.plan.benchmark import DATASET_NAME, read_benchmark, read_files
from workflow.plan.check import check
from workflow.plan.grid import Grid

FOLDER = Path(__file__).parents[1] / "config"
INCOMPLETE = (
    "seeds",
    "released",
    "fewshot_mini",
    "fewshot_released",
)
"""Configs that lack what the user adds: another config, or the checksum of a file."""
CONFIGS = sorted(p for p in FOLDER.glob("*.yaml") if p.stem not in INCOMPLETE)


def changed(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    part = raw
    for parent in parents:
        part = part[parent]
    part[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("methodology", "x", r"run\.methodology: unknown key \(did you mean method\?\)"),
        ("recipe.predictor_dimm", 3, r"run\.recipe\.predictor_dimm: unknown key .*predictor_dim\?"),
        ("recipe.optim.lrr", 3, r"run\.recipe\.optim\.lrr: unknown key .*allowed are"),
        ("recipe.optim.lr", "many", r"run\.recipe\.optim\.lr: .*given: 'many'"),
        ("recipe.optim.lr", -1, r"run\.recipe\.optim: lr is -1"),
        ("recipe.optim.batch_size", 0, r"batch_size is 0: it must be at least 1"),
        ("recipe.optim.warmup_epochs", 9, r"warmup_epochs is 9.*between 0 and epochs"),
        ("recipe.masking.mode", "best", r"run\.recipe\.masking\.mode: .*'official' or 'fixed'"),
        ("recipe.masking.min_keep", 10, r"masking: a target block .*lower min_keep below"),
        ("recipe.momentum", [1.0, 0.9], r"momentum is \[1\.0, 0\.9\]"),
        ("recipe.crop", {"scale": [0, 1]}, r"run\.recipe\.crop: scale is"),
        ("vit.patch_size", 5, r"run\.vit: patch_size 5 does not divide image_size 32"),
        ("vit.size", "enormous", r"run\.vit\.size: 'enormous' is unknown: allowed are tiny"),
        ("method", "ijepaa", r"run\.method: unknown method 'ijepaa': known are cae, data2vec"),
        ("dataset", "cifar11", r"unknown dataset 'cifar11': datasets\.yaml has tiny"),
        ("recipe.predictor_dim", -16, r"predictor_dim is -16: it must be at least 1"),
        ("recipe.optim.betas", [0.9, 1.0], r"betas is \[0\.9, 1\.0\]"),
        ("recipe.optim.weight_decay", [-1, 0], r"weight_decay is \[-1, 0\]"),
        ("recipe.optim.epochs", float("inf"), r"epochs is inf: it must be finite"),
        ("vit.mlp_ratio", 0, r"mlp_ratio is 0\.0: it must be above 0"),
        ("vit", "base", r"run\.vit: 'base' must be keys and values"),
        ("recipe.optim.batch_size", 129, r"batch_size: 129 is more than the 128 training images"),
        (
            "checkpoint_every",
            0,
            r"run: checkpoint_every is 0: it must be at least 1",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_path_the_value_and_what_is_allowed(
    raw_run: dict[str, Any], path: str, value: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse_run(changed(raw_run, path, value))


def test_keys_that_are_left_out_have_the_values_of_the_published_recipe(
    raw_run: dict[str, Any],
) -> None:
    recipe = parse_run(raw_run).recipe
    assert isinstance(recipe, ijepa.Config)
    assert (recipe.optim.epochs, recipe.optim.lr) == (2, 1e-3)
    assert recipe.masking.num_targets == 4
    assert recipe.momentum == (0.996, 1.0)


def test_a_size_names_dim_depth_and_heads(raw_run: dict[str, Any]) -> None:
    raw_run["recipe"]["predictor_dim"] = 12
    vit = parse_run(
        changed(raw_run, "vit", {"size": "tiny", "image_size": 32, "patch_size": 4})
    ).vit
    assert (vit.dim, vit.depth, vit.num_heads) == (192, 12, 3)


def test_any_change_gives_a_run_another_identity(raw_run: dict[str, Any]) -> None:
    same, other = parse_run(raw_run), parse_run(changed(raw_run, "seed", 1))
    assert same.identity() == parse_run(changed(raw_run, "seed", 0)).identity() != other.identity()


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_a_recipe_of_defaults(name: str) -> None:
    assert load_method(name).Config().optim.epochs > 0


@pytest.mark.usefixtures("real_register")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_project_can_be_carried_out(path: Path) -> None:
    benchmark = read_benchmark(yaml.safe_load(path.read_text()))
    check(benchmark)
    grid = Grid(benchmark)
    made = {grid.features(*group) for group in grid.groups}
    assert all(made.issuperset(grid.single_features(*cell)) for cell in grid.cells)


def recipes(name: str) -> dict[str, dict[str, Any]]:
    """Each run of a config without its length."""
    runs = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["runs"]
    for run in runs:
        run["recipe"].pop("optim", None)
    return {run["name"]: run for run in runs}


def test_longer_configs_have_the_runs_of_shorter_ones_with_more_time() -> None:
    assert recipes("mini").items() <= recipes("hours").items() <= recipes("hour").items()
    assert recipes("hour").keys() <= set(method_names())


@pytest.mark.usefixtures("real_register")
@pytest.mark.parametrize(
    ("tokenizers", "message"),
    [
        ({"small": {"words": 9}}, r"tokenizers\.small\.words: unknown key"),
        ({"tiny": {}}, r"tokenizers\.tiny: unknown tokenizer 'tiny'"),
        ({"dalle": {}}, r"tokenizers\.dalle: dalle needs weights"),
    ],
)
def test_a_mistake_in_a_tokenizer_is_refused(tokenizers: dict[str, Any], message: str) -> None:
    benchmark = yaml.safe_load((FOLDER / "hour.yaml").read_text())
    with pytest.raises(UserError, match=message):
        check(read_benchmark(benchmark | {"tokenizers": tokenizers}))


@pytest.mark.usefixtures("real_register")
def test_a_run_that_needs_a_tokenizer_nobody_has_is_refused() -> None:
    benchmark = yaml.safe_load((FOLDER / "hour.yaml").read_text())
    (cae,) = (run for run in benchmark["runs"] if run["name"] == "cae")
    cae["recipe"]["tokenizer"] = "dalle"
    with pytest.raises(UserError, match=r"tokenizers\.dalle: dalle needs weights"):
        check(read_benchmark(benchmark))


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"name": "knn", "config": {"num_neighbours": 0}}, "num_neighbours is 0"),
        ({"name": "knn", "config": {"k": 3}}, r"evaluations\.knn\.config\.k: unknown key"),
        ({"name": "linear_probe", "config": {"epochs": 0}}, r"epochs is 0"),
        ({"name": "linear_prob"}, "unknown evaluation 'linear_prob': known are"),
        ({"name": "x", "evaluation": "linear_prob"}, "unknown evaluation 'linear_prob'"),
        ({"name": "knn", "uses": "images"}, r"evaluations\.knn\.uses: images is impossible"),
        ({"name": "knn", "label": "count"}, r"label: cifar10 has no label 'count'; it has class"),
        ({"name": "knn", "dataset": "cifar11"}, "unknown dataset 'cifar11'"),
        ({"name": "knn", "config_of": {"simclr": {}}}, r"config_of: simclr is not among"),
        ({"name": "knn", "config": {"pool": "cls"}}, r"pool is cls, .*no \[cls\].*\(ijepa\)"),
        (
            {"name": "linear_probe", "config": {"preset": "in2k"}},
            r"preset: 'in2k' is unknown: allowed",
        ),
    ],
)
@pytest.mark.usefixtures("real_register")
def test_a_mistake_in_an_evaluation_is_refused(evaluation: dict[str, Any], message: str) -> None:
    benchmark = yaml.safe_load((FOLDER / "mini.yaml").read_text())
    table = {"name": "any", "title": "Any", "evaluations": [evaluation["name"]]}
    benchmark |= {"tables": [table], "evaluations": [evaluation]}
    with pytest.raises(UserError, match=message):
        check(read_benchmark(benchmark))


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"name": "knn", "config": {"layers": 5}}, r"knn\.config\.layers is 5, .* 4 at most \("),
        (
            {"name": "linear_probe", "uses": "images", "config": {"layers": 5}},
            r"layers is 5, but the encoder has 3: ask for 3 at most \(ijepa\)",
        ),
        ({"name": "knn", "config": {"layers": 4}}, "layers is 4, but the encoder has 3: ask for 3"),
        (
            {"name": "linear_probe", "config": {"layers": 9}},
            "4 at most, or set uses: images",
        ),
        (
            {"name": "linear_probe", "config": {"batch_size": 7201}},
            r"linear_probe\.config\.batch_size is 7201, but only 7200 training images are left",
        ),
        ({"name": "linear_probe", "config": {"held_out": 1e-4}}, "held_out is 0.0001: of 8000"),
        (
            {"name": "linear_probe", "uses": "images", "config": {"whiten": True}},
            "whiten is true, but there are no stored features",
        ),
        ({"name": "low_shot", "config": {"per_class": 801}}, "per_class is 801, but .* has 800"),
        ({"name": "few_shot", "config": {"per_class": 801}}, "per_class is 801, but .* has 800"),
        ({"name": "low_shot"}, r"subset is '1pct', but the data set has no lists: name one of"),
        (
            {"name": "finetune", "uses": "images", "config": {"subset": "2pct"}},
            "subset is '2pct', but",
        ),
        (
            {
                "name": "low_shot",
                "uses": "both",
                "config": {"per_class": 8, "finetune": {"pool": "cls"}},
            },
            r"low_shot\.config\.finetune\.pool is cls, but the encoder has no \[cls\].*\(ijepa\)",
        ),
    ],
)
@pytest.mark.usefixtures("real_register")
def test_an_evaluation_that_cannot_be_carried_out_is_refused_before_pretraining(
    evaluation: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # without the shards that a user may have made
    test_a_mistake_in_an_evaluation_is_refused(evaluation, message)


@pytest.mark.usefixtures("real_register")
def test_the_lists_of_images_are_those_that_the_register_or_the_raw_files_have(
    tmp_path: Path,
) -> None:
    benchmark = yaml.safe_load((FOLDER / "mini.yaml").read_text())
    table = {"name": "any", "title": "Any", "evaluations": ["low_shot"]}
    low_shot = {"name": "low_shot", "dataset": "imagenet", "config": {"subset": "10pct"}}
    benchmark |= {"tables": [table], "evaluations": [low_shot], "images": {}}
    benchmark |= {"raw": {"imagenet": str(tmp_path)}}
    with pytest.raises(UserError, match="subset is '10pct', but the data set has 1pct:"):
        check(read_benchmark(benchmark))
    (tmp_path / "10percent.txt").touch()
    check(read_benchmark(benchmark))


def test_shards_tell_which_classes_are_too_small(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are there when a config is changed; the register knows only the mean of the classes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "shards").mkdir(parents=True)
    (tmp_path / "data" / "shards" / "tiny").symlink_to(data)
    benchmark = {
        **{"name": "a", "dataset": "tiny", "seeds": [0]},
        "runs": [{"name": "r", "method": "ijepa", "recipe": {"optim": {"batch_size": 32}}}],
        "evaluations": [{"name": "low_shot", "config": {"per_class": 6}}],
        "tables": [{"name": "t", "title": "T", "evaluations": ["low_shot"]}],
        "images": {"tiny": {"train": 65}},
    }
    check(read_benchmark(benchmark))
    benchmark["images"] = {"tiny": {"train": 59}}
    with pytest.raises(UserError, match="per_class is 6, but a class has 5 training images at"):
        check(read_benchmark(benchmark))


@pytest.mark.usefixtures("real_register")
def test_a_table_of_an_unknown_evaluation_is_refused() -> None:
    benchmark = yaml.safe_load((FOLDER / "mini.yaml").read_text())
    benchmark["tables"][0]["evaluations"] = ["linear_prob"]
    with pytest.raises(UserError, match="linear_prob is not among evaluations"):
        check(read_benchmark(benchmark))


@pytest.mark.usefixtures("real_register")
def test_a_table_that_would_overwrite_another_file_is_refused() -> None:
    benchmark = yaml.safe_load((FOLDER / "mini.yaml").read_text())
    benchmark["tables"][0]["name"] = "cost"
    with pytest.raises(UserError, match="tables: cost is another file's name: give it another"):
        check(read_benchmark(benchmark))


@pytest.mark.usefixtures("real_register")
def test_gpus_that_cannot_share_a_batch_are_refused_before_anything_is_queued() -> None:
    benchmark = yaml.safe_load((FOLDER / "mini.yaml").read_text())
    benchmark["runs"][0]["gpus"] = 3
    with pytest.raises(UserError, match=r"runs\.ijepa\.gpus: 3 .* does not divide .*batch_size"):
        check(read_benchmark(benchmark))


@pytest.mark.parametrize("name", ["imagenet-100", "CIFAR10", "Tiny_2-b", "0"])
def test_a_data_set_may_be_named_with_capitals_and_hyphens(name: str) -> None:
    benchmark = yaml.safe_load((FOLDER / "mini.yaml").read_text())
    benchmark["evaluations"][0]["dataset"] = benchmark["runs"][0]["dataset"] = name
    assert name in Grid(read_benchmark(benchmark)).datasets
    snakefile = (FOLDER.parent / "workflow" / "Snakefile").read_text()
    (pattern,) = re.findall(r"^    dataset=(.+),$", snakefile, re.MULTILINE)
    assert re.fullmatch(eval(pattern, {"DATASET_NAME": DATASET_NAME}), name)


@pytest.mark.parametrize("name", ["my data", "a.b", "a/b", "-a", "\u00fcn\u00ef"])
@pytest.mark.parametrize("where", ["config", "runs.ijepa", "evaluations.linear_probe"])
def test_a_name_that_paths_cannot_hold_is_refused_with_those_that_they_can(
    where: str, name: str
) -> None:
    benchmark = yaml.safe_load((FOLDER / "mini.yaml").read_text())
    (benchmark if where == "config" else benchmark[where.split(".")[0]][0])["dataset"] = name
    expected = rf"{where}\.dataset: .*{name}.* is no name .*: rename it .*letters, digits, _ and -"
    with pytest.raises(UserError, match=expected):
        read_benchmark(benchmark)


def test_a_run_has_no_seed_of_its_own() -> None:
    benchmark = yaml.safe_load((FOLDER / "mini.yaml").read_text())
    benchmark["runs"][0]["seed"] = 1
    with pytest.raises(UserError, match=r"runs\.ijepa\.seed: a run has none of its own"):
        check(read_benchmark(benchmark))


@pytest.mark.usefixtures("real_register")
def test_a_table_of_an_unknown_encoder_is_refused() -> None:
    benchmark = yaml.safe_load((FOLDER / "mini.yaml").read_text())
    benchmark["tables"][0]["runs"] = ["ijepa", "simclr"]
    with pytest.raises(UserError, match=r"runs: simclr is not among the encoders \(data2vec, "):
        check(read_benchmark(benchmark))


@pytest.mark.usefixtures("real_register")
def test_published_weights_need_a_checksum_and_a_known_layout() -> None:
    benchmark = yaml.safe_load((FOLDER / "released.yaml").read_text())
    (weights,) = benchmark["released"]
    with pytest.raises(UserError, match=r"released\.ijepa_vith14_in1k\.sha256: '\?' is no SHA-256"):
        check(read_benchmark(benchmark))
    weights["sha256"] = "0" * 64
    check(read_benchmark(benchmark))
    weights["layout"] = "jepa"
    with pytest.raises(UserError, match="layout: 'jepa' is unknown: allowed are auto, ijepa"):
        check(read_benchmark(benchmark))


@pytest.mark.usefixtures("real_register")
def test_images_that_a_split_has_not_are_refused() -> None:
    benchmark = yaml.safe_load((FOLDER / "mini.yaml").read_text())
    with pytest.raises(
        UserError, match=r"images\.cifar10\.test: 10001 cannot be had; cifar10 has 10000"
    ):
        check(read_benchmark(benchmark | {"images": {"cifar10": {"train": 5, "test": 10_001}}}))


@pytest.mark.usefixtures("real_register")
def test_a_tokenizer_must_be_written_out() -> None:
    """The workflow reads the config only, and would not make the default's tokens."""
    benchmark = yaml.safe_load((FOLDER / "hour.yaml").read_text())
    (cae,) = (run for run in benchmark["runs"] if run["name"] == "cae")
    del cae["recipe"]["tokenizer"]
    with pytest.raises(
        UserError, match=r"runs\.cae\.recipe\.tokenizer: write the default, 'small'"
    ):
        check(read_benchmark(benchmark))


@pytest.mark.parametrize("path", sorted({*CONFIGS, FOLDER / "released.yaml"}), ids=lambda p: p.stem)
def test_every_config_has_the_shape_that_the_workflow_asks_for(path: Path) -> None:
    raw, benchmark = read_files([path])
    assert benchmark.name == path.stem
    assert {table["name"] for table in raw["tables"]} == {table.name for table in benchmark.tables}
    # The plan's config.yaml holds the same config.
    again = read_benchmark(without_defaults(benchmark))
    assert again == benchmark
