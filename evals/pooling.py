"""Pooling: the tokens of an encoder whose features a protocol reads.

A method's protocol says which: I-JEPA has no [cls] and averages its patches; DINO, iBOT, MAE,
data2vec, CAE and LeJEPA are measured on [cls] (I-JEPA, section A.2; each method's own evaluation;
LeJEPA's README takes that of the last two layers), DINO's and iBOT's ViT-B on [cls] and the average
together. Features of both kinds are stored side by side,
so that each evaluation may choose.

This module imports no torch: an audit compares thousands of results and runs no evaluation.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ijepa.errors import UserError
from ijepa.ranges import Count

Pool = Literal["patches", "cls", "cls_patches"]

PATCHES = ("patches",)
BOTH = ("cls", "patches")
"""Kinds of features that are stored of an encoder without [cls], and of one with it."""


NUM_LAYERS = 4
"""Last layers whose features are stored, those of the paper's probe (A.2)."""


@dataclass(frozen=True)
class Pooled:
    """Settings of every protocol on frozen features.

    ``pool``: the average over ``patches``, [cls], or both one after the other (``cls_patches``); by
    default the method's own, which is [cls] if the encoder has one. ``layers`` is the number of
    last layers that are concatenated; of a network with fewer than the default they are all, any
    other number is refused.
    """

    pool: Pool | None = None
    layers: Count = 1


def kinds(about: dict[str, Any]) -> tuple[str, ...]:
    """Kinds of features that an encoder has, from its header; of raw pixels one kind."""
    return BOTH if about.get("variant", {}).get("class_token") else PATCHES


def own(about: dict[str, Any]) -> Pool:
    """Pool of the method's own protocol: [cls] if the encoder has one."""
    return "cls" if "cls" in kinds(about) else "patches"


def parts(pool: Pool) -> tuple[str, ...]:
    """Kinds of features that a pool puts one after the other."""
    return BOTH if pool == "cls_patches" else (pool,)


def resolved(config: Any, about: dict[str, Any], where: str) -> Any:
    """Protocol whose pool is that of this encoder; raises UserError if the encoder has no [cls].

    Protocols without the key ``pool`` stay as they are.
    """
    if not hasattr(config, "pool"):
        return config
    pool = config.pool or own(about)
    if not set(parts(pool)) <= set(kinds(about)):
        raise UserError(
            f"{where}.pool is {pool}, but the encoder has no [cls]: set pool: patches for it "
            "(config_of), or leave pool out"
        )
    return dataclasses.replace(config, pool=pool)
