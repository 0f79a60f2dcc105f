"""Model: a U-Net that draws a block from noise and from what an encoder tells of it.

As in RCDM's release, one linear layer takes the condition to the width of the time embedding, to
which it is added. U-Net and schedulers are diffusers'.

Shape suffixes: B images, X samples, C channels, H and W pixels, D values of a condition.
"""

import copy
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from evals.decoder.blocks import Regions, crop
from evals.decoder.settings import Config
from evals.decoder.source import Source
from ijepa import method
from ijepa.checkpoint import save_tensors
from ijepa.data.loader import View
from ijepa.data.transforms import Crop
from ijepa.errors import UserError
from ijepa.image_size import Size
from ijepa.method import Batch
from ijepa.optim import Optim, follow
from ijepa.precision import precision
from ijepa.provenance import here
from ijepa.randomness import generator
from ijepa.strict import strict
from ijepa.transfer import placed
from ijepa.vit import ViT

CROP = Crop(scale=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.5)
"""The central square, mirrored at random, as guided-diffusion's loader makes it."""
CHUNK = 256
"""Samples that are drawn at once."""
HEADER = "ijepa_decoder"


@dataclass(frozen=True)
class Recipe(method.Recipe):
    """Recipe of the decoder for the training loop."""

    optim: Optim = field(default_factory=Optim)

    def views(self, image_size: Size) -> list[View]:
        """One view, of the encoder's size."""
        return [View(image_size, CROP)]


class Network(nn.Module):
    """Network of one noise level and condition."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        levels = range(len(config.channels))
        attends = [config.size >> level in config.attention for level in levels]
        plain = "Resnet{}sampleBlock2D" if config.resnet_resampling else "{}Block2D"
        down, up = (
            tuple(
                f"Attn{way}Block2D" if attention else plain.format(way) for attention in attentions
            )
            for way, attentions in (("Down", attends), ("Up", attends[::-1]))
        )
        resampling = "resnet" if config.resnet_resampling else "conv"
        self.embed = nn.Linear(dim, 4 * config.channels[0])
        unet: Any = UNet2DModel  # diffusers has no types for its constructors
        self.unet = unet(
            sample_size=config.size,
            block_out_channels=tuple(config.channels),
            layers_per_block=config.layers,
            down_block_types=down,
            up_block_types=up,
            downsample_type=resampling,
            upsample_type=resampling,
            attention_head_dim=config.head_dim,
            norm_num_groups=config.groups,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )

    def forward(self, noisy_BCHW: Tensor, steps_B: Tensor, conditions_BD: Tensor) -> Tensor:
        """Predicted noise or velocity, [B, C, H, W]."""
        embedded = self.embed(conditions_BD)
        out: Tensor = self.unet(noisy_BCHW, steps_B, embedded, return_dict=False)[0]
        return out


class Decoder(method.Method):
    """The network that learns, and the average of its weights, which draws.

    ``source`` gives the conditions of images; None if conditions are given.
    """

    mean: Tensor
    std: Tensor
    signal: Tensor

    def __init__(self, config: Config, dim: int, source: Source | None = None) -> None:
        super().__init__()
        self.config, self.source = config, source
        self.network = Network(config, dim)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        scheduler: Any = DDIMScheduler
        self.scheduler = scheduler(
            config.timesteps,
            beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[config.schedule],
            prediction_type=config.prediction_type,
            timestep_spacing="trailing",
        )
        signal = self.scheduler.alphas_cumprod.view(-1, 1, 1, 1)
        self.register_buffer("signal", signal, persistent=False)

    @property
    def encoder(self) -> ViT:
        """The frozen encoder."""
        assert self.source is not None
        return self.source.encoder

    def standardise(self, conditions_BD: Tensor) -> None:
        """Take mean and deviation of these conditions as those of all."""
        self.mean.copy_(conditions_BD.mean(0))
        self.std.copy_(conditions_BD.std(0).clamp(min=1e-6))

    def standardised(self, conditions_BD: Tensor) -> Tensor:
        """Conditions as the network takes them; a value that never varied is 0."""
        constant_D = self.std <= 1e-6
        return ((conditions_BD - self.mean) / self.std).masked_fill(constant_D, 0.0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Squared error of the predicted noise or velocity: one block, one noise level an image."""
        assert self.source is not None
        images, count = batch.images_BCHW, batch.num_images()
        drawn = self.source.draw(count, batch.generator("blocks"))
        here = slice(batch.offset, batch.offset + len(images))
        regions = Regions(drawn.blocks[here], drawn.context_BK[here])
        clean = crop(
            self.source.pixels(images) * 2 - 1, regions.blocks, self.source.grid, self.config.size
        )
        conditions = self.standardised(self.source.conditions(images, regions))
        random = batch.generator("noise")
        noise, steps = (
            placed(batch.rows(whole), images.device)
            for whole in (
                torch.randn(count, *clean.shape[1:], generator=random),
                torch.randint(self.config.timesteps, (count,), generator=random),
            )
        )
        of_clean, of_noise = self.signal[steps].sqrt(), (1 - self.signal[steps]).sqrt()
        velocity = self.config.prediction_type == "v_prediction"
        goal = of_clean * noise - of_noise * clean if velocity else noise
        noisy = of_clean * clean + of_noise * noise
        predicted = self.network(noisy, steps, conditions)
        return {"loss": F.mse_loss(predicted.float(), goal)}

    def after_step(self, progress: float) -> None:
        """Move the average towards the network."""
        follow(self.average, self.network, self.config.average)

    @torch.no_grad()
    def sample(self, conditions_XD: Tensor, noise_XCHW: Tensor) -> Tensor:
        """Pictures in [0, 1], [X, C, H, W] on the CPU, drawn from these noises by DDIM."""
        chunks = zip(conditions_XD.split(CHUNK), noise_XCHW.split(CHUNK), strict=True)
        return torch.cat([self._sample(*chunk) for chunk in chunks])

    def _sample(self, conditions_BD: Tensor, noise_BCHW: Tensor) -> Tensor:
        device = self.mean.device
        conditions_BD = self.standardised(conditions_BD.to(device))
        x = noise_BCHW.to(device)
        self.scheduler.set_timesteps(self.config.sampling_steps, device=device)
        for step in self.scheduler.timesteps:
            with precision(self.config.precision, device):
                predicted = self.average(x, step, conditions_BD)
            x = self.scheduler.step(predicted.float(), step, x).prev_sample
        return (x.cpu() / 2 + 0.5).clamp(0, 1)


def noises(config: Config, seed: int, key: str, samples: int) -> Tensor:
    """Noises of the samples for one image, a function of (seed, key), [X, C, H, W]."""
    shape = (samples, 3, config.size, config.size)
    return torch.randn(shape, generator=generator(seed, "decode", key))


def save_decoder(path: Path, decoder: Decoder, dataset: str) -> None:
    """Write what draws: averaged weights and the conditions' statistics, and of which encoder."""
    assert decoder.source is not None
    tensors = {f"average.{name}": x for name, x in decoder.average.state_dict().items()}
    tensors |= {"mean": decoder.mean, "std": decoder.std}
    about = {
        "settings": asdict(decoder.config),
        "encoder": decoder.source.digest,
        "dim": len(decoder.mean),
        "dataset": dataset,
        "facts": here(),
    }
    plain = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    save_tensors(path, plain, about, key=HEADER)


def read_about(path: Path) -> dict[str, Any]:
    """Header of a decoder's file: settings, encoder, dim; raises UserError for another file."""
    try:
        with safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = json.loads(file.metadata()[HEADER])
            return about
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the evaluation decoder first") from None
    except (SafetensorError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{path} is not a decoder of this project ({error}): run the evaluation decoder"
        ) from None


def load_decoder(path: Path) -> Decoder:
    """Decoder that draws, without its source."""
    about = read_about(path)
    config = strict(Config, about["settings"], str(path))
    decoder = Decoder(config, about["dim"])
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    missing, unexpected = decoder.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith("network.") for name in missing):
        raise UserError(f"{path} does not fit its own header: run the evaluation decoder again")
    return decoder.eval()
