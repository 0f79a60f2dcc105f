"""Weights that a run starts from in place of random ones: ``start`` in its config.

They come from a run's ``whole.safetensors``, from an encoder of this project, or from a published
file. Everything that is asked for must be in the file and fit; what starts fresh is listed.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ijepa.architecture import ViTConfig
from ijepa.checkpoint import load_encoder
from ijepa.errors import UserError
from ijepa.image_size import Size, as_size
from ijepa.keep_and_start import Start
from ijepa.method import Method, load_method
from ijepa.released import convert as released
from ijepa.released.layouts import unwrapped
from ijepa.released.tensors import ours, read_tensors
from ijepa.vit import ViT
from ijepa.whole import load_whole, own_name, read_about

POSITIONS = ("pos_embed", released.TABLE)
Weights = dict[str, Tensor]


def begin_from(start: Start, method: Method, name: str) -> str:
    """Put the weights of a start into the networks of the method called ``name``.

    Returns a sentence that lists what is not in the file and starts fresh. Raises UserError if the
    file lacks what is asked for, or holds another architecture.
    """
    _check_heads(Path(start.weights), method.encoder.config)
    taken = _encoder(method, start) if start.parts == "encoder" else _parts(method, name, start)
    state = method.state_dict()
    for key, value in taken.items():
        if (
            value.is_floating_point() != state[key].is_floating_point()
            or not value.isfinite().all()
        ):
            raise UserError(
                f"{start.weights}: {key} has values that are no numbers, or whole ones "
                f"({value.dtype}): get the file again, or weights that are not quantised"
            )
    with torch.no_grad():
        for key, value in taken.items():
            state[key].copy_(value)
    parts = Counter(".".join(key.split(".")[:2]) for key in state.keys() - taken.keys())
    fresh = ", ".join(f"{part} ({count})" for part, count in sorted(parts.items()))
    return (
        f"start: {len(taken)} of {len(state)} tensors are from {start.weights}; fresh are "
        f"{fresh or 'none'}"
    )


def _check_heads(path: Path, vit: ViTConfig) -> None:
    """Raise UserError for a file of ours with other attention heads, which no shape shows."""
    about = ours(path) or read_about(path)
    heads = about["run"]["vit"]["num_heads"] if about else vit.num_heads
    if heads != vit.num_heads:
        raise UserError(
            f"{path} is of an encoder with {heads} attention heads, the run's has "
            f"{vit.num_heads}: set vit.num_heads to that"
        )


def _parts(method: Method, name: str, start: Start) -> Weights:
    """The weights of all networks, of the towers, or of the student, under our names."""
    path = Path(start.weights)
    tensors = dict(_of_file(path, name))
    if start.parts == "student":
        tensors = _averages_equal(tensors, method)
    towers = dict(_towers(method))
    taken: Weights = {}
    for prefix, tower in towers.items():
        inner = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        if not inner:
            raise UserError(
                f"{path} has no {prefix.rstrip('.')}: choose another start.parts (encoder takes "
                "one encoder for all towers)"
            )
        taken |= {f"{prefix}{n}": v for n, v in _fitted(inner, tower, path, start).items()}
    if start.parts == "towers":
        return taken
    wanted = {n: v for n, v in method.state_dict().items() if n not in taken}
    fixed = _fixed(method) | getattr(load_method(name), "UNUSED", set())
    others = {n: v for n, v in tensors.items() if not n.startswith(tuple(towers))}
    others = {n: v for n, v in others.items() if n not in fixed or _same(v, wanted.get(n))}
    if not method.encoder.config.is_square:  # a table of as many rows may be another grid's
        others = {n: v for n, v in others.items() if n not in fixed or not n.endswith("pos_embed")}
    missing = [name for name in wanted if name not in others and name not in fixed]
    _refuse(path, missing, [name for name in others if name not in wanted])
    for name, value in others.items():
        if not _same(value, wanted[name]):
            raise UserError(
                f"{path}: {name} is {list(value.shape)}, the run's is {list(wanted[name].shape)}: "
                "set the recipe's sizes to those of the file, or start.parts: towers"
            )
    return taken | others


def _averages_equal(tensors: Weights, method: Method) -> Weights:
    """Weights in which every moving average equals the network that it follows."""
    others = {n: v for n, v in tensors.items() if n.partition(".")[0] not in method.averages}
    copies = {
        f"{average}.{name.partition('.')[2]}": value
        for average, own in method.averages.items()
        if hasattr(method, average)  # an I-JEPA with SIGReg has no moving average
        for name, value in others.items()
        if name.startswith(f"{own}.")
    }
    return others | copies


def _encoder(method: Method, start: Start) -> Weights:
    """The weights of one encoder, the one that is evaluated, for every tower."""
    path = Path(start.weights)
    if ours(path) or read_about(path):
        network = load_encoder(path)[0] if ours(path) else load_whole(path)[0].encoder
        weights, positions = network.state_dict(), network.variant.positions
    else:
        reading = released.encoder(read_tensors(path), str(path))
        weights, positions = reading.weights, reading.variant.positions
    wanted = method.encoder.variant.positions
    if positions == "learned" and wanted != "learned":
        raise UserError(
            f"{path} has learned positions, the run's encoder has fixed ones ({wanted}), which it "
            "would never train: name a method whose encoder learns its positions, such as dino"
        )
    return {
        f"{prefix}{name}": value
        for prefix, tower in _towers(method)
        for name, value in _fitted(weights, tower, path, start).items()
    }


def _of_file(path: Path, method: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of all networks of a method, with our names."""
    if ours(path):
        raise UserError(
            f"{path} is an encoder alone: say start.parts: encoder, or name the run's "
            "whole.safetensors"
        )
    if about := read_about(path):
        if about["run"]["method"] != method:
            raise UserError(
                f"{path} is of a run of {about['run']['method']}, not of {method}: say "
                "start.parts: encoder"
            )
        yield from ((own_name(name, method), value) for name, value in load_file(path).items())
        return
    tensors: Weights = {}
    for name, value in read_tensors(path).items():
        if re.fullmatch(released.TRAINING, name) or name.endswith(released.CONSTANTS):
            continue
        tensors[unwrapped(name, method)] = value
    for name, value in tensors.items():
        if not _is_copy(name, tensors, method):
            yield own_name(name, method), value


def _is_copy(name: str, tensors: Weights, method: str) -> bool:
    """True if a release writes a tensor under this name too, and it is the same there."""
    for again, first in getattr(load_method(method), "COPIES", {}).items():
        if name.startswith(again):
            original = tensors.get(first + name.removeprefix(again))
            return original is not None and original.equal(tensors[name])
    return False


def _fitted(weights: Weights, tower: ViT, path: Path, start: Start) -> Weights:
    """An encoder's weights for a tower; its positions are resampled if that is asked for."""
    weights, wanted = (
        {name: value for name, value in state.items() if not name.endswith(released.CONSTANTS)}
        for state in (weights, tower.state_dict())
    )
    _refuse(path, [n for n in wanted if n not in weights], [n for n in weights if n not in wanted])
    for name, value in weights.items():
        if name not in POSITIONS and not _same(value, wanted[name]):
            raise UserError(
                f"{path}: {name} of its encoder is {list(value.shape)}, the run's is "
                f"{list(wanted[name].shape)}: set the run's vit to the file's sizes"
            )
    size = _size_of(path)
    fit = all(_same(weights[name], wanted[name]) for name in POSITIONS if name in weights)
    # Grids of 2 x 8 and 4 x 4 have tables of one size.
    if fit and (size == tower.config.image_size or (_square(size) and tower.config.is_square)):
        return weights
    return _resampled(weights, tower.config, path, start)


def _square(size: Size | None) -> bool:
    """True for a square, which all published encoders have."""
    return size is None or isinstance(size, int)


def _size_of(path: Path) -> Size | None:
    """Image size of a file of ours; None for a published one."""
    about = ours(path) or read_about(path)
    return as_size(about["run"]["vit"]["image_size"]) if about else None


def _resampled(weights: Weights, vit: ViTConfig, path: Path, start: Start) -> Weights:
    """Weights whose table of positions fits the run's image size."""
    if not _square(size := _size_of(path)):
        raise UserError(
            f"{path} is for images of {size} pixels, vit.image_size is {vit.image_size}: set it to "
            "that; only positions of square images are resampled"
        )
    try:
        source = replace(vit, image_size=released.grid_of(weights) * vit.patch_size)
    except ValueError as error:
        raise UserError(f"{path}: its positions cannot be resampled ({error})") from None
    if not start.interpolate_positions:
        raise UserError(
            f"{path} has positions for images of {source.image_size} pixels, vit.image_size is "
            f"{vit.image_size}: set it to that, or say start.interpolate_positions: true"
        )
    return released.resized(weights, source, vit.image_size)[0]


def _towers(method: Method) -> Iterator[tuple[str, ViT]]:
    """Beginning of the names of every encoder's tensors, and the encoder."""
    for name, module in method.named_modules():
        if isinstance(module, ViT):
            yield f"{name}.", module


def _fixed(method: Method) -> set[str]:
    """Names of tensors that a file need not have: buffers, and tables that are never trained."""
    trained: Weights = {n: p for n, p in method.named_parameters() if p.requires_grad}
    return set(method.state_dict()) - _averages_equal(trained, method).keys()


def _same(value: Tensor, wanted: Tensor | None) -> bool:
    return wanted is not None and value.shape == wanted.shape


def _refuse(path: Path, missing: list[str], unknown: list[str]) -> None:
    """Raise UserError if a file lacks tensors or has others."""
    lists = {"missing are": missing, "unknown are": unknown}
    if faults := [f"{word} {released.listed(names)}" for word, names in lists.items() if names]:
        raise UserError(
            f"{path} does not hold what start.parts asks for: {'; '.join(faults)}: set the run's "
            "method, vit and recipe to the file's (its layer scale, gamma, by recipe.layer_scale), "
            "or choose other parts"
        )
