"""Random scenes by the rules of CLEVR, and their description in its JSON.

Scenes are drawn by the rules of CLEVR (Johnson et al., "CLEVR: A Diagnostic Dataset for
Compositional Language and Elementary Visual Reasoning", CVPR 2017) and written in its folders and
its JSON, so that one reader serves both. The camera stands where the original's stands, and depths
have the same unit, so that labels made from depths mean the same.

The pictures come from a small ray tracer instead of Blender. They differ in this: edges of cubes
and cylinders are sharp; metal is a perfect mirror of one bounce; indirect light is a constant; the
floor is an endless plane; brightness is encoded by a square root instead of the sRGB curve. Shadows
are soft, as in Blender.

Image i of a split depends on the seed, the split, i and the size alone; the bytes of its PNG file
also on Pillow's version of zlib.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ijepa.data.clevr.format import MAX_OBJECTS, MIN_OBJECTS, OFFICIAL_SPLITS
from ijepa.data.clevr.geometry import (
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
    unit,
    visible_pixels,
)
from ijepa.errors import UserError

SIZES = {"large": 0.7, "small": 0.35}
EXTENT = 3.0
"""Centres lie in a square of the ground from -EXTENT to EXTENT."""
MIN_GAP = 0.25
"""Smallest gap between two objects, in scene units."""
MIN_MARGIN = 0.4
"""Smallest distance of two objects' centres along left-right and along front-behind."""
MIN_VISIBLE = 200 / 320**2
"""Smallest visible part of an object, in squares on the image's longer side: 200 of 320 x 240."""
RETRIES = 50
"""Places tried for an object before its scene is started again."""
MAX_STARTS = 5000
"""Starts of a scene: ten objects take 22 on average. Only strange image sizes take thousands."""
VISIBILITY_PIXELS = 160
"""Longer side of the grid on which visible pixels are counted, whatever the image's size."""

CAMERA = (7.481, -6.508, 5.344)
CAMERA_JITTER = 0.5
LIGHT_JITTER = 1.0
LIGHTS = np.array([(6.447, -2.905, 4.258), (-4.671, -4.014, 3.011), (-1.169, 2.646, 5.816)])
"""Key, fill and back light."""


class Scene(NamedTuple):
    """Objects, camera and lights of a picture; ``lights`` are their places, ``[3, 3]``."""

    objects: Objects
    camera: Camera
    lights: Floats


@compiled
def fill(places: Floats, candidates: Floats, radii: Floats, right: Vector, behind: Vector) -> bool:
    """Fill ``places``, ``[n, 2]``: for each object the first candidate that keeps its distances.

    ``candidates`` are ``[n, RETRIES, 2]``; ``right`` and ``behind`` are the camera's directions on
    the ground. Returns True if there is a place for each object.
    """
    for number in range(len(radii)):
        fits = False
        for attempt in range(RETRIES):
            x, y = candidates[number, attempt, 0], candidates[number, attempt, 1]
            fits = True
            for other in range(number):
                offset = (x - places[other, 0], y - places[other, 1], 0.0)
                gap = math.sqrt(dot(offset, offset)) - radii[number] - radii[other]
                margin = min(abs(dot(offset, right)), abs(dot(offset, behind)))
                if gap < MIN_GAP or margin < MIN_MARGIN:
                    fits = False
                    break
            if fits:
                places[number, 0], places[number, 1] = x, y
                break
        if not fits:
            return False
    return True


def sample_scene(seed: int, split: str, number: int, width: int, height: int) -> Scene:
    """Scene ``number`` of a split. Of the image's size only the aspect ratio matters.

    A scene with an object that finds no place, or that others hide, is drawn again with the same
    number of objects. Raises UserError after MAX_STARTS, as for images of an extreme shape.
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
    """Camera near the original's place that looks at the middle of the ground."""
    x, y, z = rng.uniform(-CAMERA_JITTER, CAMERA_JITTER, 3)
    position = (CAMERA[0] + float(x), CAMERA[1] + float(y), CAMERA[2] + float(z))
    forward = unit((-position[0], -position[1], -position[2]))
    right = unit(cross(forward, (0.0, 0.0, 1.0)))
    return Camera(position, right, cross(right, forward), forward)


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
    if not fill(places, candidates, footprint, camera.right, behind(camera)):
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
    """Direction away from the camera, along the ground."""
    return unit((camera.forward[0], camera.forward[1], 0.0))


def pixel_coords(camera: Camera, point: Vector, width: int, height: int) -> list[float]:
    """Column, row (whole pixels) and depth of a point: scene units along the camera's axis."""
    offset = along(point, camera.place, -1.0)
    depth = dot(offset, camera.forward)
    scale = FOCAL_LENGTH * max(width, height) / depth
    return [
        round(width / 2 + scale * dot(offset, camera.right)),
        round(height / 2 - scale * dot(offset, camera.up)),
        depth,
    ]


def describe(scene: Scene, split: str, number: int, width: int, height: int) -> dict[str, Any]:
    """Item of CLEVR's scenes files for a scene."""
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
    """Numbers of the objects that lie in a direction from each object, by 0.2 or more."""
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
