"""Tests of the parts of I-JEPA that no other method has and that the loop cannot see."""

import pytest
import torch
from torch.nn import functional as F

from ijepa.architecture import ViTConfig
from ijepa.config import parse_run
from ijepa.masking import Masking, Masks
from ijepa.method import Batch
from ijepa.methods import ijepa
from ijepa.sigreg import SIGReg

VIT = ViTConfig(image_size=32, patch_size=4, dim=32, depth=2, num_heads=2)


def make(**settings: object) -> ijepa.Method:
    torch.manual_seed(0)
    masking = Masking(mode="fixed", min_keep=3, group_size=4)
    config = ijepa.Config(masking=masking, predictor_dim=16, predictor_depth=1, **settings)  # type: ignore[arg-type]
    return ijepa.Method(config, VIT)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def masks() -> Masks:
    return make().masking.sample(8, torch.Generator().manual_seed(2))


def test_predictions_do_not_see_the_pixels_outside_the_context(
    images: torch.Tensor, masks: Masks
) -> None:
    hidden = torch.ones(8, 64, dtype=torch.bool).scatter(1, masks.context_GK, False)
    by_pixel = hidden.view(8, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = torch.where(by_pixel, torch.zeros(()), images)
    method = make()
    torch.testing.assert_close(method.predict(images, masks), method.predict(changed, masks))
    assert not torch.allclose(method.targets(images), method.targets(changed))


def test_the_prediction_of_a_block_does_not_depend_on_the_other_blocks(
    images: torch.Tensor, masks: Masks
) -> None:
    method = make()
    alone = method.predict(images, Masks(masks.context_GK, masks.targets_GMT[:, 2:3]))
    torch.testing.assert_close(method.predict(images, masks)[:, 2:3], alone)


def test_targets_are_layer_normed_features_of_the_whole_image(images: torch.Tensor) -> None:
    method = make()
    with torch.no_grad():
        raw = method.target_encoder(images) * 3 + 1
    targets = method.targets(images)
    torch.testing.assert_close(targets, F.layer_norm(raw, raw.shape[-1:]), atol=1e-4, rtol=1e-4)
    assert not targets.requires_grad


def test_targets_of_a_block_do_not_see_what_is_outside_it(
    images: torch.Tensor, masks: Masks
) -> None:
    """Masks at the target encoder's input (Table 11): block by block, alone."""
    method = make(targets="block_features")
    first = masks.targets_GMT[:, 0]
    inside = torch.zeros(8, 64, dtype=torch.bool).scatter(1, first, True)
    by_pixel = inside.view(8, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    targets = method.block_targets(images, masks)
    changed = method.block_targets(torch.where(by_pixel, images, torch.zeros(())), masks)
    T = first.shape[1]
    torch.testing.assert_close(targets[:, :T], changed[:, :T])
    assert not torch.allclose(targets[:, T:], changed[:, T:])
    alone = method.target_encoder(images, first)
    torch.testing.assert_close(targets[:, :T], F.layer_norm(alone, alone.shape[-1:]))
    assert not targets.requires_grad


def test_pixels_as_targets_are_layer_normed_patches(images: torch.Tensor, masks: Masks) -> None:
    """Table 7."""
    method = make(targets="pixels")
    targets = method.targets(images)
    patch = images[3, :, 4:8, 8:12].permute(1, 2, 0).flatten()  # row 1, column 2 of the grid
    torch.testing.assert_close(targets[3, 10], F.layer_norm(patch, patch.shape))
    assert method.predict(images, masks).shape == (*masks.targets_GMT.shape, 48)


@pytest.mark.parametrize("targets", ["features", "block_features", "pixels"])
def test_every_kind_of_target_is_learnt(targets: str, images: torch.Tensor) -> None:
    method = make(targets=targets)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        loss = method(Batch((images,), seed=0, step=0, total=8))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_only_context_encoder_and_predictor_receive_gradients(images: torch.Tensor) -> None:
    method = make()
    method(Batch((images,), seed=0, step=0))["loss"].backward()
    for name, parameter in method.named_parameters():
        learns = not name.startswith("target_encoder") and not name.endswith("pos_embed")
        assert (parameter.grad is not None) == learns, name


def test_the_target_encoder_moves_a_little_towards_the_context_encoder() -> None:
    method = make(momentum=(0.9, 1.0))
    with torch.no_grad():
        method.context_encoder.get_parameter("norm.bias").add_(1.0)
    moved = method.target_encoder.get_parameter("norm.bias")
    for progress in (0.0, 1.0):  # the second momentum is 1, so nothing moves any more
        method.after_step(progress)
        torch.testing.assert_close(moved, torch.full((32,), 0.1))
    assert method.encoder is method.target_encoder


def test_a_batch_is_the_mean_of_its_groups_whatever_device_they_are_on(
    images: torch.Tensor,
) -> None:
    """Two devices with one group each see the loss of one device with both."""
    method = make()
    whole = method(Batch((images,), seed=3, step=5))["loss"]
    halves = [
        method(Batch((part,), seed=3, step=5, offset=offset, total=8))["loss"]
        for part, offset in ((images[:4], 0), (images[4:], 4))
    ]
    torch.testing.assert_close(whole, torch.stack(halves).mean())
    assert halves[0] != halves[1]


def test_masks_change_with_step_and_seed(images: torch.Tensor) -> None:
    method = make()
    losses = {
        method(Batch((images,), seed, step))["loss"].item() for seed in (0, 1) for step in (0, 1)
    }
    assert len(losses) == 4


@pytest.mark.parametrize("name", ["smooth_l1", "l2", "l1"])
def test_every_loss_is_zero_for_perfect_predictions_only(name: str) -> None:
    method, x = make(loss=name), torch.randn(2, 5, 32)
    assert method.loss(x, x) == 0
    assert method.loss(x, x + 0.1) > 0


def test_a_predictor_that_its_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="predictor_dim is 18"):
        ijepa.check(ijepa.Config(masking=Masking(min_keep=3), predictor_dim=18), VIT)


def sigreg(sigreg_of: str = "pooled", **settings: object) -> ijepa.Method:
    """I-JEPA without a moving average."""
    few = SIGReg(num_directions=32)
    return make(**{"anticollapse": "sigreg", "sigreg_of": sigreg_of, "sigreg": few, **settings})


def learn(method: ijepa.Method, images: torch.Tensor, steps: int) -> list[dict[str, float]]:
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    log = []
    for step in range(steps):
        scalars = method(Batch((images,), seed=0, step=step, total=len(images)))
        optimizer.zero_grad()
        scalars["loss"].backward()
        optimizer.step()
        method.after_step(step / steps)
        log.append({name: value.item() for name, value in scalars.items()})
    return log


def spread(method: ijepa.Method, images: torch.Tensor) -> float:
    """Deviation of a patch's feature over images, over its size."""
    with torch.no_grad():
        features_BND = method.encoder(images)
    return float(features_BND.std(0).mean() / features_BND.square().mean().sqrt())


@pytest.mark.parametrize("sigreg_of", ["pooled", "patches"])
def test_with_sigreg_one_encoder_predicts_and_is_predicted(
    sigreg_of: str, images: torch.Tensor
) -> None:
    method = sigreg(sigreg_of)
    assert method.encoder is method.context_encoder
    assert not any(name.startswith("target_encoder") for name, _ in method.named_parameters())
    assert method.scheduled(0.5) == {}
    log = learn(method, images, 10)
    assert log[-1]["loss"] < log[0]["loss"]
    first = log[0]
    expected = 0.95 * first["loss_prediction"] + 0.05 * first["loss_sigreg"]
    assert first["loss"] == pytest.approx(expected, rel=1e-5)


def test_gradients_flow_through_the_targets_too(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradient() -> torch.Tensor:
        method = sigreg(sigreg=SIGReg(lamb=0.0, num_directions=1))
        method(Batch((images,), seed=0, step=0))["loss"].backward()
        return method.context_encoder.get_parameter("blocks.0.mlp.fc1.weight").grad.clone()  # type: ignore[union-attr]

    both = gradient()
    original = ijepa.normed
    monkeypatch.setattr(ijepa, "normed", lambda x: original(x).detach())
    assert not torch.allclose(both, gradient(), rtol=1e-3)


def test_sigreg_is_of_pooled_features_or_of_each_patch_over_images(images: torch.Tensor) -> None:
    for sigreg_of, num_samples in (("pooled", 1), ("patches", 64)):
        method = sigreg(sigreg_of)
        features = method.context_encoder(images)
        samples = features.mean(1)[None] if num_samples == 1 else features.transpose(0, 1)
        batch = Batch((images,), seed=0, step=0)
        directions = SIGReg(num_directions=32).directions(32, batch.generator("directions"))
        expected = SIGReg().statistics(samples, directions)
        assert expected.shape == (num_samples,)
        torch.testing.assert_close(method(batch)["loss_sigreg"], expected.mean())


def test_without_anything_against_it_features_collapse_and_with_sigreg_they_do_not() -> None:
    """Noise has nothing to predict: equal features for all images are the best of answers.

    Over 5 s: three networks are trained.
    """
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    spreads = {}
    for name, lamb in (("pooled", 0.0), ("pooled", 0.05), ("patches", 0.05)):
        method = sigreg(name, sigreg=SIGReg(lamb=lamb, num_directions=32))
        learn(method, images, 40)
        spreads[name, lamb] = spread(method, images)
    assert spreads["pooled", 0.0] < 0.1 * spreads["patches", 0.05]
    assert spreads["pooled", 0.0] < 0.3 * spreads["pooled", 0.05]


def test_runs_of_earlier_versions_go_on() -> None:
    """The default is their recipe: its identity at 0736ffb, before SIGReg was there."""
    raw = {"method": "ijepa", "dataset": "imagenet", "vit": {"size": "base"}}
    spelt = parse_run({**raw, "recipe": {"anticollapse": "ema"}}, checked=False)
    assert parse_run(raw, checked=False).identity() == spelt.identity() == "e88ccea77ccc"
    other = parse_run({**raw, "recipe": {"anticollapse": "sigreg"}}, checked=False)
    assert other.identity() != spelt.identity()
