"""Predictions agree with closed forms, with real networks, and with what the README shows."""

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ijepa import config
from ijepa.architecture import ViTConfig
from ijepa.config import RunConfig
from ijepa.cost import flops as counting
from ijepa.cost import predict as cost
from ijepa.cost.cards import GPUS, named
from ijepa.errors import UserError
from ijepa.method import load_method, method_names
from tests.conftest import OPTIM, RECIPES
from workflow.plan.benchmark import read_files
from workflow.plan.check import planned
from workflow.plan.cost import main

# Predictions are of the project's own data sets, even if other tests have replaced the register.
pytestmark = pytest.mark.usefixtures("real_register")

ROOT = Path(__file__).parents[1]
A100 = GPUS["a100-80gb"]
_, PAPER = read_files([ROOT / "config" / "paper.yaml"])
IN22K = {"imagenet22k": 14_197_122}
TOY = {"image_size": 32, "patch_size": 4, "dim": 64, "depth": 2, "num_heads": 2}


def run(method: str = "ijepa", vit: Any = TOY, **recipe: Any) -> RunConfig:
    raw = {"method": method, "dataset": "cifar10", "vit": vit}
    return config.parse_run(
        {**raw, "recipe": {"optim": OPTIM, **RECIPES.get(method, {}), **recipe}}
    )


def of_paper(*names: str, **differs: Any) -> dict[str, cost.Planned]:
    return {
        run.name: planned(dataclasses.replace(run, **differs))
        for run in PAPER.runs
        if run.name in names
    }


def forward(vit: ViTConfig, tokens: int) -> float:
    """The closed form of cost.py's docstring, for one image."""
    patches, D, r = vit.grid[0] * vit.grid[1], vit.dim, vit.mlp_ratio
    block = 2 * (4 + 2 * r) * tokens * D**2 + 4 * tokens**2 * D
    return 2 * patches * 3 * vit.patch_size**2 * D + vit.depth * block


@pytest.mark.parametrize(("size", "patch"), [("base", 8), ("huge", 14), ("giant", 16)])
def test_a_step_of_mae_costs_three_forward_passes_by_the_closed_form(size: str, patch: int) -> None:
    """Over 5 s: a huge network is counted, each operation by torch in Python."""
    mae = config.parse_run(
        {
            "method": "mae",
            "dataset": "imagenet",
            "vit": {"size": size, "patch_size": patch},
            "recipe": {"optim": {"batch_size": 2}},
        }
    )
    N = mae.vit.grid[0] ** 2
    decoder = ViTConfig(dim=512, depth=8, num_heads=16)
    embed = 2 * (N // 4 + 1) * mae.vit.dim * 512 + 2 * (N + 1) * 512 * 3 * patch**2
    blocks = forward(decoder, N + 1) - 2 * 196 * 3 * 16**2 * 512
    expected = 3 * (forward(mae.vit, N // 4 + 1) + blocks + embed)
    assert counting.size(mae, 2).flops == pytest.approx(expected, rel=0.01)


def test_a_target_encoder_costs_one_forward_pass() -> None:
    def flops(depth: int) -> float:
        masking = {"strategy": "random", "min_keep": 4, "target_ratio": 0.5}
        return counting.size(run(vit={**TOY, "depth": depth}, masking=masking), 8).flops

    vit = ViTConfig(**TOY)  # type: ignore[arg-type]
    block = [forward(vit, n) / vit.depth for n in (64, 32)]
    embedding = 2 * 64 * 48 * 64 / vit.depth
    expected = (block[0] - embedding) + 3 * (block[1] - embedding)
    assert flops(3) - flops(2) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("method", method_names())
def test_sizes_alone_cost_what_a_real_network_costs(method: str) -> None:
    parsed = run(method)
    batch = parsed.recipe.optim.batch_size
    real = load_method(method).Method(parsed.recipe, parsed.vit)
    on_meta = load_method(method).Method(parsed.recipe, parsed.vit).to("meta")
    flops, saved = counting._count(on_meta, parsed, batch, True, 0)

    storages: dict[int, Tensor] = {}
    weights = {p.untyped_storage().data_ptr() for p in real.parameters()}

    def keep(x: Tensor) -> Tensor:
        matrix = x.shape[-2:] == (65, 65)  # a CPU's flash kernel knows no data2vec's positions
        if x.is_floating_point() and not matrix and x.untyped_storage().data_ptr() not in weights:
            storages[x.untyped_storage().data_ptr()] = x
        return x

    noise = counting.batch_of_noise(parsed, batch, 0, torch.device("cpu"))
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with counter, math:
        real(noise)["loss"].backward()
    assert flops == counter.get_total_flops() > 0
    with torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(keep, lambda x: x):
        _loss = real(noise)["loss"]
    assert saved == pytest.approx(
        sum(x.untyped_storage().nbytes() for x in storages.values()), rel=0.1
    )


@pytest.mark.parametrize("method", ["mae", "cae"])
def test_two_blocks_and_three_tell_what_many_cost(method: str) -> None:
    """All blocks of the encoder and of the decoder are counted here, not extrapolated.

    Over 5 s on a busy machine: PyTorch counts FLOPs operation by operation.
    """
    parsed = run(method, vit={**TOY, "depth": 5}, decoder_depth=4)
    network = load_method(method).Method(parsed.recipe, parsed.vit)
    told = counting.size(parsed, 4)
    assert (told.flops * 4, told.saved) == counting._count(network.to("meta"), parsed, 4, True, 0)
    assert told.parameters == sum(p.numel() for p in network.parameters())
    assert told.trained == sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_the_matrix_of_attention_is_not_kept() -> None:
    long = nn.Module()
    q = torch.empty(1, 1, 4096, 8, device="meta", requires_grad=True)
    with (
        counting.Autocast(long, bfloat16=True) as autocast,
        saved_tensors_hooks(autocast.keep, lambda x: x),
    ):
        nn.functional.scaled_dot_product_attention(q, q, q)
    assert 0 < autocast.bytes() <= 4 * 4096 * 8 * 2


def test_checkpointing_takes_more_flops_and_less_memory() -> None:
    plain = run("mae", {**TOY, "depth": 6})
    again = dataclasses.replace(plain, activation_checkpointing=True)
    assert counting.size(again, 16).flops > 1.2 * counting.size(plain, 16).flops
    assert counting.size(again, 16).saved < 0.7 * counting.size(plain, 16).saved


def test_more_gpus_and_accumulation_take_memory_from_each() -> None:
    def gb(gpus: int, accumulate: int) -> float:
        optim = {"batch_size": 64, "epochs": 1, "warmup_epochs": 0, "accumulate": accumulate}
        parsed = run("mae", optim=optim)
        return cost.cost("one", parsed, 50_000, gpus, A100).gb_per_gpu

    assert gb(1, 1) > gb(2, 1) > gb(2, 2)


def test_hours_are_flops_over_what_the_card_does() -> None:
    (prediction,) = cost.predict(of_paper("mae_vitb16"), A100, 0.5)
    flops = prediction.images * prediction.gflop_per_image * 1e9
    assert prediction.steps == 1600 * (1_281_167 // 4096)
    assert prediction.gpu_hours == pytest.approx(flops / (312e12 * 0.5) / 3600)
    assert prediction.hours == pytest.approx(prediction.gpu_hours / 16)
    assert prediction.kwh == pytest.approx(prediction.gpu_hours * 0.4)
    (slow,) = cost.predict(of_paper("mae_vitb16"), GPUS["v100-32gb"], 0.5)
    # A V100 has no bfloat16.
    assert slow.gpu_hours == pytest.approx(prediction.gpu_hours * 312 / 15.7, rel=0.01)


def test_the_utilisation_is_that_of_the_papers_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 5 s: four networks of a paper's size are counted, each operation by torch in Python."""
    cost.predict(of_paper("ijepa_vith14"), A100)  # with all draws, which other tests need as well
    # With 6 draws iBOT's FLOPs are those of 32 draws, within 0.1 %.
    monkeypatch.setattr(counting, "NUM_DRAWS", 6)
    pairs = cost.held_against_published()
    ratios = {row["method"]: c.gpu_hours / float(row["gpu_hours"]) for row, c in pairs}
    assert ratios["ijepa"] == pytest.approx(1, abs=0.03)
    # The share of V100 hours that the docstring states.
    assert all(0.45 < ratios[name] < 0.55 for name in ("mae", "dino", "ibot"))


def test_published_hours_stand_beside_the_run_scaled_to_its_epochs() -> None:
    """Over 5 s: two networks are counted, if no test before has done so in this process."""
    mae, huge = cost.predict(of_paper("mae_vitl16", "ijepa_vith14"), A100)[::-1]
    assert mae.published == "5,376 V100"
    assert (huge.published, huge.of_reference) == ("1,152 A100-80GB", 1)


def test_on_a_cpu_a_prediction_is_of_images_and_their_speed() -> None:
    prediction = cost.cost("one", run("mae"), 50_000, 1, None, speed=10)
    assert prediction.hours == prediction.images / 10 / 3600
    assert prediction.kwh is None


def test_a_card_of_unknown_peak_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that asks for more cards than there are gets all of them.

    Over 5 s: MAE is counted for two and for four cards, each operation by torch in Python.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = {"NVIDIA A100-SXM4-80GB": "a100-80gb", "NVIDIA GeForce RTX 4090": "cpu"}
    for card, name in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda card=card: card)
        assert cost.card_here() == name
    runs = of_paper("mae_vitb16", gpus=4)
    (prediction,) = cost.predict(runs, None, speeds={"mae_vitb16": 10.0}, here=True)
    assert prediction.gpus == cost.predict(runs, A100, here=True)[0].gpus == 2
    assert cost.predict(runs, A100)[0].gpus == 4
    assert prediction.hours == prediction.images / 20 / 3600 == prediction.gpu_hours / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "imagenet22k"}, "--images imagenet22k="),
        ({"gpus": 3}, "gpus: 3"),
        ({"vit": {"size": "vast"}}, "mae_vitb16.vit.size: 'vast' is unknown"),
    ],
)
def test_a_config_that_cannot_be_predicted_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cost.predict(of_paper("mae_vitb16", **change), A100)


@pytest.mark.parametrize(
    ("card", "key"),
    [("NVIDIA A100-SXM4-80GB", "a100-80gb"), ("NVIDIA H200", "h200"), ("NVIDIA GH200 480GB", None)],
)
def test_a_card_is_known_by_its_name(card: str, key: str | None) -> None:
    assert named(card) == key


def test_a_config_without_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cost", str(ROOT / "config" / "released.yaml")])
    with pytest.raises(UserError, match="has no runs: nothing is pretrained"):
        main()


def test_a_run_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(ROOT / "config" / "mini.yaml"), "--runs", "mae", "mea"]
    monkeypatch.setattr("sys.argv", ["cost", *arguments])
    with pytest.raises(UserError, match="--runs: mea is no run of mini"):
        main()


def test_all_numbers_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(ROOT / "config" / "mini.yaml"), "--runs", "mae", "--csv"]
    arguments += [str(tmp_path / "c.csv"), "--gpu", "h100", "--utilisation", "0.3"]
    monkeypatch.setattr("sys.argv", ["cost", *arguments])
    main()
    (row,) = csv.DictReader((tmp_path / "c.csv").read_text().splitlines())
    _, mini = read_files([ROOT / "config" / "mini.yaml"])
    (mae,) = (run for run in mini.runs if run.name == "mae")
    (predicted,) = cost.predict({"mae": planned(mae)}, GPUS["h100"], 0.3)
    assert float(row["gpu_hours"]) == predicted.gpu_hours > 0


def test_the_documentation_shows_what_the_command_says() -> None:
    """Over 5 s: four networks of that size are counted, each operation by torch in Python."""
    shown, rows = documented("paper")
    assert list(rows) == [run.name for run in PAPER.runs]
    # A sample with one run of each encoder, because all runs take minutes.
    sample = ("ijepa_vith14", "ijepa_vitb16_block", "mae_vitl16", "cae_vitb16")
    lines = cost.markdown(cost.predict(of_paper(*sample), A100, num_images=IN22K)).splitlines()
    assert lines[:2] == shown[:2]
    assert lines[2:] == [rows[name] for name in sample]


def test_the_documentation_shows_the_hours_of_one_gpu() -> None:
    """Over 5 s: two networks are counted, each operation by torch in Python."""
    shown, rows = documented("imagenette")
    _, benchmark = read_files([ROOT / "config" / "imagenette.yaml"])
    assert list(rows) == [run.name for run in benchmark.runs]
    plans = {run.name: planned(run) for run in benchmark.runs if run.name in ("ijepa", "mae")}
    lines = cost.markdown(cost.predict(plans, A100)).splitlines()
    assert lines == [*shown[:2], rows["ijepa"], rows["mae"]]


def documented(name: str) -> tuple[list[str], dict[str, str]]:
    """Lines of a config's table in docs/costs.md, and its rows by run."""
    text = (ROOT / "docs" / "costs.md").read_text()
    pattern = rf"cost config/{name}\.yaml[^\n]*--markdown -->\n(.*?)<!-- end -->"
    (shown,) = re.findall(pattern, text, re.DOTALL)
    lines = shown.splitlines()
    return lines, {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}
