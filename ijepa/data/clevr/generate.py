"""CLEVR-like images and scenes files, rendered here in CLEVR's folders."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from tqdm import tqdm

from ijepa.cores import usable_cores
from ijepa.data.clevr.format import FOLDER, OFFICIAL_SPLITS, image_folder, labels, scenes_file
from ijepa.data.clevr.raytracer import render
from ijepa.data.clevr.scenes import describe, sample_scene
from ijepa.errors import UserError
from ijepa.files import to_json, write_text, written_whole


@dataclass(frozen=True)
class Settings:
    """Number of images of each split, their width and height in pixels, and the seed."""

    seed: Annotated[int, Field(ge=0)] = 0
    width: Annotated[int, Field(ge=8)] = 96
    height: Annotated[int, Field(ge=8)] = 64
    train: Annotated[int, Field(ge=1)] = 4000
    test: Annotated[int, Field(ge=1)] = 2000


def generate(settings: Settings, raw: Path, workers: int | None = None) -> None:
    """Write both splits into ``raw/CLEVR_v1.0``, with as many threads as there are cores.

    Existing images are kept, so an interrupted call may be repeated; the scenes file of a split is
    written last. Raises UserError if the folder holds images of other settings.
    """
    stamp = raw / FOLDER / "generated.json"
    text = to_json(asdict(settings))
    # The stamp is written before the first image: images without it have other settings.
    if (raw / FOLDER / "images").exists() and not (stamp.exists() and stamp.read_text() == text):
        raise UserError(
            f"{raw / FOLDER} holds other images than {settings} gives: move it away, or choose "
            "another folder"
        )
    write_text(stamp, text)
    for split, count in (("train", settings.train), ("test", settings.test)):
        folder = image_folder(raw, split)
        folder.mkdir(parents=True, exist_ok=True)
        finished = scenes_file(raw, split).exists()
        if not (finished and len(list(folder.glob("*.png"))) == count):
            _write_split(settings, raw, split, count, workers)


def _write_split(
    settings: Settings, raw: Path, split: str, count: int, workers: int | None
) -> None:
    def make(number: int) -> str:
        size = settings.width, settings.height
        scene = sample_scene(settings.seed, split, number, *size)
        description = describe(scene, split, number, *size)
        path = image_folder(raw, split) / description["image_filename"]
        if not path.exists():
            part = path.with_suffix(".part")
            Image.fromarray(render(*scene, *size)).save(part, "png")
            part.replace(path)
        return json.dumps(description)

    info = {"split": OFFICIAL_SPLITS[split], "generator": asdict(settings)}
    with (
        ThreadPoolExecutor(workers or usable_cores()) as pool,
        written_whole(scenes_file(raw, split)) as part,
        part.open("w", encoding="utf-8") as file,
    ):
        file.write(f'{{"info": {json.dumps(info)},\n"scenes": [')
        texts = tqdm(pool.map(make, range(count)), split, count, unit="image", mininterval=1)
        for number, text in enumerate(texts):
            file.write(f"{',' if number else ''}\n{text}")
        file.write("\n]}\n")


def contact_sheet(settings: Settings, count: int = 48, columns: int = 8) -> Image.Image:
    """Picture of the first training images, each with its two labels below."""
    rows = -(-count // columns)
    cell = settings.width + 4, settings.height + 16
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, scene) in enumerate(_pictures(settings, count)):
        left, top = number % columns * cell[0], number // columns * cell[1]
        sheet.paste(picture, (left, top))
        caption = ", ".join(f"{name} {label}" for name, label in labels(scene).items())
        draw.text((left, top + settings.height), caption, "black", ImageFont.load_default(10))
    return sheet


def _pictures(settings: Settings, count: int) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    size = settings.width, settings.height
    for number in range(count):
        scene = sample_scene(settings.seed, "train", number, *size)
        yield Image.fromarray(render(*scene, *size)), describe(scene, "train", number, *size)
