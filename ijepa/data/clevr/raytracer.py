"""Ray tracer for CLEVR's objects on a grey floor: light and shadow; compiled by numba.

The code uses IEEE 754's exact operations alone, as ijepa.data.clevr.geometry does: the same scene
gives the same pixels on every processor.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ijepa.data.clevr.geometry import (
    COLOURS,
    FLOOR,
    METAL,
    Camera,
    Floats,
    Objects,
    Vector,
    along,
    compiled,
    distance_to,
    dot,
    foremost,
    from_centre,
    inlined,
    nearest,
    normal_at,
    ray_through,
    row,
    times,
    to_floor,
    unit,
)

LIGHT_SIZES = np.array([0.5, 0.5, 1.0])
"""Edges of the squares that shine: key, fill and back light, as in CLEVR."""
LIGHT_COLOURS = np.array(
    [
        (78.5 * 1.00, 78.5 * 0.93, 78.5 * 0.82),
        (23.6 * 0.76, 23.6 * 0.82, 23.6 * 1.00),
        (39.3 * 1.00, 39.3 * 1.00, 39.3 * 1.00),
    ]
)
"""Linear red, green and blue of each light, in CLEVR's proportions."""
PALETTE = np.array(list(COLOURS.values())) / 255
# The following values were set by eye.
FLOOR_COLOUR = (0.5, 0.5, 0.5)
SKY = (0.2, 0.2, 0.2)
AMBIENT = (0.22, 0.22, 0.22)
EXPOSURE = 0.38
MIRROR = 0.75
"""Part of the light that metal reflects as a mirror; the rest it scatters."""
LIFT = 1e-6
"""Distance above a surface at which new rays start, so that they do not meet it again."""
NEARBY = 0.4
"""Points this close share one search for objects that may shade them. No picture depends on it."""
BITS = 20
"""Bits for each light in the result of ``shaders``: the most objects that a scene may have."""


@compiled
def shaders(objects: Objects, lights: Floats, point: Vector, room: float) -> int:
    """Objects that may hide a part of a light from places closer to a point than ``room``.

    Bit ``BITS * i + j`` of the result stands for light i and object j. An object is left out if the
    ball around it lies outside a cone: from the point to the whole light, wider by ``room``.
    """
    bits = 0
    for light in range(len(lights)):
        to_light = along(row(lights, light), point, -1.0)
        shorten = 1 / math.sqrt(dot(to_light, to_light))
        spread = 0.75 * LIGHT_SIZES[light] * shorten  # more than half the diagonal
        for number in range(len(objects)):
            thing = objects[number]
            o = from_centre(thing, point)
            ahead = -shorten * dot(o, to_light)
            aside_squared = dot(o, o) - ahead * ahead
            radius = thing.reach + room + 2 * LIFT  # more than any rounding
            side = radius + ahead * spread
            inside = ahead > -radius and aside_squared * (1 - spread * spread) < side * side
            if inside or spread >= 1:
                bits |= 1 << (BITS * light + number)
    return bits


@inlined
def unshadowed(
    objects: Objects,
    candidates: int,
    point: Vector,
    light: Vector,
    edge: float,
    column: int,
    line: int,
) -> float:
    """Part of a square light that is seen from a point, sampled at four of 4 x 4 places on it.

    The four samples of a pixel have different columns and lines (0 or 1): together, all 16 places.
    Only objects whose bits are set in the lowest ``BITS`` of ``candidates`` count.
    """
    candidates &= (1 << BITS) - 1
    if candidates == 0:
        return 1.0
    visible = 0.0
    for i in range(2):
        for j in range(2):
            x = light[0] + edge * ((column + 2 * i + 0.5) / 4 - 0.5)
            y = light[1] + edge * ((line + 2 * j + 0.5) / 4 - 0.5)
            to_light = along((x, y, light[2]), point, -1.0)
            blocked = False
            for number in range(len(objects)):
                if candidates >> number & 1 and distance_to(objects[number], point, to_light) < 1:
                    blocked = True
                    break
            if not blocked:
                visible += 0.25
    return visible


@compiled
def surface(objects: Objects, number: int, point: Vector) -> tuple[Vector, Vector, int]:
    """Colour, normal and material of an object at a point of it; number -1 is the floor."""
    if number < 0:
        return FLOOR_COLOUR, (0.0, 0.0, 1.0), FLOOR
    thing = objects[number]
    return row(PALETTE, thing.colour), normal_at(thing, point), thing.material


@compiled
def gloss(cosine: float, material: int) -> float:
    """Shine by the cosine of mirrored view and light: small and bright on metal, else dull."""
    if material == FLOOR or cosine <= 0:
        return 0.0
    power = cosine
    for _ in range(6 if material == METAL else 4):  # to the 64th or 16th power
        power *= power
    return 1.5 * power if material == METAL else 0.12 * power


@inlined
def direct_light(
    objects: Objects,
    lights: Floats,
    candidates: int,
    point: Vector,
    normal: Vector,
    mirrored: Vector,
    material: int,
    column: int,
    line: int,
) -> tuple[Vector, Vector]:
    """Light that a surface point gets from the lights it sees, and its shine towards the viewer."""
    matt, shine = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    for number in range(len(lights)):
        light = row(lights, number)
        to_light = along(light, point, -1.0)
        direction = unit(to_light)
        cosine = dot(normal, direction)
        if cosine > 0:
            seen = unshadowed(
                objects,
                candidates >> BITS * number,
                point,
                light,
                LIGHT_SIZES[number],
                column,
                line,
            )
            power = EXPOSURE * seen / dot(to_light, to_light)
            colour = row(LIGHT_COLOURS, number)
            matt = along(matt, colour, power * cosine)
            shine = along(shine, colour, power * gloss(dot(mirrored, direction), material))
    return matt, shine


@inlined
def brightness(
    objects: Objects,
    lights: Floats,
    candidates: int,
    origin: Vector,
    ray: Vector,
    number: int,
    distance: float,
    column: int,
    line: int,
) -> Vector:
    """Linear red, green and blue that come from a ray's direction, after one bounce at most.

    ``number`` and ``distance`` are the result of ``nearest`` for the ray, ``candidates`` that of
    ``shaders`` for a point near there.
    """
    total, weight = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for bounce in range(2):
        if distance == math.inf:
            return along(total, times(weight, SKY), 1.0)
        point = along(origin, ray, distance)
        colour, normal, material = surface(objects, number, point)
        point = along(point, normal, LIFT)
        mirrored = along(ray, normal, -2 * dot(ray, normal))
        matt, shine = direct_light(
            objects, lights, candidates, point, normal, mirrored, material, column, line
        )
        mirror = MIRROR if material == METAL and bounce == 0 else 0.0
        light = along(shine, times(colour, along(matt, AMBIENT, 1.0)), 1 - mirror)
        total = along(total, times(weight, light), 1.0)
        if mirror == 0:
            break
        weight = along((0.0, 0.0, 0.0), colour, mirror)
        origin, ray = point, mirrored
        number, distance = nearest(objects, origin, ray)
        candidates = shaders(objects, lights, along(origin, ray, distance), 0.0)
    return total


def render(
    objects: Objects, camera: Camera, lights: Floats, width: int, height: int
) -> NDArray[np.uint8]:
    """Picture, ``[height, width, 3]``; each pixel is the mean of 2 x 2 rays."""
    picture = np.zeros((height, width, 3), np.uint8)
    # Each ray goes through the middle of a pixel of a picture of twice the size.
    paint(objects, camera, lights, *foremost(objects, camera, 2 * width, 2 * height), picture)
    return picture


@compiled
def paint(
    objects: Objects,
    camera: Camera,
    lights: Floats,
    numbers: NDArray[np.int64],
    distances: Floats,
    picture: NDArray[np.uint8],
) -> None:
    """Fill ``picture`` for ``render``; ``numbers`` and ``distances`` are ``foremost``'s."""
    height, width, _ = picture.shape
    middle, candidates = (math.inf, math.inf, math.inf), 0
    for y in range(height):
        for x in range(width):
            total = (0.0, 0.0, 0.0)
            for line in range(2):
                for column in range(2):
                    i, j = 2 * y + line, 2 * x + column
                    ray = ray_through(camera, j + 0.5, i + 0.5, 2 * width, 2 * height)
                    number, distance = numbers[i, j], distances[i, j]
                    if number < 0:
                        distance = to_floor(camera.place, ray)
                    point = along(camera.place, ray, distance)
                    offset = along(point, middle, -1.0)
                    if not dot(offset, offset) < NEARBY * NEARBY:
                        middle = point
                        candidates = shaders(objects, lights, middle, NEARBY)
                    light = brightness(
                        objects,
                        lights,
                        candidates,
                        camera.place,
                        ray,
                        number,
                        distance,
                        column,
                        line,
                    )
                    light = (min(light[0], 1.0), min(light[1], 1.0), min(light[2], 1.0))
                    total = along(total, light, 0.25)
            for channel in range(3):
                picture[y, x, channel] = int(255 * math.sqrt(total[channel]) + 0.5)
