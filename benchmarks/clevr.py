"""CPU time to make one generated CLEVR image: ``python -m benchmarks.clevr``; 40 ms is the limit.

One core, compiled functions warm; "scene" is drawing it until every object is visible.
"""

import time

from ijepa.data.clevr.raytracer import render
from ijepa.data.clevr.scenes import sample_scene

SIZES = [(96, 64), (336, 224)]
IMAGES = 64


def milliseconds(width: int, height: int) -> tuple[float, float]:
    """Mean CPU time of a scene and of its picture, over the same images each time."""
    scene_s = picture_s = 0.0
    for number in range(IMAGES):
        begun = time.process_time()
        scene = sample_scene(0, "train", number, width, height)
        sampled = time.process_time()
        render(*scene, width, height)
        scene_s += sampled - begun
        picture_s += time.process_time() - sampled
    return scene_s / IMAGES * 1000, picture_s / IMAGES * 1000


def main() -> None:
    begun = time.perf_counter()
    render(*sample_scene(0, "train", 0, 96, 64), 96, 64)
    print(f"first image, compilation included: {time.perf_counter() - begun:.1f} s")
    for width, height in SIZES:
        scene, picture = milliseconds(width, height)
        print(f"{width} x {height}: scene {scene:.1f} ms + picture {picture:.1f} ms")


if __name__ == "__main__":
    main()
