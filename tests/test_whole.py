"""A finished run keeps all networks beside its encoder, and on request the optimiser."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ijepa import train
from ijepa.checkpoint import load_encoder
from ijepa.config import parse_run
from ijepa.method import load_method, method_names
from ijepa.released.weights import import_encoder
from tests.conftest import Trained, raw_run_of

GOLDEN = Path(__file__).parent / "golden_files"


@pytest.mark.parametrize("name", method_names())
def test_a_finished_run_keeps_every_parameter_and_centre(name: str, trained: Trained) -> None:
    whole = load_file(trained(name).with_name("whole.safetensors"))
    parsed = parse_run(raw_run_of(name))
    method = load_method(name).Method(parsed.recipe, parsed.vit)
    kept = {tuple(sorted(value.shape for value in whole.values()))}
    assert kept == {tuple(sorted(value.shape for value in method.state_dict().values()))}
    with safe_open(trained(name).with_name("whole.safetensors"), framework="pt") as file:
        about = json.loads(file.metadata()["ijepa_whole"])
    assert about["run"]["method"] == name
    assert about["facts"]["images_seen"] == 8 * 32


@pytest.mark.parametrize("name", ["ijepa", "mae", "data2vec", "cae"])
def test_its_names_are_those_of_the_recorded_steps(name: str, trained: Trained) -> None:
    with np.load(GOLDEN / f"{name}_step.npz") as file:
        recorded = [key.removeprefix("before/") for key in file.files if key.startswith("before/")]
    names = {"".join(c for c in key.replace("/", ".") if not c.isdigit()) for key in recorded}
    kept = load_file(trained(name).with_name("whole.safetensors"))
    ours = {"".join(c for c in key if not c.isdigit()) for key in kept}
    own_tables = {"rd_pos_embed", "decoder_pos_embed", "rel_pos_bias.relative_position_index"}
    assert {key for key in names - ours if not key.endswith(tuple(own_tables))} == set()


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("ijepa", "target"),
        ("mae", None),
        ("cae", None),
        ("data2vec", None),
        ("dino", "teacher"),
        ("ibot", "teacher"),
    ],
)
def test_it_is_taken_in_like_a_file_of_the_release(
    name: str, tower: str | None, trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "again.safetensors"
    whole = trained(name).with_name("whole.safetensors")
    import_encoder(whole, out, layout=name, tower=tower, num_heads=2)
    ours, again = (load_encoder(path)[0] for path in (trained(name), out))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert ours(images).equal(again(images))


def test_the_predictor_of_ijepa_is_kept(trained: Trained) -> None:
    whole = load_file(trained("ijepa").with_name("whole.safetensors"))
    predictor = {key for key in whole if key.startswith("predictor.")}
    assert {"predictor.mask_token", "predictor.predictor_proj.weight"} <= predictor
    assert not whole["encoder.norm.weight"].equal(whole["target_encoder.norm.weight"])


def test_what_is_kept_is_a_setting_that_decides_nothing_of_what_is_learned(
    data: Path, tmp_path: Path, trained: Trained
) -> None:
    raw = {**raw_run_of("ijepa"), "keep": {"whole": False, "optimiser": True}}
    assert parse_run(raw).identity() == parse_run(raw_run_of("ijepa")).identity()
    out = tmp_path / "out" / "encoder.safetensors"
    train.train(parse_run(raw), data, tmp_path / "work", out)
    assert not out.with_name("whole.safetensors").exists()
    state = torch.load(out.with_name("optimiser.pt"), weights_only=True)
    assert state["step"] == 8
    assert len(state["optimizer"]["state"]) > 0
    ours, others = (load_encoder(path)[0].state_dict() for path in (trained("ijepa"), out))
    assert all(ours[name].equal(others[name]) for name in ours)
