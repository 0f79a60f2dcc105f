"""Geometry of the ray tracer: objects, camera, and where rays meet objects; compiled by numba.

The code only adds, multiplies, divides and takes square roots, all of which IEEE 754 defines to the
last bit, and uses no fast-math: the same scene gives the same pixels on every processor.

This is a module of its own and never run as a program, because numba does not find cached code
again if it was compiled for a class of ``__main__``. The cached code of another module does not
notice a change of this one: after an edit here, delete ``__pycache__`` in this folder.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

SHAPES = ("cube", "sphere", "cylinder")
CUBE, SPHERE, CYLINDER = range(3)
MATERIALS = ("rubber", "metal")
FLOOR, RUBBER, METAL = -1, 0, 1
COLOURS = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}

FOCAL_LENGTH = 35 / 32
"""Focal length in lengths of the image's longer side; the angle of view is 49.1 degrees."""

Floats = NDArray[np.float64]
Objects = NDArray[np.void]
"""Records of OBJECT, ``[n]``."""
Vector = tuple[float, float, float]
Function = TypeVar("Function", bound=Callable[..., Any])

OBJECT = np.dtype(
    [
        # Numbers of SHAPES, SIZES, MATERIALS and COLOURS.
        *((name, np.int64) for name in ("shape", "size", "material", "colour")),
        # The centre; a radius that is half the edge of cubes and half the height of all; the ball
        # around the centre that holds the whole object.
        *((name, np.float64) for name in ("x", "y", "z", "radius", "reach")),
        # Rotation about the vertical axis, its cosine and sine.
        *((name, np.float64) for name in ("degrees", "cos", "sin")),
    ]
)
"""An object of a scene as a record, which compiled functions can read."""


class Camera(NamedTuple):
    """Place and three axes of length 1."""

    place: Vector
    right: Vector
    up: Vector
    forward: Vector


def compiled(function: Function) -> Function:
    """Machine code of a function, kept on disk between processes.

    It runs beside Python's other threads. Division by 0 gives infinity, as rays along an axis need.
    """
    return _machine_code(function, inline=False)


def inlined(function: Function) -> Function:
    """Machine code as of ``compiled``, copied into each compiled function that calls it.

    That saves the calls' overhead and costs time to compile: use it for long functions with one
    caller.
    """
    return _machine_code(function, inline=True)


def _machine_code(function: Function, inline: bool) -> Function:
    options: Any = {"nogil": True, "error_model": "numpy", "forceinline": inline}
    machine_code: Function
    try:
        machine_code = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's own can be written: no cache
        machine_code = numba.njit(**options)(function)
    return machine_code


# --- Vectors and rays ---


@compiled
def dot(a: Vector, b: Vector) -> float:
    """Scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled
def cross(a: Vector, b: Vector) -> Vector:
    """Vector product."""
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


@compiled
def along(origin: Vector, direction: Vector, distance: float) -> Vector:
    """Point on a ray at a distance, counted in lengths of ``direction``."""
    return (
        origin[0] + distance * direction[0],
        origin[1] + distance * direction[1],
        origin[2] + distance * direction[2],
    )


@compiled
def times(a: Vector, b: Vector) -> Vector:
    """Product component by component, as of a light and a colour."""
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


@compiled
def unit(a: Vector) -> Vector:
    """Vector scaled to length 1."""
    scale = 1 / math.sqrt(dot(a, a))
    return (scale * a[0], scale * a[1], scale * a[2])


@compiled
def row(array: Floats, number: int) -> Vector:
    """One row of an ``[n, 3]`` array."""
    return (array[number, 0], array[number, 1], array[number, 2])


@compiled
def ray_through(camera: Camera, x: float, y: float, width: int, height: int) -> Vector:
    """Direction from the camera through a point of the image; ``y`` counts pixels downwards."""
    scale = 1 / (FOCAL_LENGTH * max(width, height))
    ray = along(camera.forward, camera.right, (x - width / 2) * scale)
    return unit(along(ray, camera.up, (height / 2 - y) * scale))


# --- Intersections of rays and objects ---


@compiled
def from_centre(thing: Any, point: Vector) -> Vector:
    """Vector from an object's centre to a point."""
    return (point[0] - thing.x, point[1] - thing.y, point[2] - thing.z)


@compiled
def to_local(thing: Any, vector: Vector) -> Vector:
    """Vector in the axes of a turned object."""
    return (
        thing.cos * vector[0] + thing.sin * vector[1],
        thing.cos * vector[1] - thing.sin * vector[0],
        vector[2],
    )


@compiled
def to_world(thing: Any, vector: Vector) -> Vector:
    """Vector in the axes of the scene: the inverse of ``to_local``."""
    return (
        thing.cos * vector[0] - thing.sin * vector[1],
        thing.sin * vector[0] + thing.cos * vector[1],
        vector[2],
    )


@compiled
def within_slab(origin: float, direction: float, half: float) -> tuple[float, float]:
    """Stretch of a ray on which one coordinate lies between -half and half."""
    a, b = (-half - origin) / direction, (half - origin) / direction
    return min(a, b), max(a, b)


@compiled
def within_ball(o: Vector, d: Vector, radius: float) -> tuple[float, float]:
    """Stretch of a ray from o along d that is closer to 0 than a radius; empty if none is."""
    od, dd = dot(o, d), dot(d, d)
    discriminant = od * od - dd * (dot(o, o) - radius * radius)
    if discriminant < 0:
        return math.inf, -math.inf
    root = math.sqrt(discriminant)
    return (-od - root) / dd, (-od + root) / dd


@compiled
def distance_to(thing: Any, origin: Vector, direction: Vector) -> float:
    """Distance at which a ray from outside enters an object; infinite if it never does.

    Each shape is an intersection, of a ball, of a column and a slab, or of three slabs: the ray is
    inside where its stretches in all of them overlap.
    """
    o = from_centre(thing, origin)
    enter, leave = within_ball(o, direction, thing.reach)
    if enter < leave and thing.shape != SPHERE:
        o, d = to_local(thing, o), to_local(thing, direction)
        enter, leave = within_slab(o[2], d[2], thing.radius)
        if thing.shape == CYLINDER:
            a, b = within_ball((o[0], o[1], 0.0), (d[0], d[1], 0.0), thing.radius)
            enter, leave = max(enter, a), min(leave, b)
        else:
            for axis in range(2):
                a, b = within_slab(o[axis], d[axis], thing.radius)
                enter, leave = max(enter, a), min(leave, b)
    return enter if 0 < enter < leave else math.inf


@compiled
def nearest(objects: Objects, origin: Vector, direction: Vector) -> tuple[int, float]:
    """Number of the object that a ray meets first, and its distance; -1 if it meets none.

    The distance is then the floor's, or infinite.
    """
    number, distance = -1, math.inf
    for other in range(len(objects)):
        d = distance_to(objects[other], origin, direction)
        if d < distance:
            number, distance = other, d
    return number, distance if number >= 0 else to_floor(origin, direction)


@compiled
def to_floor(origin: Vector, direction: Vector) -> float:
    """Distance at which a ray from above the floor meets it; infinite if it never does."""
    return -origin[2] / direction[2] if direction[2] < 0 else math.inf


@compiled
def normal_at(thing: Any, point: Vector) -> Vector:
    """Direction, of length 1, in which an object's surface faces at a point of it."""
    x, y, z = to_local(thing, from_centre(thing, point))
    if thing.shape == SPHERE:
        local = (x, y, z)
    elif thing.shape == CYLINDER:
        local = (x, y, 0.0) if x * x + y * y > z * z else (0.0, 0.0, z)
    elif abs(z) > max(abs(x), abs(y)):
        local = (0.0, 0.0, z)
    else:
        local = (x, 0.0, 0.0) if abs(x) > abs(y) else (0.0, y, 0.0)
    return unit(to_world(thing, local))


@compiled
def reached(centre: float, depth: float, radius: float, size: int, other: int) -> tuple[int, int]:
    """Range of columns (or rows) in which a ball may be seen; the second number is exclusive.

    ``centre`` and ``depth`` give the ball's place relative to the camera: across and along its
    axis. ``size`` and ``other`` are the image's width and height; for rows, the reverse. One pixel
    is added at each side, which outweighs any rounding.
    """
    if depth <= 1.01 * radius:
        return 0, size
    square = depth * depth - radius * radius
    root = radius * math.sqrt(centre * centre + square)
    scale = FOCAL_LENGTH * max(size, other) / square
    first = size / 2 + scale * (centre * depth - root)
    last = size / 2 + scale * (centre * depth + root)
    return int(max(first - 1, 0.0)), int(max(min(last + 2, size), 0.0))


@compiled
def find_foremost(
    objects: Objects, camera: Camera, numbers: NDArray[np.int64], distances: Floats
) -> None:
    """Fill both arrays for ``foremost``, an object at a time.

    If two are at the same distance, the first counts, as for ``nearest``.
    """
    height, width = numbers.shape
    for number in range(len(objects)):
        thing = objects[number]
        offset = along((thing.x, thing.y, thing.z), camera.place, -1.0)
        depth = dot(offset, camera.forward)
        left, right = reached(dot(offset, camera.right), depth, thing.reach, width, height)
        top, bottom = reached(-dot(offset, camera.up), depth, thing.reach, height, width)
        for y in range(top, bottom):
            for x in range(left, right):
                ray = ray_through(camera, x + 0.5, y + 0.5, width, height)
                distance = distance_to(thing, camera.place, ray)
                if distance < distances[y, x]:
                    numbers[y, x], distances[y, x] = number, distance


def foremost(
    objects: Objects, camera: Camera, width: int, height: int
) -> tuple[NDArray[np.int64], Floats]:
    """Number and distance of the object seen through the middle of each pixel: ``[height, width]``.

    They are -1 and infinite if there is none.
    """
    # Arrays are made outside compiled functions: inside, they take seconds more to compile.
    numbers = np.full((height, width), -1, np.int64)
    distances = np.full((height, width), np.inf)
    find_foremost(objects, camera, numbers, distances)
    return numbers, distances


def visible_pixels(objects: Objects, camera: Camera, width: int, height: int) -> NDArray[np.int64]:
    """Number of pixels, ``[n]``, at which each object is the foremost."""
    numbers, _ = foremost(objects, camera, width, height)
    return np.bincount(numbers.ravel() + 1, minlength=len(objects) + 1)[1:]
