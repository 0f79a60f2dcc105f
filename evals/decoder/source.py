"""Source of a decoder's conditions: the frozen networks of a run, and what they tell of an image.

Shape suffixes: B images, C channels, H and W pixels, K patches of the context, M blocks, T patches
of a block, N patches of the grid, D features.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from evals.decoder.blocks import Block, Regions, bounding, whole
from evals.decoder.settings import Condition
from ijepa.checkpoint import load_encoder
from ijepa.data.transforms import MEAN, STD
from ijepa.encoder_file import encoder_digest
from ijepa.errors import UserError
from ijepa.masking import Masks, Sampler
from ijepa.randomness import generator
from ijepa.transfer import first_device, placed
from ijepa.vit import ViT
from ijepa.whole import load_whole

WHOLE = "whole.safetensors"


@runtime_checkable
class Predicts(Protocol):
    """A method with a predictor of blocks that its encoder does not see, as I-JEPA."""

    masking: Sampler
    config: Any
    """Its ``masking.group_size`` is the number of images that share sizes in pretraining."""

    def predict(self, images_BCHW: Tensor, masks: Masks) -> Tensor:
        """Predicted features of every patch of every block, [B, M, T, D]."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """A method that draws the pixels of hidden patches itself, as MAE."""

    def reconstruct(self, images_BCHW: Tensor, visible_BK: Tensor) -> Tensor:
        """Normalised images with the patches that are not visible filled in, [B, C, H, W]."""
        ...


class Source:
    """Frozen networks of one run, on the device that computes.

    It is no nn.Module, so that a decoder's checkpoints do not hold the encoder's weights. Raises
    UserError if the run has no predictor where ``condition`` needs one.
    """

    def __init__(self, path: Path, condition: Condition) -> None:
        self.path, self.condition = path, condition
        self.device = first_device()
        encoder, self.about = load_encoder(path)
        self.digest = encoder_digest(path)
        self.method = self._whole_of(encoder)
        self.encoder: ViT = (self.method.encoder if self.method else encoder).to(self.device)
        self.grid = self.encoder.config.grid
        self.size = self.encoder.config.side
        name = self.about["run"]["method"]
        if condition == "prediction" and not isinstance(self.method, Predicts):
            reason = (
                f"{path.with_name(WHOLE)} is missing (keep: whole of published weights, keep.whole "
                "of a run)"
                if self.method is None
                else f"{name} predicts no features of blocks"
            )
            raise UserError(
                f"condition: prediction needs a predictor, but {reason}: set condition: image"
            )

    def _whole_of(self, encoder: ViT) -> Any:
        """All networks of the encoder's run, frozen; None if the run kept its encoder alone."""
        if not (path := self.path.with_name(WHOLE)).exists():
            return None
        method, _ = load_whole(path)
        weights, wanted = method.encoder.state_dict(), encoder.state_dict()
        equal = (name in weights and torch.equal(weights[name], x) for name, x in wanted.items())
        if not all(equal):
            raise UserError(
                f"{path} is of another run than {self.path}: keep the files of a run together"
            )
        return method.to(self.device).requires_grad_(False)

    @cached_property
    def dim(self) -> int:
        """Number of values of a condition."""
        image = torch.zeros(1, 3, self.size, self.size, device=self.device)
        return self.conditions(image, self.draw(1, generator("dim"))).shape[1]

    def draw(self, count: int, random: torch.Generator) -> Regions:
        """Regions of ``count`` images: one target block of pretraining, and its context.

        Context is as small as in a group of pretraining, even if ``count`` is less. For condition
        image all of it is seen and decoded.
        """
        if self.condition == "image":
            patches = torch.arange(self.grid[0] * self.grid[1])
            return Regions([whole(self.grid)] * count, patches.expand(count, -1))
        # All images of a group have as much context as the one with least: a lone one has more.
        group = self.method.config.masking.group_size
        masks = self.method.masking.sample(max(count, group), random)
        targets_BT = masks.targets_GMT[:count, 0]
        blocks = [bounding(patches_T, self.grid) for patches_T in targets_BT]
        return Regions(blocks, masks.context_GK[:count])

    @torch.no_grad()
    def features_of(self, images_BCHW: Tensor, regions: Regions) -> Tensor:
        """Average of the predictor's or the encoder's output, [B, D] float32."""
        if self.condition == "image":
            return self.encoder.patches(self.encoder(images_BCHW)).float().mean(1)
        targets_B1T = torch.stack([block.patches(self.grid) for block in regions.blocks])[:, None]
        masks = Masks(*(placed(x, self.device) for x in (regions.context_BK, targets_B1T)))
        predicted: Tensor = self.method.predict(images_BCHW, masks)
        return predicted[:, 0].float().mean(1)

    def conditions(self, images_BCHW: Tensor, regions: Regions) -> Tensor:
        """Features and position of each image's block, [B, D + 4]; they are alike in size."""
        positions = torch.tensor([block.position(self.grid) for block in regions.blocks])
        features_BD = self.features_of(images_BCHW, regions)
        return torch.cat([features_BD, placed(positions, self.device)], 1)

    def pixels(self, images_BCHW: Tensor) -> Tensor:
        """Values in [0, 1] of images that are normalised as the encoder takes them."""
        mean, std = statistics(self.encoder, images_BCHW)
        return images_BCHW * std + mean

    def centre(self) -> Block:
        """Block in the middle, half as high and wide as the grid, to show what is hidden."""
        rows, columns = self.grid
        return Block(rows // 4, columns // 4, max(1, rows // 2), max(1, columns // 2))


def statistics(encoder: ViT, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel by which an encoder's images are normalised, [C, 1, 1]."""
    vit = encoder.config
    values = (vit.mean or MEAN, vit.std or STD)
    mean, std = (placed(torch.tensor(x), like.device).view(-1, 1, 1) for x in values)
    return mean, std
