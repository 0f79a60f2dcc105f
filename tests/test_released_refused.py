"""Published files that are refused, each with what is wrong."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from ijepa.checkpoint import load_encoder
from ijepa.errors import UserError
from ijepa.released import convert as released
from ijepa.released.layouts import LAYOUTS
from ijepa.released.tensors import read_tensors
from ijepa.released.weights import export_encoder, import_encoder
from tests.released_files import (
    FILES,
    PLAIN,
    VIT,
    fabricate,
    network,
)


@pytest.mark.parametrize("kind", FILES)
def test_every_tensor_that_is_missing_or_unknown_is_named(kind: str, tmp_path: Path) -> None:
    layout, variant, _ = FILES[kind]
    net = network(variant)
    fabricate(kind, tmp_path / "file.pth")
    whole = read_tensors(tmp_path / "file.pth")
    reading = released.encoder(whole, "file")
    root = released.prefixes_of(whole, LAYOUTS[layout])[reading.tower]
    own = [name for name in whole if name.startswith(root) and name not in reading.leftovers]
    assert len(own) == len(net.state_dict()) + ("transformers" in kind) * 2 * 2 * VIT.depth
    for name in own:
        with pytest.raises(UserError):
            released.encoder({k: v for k, v in whole.items() if k != name}, "file", layout)
    for name in (f"{root}norm_pre.weight", "surprise"):
        with pytest.raises(UserError, match=rf"unknown are {name}: "):
            released.encoder(whole | {name: torch.ones(1)}, "file", layout)
    last = next(name for name in own if name.endswith("norm.bias"))
    with pytest.raises(UserError, match=rf"missing are .*{last}"):
        released.encoder({k: v for k, v in whole.items() if k != last}, "file", layout)
    with pytest.raises(UserError, match=rf"{last} is \[1\], not \[48\]"):
        released.encoder(whole | {last: torch.ones(1)}, "file", layout)


def test_a_fine_tuned_file_says_what_it_lacks(tmp_path: Path) -> None:
    """MAE's fine-tuned files: the norm stands after the average of the patches."""
    fabricate("mae", tmp_path / "file.pth")
    tensors = read_tensors(tmp_path / "file.pth")
    tuned = {k.replace("model.norm.", "model.fc_norm."): v for k, v in tensors.items()}
    head = {f"model.head.{part}": torch.ones(10) for part in ("weight", "bias")}
    with pytest.raises(UserError, match=r"is fine-tuned, .* \(fc_norm\) .*get the pretrained file"):
        released.encoder(tuned | head, "file")


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_than_its_layout_is_refused(kind: str, tmp_path: Path) -> None:
    fabricate(kind, tmp_path / "file.pth")
    tensors = read_tensors(tmp_path / "file.pth")
    fits = [reading.layout for reading in released.readings(tensors) if not reading.problems]
    assert fits[0] == FILES[kind][0]
    for other in LAYOUTS.keys() - set(fits):
        with pytest.raises(UserError, match=f"say --layout {fits[0]}"):
            released.encoder(tensors, "file", other)


def test_learned_positions_are_not_taken_for_fixed_ones(tmp_path: Path) -> None:
    fabricate("dino, backbone", tmp_path / "file.pth")
    with pytest.raises(
        UserError, match=r"read as mae: positions: learned, where the layout has sincos"
    ):
        import_encoder(tmp_path / "file.pth", tmp_path / "out", "mae", num_heads=3)


def test_a_tower_that_is_not_there_is_refused(tmp_path: Path) -> None:
    fabricate("ijepa", tmp_path / "file.pth")
    whole = torch.load(tmp_path / "file.pth")
    del whole["target_encoder"]
    torch.save(whole, tmp_path / "context.pth")
    for path, tower, says in [
        ("context.pth", None, r"no encoder is called target \(there is context\)"),
        ("file.pth", "student", r"no encoder is called student \(there is target, context\)"),
    ]:
        with pytest.raises(UserError, match=says):
            import_encoder(tmp_path / path, tmp_path / "out", tower=tower, num_heads=3)
    import_encoder(tmp_path / "context.pth", tmp_path / "out", tower="context", num_heads=3)
    torch.save({"state_dict_ema": network(PLAIN).state_dict()}, tmp_path / "ema.pth")
    with pytest.raises(UserError, match=r"no encoder is without a name \(there is ema\)"):
        import_encoder(tmp_path / "ema.pth", tmp_path / "out", num_heads=3)


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))


def broken(kind: str, path: Path) -> None:
    fabricate("mae", path)
    match kind:
        case "cut":
            path.write_bytes(path.read_bytes()[:-1000])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("<html>404</html>")
        case "code":
            torch.save({"model": Bomb()}, path)
        case "old pickle":
            path.write_bytes(pickle.dumps({"model": Bomb()}, protocol=2))
        case "no encoder":
            torch.save({"fc.weight": torch.ones(2, 2)}, path)
        case "list":
            torch.save([1, 2], path)
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "rectangle":
            weights = torch.load(path)["model"]
            torch.save({"model": {**weights, "pos_embed": torch.ones(1, 60, 48)}}, path)
        case "oblong patch":
            weights = torch.load(path)["model"]
            shape = {"patch_embed.proj.weight": torch.ones(48, 3, 4, 8)}
            torch.save({"model": {**weights, **shape}}, path)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cut", "is damaged"),
        ("empty", "is empty"),
        ("text", "is damaged, or is no file of torch"),
        ("code", r"holds code \(posix.mkdir\), which is not run"),
        ("old pickle", "holds code"),
        ("no encoder", "holds no encoder in any layout"),
        ("list", "holds no encoder in any layout"),
        ("missing", "is missing"),
        ("folder", "is a folder"),
        ("rectangle", "has 59 rows for patches: no square grid's"),
        ("oblong patch", r"is \[48, 3, 4, 8\], not \[D, 3, patch, patch\]"),
    ],
)
def test_a_broken_file_is_refused_and_nothing_is_written(
    kind: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken(kind, tmp_path / "file.pth")
    (tmp_path / "out").write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=says):
        import_encoder(tmp_path / "file.pth", tmp_path / "out", num_heads=3, force=True)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("value", [np.array([1, "a"], object), np.zeros(2, [("a", "i4")])])
def test_numpys_objects_and_records_are_refused_by_their_name(value: Any, tmp_path: Path) -> None:
    """A record's bytes can be pointers, if its type says so."""
    torch.save({"model": network(PLAIN).state_dict(), "best": value}, tmp_path / "file.pth")
    kind = type(value.dtype).__name__
    with pytest.raises(UserError, match=rf"holds numpy\.dtypes\.{kind} among its values"):
        read_tensors(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (torch.Tensor.to_sparse, "is no dense tensor"),
        (lambda value: value.to("meta"), r"is a tensor without values \(meta\)"),
    ],
)
def test_tensors_that_are_sparse_or_without_values_are_refused(
    change: Any, says: str, tmp_path: Path
) -> None:
    weights = network(PLAIN).state_dict()
    for name in ("pos_embed", "blocks.0.mlp.fc1.bias"):
        torch.save({**weights, name: change(weights[name])}, tmp_path / "file.pth")
        with pytest.raises(UserError, match=f"{name} {says}: get a file of dense weights"):
            import_encoder(tmp_path / "file.pth", tmp_path / "out", num_heads=3)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_whose_bytes_were_changed_is_read_or_refused(zipped: bool, tmp_path: Path) -> None:
    path, random = tmp_path / "file.pth", np.random.default_rng(0)
    few = dict(list(network(PLAIN).state_dict().items())[:4])
    torch.save({"model": few}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refused = 0
    for _ in range(200):
        changed = bytearray(
            whole[: random.integers(1, len(whole))] if random.random() < 0.3 else whole
        )
        for position in random.integers(0, min(len(changed), 1500), 3):
            changed[position] = random.integers(256)
        path.write_bytes(changed)
        try:
            read_tensors(path)
        except UserError:
            refused += 1
    assert refused > 50


def test_another_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    fabricate("mae", tmp_path / "file.pth")
    out, there = tmp_path / "ours.safetensors", tmp_path / "there.pth"
    import_encoder(tmp_path / "file.pth", out, num_heads=3)
    import_encoder(tmp_path / "file.pth", out, num_heads=3)
    export_encoder(out, there, "mae")
    export_encoder(out, there, "mae")
    whole = out.read_bytes()
    with pytest.raises(UserError, match="is another file: move it away, or say --force"):
        import_encoder(tmp_path / "file.pth", out, num_heads=3, licence="MIT")
    assert out.read_bytes() == whole
    import_encoder(tmp_path / "file.pth", out, num_heads=3, licence="MIT", force=True)
    assert load_encoder(out)[1]["facts"]["released"]["licence"] == "MIT"
    with pytest.raises(UserError, match="say --force"):
        export_encoder(out, there, "timm")


def test_heads_are_asked_for_where_nothing_tells_them(tmp_path: Path) -> None:
    out = tmp_path / "ours.safetensors"
    fabricate("mae", tmp_path / "file.pth")
    with pytest.raises(UserError, match="encoder of width 48 has: say --num-heads"):
        import_encoder(tmp_path / "file.pth", out)
    with pytest.raises(UserError, match="num_heads 5 does not divide dim 48"):
        import_encoder(tmp_path / "file.pth", out, num_heads=5)
    fabricate("data2vec", tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"--num-heads is 4, but .* has 3: leave it out"):
        import_encoder(tmp_path / "file.pth", out, num_heads=4)
    import_encoder(tmp_path / "file.pth", out)
    assert load_encoder(out)[0].config.num_heads == 3


def test_a_size_that_patches_do_not_divide_is_refused(tmp_path: Path) -> None:
    fabricate("mae", tmp_path / "file.pth")
    with pytest.raises(UserError, match="patch_size 4 does not divide image_size 30"):
        import_encoder(tmp_path / "file.pth", tmp_path / "out", num_heads=3, image_size=30)


@pytest.mark.parametrize(("option", "value"), [("num_heads", -3), ("image_size", -32)])
def test_sizes_from_the_command_line_are_checked_too(
    option: str, value: int, tmp_path: Path
) -> None:
    """They come by no config, so that pydantic does not see them."""
    torch.manual_seed(0)
    net = VisionTransformer(32, 4, embed_dim=48, depth=2, num_heads=3)
    torch.save(net.state_dict(), tmp_path / "file.pth")
    sizes: dict[str, Any] = {"num_heads": 3, option: value}
    with pytest.raises(UserError, match=rf"{option} is {value}: it must be at least 1"):
        import_encoder(tmp_path / "file.pth", tmp_path / "ours", **sizes)
