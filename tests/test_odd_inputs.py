"""Inputs of users that are odd but sound, or unsound: they work, or one line says what to do."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ijepa.checkpoint import load_encoder
from ijepa.data.build import inspect
from ijepa.data.sources import image_folder
from ijepa.errors import UserError
from ijepa.files import read_yaml
from ijepa.released.weights import import_encoder
from tests.released_files import FILES, network
from workflow.plan.benchmark import read_benchmark


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", "line 2, column 11: the key 'c' is there twice"),
        ("a: 1\n  b: 2\n", "line 2, column 4: mapping values are not allowed"),
        ("a: \xe9".encode("latin-1").decode("latin-1"), None),
    ],
)
def test_a_yaml_file_names_its_line(text: str, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    if message is None:
        assert read_yaml(path) == {"a": "\xe9"}
        return
    with pytest.raises(UserError, match=message) as error:
        read_yaml(path)
    assert "\n" not in str(error.value)


def test_keys_that_override_merged_ones_are_no_doubled_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, x: 4}\n")
    assert read_yaml(path)["c"] == {"x": 4, "y": 2}


@pytest.mark.parametrize("content", [b"a: \xe9", None])
def test_a_file_that_is_no_text_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path
    if content is not None:
        path = tmp_path / "a.yaml"
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"save it as UTF-8|is a folder"):
        read_yaml(path)


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    _, variant, build = FILES["mae"]
    weights = build(network(variant).state_dict(), {})["model"]
    save_file(weights, tmp_path / "downloaded")
    import_encoder(tmp_path / "downloaded", tmp_path / "out.safetensors", "mae", num_heads=3)
    assert load_encoder(tmp_path / "out.safetensors")[0].config.dim == 48


@pytest.mark.parametrize("value", [float("nan"), 1])
def test_weights_that_are_no_numbers_or_quantised_are_refused(value: Any, tmp_path: Path) -> None:
    _, variant, build = FILES["mae"]
    weights = build(network(variant).state_dict(), {})
    norm = weights["model"]["norm.bias"]
    weights["model"]["norm.bias"] = torch.full(
        norm.shape, value, dtype=torch.int8 if value == 1 else norm.dtype
    )
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"norm\.bias has values that are no numbers, or whole"):
        import_encoder(tmp_path / "a.pth", tmp_path / "out.safetensors", "mae", num_heads=3)


def test_links_that_lead_nowhere_or_in_a_circle_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "good.jpg").touch()
    for name in ("x.jpg", "folder", "v1.2"):
        (folder / name).symlink_to("nowhere")
        with pytest.raises(UserError, match=f"{name} is a link to nothing"):
            list(image_folder.images(tmp_path))
        (folder / name).unlink()
    (folder / "up").symlink_to(tmp_path)
    with pytest.raises(UserError, match="up is a link to a folder that it lies in"):
        list(image_folder.images(tmp_path))


def test_two_folders_that_link_into_each_other_are_named(tmp_path: Path) -> None:
    """Each way around gave the same images again, up to the system's 40 links."""
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").touch()
        (tmp_path / name / "other").symlink_to(tmp_path / other)
    with pytest.raises(UserError, match="a/other/other is a link to a folder that it lies in"):
        list(image_folder.images(tmp_path / "a"))


def png_of_16_bits() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + sum_

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes([0, 200]) * 12 for _ in range(4)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_a_colour_image_of_16_bits_a_channel_is_refused_not_blackened() -> None:
    assert "choose a range" in str(inspect(png_of_16_bits())[1])


def tiff_of_16_bits() -> bytes:
    """One of colours, made of one of 8 bits by its header; Pillow writes none."""
    tags = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 150), (262, 3, 1, 2), (273, 4, 1, 160)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 24)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    head += b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0)
    return head.ljust(150, b"\0") + struct.pack("<HHH", 16, 16, 16).ljust(10, b"\0") + bytes(24)


def test_a_tiff_of_16_bits_a_channel_is_refused_not_darkened() -> None:
    assert "choose a range" in str(inspect(tiff_of_16_bits())[1])
    for mode in ("RGB", "LAB", "L", "1", "CMYK", "P", "RGBA"):
        file = io.BytesIO()
        Image.new(mode, (4, 4)).save(file, "tiff")
        assert inspect(file.getvalue()) == ("tif", None), mode


@pytest.mark.parametrize(
    "name",
    [
        *("x.heic", "x.AVIF", "x.jp2", "x.apng", "x.pcx", "x.dib", "x.jpx", "x.jpf", "x.sgi"),
        *("x.dds", "x.ico", "x.hif", "x.pfm", "x.npy"),
    ],
)
def test_an_image_of_a_format_that_is_not_taken_is_named_not_left_out(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=rf"{name}: .* is no format for shards: convert it"):
        list(image_folder.images(tmp_path))


def test_a_recipe_whose_optim_is_no_mapping_is_refused_at_the_door() -> None:
    item = {"name": "knn"}
    config = {
        **{"name": "a", "dataset": "cifar10", "seeds": [0], "evaluations": [item]},
        "runs": [{"name": "r", "method": "mae", "recipe": {"optim": None}}],
        "tables": [{"name": "t", "title": "T", "evaluations": ["knn"]}],
    }
    with pytest.raises(UserError, match=r"runs\.r\.recipe\.optim: None must be keys"):
        read_benchmark(config)
