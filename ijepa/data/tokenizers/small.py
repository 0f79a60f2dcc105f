"""Token ids by a codebook of contrast-normalised pixel patches, learnt here by k-means.

This is not CAE's tokenizer: that is the DALL-E dVAE, whose 8192 ids are learnt from millions of
images and reconstruct them. These ids describe edges and colours of a few pixels and no more. A CAE
trained on them is another method, and its results must be named so.

Shape suffixes: as in ijepa.data.tokenizer; P sampled patches, D numbers of a patch.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ijepa.data.loader import Images
from ijepa.data.tokenizer import LARGEST_VOCABULARY, WholeViews, unit_floats
from ijepa.errors import UserError

SAMPLED_IMAGES, PATCHES_PER_IMAGE = 1000, 200
"""Size of the sample that the codebook is learnt from."""
CONTRAST_FLOOR = 10 / 255**2
"""Constant that keeps the noise of flat patches small (Coates et al. 2011, 3.2.1: 10 for bytes)."""


@dataclass(frozen=True)
class Config:
    """Settings of the codebook: number of words, pixels of image, patch and stride, and a seed."""

    vocabulary: int = 512
    size: int = 32
    patch: int = 4
    stride: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.vocabulary <= LARGEST_VOCABULARY:
            raise ValueError(f"vocabulary is {self.vocabulary}: choose 2 to {LARGEST_VOCABULARY}")
        if not 1 <= self.stride <= self.patch <= self.size:
            raise ValueError(
                f"stride, patch, size are {self.stride}, {self.patch}, {self.size}: they must be "
                "positive and in rising order"
            )
        if self.size % self.stride:
            raise ValueError(
                f"size is {self.size}: choose a multiple of the stride, which is {self.stride}"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: choose 0 or more")

    def encoder(self, images: Images) -> "Codebook":
        """Tokenizer, learnt from a random sample of the images."""
        from sklearn.cluster import MiniBatchKMeans  # a plan reads the settings alone

        random = np.random.default_rng(self.seed)
        numbers = random.permutation(len(images))[:SAMPLED_IMAGES]
        views = WholeViews(images, self.size)
        sample = []
        for number in tqdm(numbers, desc="sample of patches", unit="image", mininterval=2):
            image_BCHW = unit_floats(torch.from_numpy(views[number].copy())[None])
            patches_ND = contrast_normalised_patches(image_BCHW, self.patch, self.stride)[0]
            sample.append(patches_ND[random.permutation(len(patches_ND))[:PATCHES_PER_IMAGE]])
        patches_PD = torch.cat(sample).numpy()
        distinct = len(np.unique(patches_PD, axis=0))
        if distinct < self.vocabulary:
            raise UserError(
                f"vocabulary is {self.vocabulary}, but a sample of {len(numbers)} images has only "
                f"{distinct} different patches: choose a smaller vocabulary"
            )
        kmeans = MiniBatchKMeans(
            self.vocabulary,
            batch_size=4096,
            n_init=1,
            compute_labels=False,
            random_state=self.seed,
        )
        codes_VD = torch.from_numpy(kmeans.fit(patches_PD).cluster_centers_)
        return Codebook(codes_VD, self.patch, self.stride)


def contrast_normalised_patches(images_BCHW: Tensor, patch: int, stride: int) -> Tensor:
    """Patches [B, N, D] with their mean removed and divided by their standard deviation.

    The image is padded by reflection, so that one patch stands on the middle of every square of
    ``stride`` pixels. Brightness and contrast are lost, colour is kept: both are taken over all
    channels. Coates, Ng and Lee (2011), section 3.2.1; their whitening is left out.
    """
    pad_before = (patch - stride) // 2
    pad_after = patch - stride - pad_before
    padded = F.pad(images_BCHW, (pad_before, pad_after, pad_before, pad_after), mode="reflect")
    patches_BND = F.unfold(padded, patch, stride=stride).transpose(1, 2)
    patches_BND = patches_BND - patches_BND.mean(2, keepdim=True)
    variance = patches_BND.square().mean(2, keepdim=True)
    return patches_BND / (variance + CONTRAST_FLOOR).sqrt()


class Codebook(nn.Module):
    """Ids [B, R, L] of the nearest codes (Euclidean), from images [B, C, H, W] in [0, 1]."""

    batch_size = 32

    def __init__(self, codes_VD: Tensor, patch: int, stride: int) -> None:
        super().__init__()
        self.vocabulary = len(codes_VD)
        self.patch, self.stride = patch, stride
        self.codes_DV: Tensor
        self.offset_V: Tensor
        self.register_buffer("codes_DV", codes_VD.T.contiguous())
        self.register_buffer("offset_V", -codes_VD.square().sum(1) / 2)

    def forward(self, images_BCHW: Tensor) -> Tensor:  # noqa: D102
        patches_BND = contrast_normalised_patches(images_BCHW, self.patch, self.stride)
        # The code with the largest x.c - |c|^2 / 2 is the one with the smallest |x - c|^2.
        scores = torch.addmm(self.offset_V, patches_BND.flatten(0, 1), self.codes_DV)
        rows, columns = (length // self.stride for length in images_BCHW.shape[2:])
        return scores.argmax(1).view(len(images_BCHW), rows, columns)
