"""All networks of a published I-JEPA checkpoint, and what the decoder takes of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.decoder.source import Source
from ijepa.errors import UserError
from ijepa.imported import import_whole
from ijepa.masking import Masks
from ijepa.methods import ijepa
from ijepa.randomness import generator
from ijepa.released.weights import export_encoder, import_encoder
from tests.released_files import OPTIMIZER, under
from tests.released_files import VIT as SMALL
from workflow.plan.benchmark import Released

VIT = replace(SMALL, image_size=56)  # the release's masks fit no grid of 8x8
SIZES: dict[str, Any] = {"predictor_dim": 24, "predictor_depth": 2}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[ijepa.Method, Path]:
    """Networks in which no two parameters are alike, and their checkpoint as the release's."""
    torch.manual_seed(0)
    method = ijepa.Method(ijepa.Config(**SIZES), VIT).eval()
    for name, parameter in method.named_parameters():
        if not name.endswith("pos_embed"):
            torch.nn.init.normal_(parameter, std=0.3)
    parts = {"encoder": method.context_encoder, "predictor": method.predictor}
    content = {
        name: under("module.", part.state_dict())
        for name, part in {**parts, "target_encoder": method.target_encoder}.items()
    }
    path = tmp_path_factory.mktemp("published") / "ijepa.pth.tar"
    torch.save({**content, "opt": OPTIMIZER, "epoch": 300, "loss": 0.1}, path)
    return method, path


def imported(source: Path, folder: Path, **options: Any) -> Path:
    out = folder / "encoder.safetensors"
    import_encoder(source, out, num_heads=3, **options)
    import_whole(source, out)
    return out


def test_the_networks_of_a_run_are_not_overwritten_by_imported_ones(
    published: tuple[ijepa.Method, Path], tmp_path: Path
) -> None:
    _, path = published
    imported(path, tmp_path)
    imported(path, tmp_path, force=True)
    of_a_run = tmp_path / "whole.safetensors"
    of_a_run.write_bytes(b"weeks of training")
    with pytest.raises(UserError, match=r"whole\.safetensors is of another run"):
        imported(path, tmp_path, force=True)
    assert of_a_run.read_bytes() == b"weeks of training"


def test_a_published_checkpoint_predicts_blocks_as_its_own_networks_do(
    published: tuple[ijepa.Method, Path], tmp_path: Path
) -> None:
    method, path = published
    source = Source(imported(path, tmp_path), "prediction")
    regions = source.draw(4, generator("test"))
    images = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    targets = torch.stack([block.patches(source.grid) for block in regions.blocks])[:, None]
    with torch.no_grad():
        wanted = method.predict(images, Masks(regions.context_BK, targets))[:, 0].mean(1)
    assert wanted.std() > 0.01
    torch.testing.assert_close(source.features_of(images, regions), wanted)


def test_a_published_checkpoint_predicts_at_another_image_size(
    published: tuple[ijepa.Method, Path], tmp_path: Path
) -> None:
    source = Source(imported(published[1], tmp_path, image_size=64), "prediction")
    assert source.grid == (16, 16)
    regions = source.draw(2, generator("test"))
    assert source.features_of(torch.randn(2, 3, 64, 64), regions).isfinite().all()


def test_a_file_without_predictor_or_target_encoder_says_so(
    published: tuple[ijepa.Method, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="read as ijepa context"):
        imported(published[1], tmp_path, tower="context")
    content = torch.load(published[1], weights_only=True)
    del content["predictor"]
    torch.save(content, tmp_path / "towers.pth")
    with pytest.raises(UserError, match=r"towers\.pth has no predictor"):
        imported(tmp_path / "towers.pth", tmp_path / "towers")
    export_encoder(tmp_path / "towers" / "encoder.safetensors", tmp_path / "a.pth", "timm")
    with pytest.raises(UserError, match="read as timm"):
        imported(tmp_path / "a.pth", tmp_path / "timm")


def test_a_config_asks_for_all_networks_of_published_weights() -> None:
    weights = Released("a", "a.pth", "?", "CC BY-NC 4.0")
    assert weights.options() == {}
    assert replace(weights, keep="whole").options() == {"keep": "whole"}
