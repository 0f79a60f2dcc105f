"""Configuration of a run: read from text, checked strictly, every default filled in."""

import dataclasses
import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainValidator

from ijepa.architecture import SIZES, ViTConfig
from ijepa.data import register
from ijepa.data.bands import check_colours
from ijepa.errors import UserError
from ijepa.files import read_yaml
from ijepa.identity import run_identity
from ijepa.keep_and_start import Keep, Start
from ijepa.method import Recipe, load_method, method_names
from ijepa.ranges import Compile, Count, NotNegativeInt, Pixels, Precision
from ijepa.strict import as_read, merged, strict

PACKAGES = {"fast": "simplejpeg", "device": "torchcodec"}
"""Package that each kind of ``pixels`` needs and that a plain installation does not bring."""


@dataclass(frozen=True)
class RunConfig:
    """One configured pretraining.

    ``recipe`` is the method's own Config. ``precision`` auto means bfloat16 autocast on hardware
    that computes in it, else float32; frozen features are always computed so. ``tf32`` is float32
    whose products a GPU rounds to 10 bits of mantissa, several times as fast; a CPU has none.
    ``activation_checkpointing`` recomputes the activations within each block in the backward pass
    instead of storing them, for networks that would not fit into memory. ``compile`` lets torch
    compile the blocks of encoders that receive no gradient (target encoder, teacher), whose shapes
    seldom change; ``all``: the blocks that learn too, for lengths that vary. That takes a minute or
    more at the start, and once more at the first monitor; rounding differs. It is off: on a CPU it
    was slower, on a GPU it was not measured yet.
    ``pixels`` fast decodes training images by libjpeg-turbo (ijepa.data.fast_jpeg, with the package
    simplejpeg), device makes their views on the GPU (ijepa.data.device_batches, with torchcodec),
    both with slightly other bytes. Evaluations have exact pixels.
    ``log_every``, ``monitor_every`` and ``checkpoint_every`` count steps.
    """

    method: str
    dataset: str
    vit: ViTConfig
    recipe: Annotated[Recipe, PlainValidator(lambda checked: checked)]
    seed: NotNegativeInt = 0
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    compile: Compile = False
    pixels: Pixels = "exact"
    num_workers: NotNegativeInt = 1
    log_every: Count = 10
    monitor_every: Count = 100
    checkpoint_every: Count = 100
    keep: Keep = field(default_factory=Keep)
    start: Start | None = None

    def identity(self) -> str:
        """Short hash of all keys that decide what is learned, seed included (ijepa.identity)."""
        return run_identity(as_plain(self))


def as_plain(run: RunConfig) -> dict[str, Any]:
    """Plain data of a run with every default filled in, as YAML and JSON hold it."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(run)))
    del plain["start"]
    if run.start:
        plain["start"] = as_read(run.start)
    return plain


def parse_run(raw: dict[str, Any], where: str = "run", checked: bool = True) -> RunConfig:
    """Run with its method's defaults filled in; raises UserError for unknown keys and bad values.

    ``where`` begins the path by which an error names a key. If ``checked``, the recipe must also
    fit the encoder and the data set.
    """
    if "method" not in raw:
        raise UserError(f"{where}: method is missing: known are {', '.join(method_names())}")
    try:
        recipe_type = load_method(raw["method"]).Config
    except ValueError as error:
        raise UserError(f"{where}.method: {error}") from None
    for part in ("vit", "recipe"):
        if not isinstance(raw.get(part) or {}, dict):
            raise UserError(f"{where}.{part}: {raw[part]!r} must be keys and values")
    vit = dict(raw.get("vit") or {})
    if (size := vit.pop("size", None)) is not None:
        if not isinstance(size, str) or size not in SIZES:
            raise UserError(
                f"{where}.vit.size: {size!r} is unknown: allowed are {', '.join(SIZES)}"
            )
        vit = {**SIZES[size], **vit}
    recipe = dict(raw.get("recipe") or {})
    presets = load_method(raw["method"]).PRESETS
    if (name := recipe.pop("preset", None)) is not None and (
        not isinstance(name, str) or name not in presets
    ):
        raise UserError(
            f"{where}.recipe.preset: {name!r} is unknown: allowed are {', '.join(presets)}"
        )
    preset = presets[name] if name is not None else {}
    run = strict(
        RunConfig,
        {
            **raw,
            "vit": strict(ViTConfig, vit, f"{where}.vit", ("size",)),
            "recipe": strict(recipe_type, merged(preset, recipe), f"{where}.recipe", ("preset",)),
        },
        where,
    )
    if not checked:
        return run
    _check_channels(run, where)
    _check_pixels(run, where)
    num_images = register.load_dataset(run.dataset).splits.get("train")
    if num_images is not None and run.recipe.optim.batch_size > num_images:
        raise UserError(
            f"{where}.recipe.optim.batch_size: {run.recipe.optim.batch_size} is more than the "
            f"{num_images} training images of {run.dataset}: choose a smaller batch"
        )
    if late := [epoch for epoch in run.keep.epochs if epoch > run.recipe.optim.epochs]:
        raise UserError(
            f"{where}.keep.epochs: {late[0]} is after the end (recipe.optim.epochs is "
            f"{run.recipe.optim.epochs:g}): leave it out"
        )
    if run.recipe.whole_batch and run.recipe.optim.accumulate > 1:
        raise UserError(
            f"{where}.recipe.optim.accumulate: {run.recipe.optim.accumulate} parts are not "
            "possible, because the loss is of the whole batch: leave it out; more gpus or "
            "activation_checkpointing save memory too"
        )
    try:
        load_method(run.method).check(run.recipe, run.vit)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return run


def _check_channels(run: RunConfig, where: str) -> None:
    """Raise UserError if the run cannot learn from the channels and bits of its data set."""
    dataset = register.load_dataset(run.dataset)
    if run.vit.channels != dataset.channels:
        raise UserError(
            f"{where}.vit.mean: {run.dataset} has {dataset.channels} channels, mean and std have "
            f"{run.vit.channels} numbers (ImageNet's, if they are left out): "
            "give those of its own images, which ijepa-bench data statistics prints"
        )
    if dataset.rgb:
        return
    refused = f"{run.dataset} has {dataset.channels} channels of {dataset.bits} bits"
    if run.pixels != "exact":
        raise UserError(f"{where}.pixels: {run.pixels} is for JPEGs, but {refused}: say exact")
    if run.recipe.tokens is not None:
        raise UserError(
            f"{where}.method: {run.method} needs token ids, which are made of three channels of 8 "
            f"bits, but {refused}: choose another method"
        )
    try:
        check_colours(run.recipe)
    except ValueError as error:
        raise UserError(f"{where}.recipe.{error} ({refused})") from None


def _check_pixels(run: RunConfig, where: str) -> None:
    """Raise UserError if a package is missing, or if colours would have to change on the device."""
    package = PACKAGES.get(run.pixels)
    if package and find_spec(package) is None:
        raise UserError(
            f"{where}.pixels: {run.pixels} needs the package {package}, which is not installed: "
            f"uv pip install {package} (or pip), or say pixels: exact"
        )
    if run.pixels == "device":
        try:
            check_colours(run.recipe, reason="changes of colour are PIL's, on the host")
        except ValueError as error:
            raise UserError(f"{where}.recipe.{error}, or say pixels: fast") from None


def read_run(path: Path) -> RunConfig:
    """Run that a YAML file describes."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold keys and values, as config/mini.yaml's runs do")
    return parse_run(raw, str(path))
