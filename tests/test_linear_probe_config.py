"""Settings of the linear probe, and its presets beside the published protocols."""

from typing import Any

import pytest

from evals.protocols.linear_probe import PRESETS, Config
from ijepa.data.transforms import Crop
from ijepa.errors import UserError
from ijepa.strict import merged, strict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rates": ()}, r"learning_rates: .*at least 1 item"),
        ({"learning_rates": (0.1, 0.0)}, r"learning_rates is \[0.1, 0.0\]"),
        ({"weight_decays": (-1.0,)}, r"weight_decays is \[-1.0\]"),
        ({"milestones": (30, 15)}, r"milestones is \[30, 15\]"),
        ({"epochs": 40}, r"milestones is \[15, 30, 45\].* epochs is 40"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"batch_size": 1}, "batch_size is 1: it must be at least 2"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_bad_setting_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        strict(Config, change, "config")


def test_rates_fall_by_tens_or_along_a_cosine_and_rise_with_the_batch() -> None:
    step = Config(batch_size=512, epochs=6, milestones=(2, 4))
    factors = [step.factor(epoch) for epoch in range(6)]
    assert factors == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02])
    cosine = Config(batch_size=256, schedule="cosine", epochs=4)
    factors = [cosine.factor(epoch) for epoch in (0, 2, 4)]
    assert factors == pytest.approx([1, 0.505, 0.01])
    mae = strict(Config, merged(PRESETS["mae"], {}), "config")
    factors = [mae.factor(epoch) / 64 for epoch in (0, 2.5, 10, 50, 90)]
    assert factors == pytest.approx([0, 0.25, 1, 0.5, 0])


VISSL: dict[str, Any] = {
    **{"optimiser": "sgd", "batch_size": 256, "learning_rates": (0.01,)},
    **{"weight_decays": (5e-4,), "norms": ("none", "batch"), "layers": 4, "init_std": None},
    **{"pool": None, "chosen_on": "held_out", "view_interpolation": None},
}
LINPROBE: dict[str, Any] = {
    **{
        "optimiser": "lars",
        "batch_size": 16_384,
        "learning_rates": (0.1,),
        "weight_decays": (0.0,),
    },
    **{"norms": ("plain_batch",), "layers": 1, "init_std": 0.01, "pool": None},
    **{"schedule": "cosine", "final_lr": 0.0, "warmup_epochs": 10, "chosen_on": "test"},
}
OF_DINO: dict[str, Any] = {
    **{"optimiser": "plain_sgd", "batch_size": 1024, "weight_decays": (0.0,), "epochs": 100},
    **{"norms": ("none",), "init_std": 0.01, "schedule": "cosine", "final_lr": 0.0},
    **{"warmup_epochs": 0, "view_interpolation": "bicubic"},
}
BY_CLS_AND_AVERAGE: dict[str, Any] = {"pool": "cls_patches", "layers": 1}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "in1k": {
        **VISSL,
        **{"optimiser": "lars", "epochs": 50, "batch_size": 16_384, "milestones": (15, 30, 45)},
        **{"learning_rates": (0.001, 0.01, 0.05, 0.1), "weight_decays": (5e-4, 0.0)},
    },
    "in1k_vissl": {**VISSL, "epochs": 28, "milestones": (8, 16, 24)},
    "in1k_vissl_448": {
        **VISSL,
        **{"epochs": 28, "milestones": (8, 16, 24)},
        **{"learning_rates": (0.01, 0.001), "weight_decays": (5e-4, 0.0)},
    },
    "cifar100": {**VISSL, "epochs": 28, "milestones": (8, 16, 24)},
    "places205": {**VISSL, "epochs": 14, "milestones": (4, 8, 12)},
    "inat18": {**VISSL, "epochs": 84, "milestones": (24, 48, 72)},
    "clevr_count": {**VISSL, "epochs": 50, "schedule": "cosine", "final_lr": 0.01},
    "clevr_dist": {**VISSL, "epochs": 100, "schedule": "cosine", "final_lr": 0.01},
    "mae": {**LINPROBE, "epochs": 90},
    "mae_large": {**LINPROBE, "epochs": 50},
    "cae": {**LINPROBE, "epochs": 90},
    "dino": {**OF_DINO, **BY_CLS_AND_AVERAGE, "learning_rates": (0.001,), "chosen_on": "test"},
    "dino_small": {**OF_DINO, "pool": "cls", "layers": 4, "learning_rates": (0.001,)},
    "ibot": {**OF_DINO, **BY_CLS_AND_AVERAGE, "chosen_on": "test"},
}
"""I-JEPA, A.2; VISSL at 04788de9; MAE's FINETUNE.md; CAE's README; the scripts of DINO and iBOT."""
BILINEAR = {"places205", "inat18", "clevr_count", "clevr_dist", "dino", "dino_small", "ibot"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_published_protocol(name: str) -> None:
    config = strict(Config, merged(PRESETS[name], {}), "config")
    assert {key: getattr(config, key) for key in PROTOCOLS[name]} == PROTOCOLS[name]
    assert config.crop == Crop(
        whole=name.startswith("clevr"),
        scale=(0.08, 1.0),
        flip=0.5,
        interpolation="bilinear" if name in BILINEAR else "bicubic",
    )
    if name == "ibot":
        assert len(config.learning_rates) == 45
        assert (config.learning_rates[0], config.learning_rates[-1]) == (1e-4, 9.0)
