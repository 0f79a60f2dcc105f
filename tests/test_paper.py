"""config/paper.yaml has the paper's tables, their rows in order, each with the stated recipe."""

import csv
import re
from ast import literal_eval
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from evals.protocol import configure
from ijepa import config
from ijepa.architecture import SIZES, ViTConfig
from ijepa.config import RunConfig
from ijepa.data.build import missing
from ijepa.method import method_names
from workflow.plan.benchmark import read_benchmark
from workflow.plan.grid import Grid

ROOT = Path(__file__).parents[1]
PAPER: dict[str, Any] = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())
RUNS = {run["name"]: run for run in PAPER["runs"]}
TABLES = {table["name"]: table for table in PAPER["tables"] if "published" in table}
EVALUATIONS = {item["name"]: item for item in PAPER["evaluations"]}
with (ROOT / "results" / "published" / "paper_tables.csv").open(newline="") as file:
    PUBLISHED = list(csv.DictReader(file))

DATASETS = {"in1k": "imagenet", "in22k": "imagenet22k"}
IMAGES = {"imagenet": 1_281_167, "imagenet22k": 14_197_122}
ENCODERS = {"B": "base", "L": "large", "H": "huge", "G": "giant"}
"""The paper's ViT-G has the dimensions of ViT-g."""

STATED: dict[str, dict[str, Any]] = {
    "ijepa": {
        "optim.batch_size": 2048,
        "optim.lr": 1e-3,
        "optim.final_lr": 1e-6,
        "optim.weight_decay": (0.04, 0.4),
        "momentum": (0.996, 1.0),
        "predictor_dim": 384,
        "masking.strategy": "multi_block",
        "masking.num_targets": 4,
        "masking.target_scale": (0.15, 0.2),
        "masking.target_aspect": (0.75, 1.5),
        "masking.context_scale": (0.85, 1.0),
    },
    "mae": {
        "optim.batch_size": 4096,
        "optim.lr": 1.5e-4 * 4096 / 256,
        "optim.warmup_epochs": 40,
        "mask_ratio": 0.75,
    },
    "data2vec": {
        "optim.batch_size": 8192,
        "optim.lr": 1e-3,
        "optim.warmup_epochs": 80,
        "momentum": 0.9998,
        "mask_ratio": 120 / 196,
        "layer_scale": 1e-5,
    },
    "cae": {
        "optim.batch_size": 2048,
        "optim.lr": 1.5e-3,
        "optim.warmup_epochs": 40,
        "mask_ratio": 0.5,
        "tokenizer": "dalle",
        "vocabulary": 8192,
    },
    "dino": {
        "optim.batch_size": 1056,
        "optim.lr": 5e-4 * 1056 / 256,
        "optim.warmup_epochs": 10,
        "optim.final_lr": 2e-6,
        "optim.clip": 3.0,
        "num_local": 10,
        "num_prototypes": 65_536,
        "norm_last_layer": True,
        "freeze_last_layer_epochs": 3,
        "teacher_temperature": (0.03, 0.07),
        "temperature_warmup_epochs": 50,
        "local_crop.scale": (0.05, 0.25),
    },
    "ibot": {
        "optim.batch_size": 1024,
        "optim.warmup_epochs": 10,
        "optim.clip": 0.3,
        "num_local": 10,
        "num_prototypes": 8192,
        "mask_ratio": (0.1, 0.5),
        "norm_last_layer": True,
        "freeze_last_layer_epochs": 3,
        "temperature_warmup_epochs": 50,
    },
}
"""Settings that the papers state for all their encoders; below, for one size and for one row."""
STATED_OF: dict[str, dict[str, Any]] = {
    "ijepa ViT-B": {"predictor_depth": 6},
    "ijepa ViT-L": {"predictor_depth": 12},
    "ijepa ViT-H": {"predictor_depth": 12},
    "ijepa ViT-G": {"predictor_depth": 16},
    "ibot ViT-B": {
        "optim.lr": 7.5e-4 * 4,
        "optim.final_lr": 2e-6,
        "optim.weight_decay": (0.04, 0.4),
        "drop_path": 0.1,
        "local_crop.scale": (0.05, 0.32),
    },
    "ibot ViT-L": {
        "optim.lr": 5e-4 * 4,
        "optim.final_lr": 2e-4,
        "optim.weight_decay": (0.04, 0.48),
        "drop_path": 0.2,
        "local_crop.scale": (0.05, 0.25),
    },
    "cae ViT-B": {"layer_scale": 0.1},
    "cae ViT-L": {"layer_scale": 1e-5},
}
NOTES: dict[str, dict[str, Any]] = {
    "targets=target-encoder output": {"targets": "features"},
    "targets=pixels": {"targets": "pixels"},
    "mask target-encoder output": {"targets": "features"},
    "mask target-encoder input": {"targets": "block_features"},
    "masking=multi-block": {},
    "masking=rasterized": {"masking.strategy": "rasterised"},
    "masking=block(0.6)": {"masking.strategy": "block", "masking.target_ratio": 0.6},
    "masking=random(0.6)": {"masking.strategy": "random", "masking.target_ratio": 0.6},
    "weight_decay=0.04->0.4": {},
    "weight_decay=0.05": {"optim.weight_decay": (0.05, 0.05)},
    # The row of 384 has the number of Table 13's constant weight decay.
    "predictor_width=384": {"optim.weight_decay": (0.05, 0.05)},
    "predictor_width=1024": {"optim.weight_decay": (0.05, 0.05), "predictor_dim": 1024},
}
ABLATED = {
    "target_scale": "masking.target_scale",
    "context_scale": "masking.context_scale",
    "number_of_targets": "masking.num_targets",
    "predictor_depth": "predictor_depth",
}


pytestmark = pytest.mark.usefixtures("real_register")


def parsed(name: str) -> RunConfig:
    raw = {"dataset": PAPER["dataset"], **RUNS[name]}
    return config.parse_run(
        {key: value for key, value in raw.items() if key not in ("name", "gpus")}
    )


def stages_of(name: str) -> list[RunConfig]:
    """A run after those that it starts from, one after the other."""
    earlier = RUNS[name].get("start", {}).get("from")
    return [*(stages_of(earlier) if earlier else []), parsed(name)]


def rows_of(table: str) -> list[dict[str, str]]:
    """The encoders of a table of the paper that can be had here, in its order."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in PUBLISHED:
        if row["table"] == table and row["method"] in method_names():
            key = tuple(row[name] for name in ("method", "arch", "pretrain_data", "note"))
            rows.setdefault(key, row)
    return list(rows.values())


def encoder_of(row: dict[str, str]) -> ViTConfig:
    match = re.fullmatch(r"ViT-(.)/(\d+)(?:@(\d+))?", row["arch"])
    assert match
    shape: dict[str, Any] = dict(SIZES[ENCODERS[match[1]]])
    return ViTConfig(patch_size=int(match[2]), image_size=int(match[3] or 224), **shape)


def recipe_of(row: dict[str, str]) -> dict[str, Any]:
    """Settings of a row's recipe that the papers state."""
    stated = STATED[row["method"]] | STATED_OF.get(f"{row['method']} {row['arch'][:5]}", {})
    name, _, value = row["note"].partition("=")
    if name in ABLATED:
        return stated | {ABLATED[name]: literal_eval(value)}
    return stated | NOTES.get(row["note"], {})


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_the_rows_of_the_paper_in_its_order(table: str) -> None:
    for row, name in zip(rows_of(table), TABLES[table]["runs"], strict=True):
        run = parsed(name)
        epochs = sum(stage.recipe.optim.epochs for stage in stages_of(name))
        equivalent = epochs * IMAGES[run.dataset] / IMAGES["imagenet"]
        assert (run.method, run.vit) == (row["method"], encoder_of(row)), name
        assert run.dataset == DATASETS[row["pretrain_data"]], name
        assert equivalent == pytest.approx(float(row["epochs"]), rel=1e-3), name
        stated, first = recipe_of(row), stages_of(name)[0]
        assert {path: attrgetter(path)(first.recipe) for path in stated} == stated, name


def test_all_tables_of_the_paper_are_there_with_their_evaluations() -> None:
    published: dict[str, dict[str, None]] = {}
    for row in PUBLISHED:
        published.setdefault(row["table"], {})[row["evaluation"]] = None
    of_paper = {table: list(published[table]) for table in TABLES}
    assert of_paper == {name: table["evaluations"] for name, table in TABLES.items()}
    assert published.keys() == TABLES.keys()


def test_every_run_is_in_a_table_or_another_one_starts_from_it() -> None:
    shown = {run for table in TABLES.values() for run in table["runs"]}
    assert RUNS.keys() == shown | {run["start"]["from"] for run in RUNS.values() if "start" in run}


@pytest.mark.parametrize(
    ("name", "encoder", "stated"),
    [
        ("in1k_linear", "", {"optimiser": "lars", "epochs": 50, "batch_size": 16_384}),
        ("in1k_linear", "", {"milestones": (15, 30, 45), "weight_decays": (5e-4, 0.0)}),
        ("in1k_linear", "mae_vitb16", {"epochs": 90, "norms": ("plain_batch",), "layers": 1}),
        ("in1k_linear", "mae_vith14", {"epochs": 50, "warmup_epochs": 10, "pool": None}),
        ("in1k_linear", "cae_vitl16", {"epochs": 90, "learning_rates": (0.1,)}),
        ("in1k_linear", "dino_vitb8", {"epochs": 100, "pool": "cls_patches", "layers": 1}),
        ("in1k_linear", "ibot_vitl16", {"epochs": 100, "pool": "cls_patches"}),
        ("in1k_linear", "ijepa_vitb16", {"optimiser": "sgd", "epochs": 28, "batch_size": 256}),
        ("in1k_linear", "ijepa_vitl16", {"optimiser": "sgd", "learning_rates": (0.01,)}),
        ("in1k_linear", "ijepa_vith16_448", {"optimiser": "sgd", "learning_rates": (0.01, 0.001)}),
        ("in1k_linear", "ijepa_vith14", {"optimiser": "lars", "pool": None}),
        ("in1k_linear", "data2vec_vitl16", {"optimiser": "sgd", "epochs": 28, "pool": None}),
        ("in1k_linear", "dino_vitb8", {"crop.interpolation": "bilinear"}),
        ("in1k_linear", "ibot_vitl16", {"view_interpolation": "bicubic"}),
        ("in1k_knn", "", {"candidates": (10, 20, 100, 200), "chosen_on": "test", "pool": None}),
        ("in1k_1pct", "dino_vitb8", {"finetune": None, "layers": 1, "pool": None}),
        ("in1k_1pct", "ibot_vitb16", {"finetune": None, "subset": "1pct"}),
        ("in1k_finetune", "mae_vith14_448", {"base_lr": 1e-3, "drop_path": 0.3}),
        ("in1k_linear_alike", "dino_vitb8", {"optimiser": "lars", "pool": "patches"}),
        ("cifar100_linear", "", {"epochs": 28, "milestones": (8, 16, 24), "batch_size": 256}),
        ("places205_linear", "", {"epochs": 14, "milestones": (4, 8, 12), "batch_size": 256}),
        ("inat18_linear", "", {"epochs": 84, "milestones": (24, 48, 72), "batch_size": 256}),
        ("clevr_count", "", {"epochs": 50, "schedule": "cosine", "crop.whole": True}),
        ("clevr_dist", "", {"epochs": 100, "schedule": "cosine", "crop.whole": True}),
        ("in1k_1pct", "ijepa_vitl16", {"finetune.base_lr": 3e-5, "finetune.weight_decay": 0.05}),
        ("in1k_1pct", "ijepa_vith14", {"finetune.base_lr": 3e-5, "finetune.weight_decay": 0.4}),
        ("in1k_1pct", "ijepa_vith16_448", {"finetune.weight_decay": 0.4}),
        ("in1k_1pct", "", {"subset": "1pct", "finetune.epochs": 50, "finetune.batch_size": 512}),
        ("in1k_1pct_linear", "", {"subset": "1pct"}),
        ("in1k_finetune", "", {"epochs": 50, "base_lr": 1e-4, "batch_size": 528, "mixup": 0.8}),
    ],
)
def test_an_evaluation_follows_the_papers_protocol(
    name: str, encoder: str, stated: dict[str, Any]
) -> None:
    item = EVALUATIONS[name]
    raw = item["config"] | item.get("config_of", {}).get(encoder, {})
    protocol = configure(item["evaluation"], raw, name)
    assert {path: attrgetter(path)(protocol) for path in stated} == stated


def test_the_plan_is_complete_and_names_all_that_a_person_must_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = Grid(read_benchmark(PAPER))
    for table in TABLES.values():
        for run in table["runs"]:
            for evaluation in table["evaluations"]:
                assert f"results/paper/evaluations/{run}/seed0/{evaluation}.json" in grid.wanted
    raw = dict(entry.split("=") for entry in grid.missing_raw())
    lines = [line for name, folder in raw.items() for line in missing(name, Path(folder))]
    message = "\n".join([*lines, *grid.missing_weights()])
    for wanted in (
        "clevr: data/raw/clevr/CLEVR_v1.0.zip",
        "imagenet: data/raw/imagenet/ILSVRC2012_img_train.tar",
        "imagenet: data/raw/imagenet/ILSVRC2012_img_val.tar",
        "imagenet22k: data/raw/imagenet22k/n*.tar",
        "inat18: data/raw/inat18/train_val2018.tar.gz",
        "places205: data/raw/places205/imagesPlaces205_resize.tar.gz",
        "dalle: data/weights/dalle_encoder.pt",
    ):
        assert wanted in message
