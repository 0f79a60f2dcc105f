"""Identification: is a decoded block more like the true block than like other images' blocks?

Two-way identification is the usual measure of images that are decoded from brain activity: the
share of pairs (true block, another image's block at the same place) of which the decoded block is
more like the true one. Chance is 0.5.

Shape suffixes: N images, S samples of each, X = N * S samples, C channels, H and W pixels,
D features, R resamples.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from evals.decoder.blocks import resize
from evals.decoder.source import statistics
from ijepa.randomness import generator
from ijepa.vit import ViT

CHUNK = 64
SIDE = 16
"""Pixels of a side when pixels are compared."""


@torch.no_grad()
def features(pictures_XCHW: Tensor, encoder: ViT | None) -> Tensor:
    """Average of an encoder's patches, or pixels if there is none, [X, D].

    The encoder sees nothing but the block, enlarged to its own size: with the image around it, the
    block's surroundings would give the true one away.
    """
    if encoder is None:
        return resize(pictures_XCHW, SIDE).flatten(1)
    device = next(encoder.parameters()).device
    mean, std = statistics(encoder, pictures_XCHW)
    chunks = (
        (resize(x, encoder.config.image_size) - mean) / std for x in pictures_XCHW.split(CHUNK)
    )
    return torch.cat([encoder.patches(encoder(x.to(device))).float().mean(1).cpu() for x in chunks])


def scores(samples_NSD: Tensor, true_ND: Tensor, shift: int = 0) -> Tensor:
    """Two-way identification of each image among the N images of its group, [N].

    ``shift`` pairs each decoded block with the true block of a later image, which is the shuffled
    pairing. Features are centred, those of samples and true ones apart, so that neither what all
    blocks share nor what all decoded ones share counts. Ties count half.
    """
    true_ND = F.normalize(true_ND - true_ND.mean(0), dim=1)
    samples_NSD = F.normalize(samples_NSD - samples_NSD.mean((0, 1)), dim=2)
    similarity_NSN = torch.einsum("nsd,md->nsm", samples_NSD, true_ND).roll(-shift, 2)
    own_NS1 = similarity_NSN.diagonal(dim1=0, dim2=2).T.unsqueeze(2)
    wins_NSN = (own_NS1 > similarity_NSN).float() + 0.5 * (own_NS1 == similarity_NSN).float()
    return ((wins_NSN.sum(2) - 0.5) / (len(true_ND) - 1)).mean(1)


def interval(scores_N: Tensor, resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of the mean, by the percentiles of a bootstrap over images."""
    random = generator(seed, "decoder", "bootstrap")
    index_RN = torch.randint(len(scores_N), (resamples, len(scores_N)), generator=random)
    low, high = scores_N[index_RN].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def spread(samples_NSCHW: Tensor) -> float:
    """Share of the samples' variance that is between samples of one condition, from 0 to 1.

    At 1 the samples do not depend on the condition; at 0 the condition decides every pixel.
    """
    within = samples_NSCHW.var(1).mean()
    total = samples_NSCHW.flatten(0, 1).var(0).mean()
    return float((within / total.clamp(min=1e-12)).clamp(max=1.0))
