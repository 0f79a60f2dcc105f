"""CLEVR-like scenes, rendered here: ``python -m ijepa.data.clevr OUT --train 4000 --test 2000``.

Scenes are drawn by the rules of CLEVR (Johnson et al., "CLEVR: A Diagnostic Dataset for
Compositional Language and Elementary Visual Reasoning", CVPR 2017) and written in its folders and
its JSON, so that one reader serves both. The camera stands where the original's stands, and depths
have the same unit, so that labels made from depths mean the same.

The pictures come from a small ray tracer instead of Blender. What differs: edges of cubes and
cylinders are sharp; metal is a perfect mirror of one bounce; light that reaches a surface by way of
others is a constant; the floor is an endless plane; brightness is encoded by a square root instead
of the sRGB curve. Shadows are soft, as there.

Image i of a split depends on the seed, the split, i and the size alone; the bytes of its PNG file
also on Pillow's version of zlib.
"""

import argparse
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from tqdm import tqdm

from ijepa.data.raytracer import (
    COLOURS,
    FOCAL_LENGTH,
    MATERIALS,
    OBJECT,
    SHAPES,
    Camera,
    Floats,
    Objects,
    Vector,
    along,
    compiled,
    cross,
    dot,
    render,
    unit,
    visible_pixels,
)
from ijepa.data.sources.clevr import (
    FOLDER,
    MAX_OBJECTS,
    MIN_OBJECTS,
    OFFICIAL_SPLITS,
    image_folder,
    labels,
    scenes_file,
)
from ijepa.errors import UserError, run_command
from ijepa.files import to_json, write_text, written_whole
from ijepa.strict import strict

SIZES = {"large": 0.7, "small": 0.35}
EXTENT = 3.0
"""Centres lie in a square of the ground from -EXTENT to EXTENT."""
MIN_GAP = 0.25
"""Between two objects, in scene units."""
MIN_MARGIN = 0.4
"""Between the centres of two objects along left-right and along front-behind."""
MIN_VISIBLE = 200 / 320**2
"""Visible part of an object, in squares on the image's longer side: 200 pixels of 320 x 240."""
RETRIES = 50
"""Places tried for an object before its scene is started anew."""
MAX_STARTS = 5000
"""Starts of a scene: ten objects take 22 on average. Only strange image sizes take thousands."""
VISIBILITY_PIXELS = 160
"""Longer side of the grid on which visible pixels are counted, whatever the image's size."""

CAMERA = (7.481, -6.508, 5.344)
CAMERA_JITTER = 0.5
LIGHT_JITTER = 1.0
LIGHTS = np.array([(6.447, -2.905, 4.258), (-4.671, -4.014, 3.011), (-1.169, 2.646, 5.816)])
"""Key, fill and back light."""


@dataclass(frozen=True)
class Settings:
    """What is generated: images of each split, their width and height in pixels, and a seed."""

    seed: Annotated[int, Field(ge=0)] = 0
    width: Annotated[int, Field(ge=8)] = 96
    height: Annotated[int, Field(ge=8)] = 64
    train: Annotated[int, Field(ge=1)] = 4000
    test: Annotated[int, Field(ge=1)] = 2000


class Scene(NamedTuple):
    """All that a picture shows; ``lights`` are places, ``[3, 3]``."""

    objects: Objects
    camera: Camera
    lights: Floats


@compiled
def place(places: Floats, candidates: Floats, radii: Floats, right: Vector, behind: Vector) -> bool:
    """Fill ``places``, ``[n, 2]``: for each object the first candidate that keeps its distances.

    ``candidates`` are ``[n, RETRIES, 2]``; ``right`` and ``behind`` the camera's, on the ground.
    Returns whether there is a place for each object.
    """
    for number in range(len(radii)):
        found = False
        for attempt in range(RETRIES):
            x, y = candidates[number, attempt, 0], candidates[number, attempt, 1]
            found = True
            for other in range(number):
                apart = (x - places[other, 0], y - places[other, 1], 0.0)
                gap = math.sqrt(dot(apart, apart)) - radii[number] - radii[other]
                margin = min(abs(dot(apart, right)), abs(dot(apart, behind)))
                if gap < MIN_GAP or margin < MIN_MARGIN:
                    found = False
                    break
            if found:
                places[number, 0], places[number, 1] = x, y
                break
        if not found:
            return False
    return True


def sample_scene(seed: int, split: str, number: int, width: int, height: int) -> Scene:
    """Scene ``number`` of a split. Of the image's size only the aspect ratio matters.

    A scene with an object that finds no place, or that others hide, is drawn anew with the same
    number of objects. Raises UserError if that never ends, as in images of an extreme shape.
    """
    rng = np.random.default_rng((seed, list(OFFICIAL_SPLITS).index(split), number))
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    scale = VISIBILITY_PIXELS / max(width, height)
    grid = round(scale * width), round(scale * height)
    for _ in range(MAX_STARTS):
        camera = sample_camera(rng)
        lights = LIGHTS + rng.uniform(-LIGHT_JITTER, LIGHT_JITTER, LIGHTS.shape)
        objects = sample_objects(rng, count, camera)
        if objects is None:
            continue
        if visible_pixels(objects, camera, *grid).min() >= MIN_VISIBLE * VISIBILITY_PIXELS**2:
            return Scene(objects, camera, lights)
    raise UserError(
        f"no scene of {count} visible objects in {MAX_STARTS} attempts at {width} x {height} "
        "pixels: choose a shape closer to 3:2"
    )


def sample_camera(rng: np.random.Generator) -> Camera:
    """A camera near the original's place that looks at the middle of the ground."""
    x, y, z = rng.uniform(-CAMERA_JITTER, CAMERA_JITTER, 3)
    place = (CAMERA[0] + float(x), CAMERA[1] + float(y), CAMERA[2] + float(z))
    forward = unit((-place[0], -place[1], -place[2]))
    right = unit(cross(forward, (0.0, 0.0, 1.0)))
    return Camera(place, right, cross(right, forward), forward)


def sample_objects(rng: np.random.Generator, count: int, camera: Camera) -> Objects | None:
    """Objects of independent kinds and places; None if one of them found no place."""
    shape = rng.integers(len(SHAPES), size=count)
    size = rng.integers(len(SIZES), size=count)
    material = rng.integers(len(MATERIALS), size=count)
    colour = rng.integers(len(COLOURS), size=count)
    degrees = rng.uniform(0, 360, count)
    candidates = rng.uniform(-EXTENT, EXTENT, (count, RETRIES, 2))
    footprint = np.array(list(SIZES.values()))[size]
    places = np.zeros((count, 2))
    if not place(places, candidates, footprint, camera.right, behind(camera)):
        return None
    objects = np.zeros(count, OBJECT)
    objects["shape"], objects["size"] = shape, size
    objects["material"], objects["colour"] = material, colour
    objects["x"], objects["y"], objects["degrees"] = *places.T, degrees
    # A cube's corners, not its sides, stand as far out as a cylinder does.
    objects["radius"] = footprint * np.array([1 / math.sqrt(2), 1, 1])[shape]
    objects["z"] = objects["radius"]
    objects["reach"] = objects["radius"] * np.sqrt([3, 1, 2])[shape]
    turn = np.radians(degrees)
    objects["cos"], objects["sin"] = np.cos(turn), np.sin(turn)
    return objects


def behind(camera: Camera) -> Vector:
    """The direction away from the camera, along the ground."""
    return unit((camera.forward[0], camera.forward[1], 0.0))


def pixel_coords(camera: Camera, point: Vector, width: int, height: int) -> list[float]:
    """Column, row (whole pixels) and depth of a point: scene units along the camera's axis."""
    apart = along(point, camera.place, -1.0)
    depth = dot(apart, camera.forward)
    scale = FOCAL_LENGTH * max(width, height) / depth
    return [
        round(width / 2 + scale * dot(apart, camera.right)),
        round(height / 2 - scale * dot(apart, camera.up)),
        depth,
    ]


def describe(scene: Scene, split: str, number: int, width: int, height: int) -> dict[str, Any]:
    """A scene as an item of CLEVR's scenes files."""
    objects, camera, _ = scene
    right, away = camera.right, behind(camera)
    directions = {
        "right": right,
        "left": (-right[0], -right[1], 0.0),
        "behind": away,
        "front": (-away[0], -away[1], 0.0),
        "above": (0.0, 0.0, 1.0),
        "below": (0.0, 0.0, -1.0),
    }
    centres = [(float(thing["x"]), float(thing["y"]), float(thing["z"])) for thing in objects]
    return {
        "split": OFFICIAL_SPLITS[split],
        "image_index": number,
        "image_filename": f"CLEVR_{OFFICIAL_SPLITS[split]}_{number:06d}.png",
        "objects": [
            {
                "shape": SHAPES[thing["shape"]],
                "size": list(SIZES)[thing["size"]],
                "material": MATERIALS[thing["material"]],
                "color": list(COLOURS)[thing["colour"]],
                "rotation": float(thing["degrees"]),
                "3d_coords": centre,
                "pixel_coords": pixel_coords(camera, centre, width, height),
            }
            for thing, centre in zip(objects, centres, strict=True)
        ],
        "directions": directions,
        "relationships": {
            name: relationships(centres, directions[name])
            for name in ("right", "left", "behind", "front")
        },
    }


def relationships(centres: list[Vector], direction: Vector) -> list[list[int]]:
    """For each object, the numbers of those that lie in a direction from it, by 0.2 or more."""
    # Plain sums: a call of a compiled function takes longer than they do.
    a, b, c = direction
    return [
        [
            j
            for j, other in enumerate(centres)
            if (other[0] - x) * a + (other[1] - y) * b + (other[2] - z) * c > 0.2
        ]
        for x, y, z in centres
    ]


def generate(settings: Settings, raw: Path, workers: int | None = None) -> None:
    """Write both splits into ``raw/CLEVR_v1.0``, with as many threads as there are cores.

    Images that are there are kept, so an interrupted call may be repeated; the scenes file of a
    split is written last. Raises UserError if the folder holds what other settings gave.
    """
    stamp = raw / FOLDER / "generated.json"
    text = to_json(asdict(settings))
    # The stamp is there before the first image.
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
        described = describe(scene, split, number, *size)
        path = image_folder(raw, split) / described["image_filename"]
        if not path.exists():
            part = path.with_suffix(".part")
            Image.fromarray(render(*scene, *size)).save(part, "png")
            part.replace(path)
        return json.dumps(described)

    info = {"split": OFFICIAL_SPLITS[split], "generator": asdict(settings)}
    with (
        ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool,
        written_whole(scenes_file(raw, split)) as part,
        part.open("w", encoding="utf-8") as file,
    ):
        file.write(f'{{"info": {json.dumps(info)},\n"scenes": [')
        texts = tqdm(pool.map(make, range(count)), split, count, unit="image", mininterval=1)
        for number, text in enumerate(texts):
            file.write(f"{',' if number else ''}\n{text}")
        file.write("\n]}\n")


def contact_sheet(settings: Settings, count: int = 48, columns: int = 8) -> Image.Image:
    """The first training images, each with its two labels below."""
    rows = -(-count // columns)
    cell = settings.width + 4, settings.height + 16
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, scene) in enumerate(_pictures(settings, count)):
        left, top = number % columns * cell[0], number // columns * cell[1]
        sheet.paste(picture, (left, top))
        told = ", ".join(f"{name} {label}" for name, label in labels(scene).items())
        draw.text((left, top + settings.height), told, "black", ImageFont.load_default(10))
    return sheet


def _pictures(settings: Settings, count: int) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    size = settings.width, settings.height
    for number in range(count):
        scene = sample_scene(settings.seed, "train", number, *size)
        yield Image.fromarray(render(*scene, *size)), describe(scene, "train", number, *size)


def main() -> None:
    """Entry point of the command line."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m ijepa.data.clevr",
        description="Generate CLEVR-like images; the same command continues an interrupted one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help=f"{FOLDER} is written in this folder")
    parser.add_argument("--train", type=int, default=defaults.train, help="training images")
    parser.add_argument("--test", type=int, default=defaults.test, help="test images")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="0 or more")
    parser.add_argument("--width", type=int, default=defaults.width, help="in pixels")
    parser.add_argument("--height", type=int, default=defaults.height, help="in pixels")
    parser.add_argument("--sheet", type=Path, help="also write the first 48 images as one PNG file")
    options = vars(parser.parse_args())
    out, sheet = options.pop("out"), options.pop("sheet")
    settings = strict(Settings, options, "command line")
    generate(settings, out)
    if sheet:
        contact_sheet(settings).save(sheet, "png")


if __name__ == "__main__":
    run_command(main)
