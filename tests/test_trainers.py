"""Files of other people's training loops: Lightning, DeepSpeed and PEFT name weights their way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ijepa.checkpoint import load_encoder
from ijepa.errors import UserError
from ijepa.released.weights import import_encoder
from tests.released_files import FILES, OPTIMIZER, network, under

LEFT = {
    "epoch": 3,
    "pytorch-lightning_version": "2.5.0",
    "optimizer_states": [OPTIMIZER],
    "lr_schedulers": [{"last_epoch": torch.tensor(3)}],
    "callbacks": {"EMA": {"decay": torch.tensor(0.99)}},
    "rng_state": torch.zeros(8, dtype=torch.uint8),
    "cuda_rng_state_all": [torch.zeros(8, dtype=torch.uint8)],
}
"""Entries beside the weights."""
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
Put = Callable[[dict[str, Any]], dict[str, Any]]
PUT: dict[str, Put] = {
    "Lightning": lambda w: {"state_dict": under("model.", w)},
    "Lightning, encoder": lambda w: {"state_dict": under("model.encoder.", w)},
    "Lightning, bare encoder": lambda w: {"state_dict": under("encoder.", w)},
    "Lightning and DeepSpeed": lambda w: {"state_dict": under("_forward_module.model.", w)},
    "DeepSpeed": lambda w: under("_forward_module.", w),
    "PEFT": lambda w: under("base_model.model.", w),
}


@pytest.mark.parametrize("put", PUT)
@pytest.mark.parametrize("kind", ["mae", "timm", "timm, I-JEPA", "dino, backbone"])
def test_an_encoder_is_found_in_a_trainer_s_container(kind: str, put: str, tmp_path: Path) -> None:
    layout, variant, _ = FILES[kind]
    net = network(variant)
    torch.save({**PUT[put](dict(net.state_dict())), **LEFT}, tmp_path / "file.ckpt")
    import_encoder(tmp_path / "file.ckpt", tmp_path / "ours", layout, num_heads=3)
    with torch.no_grad():
        torch.testing.assert_close(
            load_encoder(tmp_path / "ours")[0](IMAGES), net(IMAGES), rtol=0, atol=0
        )


@pytest.mark.parametrize(
    ("kind", "other"), [("ijepa", "context"), ("dino, full", "student"), ("cae", None)]
)
def test_a_whole_method_is_found_in_lightning_s_container(
    kind: str, other: str | None, tmp_path: Path
) -> None:
    """Both towers are told apart there too, and what is no encoder's is known."""
    layout, variant, build = FILES[kind]
    nets = network(variant), network(variant, seed=1)
    whole = build(*(dict(net.state_dict()) for net in nets))
    weights = whole["model"] if kind == "cae" else whole
    flat = {
        f"{part}.{name}": value
        for part, inner in weights.items()
        if isinstance(inner, dict)
        for name, value in inner.items()
        if isinstance(value, torch.Tensor)
    } or weights
    torch.save({"state_dict": under("model.", flat), **LEFT}, tmp_path / "file.ckpt")
    for tower, net in ((None, nets[0]), (other, nets[1])):
        if net is nets[1] and other is None:
            continue
        out = tmp_path / f"ours {tower}"
        import_encoder(tmp_path / "file.ckpt", out, tower=tower, num_heads=3)
        about = load_encoder(out)[1]
        assert about["facts"]["released"]["layout"] == layout
        with torch.no_grad():
            torch.testing.assert_close(load_encoder(out)[0](IMAGES), net(IMAGES), rtol=0, atol=0)


def test_what_no_trainer_writes_is_still_refused(tmp_path: Path) -> None:
    net = network(FILES["mae"][1])
    weights = under("model.", dict(net.state_dict())) | {"model.lora_A": torch.ones(3)}
    torch.save({"state_dict": weights, **LEFT}, tmp_path / "file.ckpt")
    with pytest.raises(UserError, match=r"unknown are state_dict\.model\.lora_A"):
        import_encoder(tmp_path / "file.ckpt", tmp_path / "ours", num_heads=3)
