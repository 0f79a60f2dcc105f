"""Folders of an encoder as timm and transformers open them, and their upload to a hub."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from huggingface_hub import constants, parse_eval_result_entries
from PIL import Image
from torch import Tensor

from evals.features import extract
from evals.run import evaluate
from evals.subject import Subject
from ijepa import checkpoint
from ijepa.architecture import Variant
from ijepa.checkpoint import load_encoder
from ijepa.data.transforms import centre_crop, normalise, short_side, to_array
from ijepa.encoder_file import encoder_digest
from ijepa.errors import UserError, run_command
from ijepa.files import ROOT
from ijepa.released import card, folder, weights
from ijepa.released.layouts import FOLDERS
from ijepa.released.weights import export_folder, import_encoder
from tests.conftest import Trained
from tests.hub import TOKEN, Hub, serving
from tests.released_files import VIT, fabricate, network

CLASSES = {
    "ijepa": "IJepaModel",
    "mae": "ViTModel",
    "data2vec": "Data2VecVisionModel",
    "cae": "BeitModel",
    "dino, full": "ViTModel",
    "ibot, full": "ViTModel",
    "timm, DINOv2": "Dinov2Model",
}


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


def ours(kind: str, tmp_path: Path, size: int | None = None) -> Path:
    """An encoder file of this project from a published file of that kind."""
    fabricate(kind, tmp_path / "file.pth")
    out = tmp_path / "ours.safetensors"
    import_encoder(tmp_path / "file.pth", out, num_heads=3, image_size=size)
    return out


@torch.no_grad()
def by_timm(path: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features of every token, and pooled ones."""
    model: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return model.forward_features(x), model(x)


@torch.no_grad()
def by_transformers(path: Path, x: Tensor) -> tuple[str, Tensor]:
    """Name of the class, and features of every token; every weight must come from the folder."""
    model, loading = transformers.AutoModel.from_pretrained(path, output_loading_info=True)
    assert {name for name in loading["missing_keys"] if not name.startswith("pooler.")} == set()
    assert not loading["unexpected_keys"]
    return type(model).__name__, model.eval()(x).last_hidden_state


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("kind", CLASSES)
def test_timm_and_transformers_give_the_features_that_we_give(
    kind: str, size: int, tmp_path: Path
) -> None:
    file = ours(kind, tmp_path, size)
    with torch.no_grad():
        expected = load_encoder(file)[0](images(size))
    export_folder(file, tmp_path / "timm", "timm-folder")
    tokens, pooled = by_timm(tmp_path / "timm", images(size))
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
    own = expected.mean(1) if kind == "ijepa" else expected[:, 0]
    torch.testing.assert_close(pooled, own, rtol=1e-5, atol=1e-5)
    export_folder(file, tmp_path / "transformers", "transformers-folder")
    name, tokens = by_transformers(tmp_path / "transformers", images(size))
    assert name == CLASSES[kind]
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
    model = transformers.AutoModel.from_pretrained(tmp_path / "transformers")
    torch.save(model.state_dict(), tmp_path / "memory.pth")
    back = tmp_path / "back.safetensors"
    for there in ("timm/model.safetensors", "transformers/model.safetensors", "memory.pth"):
        import_encoder(tmp_path / there, back, num_heads=3, force=True)
        with torch.no_grad():
            torch.testing.assert_close(
                load_encoder(back)[0](images(size)), expected, rtol=0, atol=0
            )


def test_a_trained_run_of_ijepa_gives_its_target_encoder(trained: Trained, tmp_path: Path) -> None:
    """Over 5 s where no other test has trained this run."""
    file = trained("ijepa")
    heads = load_encoder(file)[0].config.num_heads
    outputs = {}
    for tower in ("target", "context"):
        out = tmp_path / f"{tower}.safetensors"
        import_encoder(file.with_name("whole.safetensors"), out, tower=tower, num_heads=heads)
        with torch.no_grad():
            outputs[tower] = load_encoder(out)[0](images())
    export_folder(file, tmp_path / "folder", "transformers-folder")
    name, tokens = by_transformers(tmp_path / "folder", images())
    assert name == "IJepaModel"
    torch.testing.assert_close(tokens, outputs["target"], rtol=1e-4, atol=1e-4)
    assert (outputs["target"] - outputs["context"]).abs().max() > 1e-2


def test_the_features_in_python_of_the_documentation(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own code, with a run's encoder and a photograph of any size."""
    page = (ROOT / "docs" / "weights.md").read_text()
    (code,) = re.findall(r"```python\n(from pathlib.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("encoder.safetensors").symlink_to(trained("mae"))
    Image.new("RGB", (90, 60), "teal").save("photo.jpg")
    made: dict[str, Any] = {}
    exec(code, made)
    vit = made["network"].config
    num_patches = vit.grid[0] * vit.grid[1]
    assert made["tokens_BND"].shape == (1, 1 + num_patches, vit.dim)
    assert made["patches_BND"].shape == (1, num_patches, vit.dim)


@pytest.mark.parametrize(("size", "width"), [(224, 500), (32, 600), (448, 600), (96, 600)])
def test_both_preprocessors_give_our_evaluation_view(size: int, width: int, tmp_path: Path) -> None:
    """No odd number of pixels is cut off: theirs would lie one pixel from ours."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
    image = coarse.resize((width, 500))
    view = torch.from_numpy(to_array(centre_crop(image, size)).copy())
    expected = normalise(view.unsqueeze(0))[0]
    vit = replace(VIT, image_size=size)
    config = folder.timm_config(vit, Variant())["pretrained_cfg"]
    made_by: Any = timm.data
    data = made_by.resolve_data_config({}, pretrained_cfg=config)
    theirs = made_by.create_transform(**data, is_training=False)(image)
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-4)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(folder.preprocessor(vit)))
    images: Any = transformers.AutoImageProcessor
    processor = images.from_pretrained(tmp_path)
    theirs = processor(image, return_tensors="pt").pixel_values[0]
    assert (theirs - expected).abs().max() < 0.05  # it rounds elsewhere: 2 of 255 steps


def test_timm_cuts_from_the_size_that_we_cut_from() -> None:
    for size in range(8, 1025):
        config = folder.timm_config(replace(VIT, image_size=size, patch_size=1), Variant())
        assert int(size / config["pretrained_cfg"]["crop_pct"]) == short_side(size)


@pytest.mark.parametrize(
    ("variant", "ratio", "layouts"),
    [
        (Variant(layer_scale=1e-5), 4.0, {"transformers-folder"}),
        (Variant(blocks="beit", layer_scale=1e-5), 4.0, set(FOLDERS)),
        (Variant(class_token=True, positions="relative"), 4.0, set(FOLDERS)),
        (Variant(class_token=True, layer_scale=1e-5), 3.5, {"transformers-folder"}),
    ],
)
def test_an_encoder_that_no_network_of_the_package_computes_is_refused(
    variant: Variant, ratio: float, layouts: set[str], tmp_path: Path
) -> None:
    vit = replace(VIT, mlp_ratio=ratio)
    encoder = network(variant, vit)
    run = {"method": "released", "seed": None, "vit": asdict(vit)}
    about = {"run": run, "variant": asdict(variant), "facts": {}}
    checkpoint.save_tensors(tmp_path / "ours", encoder.state_dict(), about)
    for layout in FOLDERS:
        out = tmp_path / layout
        if layout in layouts:
            package = layout.removesuffix("-folder")
            with pytest.raises(UserError, match=f"{package} has no network .*choose another"):
                export_folder(tmp_path / "ours", out, layout)
            assert not out.exists()
        else:
            export_folder(tmp_path / "ours", out, layout)


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> Any:
    """Exit status or message of ``python -m ijepa.released.weights``."""
    monkeypatch.setattr(sys, "argv", ["weights", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_command(weights.main)
    return ended.value.code


def test_the_model_card_tells_method_data_licence_recipe_commit_and_our_numbers(
    trained: Trained, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 5 s where no other test has trained this run."""
    file, features = trained("ijepa"), tmp_path / "features" / "about.json"
    extract(file, data, features)
    result = tmp_path / "results" / "evaluations" / "ijepa" / "seed0" / "knn.json"
    evaluate("knn", {}, Subject(data, "class", features_of=features), result)
    monkeypatch.setitem(card.HUB_DATASETS, "tiny", "me/tiny")
    export = ("export", file, "--layout", "timm-folder", "--out", tmp_path / "out")
    options = ("--results", tmp_path / "results", "--licence", "CC BY-NC 4.0")
    assert command(monkeypatch, *export, *options) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc-by-nc-4.0"
    assert head["library_name"] == "timm"
    assert head["datasets"] == ["me/tiny"]
    assert "arxiv:2301.08243" in head["tags"]
    content = json.loads(result.read_text())
    for words in ("Joint-Embedding Predictive", "predictor_depth: 1", "CC BY-NC 4.0", "Tiny"):
        assert words in text
    assert content["about"]["facts"]["commit"] in text
    percent, (low, high) = 100 * content["value"], (100 * end for end in content["interval"])
    assert f"| {percent:.2f} | {low:.2f} to {high:.2f} | {content['n']} |" in text
    entry = yaml.safe_load((tmp_path / "out/.eval_results/ijepa-bench.yaml").read_text())
    (parsed,) = parse_eval_result_entries(entry)
    assert (parsed.dataset_id, parsed.task_id) == ("me/tiny", "knn")
    assert parsed.value == pytest.approx(percent, abs=0.01)


def test_results_of_other_encoders_are_none_of_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = ours("mae", tmp_path), tmp_path / "knn.json"
    about = {"encoder": "0" * 12}
    other.write_text(json.dumps({"evaluation": "knn", "metric": "top1", "about": about}))
    export = ("export", file, "--layout", "timm-folder", "--out", tmp_path / "out")
    message = command(monkeypatch, *export, "--results", tmp_path)
    assert f"has 1 results, none of the encoder {encoder_digest(file)}: evaluate it" in message
    assert not (tmp_path / "out").exists()
    assert "is no folder" in command(monkeypatch, *export, "--results", tmp_path / "nowhere")


def test_a_folder_is_written_again_but_not_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, file = tmp_path / "out", ours("mae", tmp_path)
    export = ("export", file, "--layout", "timm-folder", "--out", out)
    assert command(monkeypatch, *export) == 0
    assert command(monkeypatch, *export) == 0
    assert "license: unknown" in (out / "README.md").read_text()
    message = command(monkeypatch, *export, "--licence", "my own")
    assert message == (
        f"error: {out / 'README.md'} exists and is another file: move it away, or say --force"
    )
    assert command(monkeypatch, *export, "--licence", "my own", "--force") == 0
    assert "license_name: my-own" in (out / "README.md").read_text()
    assert f"{file} is a file: name a folder" in command(monkeypatch, *export[:-1], file)
    message = command(
        monkeypatch, "export", file, "--layout", "mae", "--out", tmp_path / "a", "--licence", "x"
    )
    assert "--results and --licence are for timm-folder and transformers-folder" in message


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, whose token is in the environment."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol is not the server's
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Folder for timm."""
    export_folder(ours("mae", tmp_path), tmp_path / "out", "timm-folder")
    return tmp_path / "out"


def test_a_pushed_folder_arrives_whole(
    hub: Hub,
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, "push", exported, "me/encoder") == 0
    assert f"{hub.address}/me/encoder" in capsys.readouterr().out
    assert hub.files == {
        path.relative_to(exported).as_posix(): path.read_bytes()
        for path in exported.rglob("*")
        if path.is_file()
    }
    assert {"model.safetensors", "config.json", "README.md"} <= hub.files.keys()


def test_a_push_that_cannot_be_done_says_why_in_one_line(
    hub: Hub, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(folder: Path = exported, repo: str = "me/encoder") -> str:
        words = command(monkeypatch, "push", folder, repo)
        assert words.startswith("error: ")
        assert "\n" not in words
        return str(words)

    assert "has no config.json, model.safetensors, README.md: make it" in message(tmp_path)
    assert "no name of a repository" in message(repo="me/en/coder")
    assert not hub.requests
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    assert f"{hub.address} answers 401 for me/encoder" in message()
    assert "set HF_TOKEN to a token that is valid" in message()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 could not be reached" in message()
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token for the hub: set HF_TOKEN" in message()
    assert not hub.files
