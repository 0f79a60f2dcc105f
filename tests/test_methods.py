"""Promises of every method to the loop; methods are found by listing their folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ijepa import train
from ijepa.architecture import ViTConfig
from ijepa.checkpoint import load_encoder
from ijepa.config import parse_run
from ijepa.errors import UserError
from ijepa.image_size import sides
from ijepa.masking import BlockWise
from ijepa.method import Batch, Method, Recipe, load_method, method_names
from ijepa.optim import Optim, adamw
from ijepa.precision import choose_attention, kernels, precision
from tests.conftest import RECIPES, Trained, raw_run_of
from tests.several_runs import sgd
from tests.test_train import log_of, run, weights

METHODS = method_names()
DIVISIBLE = [n for n in METHODS if not load_method(n).Config().whole_batch]
"""Methods whose loss is a mean over images."""
pytestmark = pytest.mark.usefixtures("tiny")


def make(name: str) -> Method:
    torch.manual_seed(0)
    parsed = parse_run(raw_run_of(name))
    return load_method(name).Method(parsed.recipe, parsed.vit)


def batch(name: str, num_images: int = 8, **settings: Any) -> Batch:
    """Random images in the method's views."""
    parsed = parse_run(raw_run_of(name))
    random = torch.Generator().manual_seed(1)
    views = tuple(
        torch.randn(num_images, 3, *sides(view.size), generator=random)
        for view in parsed.recipe.views(parsed.vit.image_size)
    )
    tokens = torch.randint(32, (num_images, 64), generator=random)
    return Batch(views, seed=0, tokens_BN=tokens, **{"step": 0, "total": num_images, **settings})


def part(whole: Batch, first: int, last: int) -> Batch:
    """Some rows of a batch, as another device would have them."""
    assert whole.tokens_BN is not None
    return Batch(
        tuple(view[first:last] for view in whole.views),
        whole.seed,
        whole.step,
        offset=first,
        total=whole.total,
        tokens_BN=whole.tokens_BN[first:last],
    )


def test_the_seven_methods_of_the_comparison_are_there() -> None:
    assert {"cae", "data2vec", "dino", "ibot", "ijepa", "lejepa", "mae"} <= {*METHODS}
    assert {*RECIPES} <= {*METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_its_encoder_can_be_loaded(name: str, trained: Trained) -> None:
    out = trained(name)
    records = log_of(out)
    assert len(records) == 8
    assert records[-1].keys() >= {"loss", "lr", "feature_std", "rankme"}
    encoder, header = load_encoder(out)
    assert header["run"]["method"] == name
    assert not encoder.training
    features = encoder.patches(encoder(torch.zeros(2, 3, 32, 32)))
    assert features.shape == (2, 64, 32)


@pytest.mark.parametrize("name", METHODS)
def test_updates_lower_the_loss_of_the_same_batch(name: str) -> None:
    """The teacher is at rest: DINO's own loss may rise while the teacher sharpens."""
    method, same = make(name), batch(name)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = method(same)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *(pytest.param(name, {}, id=name) for name in METHODS),
        pytest.param("ijepa", {"anticollapse": "sigreg"}, id="ijepa, sigreg"),
    ],
)
def test_a_run_that_is_cut_off_ends_like_an_undisturbed_one(
    name: str,
    recipe: dict[str, str],
    tokenised: Path,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut after step 5, resumed from the checkpoint of step 3 (kill -9 itself: test_train)."""
    raw, whole = raw_run_of(name, **recipe), trained(name, descent=False, **recipe)
    method_type = type(make(name))
    original = method_type.after_step

    def cut(self: Method, progress: float) -> None:
        original(self, progress)
        if progress * 8 >= 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(method_type, "after_step", cut)
    with pytest.raises(KeyboardInterrupt):
        run(raw, tokenised, tmp_path / "cut")
    monkeypatch.undo()
    torch.rand(7)  # moves the global generator, as another process would
    resumed = run(raw, tokenised, tmp_path / "cut")
    assert log_of(resumed) == log_of(whole)
    expected = weights(whole)
    assert all(expected[key].equal(value) for key, value in weights(resumed).items())


@pytest.mark.parametrize("name", DIVISIBLE)
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(name: str) -> None:
    """Stochastic depth, masks and groups included: random draws do not depend on the division."""
    method, whole = make(name), batch(name)
    expected = method(whole)
    halves = [method(part(whole, first, first + 4)) for first in (0, 4)]
    for key, value in expected.items():
        torch.testing.assert_close(value, (halves[0][key] + halves[1][key]) / 2, msg=key)
    assert halves[0]["loss"] != halves[1]["loss"]


@pytest.mark.parametrize("name", DIVISIBLE)
def test_accumulated_gradients_train_the_same_network(
    name: str,
    tokenised: Path,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = weights(trained(name, descent=True))
    monkeypatch.setattr(train, "adamw", sgd)  # AdamW would hide gradients of another scale
    raw = raw_run_of(name)
    raw["recipe"]["optim"]["accumulate"] = 4
    parts = weights(run(raw, tokenised, tmp_path / "parts"))
    assert distance(parts, whole) < 1e-5


@pytest.mark.parametrize("name", sorted({*METHODS} - {*DIVISIBLE}))
def test_a_loss_of_the_whole_batch_is_not_computed_in_parts(name: str) -> None:
    raw = raw_run_of(name)
    raw["recipe"]["optim"]["accumulate"] = 4
    with pytest.raises(UserError, match=r"recipe\.optim\.accumulate: 4 parts are not possible"):
        parse_run(raw)
    method, whole = make(name), batch(name)
    halves = [method(part(whole, first, first + 4))["loss"] for first in (0, 4)]
    assert abs(method(whole)["loss"] - torch.stack(halves).mean()) > 1e-3, "it could be"


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all weights over the norm of all weights."""
    norm = sum(float(value.double().square().sum()) for value in theirs.values())
    gap = sum(float((ours[k].double() - theirs[k].double()).square().sum()) for k in theirs)
    return float((gap / norm) ** 0.5)


@pytest.mark.parametrize("setting", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", METHODS)
def test_recomputed_activations_give_the_same_gradients(name: str, setting: str) -> None:
    gradients, cpu = [], torch.device("cpu")
    for recomputed in (False, True):
        method = make(name)
        for module in method.modules():
            if hasattr(module, "activation_checkpointing"):
                module.activation_checkpointing = recomputed  # type: ignore[assignment]
        with precision(setting, cpu):
            loss = method(batch(name))["loss"]
        with kernels(setting, cpu):
            loss.backward()
        gradients.append({k: p.grad for k, p in method.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value)


@pytest.mark.parametrize("name", METHODS)
def test_attention_by_plain_products_gives_the_same_loss_as_torchs_own(name: str) -> None:
    """Computed in float32, so that rounding hides no difference."""
    method, cpu = make(name), torch.device("cpu")
    losses = []
    for setting, fused in (("bfloat16", False), ("float32", True)):
        choose_attention(method, setting, cpu)
        attention = [m for m in method.modules() if hasattr(m, "fused_attn")]
        assert attention
        assert all(module.fused_attn == fused for module in attention)
        losses.append(method(batch(name))["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_gpu_keeps_torchs_own_attention() -> None:
    method = make("ijepa")
    choose_attention(method, "bfloat16", torch.device("cuda"))
    assert all(m.fused_attn for m in method.modules() if hasattr(m, "fused_attn"))


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_that_learns_has_a_gradient_and_teachers_have_none(name: str) -> None:
    method = make(name)
    method(batch(name))["loss"].backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert not (key.startswith(("teacher", "target_encoder")) and parameter.requires_grad)


@pytest.mark.parametrize("name", METHODS)
def test_draws_change_with_the_step(name: str) -> None:
    method = make(name).train()
    losses = {method(batch(name, step=step))["loss"].item() for step in (0, 1, 1)}
    assert len(losses) == 2


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_are_a_whole_recipe_that_fits_the_base_network(name: str) -> None:
    recipe: Recipe = load_method(name).Config()
    load_method(name).check(recipe, ViTConfig())
    assert recipe.views(224)[0].size == 224


def test_published_recipes_have_their_rates_and_batches() -> None:
    """Batch, epochs, warm-up, rate, weight decay, clipping: releases, and args.txt as quoted."""
    expected = {
        "ijepa": (2048, 300, 40, 1e-3, 0.04, 0.4, None),
        "mae": (4096, 1600, 40, 1.5e-4 * 4096 / 256, 0.05, 0.05, None),
        "data2vec": (2048, 800, 40, 2e-3, 0.05, 0.05, 3.0),
        "cae": (2048, 1600, 40, 1.5e-3, 0.05, 0.05, 3.0),
        "dino": (1024, 400, 10, 7.5e-4 * 1024 / 256, 0.04, 0.4, 0.3),
        "ibot": (1024, 400, 10, 7.5e-4 * 1024 / 256, 0.04, 0.4, 0.3),
        "lejepa": (512, 100, 1, 5e-4, 0.05, 0.05, None),
    }
    for name, values in expected.items():
        optim: Optim = load_method(name).Config().optim
        settings = (optim.batch_size, optim.epochs, optim.warmup_epochs, optim.lr)
        assert (*settings, *optim.weight_decay, optim.clip) == pytest.approx(values), name


@pytest.mark.parametrize(
    ("name", "recipe", "vit", "message"),
    [
        ("mae", {"mask_ratio": 0.999}, {}, "64 would be hidden"),
        ("mae", {"decoder_dim": 18}, {}, "decoder_dim is 18"),
        ("data2vec", {"top_layers": 3}, {}, r"top_layers is 3: .* vit\.depth \(2\)"),
        ("data2vec", {"mask_ratio": 0.001}, {}, "0 would be hidden"),
        ("cae", {"vocabulary": 0}, {}, "vocabulary is 0"),
        ("dino", {"local_size": 18}, {}, "local_size is 18: .* multiple of vit"),
        ("dino", {"momentum": [1.0, 0.9]}, {}, "momentum is"),
        ("ibot", {"mask_ratio": [0.5, 0.2]}, {}, "mask_ratio is"),
        ("ibot", {"drop_path": 1.0}, {}, "drop_path is 1.0"),
        ("lejepa", {"local_size": 18}, {}, "local_size is 18: .* multiple of vit"),
        ("lejepa", {"num_global": 1, "num_local": 0}, {}, "num_local is 0 and num_global 1"),
        ("lejepa", {"sigreg": {"lamb": 1.0}}, {}, "lamb is 1.0: it must be below 1"),
        ("lejepa", {"sigreg": {"num_points": 1}}, {}, "num_points is 1: it must be at least 2"),
        ("ijepa", {"sigreg": {"lamb": 0.1}}, {}, "sigreg is set, but not used"),
        ("ijepa", {"sigreg_of": "patches"}, {}, "sigreg is set, but not used"),
        ("ijepa", {"anticollapse": "sigreg", "targets": "pixels"}, {}, "targets is pixels: with"),
    ],
)
def test_impossible_recipes_are_refused_by_name(
    name: str, recipe: dict[str, Any], vit: dict[str, Any], message: str
) -> None:
    raw = raw_run_of(name)
    raw["recipe"] |= recipe
    raw["vit"] |= vit
    with pytest.raises(UserError, match=message):
        parse_run(raw)


@pytest.mark.parametrize("name", ["ijepa", "data2vec", "dino", "ibot"])
def test_a_teacher_that_became_nan_makes_the_loss_nan_which_stops_the_loop(name: str) -> None:
    """test_train: a loss that is not finite stops before the update."""
    method = make(name)
    teacher = "target_encoder" if name == "ijepa" else "teacher.encoder"
    with torch.no_grad():
        method.get_parameter(f"{teacher}.patch_embed.proj.bias").fill_(float("nan"))
        loss = method(batch(name))["loss"]
    assert loss.isnan()


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_computed_in_float32_under_autocast(name: str) -> None:
    """A loss in bfloat16 has two decimals: its dtype is float32 and it is near that of float32."""
    method, same = make(name), batch(name)
    exact = method(same)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scalars = method(same)
    assert all(value.dtype == torch.float32 for value in scalars.values())
    torch.testing.assert_close(scalars["loss"], exact, rtol=0.03, atol=0)
    assert scalars["loss"].bfloat16().float() != scalars["loss"]


@pytest.mark.parametrize(
    ("name", "preset"),
    [(name, preset) for name in METHODS for preset in load_method(name).PRESETS],
)
def test_a_preset_changes_the_recipe_and_a_config_may_change_it_further(
    name: str, preset: str
) -> None:
    raw = raw_run_of(name)
    del raw["recipe"]["optim"]["epochs"], raw["recipe"]["optim"]["warmup_epochs"]
    raw["recipe"].pop("predictor_depth", None)
    plain = parse_run(raw).recipe
    raw["recipe"]["preset"] = preset
    changed = parse_run(raw).recipe
    assert changed != plain
    assert changed.optim.batch_size == plain.optim.batch_size == 32


def test_the_presets_are_what_the_sources_say() -> None:
    def recipe(name: str, preset: str) -> Any:
        raw = raw_run_of(name)
        raw["recipe"] = {**raw["recipe"], "preset": preset}
        raw["recipe"]["optim"] = {"batch_size": 32}
        return parse_run(raw).recipe

    paper = recipe("ijepa", "paper")
    assert (paper.loss, paper.optim.start_lr, paper.optim.warmup_epochs) == ("l2", 1e-4, 15)
    assert paper.optim.weight_decay_shape == "linear"
    assert recipe("data2vec", "repository").drop_path == 0.25
    vanilla = recipe("dino", "vanilla")
    assert (vanilla.optim.epochs, vanilla.optim.lr) == (100, 1e-3)
    assert vanilla.temperature(0.99) == 0.04
    assert replace(recipe("dino", "base8"), temperature_warmup_epochs=0).temperature(0) == 0.07
    readme, minimal = recipe("lejepa", "readme"), recipe("lejepa", "minimal")
    assert readme.sigreg.lamb == 0.05
    assert (minimal.sigreg.lamb, minimal.optim.lr, minimal.optim.epochs) == (0.02, 2e-3, 800)
    assert minimal.global_crop.jitter == (0.8, 0.8, 0.8, 0.2)
    assert (minimal.global_crop.scale, minimal.num_global) == ((0.08, 1.0), 4)


def test_an_unknown_preset_is_refused() -> None:
    raw = raw_run_of("dino")
    raw["recipe"]["preset"] = "vanila"
    with pytest.raises(
        UserError, match=r"recipe\.preset: 'vanila' is unknown: allowed are vanilla"
    ):
        parse_run(raw)


STD_CUT = 0.0108
"""Deviation of a normal of 0.02 that is cut at one deviation."""


def deviations(name: str) -> tuple[Any, dict[str, float]]:
    """A method's networks of width 384, and the deviation of each parameter's initial values."""
    vit = ViTConfig(image_size=224, patch_size=16, dim=384, depth=4, num_heads=6)
    module = load_method(name)
    torch.manual_seed(0)
    method = module.Method(module.Config(), vit)
    return method, {key: p.std().item() for key, p in method.named_parameters() if p.numel() > 1}


def test_data2vec_starts_from_a_cut_normal_that_is_rescaled_by_depth() -> None:
    """data2vec_vision: deviations of 0.0108, and of 0.0108 / sqrt(2 l) at the ends of block l."""
    _, std = deviations("data2vec")
    near: Any = {"rel": 0.02}
    assert std["student.encoder.patch_embed.proj.weight"] == pytest.approx(STD_CUT, **near)
    assert std["student.head.weight"] == pytest.approx(STD_CUT, **near)
    assert std["student.encoder.cls_token"] == pytest.approx(STD_CUT, rel=0.15)
    for layer in range(4):
        block = f"student.encoder.blocks.{layer}"
        assert std[f"{block}.attn.qkv.weight"] == pytest.approx(STD_CUT, **near)
        for end in ("attn.proj", "mlp.fc2"):
            expected = STD_CUT / (2 * (layer + 1)) ** 0.5
            assert std[f"{block}.{end}.weight"] == pytest.approx(expected, **near)


def test_cae_starts_from_xaviers_weights_but_for_what_is_no_linear_layer() -> None:
    """Uniform of deviation sqrt(2 / (inputs + outputs)), in encoder, regressor and decoder."""
    method, std = deviations("cae")
    linear = {
        f"{key}.weight": m.weight for key, m in method.named_modules() if isinstance(m, nn.Linear)
    }
    assert {key.split(".")[0] for key in linear} == {"visible_encoder", "regressor", "decoder"}
    for key, weight in linear.items():
        assert std[key] == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.02), key
        assert weight.abs().max() <= (6 / sum(weight.shape)) ** 0.5, "uniform, not normal"
    assert std["visible_encoder.patch_embed.proj.weight"] == pytest.approx(STD_CUT, rel=0.02)
    assert std["regressor.mask_token"] == pytest.approx(STD_CUT, rel=0.15)


@pytest.mark.parametrize(("name", "bias"), [("mae", True), ("dino", True), ("ijepa", False)])
def test_a_patch_convolution_keeps_torchs_bias_where_the_release_does(
    name: str, bias: bool
) -> None:
    method, _ = deviations(name)
    assert bool(method.encoder.patch_embed.proj.bias.any()) == bias


def test_cae_drops_paths_in_regressor_and_decoder_at_rising_rates() -> None:
    method, _ = deviations("cae")
    for blocks in (method.regressor.blocks, method.decoder.blocks):
        rates = [block.drop_path1.rate for block in blocks]
        assert rates == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])
        assert rates == [block.drop_path2.rate for block in blocks]


@pytest.mark.parametrize(("name", "decayed"), [("data2vec", False), ("mae", True), ("cae", True)])
def test_the_class_token_is_decayed_in_all_methods_but_data2vec(name: str, decayed: bool) -> None:
    method = make(name)
    parameters = dict(method.named_parameters()).items()
    (token,) = (p for key, p in parameters if key.endswith("cls_token") and p.requires_grad)
    optimizer = adamw(method, Optim())
    groups = {id(p): group["decayed"] for group in optimizer.param_groups for p in group["params"]}
    assert groups[id(token)] == decayed


@pytest.mark.usefixtures("real_register")
def test_the_configs_of_stop_are_a_preset_of_their_own() -> None:
    """amirbar/StoP, configs/pretrain: vit-b16 and vit-l16."""
    for preset, depth in (("stop_base", 6), ("stop_large", 12)):
        raw = {"method": "ijepa", "dataset": "imagenet", "vit": {"size": "base"}}
        recipe: Any = parse_run({**raw, "recipe": {"preset": preset}}).recipe
        optim = recipe.optim
        assert (optim.lr, optim.start_lr, optim.final_lr) == (8e-4, 2e-4, 1e-4)
        assert (optim.epochs, optim.warmup_epochs, optim.batch_size) == (600, 15, 2048)
        crop = recipe.crop
        assert (crop.flip, crop.grey, crop.blur, crop.scale) == (0.5, 0.2, 0.5, (0.3, 1.0))
        assert (recipe.predictor_depth, recipe.masking.group_size) == (depth, 64)


def test_the_smallest_block_of_ibot_grows_with_the_grid() -> None:
    """A third of the shorter side, squared: 16 patches of 14 x 14, 25 of 16 x 16, 1 of 4 x 4."""
    config: Any = load_method("ibot").Config()
    masking = config.masking
    for side, least in ((14, 16), (16, 25), (4, 1)):
        counts = torch.full((4,), side)
        drawn = [
            blocks.hide(counts, (side, side), torch.Generator().manual_seed(0))
            for blocks in (masking, BlockWise(min_patches=least))
        ]
        assert drawn[0].equal(drawn[1])
