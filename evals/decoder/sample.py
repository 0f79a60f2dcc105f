"""Samples of a decoder: for the images of an evaluation, and for one image of a user.

Shape suffixes: B images, N images, S samples of each, C channels, H and W pixels, D values of a
condition.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evals.decoder.blocks import Block, Regions, around, crop, whole
from evals.decoder.model import Decoder, noises
from evals.decoder.pictures import Row
from evals.decoder.source import Reconstructs, Source
from ijepa.precision import precision
from ijepa.randomness import generator


class Decoded(NamedTuple):
    """Images that share one block: what each shows there, and the decoder's samples of it."""

    images_NCHW: Tensor
    regions: Regions
    true_NCHW: Tensor
    samples_NSCHW: Tensor


def decode_group(decoder: Decoder, source: Source, images_NCHW: Tensor, group: int) -> Decoded:
    """Samples for normalised images, all with the block and context of this group's number."""
    config = decoder.config
    drawn = source.draw(1, generator(config.seed, "decoder", "group", group))
    count = len(images_NCHW)
    regions = Regions(drawn.blocks * count, drawn.context_BK.expand(count, -1))
    keys = [f"group {group} image {number}" for number in range(count)]
    samples = decode(decoder, source, images_NCHW, regions, config.samples, config.seed, keys)
    true = crop(source.pixels(images_NCHW), regions.blocks, source.grid, config.size)
    return Decoded(images_NCHW, regions, true, samples)


def decode(
    decoder: Decoder,
    source: Source,
    images_BCHW: Tensor,
    regions: Regions,
    samples: int,
    seed: int,
    keys: Sequence[str],
) -> Tensor:
    """Samples of each image's block, [B, S, C, H, W] in [0, 1].

    A sample's noise is a function of (seed, the image's key, its number).
    """
    with precision(decoder.config.precision, source.device):
        conditions = source.conditions(images_BCHW.to(source.device), regions)
    noise = torch.cat([noises(decoder.config, seed, key, samples) for key in keys])
    drawn = decoder.sample(conditions.repeat_interleave(samples, 0), noise)
    by_image: Tensor = drawn.unflatten(0, (-1, samples))
    return by_image


def row_of(source: Source, decoded: Decoded, number: int) -> Row:
    """Row of a grid of pictures for one image of a group."""
    image = decoded.images_NCHW[number]
    regions, samples = decoded.regions, decoded.samples_NSCHW[number]
    if source.condition == "prediction":
        blocks, context = regions.blocks[number : number + 1], regions.context_BK[number]
        return Row(source.pixels(image[None])[0], blocks, [samples], context, blocks)
    return whole_row(source, image, samples, [source.centre()])


def whole_row(
    source: Source, image_CHW: Tensor, samples_SCHW: Tensor, hidden: Sequence[Block]
) -> Row:
    """Row of samples of a whole image, with the method's own picture of blocks if it draws any."""
    picture, blocks = source.pixels(image_CHW[None])[0], [whole(source.grid)]
    if not isinstance(source.method, Reconstructs):
        return Row(picture, blocks, [samples_SCHW])
    context = around(hidden, source.grid)
    with torch.no_grad():
        images = image_CHW[None].to(source.device)
        filled = source.method.reconstruct(images, context[None].to(source.device)).cpu()
    return Row(
        picture, blocks, [samples_SCHW], context, hidden, source.pixels(filled)[0].clamp(0, 1)
    )


def user_row(
    decoder: Decoder,
    source: Source,
    image_CHW: Tensor,
    blocks: Sequence[Block],
    samples: int,
    seed: int,
) -> Row:
    """Row for a normalised image: all blocks are hidden, and each is decoded by itself.

    For condition image, ``blocks`` are what the method's own picture fills in.
    """
    if source.condition == "image":
        regions = source.draw(1, generator(seed))
        drawn = decode(decoder, source, image_CHW[None], regions, samples, seed, ["whole"])
        return whole_row(source, image_CHW, drawn[0], blocks)
    context = around(blocks, source.grid)
    parts = []
    for block in blocks:
        regions = Regions([block], context[None])
        key = f"{block.row},{block.column},{block.height},{block.width}"
        parts.append(decode(decoder, source, image_CHW[None], regions, samples, seed, [key])[0])
    return Row(source.pixels(image_CHW[None])[0], list(blocks), parts, context, list(blocks))
