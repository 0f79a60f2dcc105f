"""The encoder, beside section 2 of the reference."""

import pytest
import torch

from ijepa.architecture import SIZES, Variant, ViTConfig
from ijepa.methods import ijepa
from ijepa.strict import strict
from ijepa.vit import ViT, sincos_positions, some_rows, transformer_block


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [
        ("tiny", 16, 5_486_400),
        ("small", 16, 21_589_632),
        ("base", 16, 85_646_592),
        ("large", 16, 303_098_880),
        ("huge", 14, 630.43e6),
        ("giant", 16, 1011.09e6),
    ],
)
def test_encoders_have_the_published_number_of_parameters(
    size: str, patch: int, expected: float
) -> None:
    with torch.device("meta"):
        net = ViT(ViTConfig(patch_size=patch, **SIZES[size]))  # type: ignore[arg-type]
    assert parameters(net) == pytest.approx(expected, rel=2e-5 if expected > 5e8 else 0)


@pytest.mark.parametrize(
    ("size", "depth", "expected"),
    [("tiny", 6, 10_795_968), ("base", 6, 11_238_912), ("large", 12, 22_082_560)],
)
def test_predictors_have_the_published_number_of_parameters(
    size: str, depth: int, expected: int
) -> None:
    vit = ViTConfig(**SIZES[size])  # type: ignore[arg-type]
    with torch.device("meta"):
        assert parameters(ijepa.Predictor(ijepa.Config(predictor_depth=depth), vit)) == expected


def test_weights_have_the_released_names() -> None:
    net = ViT(ViTConfig(image_size=32, patch_size=4, dim=32, depth=12, num_heads=2))
    names = set(net.state_dict())
    assert len(names) == 149
    assert {"pos_embed", "patch_embed.proj.weight", "norm.bias"} <= names
    assert {"blocks.11.attn.qkv.weight", "blocks.0.mlp.fc2.bias"} <= names


def test_positions_are_those_of_the_release() -> None:
    """ijepa.md section 2.3, measured on the release."""
    table = sincos_positions(768, (14, 14))[0]
    expected = [0.841471, 0.815251, 0.788593, 0.540302, 0.579108, 0.614915]
    torch.testing.assert_close(
        table[15, [0, 1, 2, 192, 193, 194]], torch.tensor(expected), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(table[15, 384:387], table[15, :3])
    assert table[14, :2].tolist() == [0, 0]
    assert float(table.double().sum()) == pytest.approx(69594.4939, rel=1e-6)


def test_patches_that_are_dropped_influence_nothing() -> None:
    net = ViT(ViTConfig(image_size=16, patch_size=4, dim=32, depth=2, num_heads=2))
    images = torch.randn(2, 3, 16, 16)
    changed = images.clone()
    changed[:, :, 8:] = 0  # the lower half: patches 8 to 15
    keep = torch.tensor([[0, 3, 5], [1, 2, 7]])
    torch.testing.assert_close(net(images, keep), net(changed, keep), rtol=0, atol=0)
    assert not torch.allclose(net(images)[:, :8], net(changed)[:, :8])


@pytest.mark.parametrize("rows", [slice(-3, None), slice(0, 1)])
def test_some_rows_of_a_block_are_those_of_its_whole_output(rows: slice) -> None:
    block = transformer_block(32, 2).double()
    results = []
    for some in (lambda x: some_rows(block, x, rows), lambda x: block(x)[:, rows]):
        x = torch.randn(2, 7, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0))
        out = some(x.requires_grad_())
        out.square().sum().backward()
        assert x.grad is not None
        results.append((out, x.grad))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][1].abs().sum(-1).min() > 0  # the other rows are attended to


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_features_of_cls_are_those_among_all_rows(recomputed: bool) -> None:
    variant = Variant(class_token=True, drop_path=0.5, layer_scale=0.1)
    net = ViT(ViTConfig(image_size=16, patch_size=4, dim=32, depth=3, num_heads=2), variant).train()
    net.activation_checkpointing = recomputed
    images, coins = torch.randn(6, 3, 16, 16), torch.rand(6, 3, 2)
    cls, among_all = net.of_cls(images, coins), net(images, coins_BL2=coins)[:, 0]
    torch.testing.assert_close(cls, among_all)
    cls.sum().backward()


def test_rescaled_weights_shrink_with_depth_and_official_ones_do_not() -> None:
    spreads = {}
    for init in ("official", "rescaled"):
        shape = {"image_size": 16, "patch_size": 4, "dim": 128, "depth": 4, "num_heads": 2}
        net = ViT(strict(ViTConfig, {**shape, "init": init}, "vit"))
        spreads[init] = float(net.get_parameter("blocks.3.attn.proj.weight").std())
    assert spreads["official"] == pytest.approx(0.02, rel=0.05)
    assert spreads["rescaled"] == pytest.approx(0.02 / 8**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"patch_size": 5}, "does not divide image_size 32"),
        ({"num_heads": 3}, "does not divide dim 32"),
        ({"depth": 0}, "at least 1"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], remedy: str) -> None:
    shape = {"image_size": 32, "patch_size": 4, "dim": 32, "depth": 1, "num_heads": 2}
    with pytest.raises(ValueError, match=remedy):
        strict(ViTConfig, {**shape, **change}, "vit")
