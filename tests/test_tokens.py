"""Token ids of training images: two tokenizers and the cache that training reads."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ijepa.data import tokens
from ijepa.data.loader import Images
from ijepa.data.shards import read_index
from ijepa.data.tokenizer import unit_floats
from ijepa.data.tokenizers import dalle, small
from ijepa.errors import UserError, run_command
from ijepa.files import digest

VOCABULARY = 64


@pytest.fixture(scope="module")
def cached(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny shards with a small token cache; not to be written to."""
    folder = Path(shutil.copytree(data, tmp_path_factory.mktemp("cached") / "shards"))
    tokens.build_tokens(folder, "small", vocabulary=VOCABULARY)
    return folder


@pytest.fixture
def copy(cached: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cached, tmp_path / "shards"))


@pytest.fixture(scope="module")
def codebook(data: Path) -> small.Codebook:
    return small.Config(vocabulary=VOCABULARY).encoder(Images(data, "train"))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """A tiny dVAE encoder in the release's names: hidden width 8, 32 words."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def conv(name: str, num_in: int, num_out: int, kernel: int) -> None:
        spread = (2 / (num_in * kernel**2)) ** 0.5
        shape = (num_out, num_in, kernel, kernel)
        # The residual path is divided by 64: larger weights, or no test would see a fault in it.
        spread *= 4 if "res_path" in name else 1
        state[f"{name}.w"] = torch.randn(shape, generator=generator) * spread
        state[f"{name}.b"] = torch.randn(num_out, generator=generator) * 0.1

    conv("blocks.input", 3, 8, 7)
    for group, (before, width) in enumerate([(8, 8), (8, 16), (16, 32), (32, 64)], start=1):
        for block, num_in in ((1, before), (2, width)):
            name = f"blocks.group_{group}.block_{block}"
            if num_in != width:
                conv(f"{name}.id_path", num_in, width, 1)
            conv(f"{name}.res_path.conv_1", num_in, width // 4, 3)
            conv(f"{name}.res_path.conv_2", width // 4, width // 4, 3)
            conv(f"{name}.res_path.conv_3", width // 4, width // 4, 3)
            conv(f"{name}.res_path.conv_4", width // 4, width, 1)
    conv("blocks.output.conv", 64, 32, 1)
    return state


@pytest.fixture
def weights_file(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save(weights, tmp_path / "encoder.pt")
    return tmp_path / "encoder.pt"


def version(folder: Path) -> str:
    return read_index(folder).version()


def pixels(folder: Path, numbers: slice) -> Tensor:
    images = Images(folder, "train")
    arrays = [np.asarray(images[i]) for i in range(len(images))[numbers]]
    return unit_floats(torch.from_numpy(np.stack(arrays)))


def test_the_cache_has_the_nearest_codes_of_every_image(
    cached: Path, codebook: small.Codebook
) -> None:
    cache = tokens.read_tokens(cached, "small", version(cached))
    assert (cache.name, cache.vocabulary) == ("small", VOCABULARY)
    assert cache.ids.shape == (128, 16, 16)
    assert isinstance(cache.ids, np.memmap)
    for number in (0, 50, 127):
        image = pixels(cached, slice(number, number + 1))
        patches = small.contrast_normalised_patches(image, 4, 2)[0]
        nearest = torch.cdist(patches.double(), codebook.codes_DV.T.double()).argmin(1)
        assert (nearest.view(16, 16).numpy() == cache.ids[number]).mean() > 0.99


def test_many_different_tokens_are_used_and_all_are_of_the_vocabulary(cached: Path) -> None:
    ids = tokens.read_tokens(cached, "small", version(cached)).ids
    assert ids.max() < VOCABULARY
    assert len(np.unique(ids)) > VOCABULARY * 3 / 4


def test_the_same_build_gives_the_same_bytes_and_another_seed_others(copy: Path) -> None:
    path = tokens.cache_path(copy, "small")
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    tokens.build_tokens(copy, "small", vocabulary=VOCABULARY)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before
    tokens.build_tokens(copy, "small", vocabulary=VOCABULARY, seed=1)
    assert path.read_bytes() != before[0]


def test_similar_patches_share_tokens_and_different_images_do_not(
    data: Path, codebook: small.Codebook
) -> None:
    images = pixels(data, slice(0, 8))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator) / 255
    ids = codebook(images)
    assert (codebook(images + noise) == ids).float().mean() > 0.7
    assert (codebook(images * 0.8 + 0.1) == ids).float().mean() > 0.9
    assert (codebook(images.roll(1, 0)) == ids).float().mean() < 0.2


@given(st.integers(1, 6), st.integers(0, 5), st.integers(2, 5))
def test_patches_stand_on_the_middle_of_their_squares(stride: int, more: int, rows: int) -> None:
    patch = min(stride + more, stride * rows)
    image = torch.rand(1, 3, stride * rows, stride * rows)
    patches = small.contrast_normalised_patches(image, patch, stride)
    assert patches.shape == (1, rows * rows, 3 * patch * patch)
    before = (patch - stride) // 2
    if stride >= before and stride * 2 + patch - before <= stride * rows:  # wholly inside
        start = stride - before
        inside = image[0, :, start : start + patch, start : start + patch].flatten()
        expected = (inside - inside.mean()) / (inside.var(correction=0) + 10 / 255**2).sqrt()
        assert torch.allclose(patches[0, rows + 1], expected, atol=1e-4)


def test_flat_patches_are_not_blown_up_to_noise() -> None:
    image = 0.5 + torch.rand(1, 3, 32, 32) / 255
    assert small.contrast_normalised_patches(image, 4, 2).abs().max() < 0.5


def reference(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The dVAE's encoder once more, layer by layer."""

    def conv(x: Tensor, name: str) -> Tensor:
        w = state[f"{name}.w"]
        return F.conv2d(x, w, state[f"{name}.b"], padding=(w.shape[2] - 1) // 2)

    x = conv(images * 0.8 + 0.1, "blocks.input")
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            y = x
            for number in (1, 2, 3, 4):
                y = conv(y.clamp(min=0), f"{name}.res_path.conv_{number}")
            if f"{name}.id_path.w" in state:
                x = conv(x, f"{name}.id_path")
            x = x + y / 64
        if group < 4:
            x = F.max_pool2d(x, 2)
    return conv(x.clamp(min=0), "blocks.output.conv")


def test_the_dvae_gives_the_likeliest_words_on_a_grid_of_one_eighth(
    weights: dict[str, Tensor], weights_file: Path
) -> None:
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    encoder = dalle.load_dalle(weights_file)
    scores = reference(weights, images)
    assert encoder.vocabulary == 32
    assert torch.allclose(encoder.blocks(0.8 * images + 0.1), scores, atol=1e-4)
    ids = encoder(images)
    assert ids.shape == (2, 4, 6)
    assert (ids == scores.argmax(1)).all()
    assert len(ids.unique()) > 3


def test_the_dvaes_sizes_are_the_releases() -> None:
    with torch.device("meta"):
        state = dalle.DalleEncoder(256, 8192).state_dict()
    assert state["blocks.group_4.block_1.id_path.w"].shape == (2048, 1024, 1, 1)
    assert state["blocks.group_4.block_2.res_path.conv_1.w"].shape == (512, 2048, 3, 3)
    assert state["blocks.output.conv.w"].shape == (8192, 2048, 1, 1)
    assert "blocks.group_1.block_1.id_path.w" not in state


def test_a_dalle_cache_records_its_weights(
    copy: Path, weights: dict[str, Tensor], weights_file: Path
) -> None:
    tokens.build_tokens(copy, "dalle", weights_file, size=32)
    cache = tokens.read_tokens(copy, "dalle", version(copy))
    assert (cache.ids.shape, cache.vocabulary) == ((128, 4, 4), 32)
    expected = reference(weights, pixels(copy, slice(0, 128))).argmax(1)
    assert (cache.ids == expected.numpy()).mean() > 0.99
    about = json.loads((copy / "tokens" / "dalle.json").read_text())
    assert about["weights_sha256"] == digest(weights_file)
    assert about["settings"] == {"size": 32}


def test_missing_and_unexpected_weights_are_listed(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    state = {**weights, "decoder.w": torch.zeros(1)}
    del state["blocks.input.b"], state["blocks.group_2.block_1.id_path.w"]
    torch.save(state, tmp_path / "encoder.pt")
    with pytest.raises(UserError, match=r"encoder.pt.*id_path.w, blocks.input.b.*are decoder.w"):
        dalle.load_dalle(tmp_path / "encoder.pt")


def test_weights_of_other_shapes_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**weights, "blocks.input.b": torch.zeros(9)}, tmp_path / "encoder.pt")
    with pytest.raises(UserError, match=r"other shapes.*blocks.input.b"):
        dalle.load_dalle(tmp_path / "encoder.pt")


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "run")


# The plain pickle is of a protocol that torch does not write.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickled_module_is_refused_and_its_code_not_run(form: str, tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "encoder.pkl"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save(Trap(sprung), path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=r"encoder.pkl is not a plain state dict.*state_dict\(\)"):
        dalle.load_dalle(path)
    assert not sprung.exists()


@pytest.mark.parametrize("content", [b"", b"no weights", "half", "list"])
def test_a_file_that_is_no_state_dict_is_refused(content: bytes | str, weights_file: Path) -> None:
    if content == "half":
        whole = weights_file.read_bytes()
        weights_file.write_bytes(whole[: len(whole) // 2])
    elif content == "list":
        torch.save([torch.zeros(1)], weights_file)
    else:
        assert isinstance(content, bytes)
        weights_file.write_bytes(content)
    with pytest.raises(UserError, match="not a plain state dict"):
        dalle.load_dalle(weights_file)


def test_a_cache_of_other_data_is_refused(cached: Path) -> None:
    with pytest.raises(UserError, match=r"made from data version .*the shards are 123456"):
        tokens.read_tokens(cached, "small", "123456")


@pytest.mark.parametrize("ending", [".npy", ".json"])
def test_a_missing_cache_is_refused_with_the_command(copy: Path, ending: str) -> None:
    tokens.cache_path(copy, "small").with_suffix(ending).unlink()
    with pytest.raises(UserError, match=rf"small{ending} is missing: python -m ijepa.data.tokens"):
        tokens.read_tokens(copy, "small", version(copy))


@given(st.integers(0, 2**30), st.sampled_from([".npy", ".json"]))
def test_a_truncated_cache_is_refused(cached: Path, length: int, ending: str) -> None:
    path = tokens.cache_path(cached, "small").with_suffix(ending)
    whole = path.read_bytes()
    # json's last byte is a line's end, which is no loss.
    path.write_bytes(whole[: length % (len(whole) - 1)])
    try:
        with pytest.raises(UserError, match=r"damaged.*python -m ijepa.data.tokens small"):
            tokens.read_tokens(cached, "small", version(cached))
    finally:
        path.write_bytes(whole)


def test_one_changed_byte_is_noticed(copy: Path) -> None:
    path = tokens.cache_path(copy, "small")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        tokens.read_tokens(copy, "small", version(copy))


def test_an_interrupted_build_leaves_no_cache(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copy / "tokens")
    calls = iter(range(2))

    def interrupted(self: small.Codebook, images: Tensor) -> Tensor:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return torch.zeros(len(images), 16, 16, dtype=torch.long)

    with monkeypatch.context() as patch:
        patch.setattr(small.Codebook, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokens.build_tokens(copy, "small", vocabulary=VOCABULARY)
    assert list((copy / "tokens").iterdir()) == []
    tokens.build_tokens(copy, "small", vocabulary=VOCABULARY)
    assert tokens.read_tokens(copy, "small", version(copy)).vocabulary == VOCABULARY


@pytest.mark.parametrize(
    ("tokenizer", "settings", "message"),
    [
        ("vqgan", {}, "unknown tokenizer 'vqgan': known are dalle, small"),
        ("dalle", {}, "dalle needs weights"),
        ("small", {"vocabulary": 70_000}, "vocabulary is 70000: choose 2 to 65536"),
        ("small", {"size": 33}, "size is 33: choose a multiple"),
        ("small", {"stride": 5}, "stride, patch, size are 5, 4, 32"),
        ("small", {"seed": -1}, "seed is -1"),
        ("small", {"strides": 1}, "did you mean stride"),
        ("small", {"vocabulary": 60_000}, "vocabulary is 60000, but .* choose a smaller"),
    ],
)
def test_bad_settings_are_refused_with_a_remedy(
    data: Path, tokenizer: str, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tokens.build_tokens(data, tokenizer, None, **settings)
    assert not (data / "tokens").exists()


def test_the_command_line_builds_and_says_errors_in_one_line(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["tokens", "small", "--data", str(copy), "--vocabulary", "16", "--stride", "4"]
    monkeypatch.setattr(sys, "argv", command)
    tokens.main()
    cache = tokens.read_tokens(copy, "small", version(copy))
    assert (cache.vocabulary, cache.ids.shape) == (16, (128, 8, 8))
    command = ["tokens", "dalle", "--data", str(copy), "--weights", "nowhere.pt"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=r"^error: nowhere.pt does not exist[^\n]*$"):
        run_command(tokens.main)
