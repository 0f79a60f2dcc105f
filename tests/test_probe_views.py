"""Evaluation views of a linear probe, and the settings that its results leave out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.identity import protocol_of
from evals.protocols import linear_probe
from evals.protocols.linear_probe import PRESETS, Config
from evals.views import Encoded
from ijepa.strict import strict
from tests.test_linear_probe import OnImages


class Enough(Exception):
    """The source of features is made."""


@pytest.mark.parametrize(
    ("preset", "crops", "views"),
    [
        ("dino", "bilinear", "bicubic"),
        ("ibot", "bilinear", "bicubic"),
        ("places205", "bilinear", "bilinear"),
        ("in1k", "bicubic", "bicubic"),
    ],
)
def test_evaluation_views_are_resized_as_the_preset_says(
    preset: str, crops: str, views: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DINO's and iBOT's scripts crop bilinearly and resize test images bicubically."""
    sources: list[Encoded] = []

    def source(*given: Any) -> None:
        sources.append(Encoded(*given))
        raise Enough

    monkeypatch.setattr(linear_probe, "Encoded", source)
    config: Any = strict(Config, PRESETS[preset], "config")
    with pytest.raises(Enough):
        linear_probe.evaluate(
            replace(config, pool="patches", batch_size=4), OnImages(data, "class")
        )
    assert sources[0].views.views[0].crop.interpolation == crops
    assert sources[0].interpolation == views


def test_a_setting_that_earlier_versions_did_not_have_changes_no_identity_by_its_default() -> None:
    """Else each finished result would be made anew."""
    assert "view_interpolation" not in protocol_of(Config())
    assert protocol_of(Config(view_interpolation="bicubic"))["view_interpolation"] == "bicubic"
    assert protocol_of(Config())["pool"] is None
