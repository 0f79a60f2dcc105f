"""Decoder: blocks, its training, its samples, identification, pictures, the command."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evals.decoder import __main__ as command
from evals.decoder import blocks, identification, pictures
from evals.decoder.blocks import Block
from evals.decoder.cost import cost
from evals.decoder.evaluation import check_judge
from evals.decoder.model import Decoder, Network, load_decoder
from evals.decoder.settings import PRESETS, Config
from evals.decoder.source import Source
from evals.decoder.train import trained as train_decoder
from evals.described import read_described
from evals.protocol import configure
from evals.protocols import decoder as protocol
from evals.report.tidy import read_results
from evals.run import evaluate
from evals.subject import Subject
from ijepa import train
from ijepa.architecture import ViTConfig
from ijepa.checkpoint import save_tensors
from ijepa.errors import UserError
from ijepa.vit import patchify, unpatchify
from tests.conftest import Trained

TINY: dict[str, Any] = {
    **PRESETS["tiny"],
    "size": 8,
    "channels": [8, 8],
    "head_dim": 8,
    "steps": 6,
    "batch_size": 16,
    "sampling_steps": 2,
    "samples": 2,
    "images": 8,
    "blocks": 2,
    "pictures": 3,
    "resamples": 40,
    "num_workers": 0,
    "precision": "float32",
}
GRID = (8, 8)


def tiny_config(**changes: Any) -> Config:
    config: Config = configure("decoder", {**TINY, **changes}, "decoder")
    return config


def subject_of(data: Path, encoder: Path, work: Path) -> Subject:
    return Subject(data, "class", encoder, work=work, identity="test")


def weights(decoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in decoder.state_dict().items()}


def decoder_of(config: Config, data: Path, encoder: Path, work: Path) -> dict[str, torch.Tensor]:
    subject = subject_of(data, encoder, work)
    return weights(train_decoder(config, subject, Source(encoder, config.condition), work))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3", "four whole numbers"),
        ("1,2,3,x", "four whole numbers"),
        ("6,0,3,1", "within the grid of 8x8"),
        ("-1,0,3,1", "within the grid of 8x8"),
        ("1,1,0,3", "above 0"),
        ("0,0,8,8", "hides the whole image"),
    ],
)
def test_a_block_that_cannot_be_hidden_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"--block {text}.*{message}"):
        blocks.parse(text, GRID)


def test_a_block_is_the_patches_that_its_four_numbers_say() -> None:
    block = blocks.parse("1,2,2,3", GRID)
    assert block.patches(GRID).tolist() == [10, 11, 12, 18, 19, 20]
    assert blocks.bounding(block.patches(GRID), GRID) == block
    assert len(blocks.around([block], GRID)) == 58
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    assert blocks.crop(image, [Block(1, 2, 2, 2)], GRID, 2)[0, 0].tolist() == [[10, 11], [18, 19]]
    with pytest.raises(UserError, match="scattered"):
        blocks.bounding(torch.tensor([0, 9]), GRID)


def test_patches_make_their_image_again() -> None:
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(unpatchify(patchify(images, 4), (2, 3), 4), images)


def test_a_true_pairing_is_identified_and_a_shuffled_one_is_not() -> None:
    random = torch.Generator().manual_seed(0)
    true = torch.randn(200, 16, generator=random)
    noise = torch.randn(200, 4, 16, generator=random)
    near = identification.scores(true[:, None] + noise, true)
    shuffled = identification.scores(true[:, None] + noise, true, shift=1)
    unrelated = identification.scores(noise, true)
    assert near.mean() > 0.95
    assert identification.interval(near, 200, 0)[0] > 0.9
    for chance in (shuffled, unrelated):
        low, high = identification.interval(chance, 200, 0)
        assert low < 0.5 < high
    assert identification.scores(true[:, None], true).mean() == 1


def test_what_all_blocks_share_identifies_none() -> None:
    true = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    same = torch.ones(50, 2, 8)
    assert identification.scores(same, true + 100).mean() == pytest.approx(0.5, abs=0.02)


def test_one_sample_has_no_spread() -> None:
    """White: of one value torch's own standard deviation is no number."""
    assert (pictures._spread(torch.rand(1, 3, 4, 4)) == 1).all()
    assert (pictures._spread(torch.rand(2, 3, 4, 4)) < 1).any()


def test_the_spread_tells_whether_samples_depend_on_their_condition() -> None:
    noise = torch.rand(40, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert identification.spread(noise) > 0.95
    assert identification.spread(noise[:, :1].expand(-1, 5, -1, -1, -1)) == 0


@pytest.mark.parametrize("condition", ["prediction", "image"])
def test_a_decoder_that_was_killed_ends_as_an_undisturbed_one(
    condition: str,
    trained: Trained,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Takes seconds: three trainings, each with its own data loaders."""
    config, encoder = tiny_config(condition=condition), trained("ijepa")
    undisturbed = decoder_of(config, data, encoder, tmp_path / "a")
    whole_run: Any = train.learn

    def killed(run: Any, *rest: Any) -> Any:
        calls = iter([False, False, True])
        run = dataclasses.replace(run, checkpoint_every=1)
        return whole_run(run, *rest[:3], lambda: next(calls), *rest[4:])

    monkeypatch.setattr("evals.decoder.train.learn", killed)
    with pytest.raises(train.Stopped):
        decoder_of(config, data, encoder, tmp_path / "b")
    monkeypatch.undo()
    resumed = decoder_of(config, data, encoder, tmp_path / "b")
    log = (tmp_path / "b" / "train.jsonl").read_text().splitlines()
    assert json.loads(log[0])["step"] == 3
    assert undisturbed.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())
    assert not torch.equal(resumed["average.embed.weight"], resumed["network.embed.weight"])


def test_a_checkpoint_of_the_decoder_holds_no_encoder(trained: Trained) -> None:
    config, source = tiny_config(), Source(trained("ijepa"), "prediction")
    assert source.dim == source.encoder.config.dim + 4
    saved = sum(x.numel() for x in Decoder(config, source.dim, source).state_dict().values())
    network = sum(x.numel() for x in Network(config, source.dim).parameters())
    assert saved == 2 * network + 2 * source.dim


def test_the_predictor_sees_nothing_of_the_hidden_block(trained: Trained) -> None:
    source = Source(trained("ijepa"), "prediction")
    block = Block(2, 2, 3, 3)
    regions = blocks.Regions([block], blocks.around([block], GRID)[None])
    image = torch.randn(1, 3, 32, 32)
    other = image.clone()
    other[:, :, 8:20, 8:20] = 3
    assert torch.equal(source.conditions(image, regions), source.conditions(other, regions))
    other[:, :, 0, 0] = 3
    assert not torch.equal(source.conditions(image, regions), source.conditions(other, regions))
    moved = blocks.Regions([Block(3, 2, 3, 3)], regions.context_BK)
    assert not torch.allclose(source.features_of(image, regions), source.features_of(image, moved))


@pytest.mark.parametrize(
    ("method", "condition"), [("ijepa", "prediction"), ("ijepa", "image"), ("mae", "image")]
)
def test_an_evaluation_leaves_a_result_a_picture_and_a_decoder(
    method: str, condition: str, trained: Trained, tokenised: Path, tmp_path: Path
) -> None:
    encoder, out = trained(method), tmp_path / "run" / "seed0" / "decoder.json"
    settings = {**TINY, "condition": condition}
    evaluate("decoder", settings, Subject(tokenised, "class", encoder), out)
    result = json.loads(out.read_text())
    assert result["metric"] == "identification"
    assert 0 <= result["value"] <= 1
    assert result["interval"][0] <= result["value"] <= result["interval"][1]
    assert result["n"] == 8
    assert set(result["chosen"]["identification"]) == {"own", "pixels"}
    picture = Image.open(out.with_suffix(".png"))
    columns = {"prediction": 5, "image": 4}[condition] + 2 * (method == "mae")
    assert picture.size == (columns * (128 + 6) - 6, 18 + 3 * (128 + 6) - 6)
    assert "What all samples share is in the features" in read_described(out.with_suffix(".png"))[1]
    assert load_decoder(out.with_suffix(".safetensors")).config.condition == condition
    assert out.with_suffix(".jsonl").exists()
    assert read_results([out])["metric"].tolist() == ["identification"]


def test_a_method_without_a_predictor_is_told_what_it_can_show(trained: Trained) -> None:
    with pytest.raises(UserError, match="mae predicts no features of blocks: set condition: image"):
        Source(trained("mae"), "prediction")


def test_an_encoder_without_its_predictor_is_told_what_is_missing(
    trained: Trained, tmp_path: Path
) -> None:
    alone = tmp_path / "encoder.safetensors"
    alone.write_bytes(trained("ijepa").read_bytes())
    with pytest.raises(UserError, match=r"whole.safetensors is missing .*: set condition: image"):
        Source(alone, "prediction")
    (tmp_path / "whole.safetensors").write_bytes(
        trained("mae").with_name("whole.safetensors").read_bytes()
    )
    with pytest.raises(UserError, match="is of another run"):
        Source(alone, "image")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 9}, "must be a multiple of 2"),
        ({"head_dim": 3}, "it must divide the channels"),
        ({"attention": [5]}, "is the side of no level"),
        ({"sampling_steps": 2000}, "at most timesteps"),
        ({"images": 3}, "raise images or lower blocks"),
        ({"condition": "picture"}, "condition"),
    ],
)
def test_settings_that_fit_no_network_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_config(**changes)


def test_a_judge_that_is_no_encoder_is_named_before_the_training(
    trained: Trained, data: Path, tmp_path: Path
) -> None:
    subject = subject_of(data, trained("ijepa"), tmp_path)
    with pytest.raises(UserError, match=r"judge\.safetensors does not exist"):
        protocol.evaluate(tiny_config(judge=str(tmp_path / "judge.safetensors")), subject)
    assert not list(tmp_path.iterdir())


def test_a_judge_of_other_images_than_pictures_is_named(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"patch_size": 4, "dim": 8, "depth": 1, "num_heads": 1}
    for changes, message in (
        ({"image_size": 8, "mean": (0.5,) * 4, "std": (0.5,) * 4}, "images of 4 channels"),
        ({"image_size": (8, 12)}, r"size \(8, 12\)"),
    ):
        vit = dataclasses.asdict(ViTConfig(**shape, **changes))
        save_tensors(tmp_path / "judge.safetensors", {}, {"run": {"vit": vit}})
        with pytest.raises(UserError, match=message):
            check_judge(tiny_config(judge=str(tmp_path / "judge.safetensors")))


def test_the_cost_of_a_decoder_is_counted_without_weights() -> None:
    vit = ViTConfig(image_size=32, patch_size=4, dim=32, depth=2, num_heads=2)
    counted = cost(tiny_config(), vit)
    assert counted.parameters == sum(x.numel() for x in Network(tiny_config(), 36).parameters())
    assert counted.image > 3 * counted.forward > 0


@pytest.fixture(scope="session")
def drawn(trained: Trained, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder with a run of I-JEPA and its decoders of predictions and of whole images."""
    results = tmp_path_factory.mktemp("drawn")
    folder = results / "runs" / "ijepa" / "seed0"
    folder.mkdir(parents=True)
    for name in ("encoder.safetensors", "whole.safetensors"):
        (folder / name).write_bytes(trained("ijepa").with_name(name).read_bytes())
    for condition in ("prediction", "image"):
        out = results / "evaluations" / "ijepa" / "seed0" / f"decoder_{condition}.json"
        subject = Subject(data, "class", folder / "encoder.safetensors")
        evaluate("decoder", {**TINY, "condition": condition}, subject, out)
    photograph = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    Image.fromarray(photograph).save(results / "photograph.png")
    return results


def decode(drawn: Path, out: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    encoder = drawn / "runs" / "ijepa" / "seed0" / "encoder.safetensors"
    words = ["decode", "--encoder", str(encoder), "--image", str(drawn / "photograph.png")]
    monkeypatch.setattr(sys, "argv", [*words, "--samples", "2", "--out", str(out), *options])
    command.main()
    return out.read_bytes()


def test_a_user_decodes_blocks_of_an_own_image(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "picture.png"
    blocks = ("--block", "1,1,3,3", "--block", "5,4,2,4")
    first = decode(drawn, out, *blocks, monkeypatch=monkeypatch)
    assert decode(drawn, out, *blocks, monkeypatch=monkeypatch) == first
    assert decode(drawn, out, *blocks, "--seed", "1", monkeypatch=monkeypatch) != first
    picture = np.asarray(Image.open(out).convert("RGB"))
    context = picture[18:, 128 + 6 : 2 * 128 + 6]
    assert (context[30, 30] == pictures.HIDDEN).all()
    assert (context[16, 40] == pictures.OUTLINE).all()
    sample = picture[18:, 2 * (128 + 6) :]
    assert len(np.unique(sample[20:60, 20:60].reshape(-1, 3), axis=0)) > 50
    assert not (sample[20:60, 20:60] == pictures.HIDDEN).all()


def test_a_photograph_is_decoded_as_its_camera_was_held(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    turned = Image.open(drawn / "photograph.png").rotate(90, expand=True)
    turned.save(tmp_path / "turned.png", exif=exif)
    options = ("--block", "1,1,3,3")
    upright = decode(drawn, tmp_path / "a.png", *options, monkeypatch=monkeypatch)
    of_turned = (*options, "--image", str(tmp_path / "turned.png"))
    assert decode(drawn, tmp_path / "b.png", *of_turned, monkeypatch=monkeypatch) == upright


def test_without_a_block_the_whole_image_is_decoded(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(drawn, tmp_path / "picture.png", monkeypatch=monkeypatch)
    assert Image.open(tmp_path / "picture.png").width == 4 * (128 + 6) - 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--block", "7,7,3,3"], "within the grid of 8x8"),
        (["--image", "none.png"], "none.png does not exist"),
        (["--samples", "0"], "1 or more"),
        (
            ["--decoder", "none.safetensors", "--block", "1,1,3,3"],
            "none.safetensors does not exist",
        ),
        (["--decoder", "{drawn}/runs/ijepa/seed0/encoder.safetensors"], "is not a decoder"),
        (
            ["--decoder", "{drawn}/evaluations/ijepa/seed0/decoder_prediction.safetensors"],
            "--block",
        ),
        (["--encoder", "{mae}"], "has no decoder in its results: train one"),
    ],
)
def test_a_wrong_option_of_decode_is_named(
    options: list[str],
    message: str,
    drawn: Path,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled = [option.format(drawn=drawn, mae=trained("mae")) for option in options]
    with pytest.raises(UserError, match=message):
        decode(drawn, tmp_path / "picture.png", *filled, monkeypatch=monkeypatch)


def test_a_decoder_of_another_encoder_is_refused(
    drawn: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(drawn / "evaluations" / "ijepa" / "seed0" / "decoder_image.safetensors")
    with pytest.raises(UserError, match="is of encoder"):
        decode(
            *(drawn, tmp_path / "picture.png", "--decoder", other, "--encoder"),
            str(trained("mae")),
            monkeypatch=monkeypatch,
        )
