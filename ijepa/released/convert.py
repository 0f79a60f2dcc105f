"""Conversion of encoders from and to the layouts in which others publish them.

A file is a dictionary of tensors, each named by its path through the file's dictionaries, joined
by dots: ``target_encoder.module.norm.bias``. ijepa.released.layouts describes the layouts; sizes
are read from shapes.

Shape suffixes: R rows of a position table, D features, G rows (and columns) of the grid.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor

from ijepa.architecture import SIZES, Variant, ViTConfig
from ijepa.errors import UserError
from ijepa.image_size import Size, sides
from ijepa.released.layouts import BEIT_NAMES, DINOV2_NAMES, LAYER_SCALE, LAYOUTS, VIT_NAMES, Layout
from ijepa.vit import ViT

CONSTANTS = ("relative_position_index", "rd_pos_embed")
"""Endings of the names of constants that a release stores and we compute."""

TRAINING = (
    r"(opt|optimizer(_states?)?|((fp16|grad|amp)_)?scaler|amp|(lr_)?schedulers?|args|config|"
    r"callbacks|loops|hyper_parameters|(\w+_)?rng(_\w+)?|random_states?|"
    r"(\w+\.)*n_averaged)(\..*)?"
)
"""State of a training loop, which holds tensors in some files; torch's AveragedModel counts its
updates in ``n_averaged``."""

HEADS = {size["dim"]: int(size["num_heads"]) for size in SIZES.values()}
"""Published widths and their numbers of heads. timm's ``vit_base_patch16_gap_224`` has others."""

TABLE = "rel_pos_bias.relative_position_bias_table"
PARTS = ("q", "k", "v")
NAMED_IN_AN_ERROR = 20


@dataclass(frozen=True)
class Reading:
    """Encoder of a file as read in one layout, under our names, and the faults of that reading."""

    layout: str
    tower: str
    towers: list[str]
    weights: dict[str, Tensor]
    shape: dict[str, Any]
    """Fields of ViTConfig; ``num_heads`` is None if neither table nor width determines it."""
    variant: Variant
    leftovers: list[str]
    missing: list[str]
    unexpected: list[str]
    objections: list[str]

    @property
    def problems(self) -> int:
        """Number of names and sizes that differ from the layout's."""
        return len(self.missing) + len(self.unexpected) + len(self.objections)

    def complaint(self) -> str:
        """Problems in words, with the published names."""
        lists = {"": self.objections, "missing are ": self.missing, "unknown are ": self.unexpected}
        return "; ".join(title + listed(items) for title, items in lists.items() if items)


def encoder(
    tensors: Mapping[str, Tensor], where: str, layout: str = "auto", tower: str | None = None
) -> Reading:
    """Encoder of a file in ``layout``, or in the first layout that fits it best.

    Each tensor of the file must be the encoder's, another tower's, or known to be no encoder's.
    Otherwise raises UserError that names every missing or unknown tensor. ``where`` names the file.
    """
    candidates = readings(tensors, tower)
    matching = [reading for reading in candidates if layout in ("auto", reading.layout)]
    fits = [reading.layout for reading in candidates if not reading.problems]
    if not matching:
        layout_name = "any layout" if layout == "auto" else f"the layout {layout}"
        hint = f"say --layout {fits[0]}" if fits else f"known are {', '.join(LAYOUTS)}"
        raise UserError(f"{where} holds no encoder in {layout_name}: {hint}")
    if matching[0].problems:
        other = f"say --layout {fits[0]}" if fits else "import it with another --layout or --tower"
        remedy = f"{other}, or get the whole file"
        if any("fc_norm." in name for name in matching[0].unexpected):
            remedy = (
                "it is fine-tuned, with a norm after the average (fc_norm) in place of the "
                "encoder's: get the pretrained file"
            )
        complaint = matching[0].complaint()
        raise UserError(f"{where}, read as {matching[0].layout}: {complaint}: {remedy}")
    return matching[0]


def readings(tensors: Mapping[str, Tensor], tower: str | None = None) -> list[Reading]:
    """Readings of a file in every layout in which it holds an encoder, the best first."""
    results = (reading_in(tensors, name, tower) for name in LAYOUTS)
    return sorted((r for r in results if r is not None), key=lambda reading: reading.problems)


def reading_in(
    tensors: Mapping[str, Tensor], name: str, tower: str | None = None
) -> Reading | None:
    """Reading of a file's encoder in the layout called ``name``; None if there is none."""
    layout = LAYOUTS[name]
    roots = prefixes_of(tensors, layout)
    if not roots:
        return None
    requested = next(iter(layout.towers)) if tower is None else tower
    selected = requested if requested in roots or tower is not None else ""
    objections = []
    if selected not in roots:
        selected = next(iter(roots))
        existing = ", ".join(other or "one without a name" for other in roots)
        wanted = f"called {requested}" if requested else "without a name"
        objections.append(f"no encoder is {wanted} (there is {existing})")
    root = roots[selected]

    weights, published, leftovers, unexpected = {}, {}, [], []
    for theirs, value in tensors.items():
        inner = theirs.removeprefix(root)
        owner = max((r for r in roots.values() if theirs.startswith(r)), key=len, default=None)
        leftover = re.fullmatch(f"{layout.leftovers}|{TRAINING}", inner)
        if leftover or inner.endswith(CONSTANTS) or owner not in (root, None):
            leftovers.append(theirs)
        elif owner is None or (ours := translate(inner, layout.names)) is None:
            unexpected.append(theirs)
        else:
            weights[ours], published[ours] = value, theirs
    weights = joined(weights)

    shape: dict[str, Any] = {}
    variant, missing = Variant(), []
    try:
        variant = variant_of(weights)
        if layout.variant is not None:
            objections += differences(variant, layout.variant)
            variant = layout.variant
        shape = shape_of(weights)
        expected = shapes(ViTConfig(**{**shape, "num_heads": shape["num_heads"] or 1}), variant)
    except ValueError as error:
        objections.append(str(error))
    else:
        back = {ours: theirs for theirs, ours in layout.names.items()}
        missing = [root + (translate(n, back) or n) for n in expected if n not in weights]
        unexpected += [published.get(n, root + n) for n in weights if n not in expected]
        objections += [
            f"{published.get(n, root + n)} is {list(value.shape)}, not {list(expected[n])}"
            for n, value in weights.items()
            if n in expected and value.shape != expected[n]
        ]
    towers = list(roots)
    return Reading(
        name, selected, towers, weights, shape, variant, leftovers, missing, unexpected, objections
    )


def prefixes_of(names: Iterable[str], layout: Layout) -> dict[str, str]:
    """Prefix of the names of each encoder in a file, by tower, in the layout's order.

    Of several prefixes that fit a tower it is the last.
    """
    beginnings = [name.removesuffix(layout.patch) for name in names if name.endswith(layout.patch)]
    return {
        tower: beginning
        for tower, (pattern, *_) in layout.towers.items()
        for beginning in beginnings
        if re.fullmatch(pattern, beginning)
    }


def publish(
    weights: Mapping[str, Tensor], variant: Variant, name: str, tower: str | None = None
) -> tuple[str, dict[str, Tensor]]:
    """Key of a layout's container ("" for none), and an encoder's weights under its names.

    ``tower`` is the tower that the encoder was read from; one that the layout does not have is
    ignored. Raises UserError if the layout cannot hold such an encoder.
    """
    layout = LAYOUTS[name]
    if layout.variant is not None and (differing := differences(variant, layout.variant)):
        raise UserError(
            f"the layout {name} does not fit this encoder ({listed(differing)}): "
            "choose another --layout"
        )
    if tower not in layout.towers:
        tower = "" if "" in layout.towers else next(iter(layout.towers))
    assert tower is not None
    _, key, prefix = layout.towers[tower]
    to_published = {"": ""}
    if name == "transformers":
        names = VIT_NAMES if variant.layer_scale is None else DINOV2_NAMES
        names = BEIT_NAMES if variant.blocks == "beit" else names
        to_published = {ours: theirs for theirs, ours in names.items()}
        weights = split(weights)
    theirs = {ours: translate(ours, to_published) for ours in weights}
    if unnamed := [ours for ours, their in theirs.items() if their is None]:
        raise UserError(
            f"the layout {name} has no name for {listed(unnamed)}: choose another --layout"
        )
    return key, {f"{prefix}{theirs[ours]}": value for ours, value in weights.items()}


def check_published(vit: ViTConfig) -> None:
    """Raise UserError for an encoder of images that no published layout, and no package, takes."""
    if vit.channels != 3:
        raise UserError(
            f"the encoder is for images of {vit.channels} channels, every --layout is for three: "
            "use this project's own file"
        )
    if not vit.is_square:
        raise UserError(
            f"the encoder is for images of {sides(vit.image_size)} pixels, every --layout is for "
            "square ones: use this project's own file"
        )


def listed(items: list[str]) -> str:
    """Items for a sentence; only the first NAMED_IN_AN_ERROR are named."""
    more = len(items) - NAMED_IN_AN_ERROR
    return ", ".join(items[:NAMED_IN_AN_ERROR]) + (f" and {more} more" if more > 0 else "")


def translate(name: str, names: Mapping[str, str]) -> str | None:
    """Name with the first matching beginning of ``names`` replaced, or None.

    {} stands for a number, the same in the old and in the new beginning.
    """
    for old, new in names.items():
        if match := re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), name):
            return new.format(*match.groups()) + name[match.end() :]
    return None


def joined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with those of queries, keys and values joined as ``qkv``, if all three are there.

    Where no key has a bias, as in BEiT, the others' biases have its names (``q_bias``).
    """
    result = dict(weights)
    keyed = any(name.endswith(".attn.k.bias") for name in weights)
    for name in weights:
        if name.endswith((".attn.q.bias", ".attn.v.bias")) and not keyed:
            result[f"{name.removesuffix('.bias')}_bias"] = result.pop(name)
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in PARTS]
        if ".attn.q." in name and all(part in weights for part in parts):
            values = [result.pop(part) for part in parts]
            result[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(values)
    return result


def split(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with ``qkv`` split into queries, keys and values: the inverse of ``joined``."""
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        if ".attn.qkv." in name:
            names = [name.replace(".attn.qkv.", f".attn.{part}.") for part in PARTS]
            result.update(zip(names, value.chunk(len(PARTS)), strict=True))
        else:
            result[name] = value
    return result


def variant_of(weights: Mapping[str, Tensor]) -> Variant:
    """Variant of an encoder, as the names of its weights and its positions show it."""
    scaled = any(name.endswith((".gamma_1", ".ls1.gamma")) for name in weights)
    return Variant(
        class_token="cls_token" in weights,
        positions=positions_of(weights),
        blocks="beit" if any(name.endswith(".q_bias") for name in weights) else "vit",
        layer_scale=LAYER_SCALE if scaled else None,
    )


def positions_of(weights: Mapping[str, Tensor]) -> Any:
    """Kind of positions, a field of Variant: learned also if there is no table.

    Raises ValueError if no square grid has a table of this size. In a fixed table, also in a
    resampled one, one half is the same in all rows, the other in all columns.
    """
    if TABLE in weights:
        return "relative"
    if "pos_embed" not in weights:
        return "learned"
    G = grid_of(weights)
    first, second = weights["pos_embed"][0, -G * G :].float().unflatten(0, (G, G)).chunk(2, -1)

    def same(half: Tensor, along: int) -> bool:
        return bool((half - half.narrow(along, 0, 1)).abs().max() < 1e-3)

    if same(first, 0) and same(second, 1):
        return "sincos"
    return "sincos_rows_first" if same(first, 1) and same(second, 0) else "learned"


def grid_of(weights: Mapping[str, Tensor]) -> int:
    """Rows of the grid of patches, from the size of the position table; ValueError if none fits."""
    for name, dimensions in ((TABLE, 2), ("pos_embed", 3)):
        if name in weights and weights[name].ndim != dimensions:
            raise ValueError(f"its {name} is {list(weights[name].shape)}: no table of positions")
    if TABLE in weights:
        rows = len(weights[TABLE])
        side = (math.isqrt(max(rows - 3, 0)) + 1) // 2
        if (2 * side - 1) ** 2 + 3 != rows:
            raise ValueError(f"its table of relative positions has {rows} rows: no square grid's")
        return side
    if "pos_embed" not in weights:
        return 1
    rows = weights["pos_embed"].shape[1] - ("cls_token" in weights)
    side = math.isqrt(max(rows, 0))
    if not side or side**2 != rows:
        raise ValueError(f"its position table has {rows} rows for patches: no square grid's")
    return side


def shape_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of ViTConfig as the tensors show them; raises ValueError if they show none."""
    patch = weights["patch_embed.proj.weight"]
    if patch.ndim != 4 or patch.shape[1] != 3 or patch.shape[2] != patch.shape[3]:
        raise ValueError(f"its patch embedding is {list(patch.shape)}, not [D, 3, patch, patch]")
    dim, size = len(patch), patch.shape[-1]
    numbers = {int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))}
    hidden = weights.get("blocks.0.mlp.fc1.weight")
    table = weights.get(TABLE)
    return {
        "image_size": grid_of(weights) * size,
        "patch_size": size,
        "dim": dim,
        # A single block number far above the others is an error, and must not make a huge network.
        "depth": min(max(numbers, default=0) + 1, 2 * len(numbers)),
        "num_heads": HEADS.get(dim) if table is None else table.shape[-1],
        "mlp_ratio": 4.0 if hidden is None else mlp_ratio(len(hidden), dim),
    }


def mlp_ratio(hidden: int, dim: int) -> float:
    """Ratio whose product with ``dim`` truncates to ``hidden``; division may round just below."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


@cache
def shapes(config: ViTConfig, variant: Variant) -> dict[str, torch.Size]:
    """Name and shape of each tensor of an encoder of this size and kind."""
    with torch.device("meta"):
        return {name: value.shape for name, value in ViT(config, variant).state_dict().items()}


def differences(ours: Variant, wanted: Variant) -> list[str]:
    """Differences in kind between an encoder and a layout's, in words."""
    pairs = {
        "class token": (ours.class_token, wanted.class_token),
        "positions": (ours.positions, wanted.positions),
        "blocks": (ours.blocks, wanted.blocks),
        "layer scale": (ours.layer_scale is not None, wanted.layer_scale is not None),
    }
    return [
        f"{name}: {has}, where the layout has {should}"
        for name, (has, should) in pairs.items()
        if has != should
    ]


def resized(
    weights: dict[str, Tensor], config: ViTConfig, image_size: Size
) -> tuple[dict[str, Tensor], ViTConfig]:
    """Weights and config for images of another size, with a resampled position table.

    A table of positions, learned or fixed, is resampled bicubically as it is stored, so that the
    features are those that the encoder gives for images of that size (see ViT.positions). A table
    of relative positions keeps its values at small distances and stretches the large ones (BEiT's
    way, as in timm). Raises ValueError if the patches do not divide the size.
    """
    new = replace(config, image_size=image_size)
    if new == config:
        return weights, config
    if TABLE in weights:
        rows = math.prod(2 * side - 1 for side in new.grid) + 3
        table = resize_rel_pos_bias_table(weights[TABLE], new.grid, (rows, config.num_heads))
        return {**weights, TABLE: table}, new
    table = resample_abs_pos_embed(
        weights["pos_embed"],
        list(new.grid),
        list(config.grid),
        num_prefix_tokens=int("cls_token" in weights),
        antialias=False,
    )
    return {**weights, "pos_embed": table}, new
