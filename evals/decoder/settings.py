"""Settings of the decoder, which are those of the evaluation ``decoder``. It imports no torch.

Bordes, Balestriero and Vincent, "High Fidelity Visualization of What Your Self-Supervised
Representation Knows About", TMLR 2022 (RCDM). https://arxiv.org/abs/2112.09164
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from ijepa.ranges import BelowOne, Count, NotNegativeInt, Positive, Precision

Condition = Literal["prediction", "image"]


@dataclass(frozen=True)
class Config:
    """Defaults: RCDM's network and training at 128 pixels (its paper and release; fidelity below).

    ``condition``: ``prediction`` is the average of the predictor's output for one target block
    (Assran et al., Figure 6), ``image`` that of the target encoder's output for the whole image
    (Figure 7). What is decoded is the crop of that block, or the whole image, in ``size`` x
    ``size`` pixels; the paper does not say so, but its Figure 6 shows regions filled in. The
    block's position (row, column, height, width) is part of the condition.

    ``channels`` of each level, ``layers`` of residual blocks a level, ``attention`` at these sides
    in pixels, with ``head_dim`` channels a head. ``resnet_resampling`` halves and doubles sides
    within residual blocks, as guided-diffusion's networks for 128 pixels do.

    ``timesteps`` of noise, on a linear or cosine ``schedule``; the network predicts the noise
    (``epsilon``) or, steadier in short trainings, Salimans and Ho's velocity (``v_prediction``).
    ``average`` is the momentum of the averaged weights, which draw all pictures. A batch is taken
    in ``accumulate`` equal parts, which changes rounding alone: RCDM had 8 images a GPU.

    Differences from RCDM: no learned variance, heads of 64 channels where it has 4 heads, and
    conditions standardised by their mean and deviation over training images.

    Measured are the first ``images`` test images, in ``blocks`` groups that share a block, with
    ``samples`` each, drawn in ``sampling_steps`` steps of DDIM. ``pictures`` of them are drawn.
    ``judge`` names the features that compare blocks: ``own`` are the evaluated encoder's,
    ``pixels`` are pixels; else it is the path of another encoder. ``resamples`` give the interval.
    """

    condition: Condition = "prediction"
    size: Count = 128
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 256, 512, 768, 1024)
    layers: Count = 2
    attention: tuple[Count, ...] = (32, 16, 8)
    head_dim: Count = 64
    resnet_resampling: bool = True
    timesteps: Count = 1000
    schedule: Literal["linear", "cosine"] = "linear"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    steps: Count = 300_000
    batch_size: Count = 256
    accumulate: Count = 16
    lr: Positive = 1e-4
    average: BelowOne = 0.9999
    sampling_steps: Count = 100
    samples: Annotated[int, Field(ge=2)] = 8
    images: Annotated[int, Field(ge=2)] = 1000
    blocks: Count = 10
    pictures: Count = 8
    judge: str = "own"
    resamples: Annotated[int, Field(ge=40)] = 1000
    seed: NotNegativeInt = 0
    num_workers: NotNegativeInt = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        halvings = 2 ** (len(self.channels) - 1)
        if self.size % halvings:
            raise ValueError(
                f"size is {self.size}: {len(self.channels)} levels of channels halve it "
                f"{len(self.channels) - 1} times, so that it must be a multiple of {halvings}"
            )
        if wrong := [width for width in self.channels if width % self.groups]:
            raise ValueError(f"channels: {wrong[0]} must be a multiple of {self.groups}")
        attending = {self.channels[-1], *self._attending()}
        if wrong := [width for width in sorted(attending) if width % self.head_dim]:
            raise ValueError(
                f"head_dim is {self.head_dim}: it must divide the channels of levels with "
                f"attention and of the last one, such as {wrong[0]}"
            )
        sides = [self.size >> level for level in range(len(self.channels))]
        if unknown := set(self.attention) - set(sides):
            raise ValueError(
                f"attention: {min(unknown)} is the side of no level: those are {sides}"
            )
        if self.sampling_steps > self.timesteps:
            raise ValueError(
                f"sampling_steps is {self.sampling_steps}: it must be at most timesteps "
                f"({self.timesteps})"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate is {self.accumulate}: batch_size ({self.batch_size}) must be a "
                "multiple of it"
            )
        if self.images < 2 * self.blocks:
            raise ValueError(
                f"images is {self.images}: each of {self.blocks} blocks is compared in two images "
                "or more: raise images or lower blocks"
            )

    def _attending(self) -> list[int]:
        """Channels of the levels with attention."""
        levels = enumerate(self.channels)
        return [width for level, width in levels if self.size >> level in self.attention]

    @property
    def groups(self) -> int:
        """Number of groups of the normalisations."""
        return max(1, min(32, self.channels[0] // 4))


PRESETS: dict[str, dict[str, Any]] = {
    # ImageNet, as RCDM: 32 GPUs with 8 images each.
    "paper": {},
    # CIFAR-10 on one GPU.
    "cifar": {
        "size": 32,
        "channels": [64, 128, 128],
        "attention": [16, 8],
        "head_dim": 32,
        "resnet_resampling": False,
        "schedule": "cosine",
        "prediction_type": "v_prediction",
        "steps": 40_000,
        "batch_size": 128,
        "accumulate": 1,
        "lr": 2e-4,
        "average": 0.999,
        "sampling_steps": 50,
        "num_workers": 8,
    },
    # CIFAR-10 on a CPU: blobs of the right colours.
    "tiny": {
        "size": 16,
        "channels": [32, 64],
        "layers": 1,
        "attention": [],
        "head_dim": 32,
        "resnet_resampling": False,
        "schedule": "cosine",
        "prediction_type": "v_prediction",
        "steps": 500,
        "batch_size": 32,
        "accumulate": 1,
        "lr": 1e-3,
        "average": 0.99,
        "sampling_steps": 20,
        "samples": 4,
        "images": 120,
        "blocks": 4,
        "pictures": 6,
    },
}
