"""Inputs of a run, checked before it trains: images, token ids, and the versions of both."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ijepa import distributed
from ijepa.config import RunConfig
from ijepa.data.loader import Images
from ijepa.data.shards import Index, read_index, verify
from ijepa.data.tokens import TokenCache, read_tokens
from ijepa.distributed import World
from ijepa.errors import UserError
from ijepa.identity import start_digest, start_file


@dataclass(frozen=True)
class Inputs:
    """Images that a run learns from, their token ids if it predicts any, and their versions."""

    images: Images
    token_ids: NDArray[Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def read_inputs(
    run: RunConfig, data: Path, world: World = distributed.ALONE, memo: Path | None = None
) -> Inputs:
    """Images and token ids of a run, and their versions.

    The first process verifies the shards and the file that the run starts from, whose digest
    ``memo`` keeps (ijepa.identity). Raises UserError if data and run do not fit each other.
    """
    index = verify(data) if world.rank == 0 else read_index(data)
    if index.dataset != run.dataset:
        raise UserError(f"{data} holds {index.dataset}, but the run's dataset is {run.dataset}")
    if index.channels != run.vit.channels:
        raise UserError(
            f"{data} has images of {index.channels} channels, but the run's vit.mean and vit.std "
            f"have {run.vit.channels}: make the shards again, or correct the run"
        )
    facts = {"data_version": index.version()}
    if tokens := token_cache(run, data, index):
        facts |= {"tokenizer": tokens.name, "tokens_sha256": tokens.sha256}
    if run.start:
        weights = str(start_file(run.start.weights))
        facts["start_sha256"] = distributed.of_first(partial(start_digest, weights, memo))
    return Inputs(Images(data, "train"), tokens.ids if tokens else None, facts)


def token_cache(run: RunConfig, data: Path, index: Index) -> TokenCache | None:
    """Token cache that the recipe names, if any; raises UserError if it does not fit."""
    tokens = run.recipe.tokens
    if tokens is None:
        return None
    cache = read_tokens(data, tokens.tokenizer, index.version())
    if cache.vocabulary > tokens.vocabulary:
        raise UserError(
            f"recipe.vocabulary is {tokens.vocabulary}, but the tokenizer {tokens.tokenizer} has "
            f"{cache.vocabulary} words: set recipe.vocabulary to that"
        )
    return cache


def check_batches(run: RunConfig, images: Images, data: Path, world: World) -> None:
    """Raise UserError if the images fill no batch, or the processes do not divide it evenly."""
    optim = run.recipe.optim
    num_parts = world.size * optim.accumulate
    if optim.batch_size > len(images):
        raise UserError(
            f"recipe.optim.batch_size is {optim.batch_size}, but {data} has only {len(images)} "
            "training images: choose a smaller batch"
        )
    if optim.batch_size % num_parts:
        raise UserError(
            f"recipe.optim.batch_size is {optim.batch_size}: it must be a multiple of {num_parts} "
            f"({world.size} processes times recipe.optim.accumulate {optim.accumulate})"
        )
    if optim.epochs and not optim.num_steps(len(images)):
        raise UserError(
            f"recipe.optim.epochs is {optim.epochs}: that is not one step of batch_size "
            f"{optim.batch_size} on {len(images)} images: raise epochs, or say 0 for no training"
        )
