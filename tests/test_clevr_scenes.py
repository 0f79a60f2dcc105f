"""CLEVR's generated scenes: their rules, their geometry and their picture."""

import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ijepa.data.clevr import geometry, raytracer
from ijepa.data.clevr import scenes as clevr
from ijepa.data.clevr.format import labels
from ijepa.errors import UserError


def test_seeds_and_splits_and_numbers_give_other_scenes() -> None:
    keys = [(0, "train", 0), (1, "train", 0), (0, "test", 0), (0, "train", 1)]
    assert len({clevr.sample_scene(*key, 96, 64).camera.place for key in keys}) == 4


def test_pixels_are_those_of_every_machine() -> None:
    """Recorded 2026-11-22 on an AMD EPYC; code for a processor without AVX gives the same hash."""
    pixels = raytracer.render(*clevr.sample_scene(0, "train", 0, 96, 64), 96, 64)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == (
        "242e2bf0335754c9034c7da23c707e68d48d501d4656a5f403a78c610941f4b2"
    )


def test_scenes_keep_the_rules_of_clevr() -> None:
    for number in range(40):
        objects, camera, lights = clevr.sample_scene(0, "test", number, 96, 64)
        assert 3 <= len(objects) <= 10
        assert (np.abs(camera.place - np.array(clevr.CAMERA)) <= 0.5).all()
        assert (np.abs(lights - clevr.LIGHTS) <= 1).all()
        assert (objects["z"] == objects["radius"]).all()
        assert (
            geometry.visible_pixels(objects, camera, 320, 213).min() >= 180
        )  # 200, on another grid
        positions = np.stack([objects["x"], objects["y"]], axis=1)
        assert (np.abs(positions) <= 3).all()
        right = np.array(camera.right[:2])
        footprint = np.where(objects["size"] == 0, 0.7, 0.35)
        for i in range(len(objects)):
            for j in range(i):
                apart = positions[i] - positions[j]
                assert math.hypot(*apart) >= footprint[i] + footprint[j] + 0.25
                assert abs(apart @ right) >= 0.4
                assert abs(apart @ (right[1], -right[0])) >= 0.4


def test_every_class_of_both_labels_is_common() -> None:
    described = [
        clevr.describe(clevr.sample_scene(0, "train", i, 96, 64), "train", i, 96, 64)
        for i in range(240)
    ]
    made = [labels(scene) for scene in described]
    for name, classes in (("count", 8), ("distance", 6)):
        counted = Counter(label[name] for label in made)
        assert sorted(counted) == list(range(classes))
        assert min(counted.values()) >= 12, counted


def test_a_scene_that_no_attempt_completes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clevr, "MAX_STARTS", 3)
    with pytest.raises(UserError, match=r"no scene of \d+ visible objects in 3 attempts at 999 x"):
        clevr.sample_scene(0, "train", 0, 999, 8)


def test_depth_counts_along_the_axis_and_pixels_show_the_object() -> None:
    width, height = 96, 64
    for number in range(10):
        scene = clevr.sample_scene(0, "train", number, width, height)
        objects, camera, _ = scene
        middle = clevr.pixel_coords(camera, (0.0, 0.0, 0.0), width, height)
        assert middle[:2] == [48, 32]
        assert middle[2] == pytest.approx(math.hypot(*camera.place))
        aside = clevr.pixel_coords(camera, camera.right, width, height)
        assert aside[2] == pytest.approx(middle[2])
        for item in clevr.describe(scene, "train", number, width, height)["objects"]:
            x, y, depth = item["pixel_coords"]
            if 0 <= x < width and 0 <= y < height:
                ray = geometry.ray_through(camera, x, y, width, height)
                hit, distance = geometry.nearest(objects, camera.place, ray)
                assert hit >= 0
                assert distance * geometry.dot(ray, camera.forward) < depth


def test_relationships_name_the_objects_on_each_side() -> None:
    sampled = clevr.sample_scene(0, "train", 1, 96, 64)
    described = clevr.describe(sampled, "train", 1, 96, 64)
    related, items = described["relationships"], described["objects"]
    for i in range(len(items)):
        others = set(range(len(items))) - {i}
        for side, opposite in (("left", "right"), ("front", "behind")):
            assert set(related[side][i]) | set(related[opposite][i]) == others
            assert all(i in related[opposite][j] for j in related[side][i])
        for j in related["front"][i]:
            assert items[j]["pixel_coords"][2] < items[i]["pixel_coords"][2]
        for j in related["left"][i]:
            apart = np.subtract(items[j]["3d_coords"], items[i]["3d_coords"])
            assert apart @ sampled.camera.right < 0


@pytest.mark.parametrize("shape", geometry.SHAPES)
def test_rays_enter_objects_where_their_insides_begin(shape: str) -> None:
    rng = np.random.default_rng(0)
    thing = single(shape)[0]
    hits = 0
    for _ in range(40):
        origin = rng.normal(size=3) * 2 + (0, 0, 4)
        aim = rng.uniform(-1, 1, 3) + np.array([thing["x"], thing["y"], thing["z"]]) - origin
        steps = np.linspace(0, 2, 20_001)
        inside = is_inside(thing, origin + steps[:, None] * aim)
        distance = geometry.distance_to(thing, tuple(origin), tuple(aim))
        if inside[0]:
            continue
        if inside.any():
            hits += 1
            assert distance == pytest.approx(steps[inside.argmax()], abs=2e-4)
            surface = origin + distance * aim
            normal = np.array(geometry.normal_at(thing, tuple(surface)))
            assert is_inside(thing, surface - 1e-4 * normal)
            assert not is_inside(thing, surface + 1e-4 * normal)
        else:
            assert distance > 1.99 or math.isinf(distance)
    assert hits > 10


def is_inside(thing: Any, points: Any) -> Any:
    x, y, z = np.moveaxis(points - np.array([thing["x"], thing["y"], thing["z"]]), -1, 0)
    angle = math.radians(thing["degrees"])
    across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    r = thing["radius"]
    if thing["shape"] == geometry.SPHERE:
        return x**2 + y**2 + z**2 <= r**2
    if thing["shape"] == geometry.CYLINDER:
        return (x**2 + y**2 <= r**2) & (abs(z) <= r)
    return (abs(across[0]) <= r) & (abs(across[1]) <= r) & (abs(z) <= r)


def single(shape: str, x: float = 0.3, y: float = -0.2) -> geometry.Objects:
    thing = np.zeros(1, geometry.OBJECT)
    kind = geometry.SHAPES.index(shape)
    angle = math.radians(25)
    for name, value in {
        "shape": kind,
        "x": x,
        "y": y,
        "z": 0.7,
        "radius": 0.7,
        "reach": 0.7 * (math.sqrt(3), 1, math.sqrt(2))[kind],
        "degrees": 25,
        "cos": math.cos(angle),
        "sin": math.sin(angle),
    }.items():
        thing[name] = value
    return thing


def test_the_foremost_objects_are_those_that_the_rays_of_all_pixels_meet_first() -> None:
    for number, (width, height) in enumerate([(48, 32), (20, 60), (90, 10)]):
        objects, camera, _ = clevr.sample_scene(0, "train", number, 96, 64)
        if number == 2:  # one object at the camera, one behind it
            objects["x"][:2], objects["y"][:2] = (camera.place[0], 20), (camera.place[1], -20)
            objects["z"][0] = camera.place[2] - 1.05 * objects["radius"][0]
        numbers, distances = geometry.foremost(objects, camera, width, height)
        for y in range(height):
            for x in range(width):
                ray = geometry.ray_through(camera, x + 0.5, y + 0.5, width, height)
                hit, distance = geometry.nearest(objects, camera.place, ray)
                assert numbers[y, x] == hit
                assert distances[y, x] == (distance if hit >= 0 else math.inf)


def test_objects_that_are_not_searched_for_shadows_cast_none() -> None:
    rng = np.random.default_rng(0)
    searched = total = 0
    for number in range(8):
        objects, _, lights = clevr.sample_scene(0, "train", number, 96, 64)
        for _ in range(60):
            middle = rng.uniform((-4, -4, 0), (4, 4, 1.5))
            shaders = raytracer.shaders(objects, lights, tuple(middle), 0.4)
            searched, total = searched + shaders.bit_count(), total + 3 * len(objects)
            for light, edge in enumerate(raytracer.LIGHT_SIZES):
                point = middle + rng.uniform(-0.4, 0.4, 3) / math.sqrt(3)
                sample = (
                    tuple(point),
                    tuple(lights[light]),
                    edge,
                    *map(int, rng.integers(2, size=2)),
                )
                candidates = shaders >> raytracer.BITS * light
                assert raytracer.unshadowed(objects, candidates, *sample) == raytracer.unshadowed(
                    objects, -1, *sample
                )
    assert searched < 0.4 * total


def test_an_object_between_a_point_and_a_light_casts_a_shadow() -> None:
    objects, light = single("sphere"), (3.0, 0.0, 5.0)
    seen = {
        x: raytracer.unshadowed(objects, -1, (x, 0.0, 1e-6), light, 0.5, 0, 0)
        for x in np.linspace(-3, 3, 121)
    }
    assert seen[-3.0] == seen[3.0] == 1
    assert raytracer.unshadowed(objects, -1, (-0.3, -0.2, 1e-6), light, 0.5, 0, 0) == 0
    assert any(0 < part < 1 for part in seen.values()), "the edge of a shadow is soft"


@pytest.mark.parametrize("material", geometry.MATERIALS)
def test_metal_mirrors_its_neighbours_and_rubber_does_not(material: str) -> None:
    camera = clevr.sample_camera(np.random.default_rng(0))
    objects = np.concatenate([single("sphere", 0, 0), single("cylinder", 1.8, 0.5)])
    objects["material"] = geometry.MATERIALS.index(material)
    changed = mirrored = 0
    for x in range(38, 60):
        for y in range(18, 40):
            ray = geometry.ray_through(camera, x + 0.5, y + 0.5, 96, 64)
            number, distance = geometry.nearest(objects, camera.place, ray)
            if number != 0:
                continue
            point = geometry.along(camera.place, ray, distance * (1 - 1e-6))
            normal = geometry.normal_at(objects[0], point)
            reflected = geometry.along(ray, normal, -2 * geometry.dot(ray, normal))
            mirrored += geometry.nearest(objects, point, reflected)[0] == 1
            seen = set()
            for colour in ("red", "cyan"):
                objects["colour"][1] = list(geometry.COLOURS).index(colour)
                hit = geometry.nearest(objects, camera.place, ray)
                seen.add(
                    raytracer.brightness(objects, clevr.LIGHTS, -1, camera.place, ray, *hit, 0, 0)
                )
            changed += len(seen) == 2
    assert mirrored > 5
    assert changed == (mirrored if material == "metal" else 0)
