"""Published files in, our encoders out, and back; the files are fabricated."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from evals.features import extract
from evals.report.tidy import read_results
from evals.run import evaluate
from evals.subject import Subject
from ijepa.architecture import SIZES, Variant, ViTConfig
from ijepa.checkpoint import load_encoder
from ijepa.errors import UserError, run_command
from ijepa.method import load_method, method_names
from ijepa.methods import cae, data2vec, mae
from ijepa.released import convert as released
from ijepa.released.layouts import LAYOUTS
from ijepa.released.tensors import read_tensors
from ijepa.released.weights import describe, export_encoder, import_encoder, main
from ijepa.vit import ViT, sincos_positions
from tests.recorded import rename
from tests.released_files import (
    FILES,
    PLAIN,
    VIT,
    fabricate,
    network,
    under,
)

GOLDEN = Path(__file__).parent / "golden_files"
Weights = dict[str, Tensor]


def features(path: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = load_encoder(path)[0](images)
        return outputs


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


def recorded(method: str) -> tuple[Weights, Weights]:
    """The weights of a golden file under their published names, and the rest of it."""
    with np.load(GOLDEN / f"{method}_step.npz") as archive:
        file = {k: torch.from_numpy(archive[k]) for k in archive.files if archive[k].ndim}
    before = {k.removeprefix("before/"): v for k, v in file.items() if k.startswith("before/")}
    return before, {k: v for k, v in file.items() if "/" not in k}


def towers(before: Weights) -> dict[str, Weights]:
    split: dict[str, Weights] = {}
    for name, value in before.items():
        tower, _, rest = name.partition("/")
        split.setdefault(tower, {})[rest] = value
    return split


@pytest.mark.parametrize("kind", FILES)
def test_a_published_file_is_recognised_and_its_encoder_computes_the_same(
    kind: str, tmp_path: Path
) -> None:
    net, _ = fabricate(kind, tmp_path / "file.pth")
    import_encoder(tmp_path / "file.pth", tmp_path / "ours.safetensors", num_heads=3)
    encoder, about = load_encoder(tmp_path / "ours.safetensors")
    assert about["facts"]["released"]["layout"] == FILES[kind][0]
    assert about["run"]["vit"]["image_size"] == 32
    assert encoder.variant.positions == net.variant.positions
    with torch.no_grad():
        torch.testing.assert_close(encoder(images()), net(images()), rtol=0, atol=0)


@pytest.mark.parametrize("wrapper", ["module.module.", "module._orig_mod."])
@pytest.mark.parametrize("kind", FILES)
def test_wrappers_around_an_encoder_are_taken_off(kind: str, wrapper: str, tmp_path: Path) -> None:
    """Those of DistributedDataParallel around an average, or around torch.compile."""
    fabricate(kind, tmp_path / "file.pth")
    plain = read_tensors(tmp_path / "file.pth")
    content = torch.load(tmp_path / "file.pth", weights_only=False)
    torch.save(wrapped(content, wrapper), tmp_path / "wrapped.pth")
    tensors = read_tensors(tmp_path / "wrapped.pth")
    reading, expected = (released.encoder(one, "file") for one in (tensors, plain))
    assert (reading.layout, reading.tower) == (expected.layout, expected.tower)
    assert {n: v.sum() for n, v in reading.weights.items()} == {
        n: v.sum() for n, v in expected.weights.items()
    }


def wrapped(content: Any, wrapper: str) -> Any:
    """A file's content in which every dictionary of tensors alone is that of a wrapped module."""
    if not isinstance(content, dict):
        return content
    if all(isinstance(value, Tensor) for value in content.values()):
        return under(wrapper, content)
    return {name: wrapped(value, wrapper) for name, value in content.items()}


@pytest.mark.parametrize(
    "kind", [kind for kind in FILES if "transformers" in kind or "timm" in kind]
)
def test_safetensors_are_read_like_torch_files(kind: str, tmp_path: Path) -> None:
    net, _ = fabricate(kind, tmp_path / "file.pth")
    flat = {name: v.clone() for name, v in read_tensors(tmp_path / "file.pth").items()}
    save_file(flat, tmp_path / "file.safetensors")
    import_encoder(tmp_path / "file.safetensors", tmp_path / "ours.safetensors", num_heads=3)
    with torch.no_grad():
        torch.testing.assert_close(
            features(tmp_path / "ours.safetensors", images()), net(images()), rtol=0, atol=0
        )


@pytest.mark.parametrize(
    ("kind", "tower"),
    [
        ("ijepa", "context"),
        ("data2vec", "ema"),
        ("dino, full", "student"),
        ("ibot, full", "student"),
    ],
)
def test_the_other_tower_is_taken_on_request(kind: str, tower: str, tmp_path: Path) -> None:
    _, other = fabricate(kind, tmp_path / "file.pth")
    out = tmp_path / "ours.safetensors"
    import_encoder(tmp_path / "file.pth", out, tower=tower, num_heads=3)
    assert load_encoder(out)[1]["facts"]["released"]["tower"] == tower
    with torch.no_grad():
        torch.testing.assert_close(features(out, images()), other(images()), rtol=0, atol=0)


def test_the_recorded_encoders_of_ijepa_give_the_recorded_features(tmp_path: Path) -> None:
    before, file = recorded("ijepa")
    split = {tower: under("module.", w) for tower, w in towers(before).items()}
    torch.save({**split, "epoch": 1}, tmp_path / "file.pth.tar")
    for tower, key in (("target", "target_all_patches"), ("context", "encoder_all_patches")):
        out = tmp_path / f"{tower}.safetensors"
        import_encoder(tmp_path / "file.pth.tar", out, tower=tower, num_heads=3)
        outputs = features(out, file["images"])
        if tower == "target" and not torch.allclose(outputs, file[key], atol=1e-3):
            outputs = F.layer_norm(outputs, outputs.shape[-1:])
        torch.testing.assert_close(outputs, file[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mae", "data2vec", "cae"])
def test_recorded_weights_give_what_the_method_gives(name: str, tmp_path: Path) -> None:
    before, file = recorded(name)
    file_of_release: dict[str, Any] = {"model": before}
    if name == "data2vec":
        split = towers(before)
        file_of_release = {"model": split["student"], "model_ema": split["teacher"]}
    torch.save(file_of_release, tmp_path / "file.pth")
    import_encoder(tmp_path / "file.pth", tmp_path / "ours.safetensors", num_heads=3)

    configs = {
        "mae": mae.Config(decoder_dim=32, decoder_depth=2, decoder_heads=4),
        "data2vec": data2vec.Config(drop_path=0, top_layers=2),
        "cae": cae.Config(vocabulary=64, regressor_depth=2, decoder_depth=2, drop_path=0),
    }
    method = load_method(name).Method(configs[name], VIT)
    names = {"mae": mae, "data2vec": data2vec, "cae": cae}[name].RELEASED
    weights = {key.replace("/", "."): value for key, value in before.items()}
    method.load_state_dict(rename(weights, names))
    with torch.no_grad():
        expected = method.encoder.eval()(file["images"])
    outputs = features(tmp_path / "ours.safetensors", file["images"])
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [None, 1e-5])
def test_timms_own_network_gives_the_same_features(scale: float | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = VisionTransformer(32, 4, embed_dim=48, depth=2, num_heads=3, init_values=scale).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.save(net.state_dict(), tmp_path / "file.pth")
    import_encoder(tmp_path / "file.pth", tmp_path / "ours.safetensors", num_heads=3)
    with torch.no_grad():
        torch.testing.assert_close(
            features(tmp_path / "ours.safetensors", images()), net.forward_features(images())
        )


@pytest.mark.parametrize("name", sorted({*method_names()} & {*LAYOUTS}))
def test_a_layout_has_the_variant_of_our_method(name: str) -> None:
    module = load_method(name)
    with torch.device("meta"):
        encoder = module.Method(module.Config(), ViTConfig(dim=48, depth=6, num_heads=3)).encoder
    layout = LAYOUTS[name].variant
    assert layout is not None
    assert layout.init == encoder.variant.init
    assert not released.differences(layout, encoder.variant)


@pytest.mark.parametrize(
    ("size", "patch", "image"),
    [("base", 16, 224), ("huge", 14, 224), ("huge", 16, 448), ("giant", 16, 224)],
)
def test_published_sizes_are_read_from_the_shapes(size: str, patch: int, image: int) -> None:
    vit = ViTConfig(image_size=image, patch_size=patch, **SIZES[size])  # type: ignore[arg-type]
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in ViT(vit).state_dict().items()}
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    tensors["pos_embed"] = sincos_positions(vit.dim, vit.grid)
    reading = released.encoder(under("target_encoder.module.", tensors), "file")
    assert ViTConfig(**reading.shape) == vit


@given(dim=st.integers(1, 2048), hidden=st.integers(1, 8192))
def test_the_feed_forward_width_survives_its_ratio(dim: int, hidden: int) -> None:
    assert int(dim * released.mlp_ratio(hidden, dim)) == hidden


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["ijepa", "mae", "data2vec", "cae", "dino, full", "timm, DINOv2"])
def test_an_exported_encoder_returns_bit_by_bit_or_is_refused(
    kind: str, layout: str, tmp_path: Path
) -> None:
    fabricate(kind, tmp_path / "file.pth")
    ours, there, back = (tmp_path / n for n in ("a.safetensors", "there.pth", "b.safetensors"))
    import_encoder(tmp_path / "file.pth", ours, num_heads=3, image_size=48)
    fits = FITS[FILES[kind][0] if kind != "timm, DINOv2" else "dinov2"]
    if layout not in fits:
        with pytest.raises(UserError, match=f"the layout {layout} .*: choose another --layout"):
            export_encoder(ours, there, layout)
        assert not there.exists()
        return
    export_encoder(ours, there, layout)
    import_encoder(there, back, layout, num_heads=3)
    first, second = (load_encoder(path)[0] for path in (ours, back))
    assert first.config == second.config
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


FITS = {
    "ijepa": {"ijepa", "timm", "transformers"},
    "mae": {"mae", "timm", "transformers"},
    "data2vec": {"data2vec", "timm", "transformers"},
    "cae": {"cae", "timm", "transformers"},
    "dino": {"dino", "ibot", "timm", "transformers"},
    "dinov2": {"timm", "transformers"},
}


def test_an_export_has_the_containers_of_its_layout(tmp_path: Path) -> None:
    ours = tmp_path / "ours.safetensors"
    for kind, layout, name in [
        ("ijepa", "ijepa", "target_encoder.module.norm.bias"),
        ("mae", "mae", "model.norm.bias"),
        ("data2vec", "data2vec", "model.norm.bias"),
        ("cae", "cae", "model.encoder.norm.bias"),
        ("dino, full", "dino", "teacher.backbone.norm.bias"),
        ("dino, backbone", "dino", "norm.bias"),
        ("ibot, teacher", "ibot", "state_dict.norm.bias"),
        ("timm", "timm", "norm.bias"),
        ("timm", "transformers", "layernorm.bias"),
    ]:
        fabricate(kind, tmp_path / "file.pth")
        import_encoder(tmp_path / "file.pth", ours, num_heads=3, force=True)
        export_encoder(ours, tmp_path / "there.pth", layout, force=True)
        assert name in read_tensors(tmp_path / "there.pth")
    export_encoder(ours, tmp_path / "there.safetensors", "transformers")
    assert "layernorm.bias" in read_tensors(tmp_path / "there.safetensors")
    with pytest.raises(UserError, match=r"a file of ibot is torch's: end its name in \.pth"):
        export_encoder(ours, tmp_path / "ibot.safetensors", "ibot")


@pytest.mark.parametrize("kind", ["ijepa", "mae", "cae", "dino, backbone"])
@pytest.mark.parametrize("size", [20, 48])
def test_at_another_size_the_features_are_those_of_images_of_that_size(
    kind: str, size: int, tmp_path: Path
) -> None:
    net, _ = fabricate(kind, tmp_path / "file.pth")
    out = tmp_path / "ours.safetensors"
    import_encoder(tmp_path / "file.pth", out, num_heads=3, image_size=size)
    assert load_encoder(out)[1]["run"]["vit"]["image_size"] == size
    with torch.no_grad():
        torch.testing.assert_close(features(out, images(size)), net(images(size)))


@pytest.mark.parametrize("size", [16, 64])
def test_a_table_of_relative_positions_keeps_near_places_and_the_class_token(
    size: int, tmp_path: Path
) -> None:
    net, _ = fabricate("data2vec", tmp_path / "file.pth")
    import_encoder(tmp_path / "file.pth", tmp_path / "out", image_size=size)
    new, _ = load_encoder(tmp_path / "out")
    assert new(images(size)).shape == (2, 1 + (size // 4) ** 2, 48)
    tables = [n.rel_pos_bias.relative_position_bias_table for n in (net, new)]
    torch.testing.assert_close(tables[1][-3:], tables[0][-3:])
    middles = []
    for table in tables:
        side = round((len(table) - 3) ** 0.5)
        middle = table[:-3].view(side, side, -1)
        middles.append(middle[side // 2 - 1 : side // 2 + 2, side // 2 - 1 : side // 2 + 2])
    torch.testing.assert_close(middles[1], middles[0], rtol=1e-3, atol=1e-3)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    half = {name: value.half() for name, value in network(PLAIN).state_dict().items()}
    torch.save(half, tmp_path / "file.pth")
    import_encoder(tmp_path / "file.pth", tmp_path / "out", num_heads=3)
    for name, value in load_encoder(tmp_path / "out")[0].state_dict().items():
        assert torch.equal(value, half[name].float())


def test_an_imported_encoder_is_evaluated_like_any_other(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "vit_mae" / "seed0"
    folder.mkdir(parents=True)
    fabricate("mae", tmp_path / "file.pth")
    import_encoder(tmp_path / "file.pth", tmp_path / "encoder.safetensors", num_heads=3)
    features = tmp_path / "features" / "about.json"
    extract(tmp_path / "encoder.safetensors", data, features)
    evaluate("knn", {}, Subject(data, "class", features_of=features), folder / "knn.json")
    table = read_results([folder / "knn.json"])
    assert table["method"].tolist() == ["released"]
    about = json.loads((folder / "knn.json").read_text())["about"]
    assert about["facts"]["released"]["file"] == "file.pth"
    assert len(about["facts"]["released"]["sha256"]) == 64


def test_a_file_says_what_it_holds(tmp_path: Path) -> None:
    fabricate("ijepa", tmp_path / "file.pth")
    theirs = describe(tmp_path / "file.pth")
    assert theirs["layout"] == "ijepa"
    assert theirs["towers"] == "target, context"
    assert theirs["num_heads"] == "not in the file"
    trainable = sum(p.numel() for p in network(Variant()).parameters() if p.requires_grad)
    assert theirs["parameters"] == f"{trainable:,}"
    assert "20 of predictor.module" in theirs["leftovers"]
    import_encoder(tmp_path / "file.pth", tmp_path / "ours.safetensors", num_heads=3, licence="NC")
    ours = describe(tmp_path / "ours.safetensors")
    same = ("parameters", "dim", "depth", "patch_size", "image_size", "variant")
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    assert ours["imported sha256"] == theirs["sha256"]
    assert ours["imported licence"] == "NC"


def test_the_command_line_imports_inspects_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fabricate("dino, full", tmp_path / "file.pth")

    def command(words: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["checkpoint", *words.split()])
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        return ended.value.code

    done = command("import file.pth --out o.safetensors --tower student --num-heads 3")
    assert done == 0
    assert command("inspect o.safetensors") == 0
    assert "imported tower      student" in capsys.readouterr().out
    assert command("export o.safetensors --layout dino --out back.pth") == 0
    assert "student.module.backbone.norm.bias" in read_tensors(tmp_path / "back.pth")
    assert command("export o.safetensors --layout cae --out back.pth") == (
        "error: the layout cae does not fit this encoder (positions: learned, where the layout has "
        "sincos_rows_first, blocks: vit, where the layout has beit, layer scale: False, where the "
        "layout has True): choose another --layout"
    )


def test_weights_are_copied_not_shared(tmp_path: Path) -> None:
    """torch's files may hold one storage under two names, which safetensors refuses."""
    weights = copy.deepcopy(network(PLAIN).state_dict())
    weights["blocks.1.norm1.bias"] = weights["blocks.0.norm1.bias"]
    torch.save(weights, tmp_path / "file.pth")
    import_encoder(tmp_path / "file.pth", tmp_path / "out", num_heads=3)
    assert load_encoder(tmp_path / "out")[0].state_dict().keys() == weights.keys()
