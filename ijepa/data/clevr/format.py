"""Paths of CLEVR's files, and VTAB's two kinds of labels of a scene.

Johnson et al., "CLEVR: A Diagnostic Dataset for Compositional Language and Elementary Visual
Reasoning", CVPR 2017; Zhai et al., "A Large-scale Study of Representation Learning with the Visual
Task Adaptation Benchmark", 2019. The official test split has no scenes, so validation is the test.
"""

from bisect import bisect_left
from pathlib import Path
from typing import Any

FOLDER = "CLEVR_v1.0"
OFFICIAL_SPLITS = {"train": "train", "test": "val"}

MIN_OBJECTS, MAX_OBJECTS = 3, 10
DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
"""VTAB's bounds of the closest object's depth; each bin holds its upper bound, not its lower."""


def image_folder(raw: Path, split: str) -> Path:
    """Folder of the images of a split."""
    return raw / FOLDER / "images" / OFFICIAL_SPLITS[split]


def scenes_file(raw: Path, split: str) -> Path:
    """Path of the file that describes each image of a split."""
    return raw / FOLDER / "scenes" / f"CLEVR_{OFFICIAL_SPLITS[split]}_scenes.json"


def labels(scene: dict[str, Any]) -> dict[str, int]:
    """VTAB's labels of a scene: number of objects less 3, and the bin of the smallest depth.

    Raises ValueError for a scene outside these classes.
    """
    objects = scene.get("objects") or []
    if not MIN_OBJECTS <= len(objects) <= MAX_OBJECTS:
        raise ValueError(f"it has {len(objects)} objects, not {MIN_OBJECTS} to {MAX_OBJECTS}")
    try:
        depth = min(item["pixel_coords"][2] for item in objects)
    except (LookupError, TypeError):
        raise ValueError("it has an object without pixel_coords of three numbers") from None
    if not DISTANCES[0] < depth <= DISTANCES[-1]:
        raise ValueError(f"its closest object is {depth} away, not 0 to {DISTANCES[-1]:g}")
    return {"count": len(objects) - MIN_OBJECTS, "distance": bisect_left(DISTANCES, depth) - 1}
