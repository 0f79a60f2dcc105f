"""DINO: train the [cls] features of different crops of an image to choose the same prototypes.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
https://arxiv.org/abs/2104.14294

Shape suffixes: B images, V views (the two global ones first), G the two global views, R = V * B
rows (view after view), S scores (one for each prototype), D features, L blocks.
"""

import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa import method
from ijepa.architecture import Variant, ViTConfig
from ijepa.data.loader import View
from ijepa.data.transforms import DINO_GLOBAL_1, DINO_GLOBAL_2, DINO_LOCAL, Crop
from ijepa.distributed import total
from ijepa.image_size import Size
from ijepa.method import Batch
from ijepa.optim import Optim, cosine, follow
from ijepa.ranges import BelowOne, Count, NotNegative, NotNegativeInt, Positive, Probability, Rising
from ijepa.vit import ViT

NUM_GLOBAL = 2

RELEASED = {
    **{
        f"{tower}.{released}": f"{tower}.{ours}"
        for tower in ("student", "teacher")
        for released, ours in {"backbone.": "encoder.", "head.": "head."}.items()
    },
    "dino_loss.center": "centre",
}


@dataclass(frozen=True)
class Config(method.Recipe):
    """Defaults are ViT-B/16's: 400 epochs in batches of 1024 images, 7.5e-4 for every 256 images.

    The released models' arguments (args.txt) are linked from the README and were not seen here.
    Those of ViT-B/16, and of ViT-B/8 in the preset ``base8``, are as quoted by the README of DyT,
    which says that it follows them. Presets ``vanilla`` and ``small`` are of ViT-S/16: the README's
    run of 100 epochs with the script's own defaults, and the released length of 800 epochs with the
    README's settings for it, among them a free gain in the last layer (``norm_last_layer`` false,
    which the README calls safe for ViT-S alone).

    The release spaces its warm-ups so that their last step has the end value; here the step after
    it has.
    """

    optim: Optim = field(
        default_factory=lambda: Optim(
            batch_size=1024,
            epochs=400,
            warmup_epochs=10,
            lr=3e-3,
            start_lr=0.0,
            final_lr=2e-6,
            weight_decay=(0.04, 0.4),
            counted_from=0,
            clip=0.3,
            clip_of="each",
        )
    )
    global_crops: tuple[Crop, Crop] = (DINO_GLOBAL_1, DINO_GLOBAL_2)
    local_crop: Crop = DINO_LOCAL
    num_local: NotNegativeInt = 10
    local_size: Count = 96
    num_prototypes: Count = 65_536
    head_dim: Count = 2048
    bottleneck_dim: Count = 256
    norm_last_layer: bool = True
    freeze_last_layer_epochs: NotNegative = 3
    student_temperature: Positive = 0.1
    teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07)
    temperature_warmup_epochs: NotNegativeInt = 50
    centre_momentum: Probability = 0.9
    momentum: Rising[Probability] = (0.996, 1.0)
    drop_path: BelowOne = 0.1
    layer_scale: Positive | None = None
    """None in DINO and iBOT; DINOv2's encoders have it, 1e-5 at initialisation."""

    @property
    def variant(self) -> Variant:
        """Variant with learned positions and [cls]."""
        return Variant(
            class_token=True,
            positions="learned",
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            init="dino",
        )

    def views(self, image_size: Size) -> list[View]:
        """Two global views, then the local ones."""
        return [
            *(View(image_size, crop) for crop in self.global_crops),
            *(View(self.local_size, self.local_crop) for _ in range(self.num_local)),
        ]

    def temperature(self, progress: float) -> float:
        """Teacher's temperature, which changes from epoch to epoch and then stays."""
        start, end = self.teacher_temperature
        if not self.temperature_warmup_epochs:
            return end
        epoch = int(progress * self.optim.epochs + 1e-6)
        return start + (end - start) * min(1.0, epoch / max(1, self.temperature_warmup_epochs - 1))


SCRIPT: dict[str, Any] = {"freeze_last_layer_epochs": 1, "temperature_warmup_epochs": 30}
"""Defaults of the script where ViT-B/16 has others."""
SCRIPT_OPTIM = {"lr": 2e-3, "final_lr": 1e-6, "clip": 3.0}

PRESETS: dict[str, dict[str, Any]] = {
    # ViT-S/16: 69.3 % k-NN, 74.0 linear (README).
    "vanilla": {
        **SCRIPT,
        "optim": {**SCRIPT_OPTIM, "epochs": 100, "batch_size": 512, "lr": 1e-3},
        "teacher_temperature": (0.04, 0.04),
        "global_crops": [
            asdict(replace(crop, scale=(0.4, 1.0))) for crop in (DINO_GLOBAL_1, DINO_GLOBAL_2)
        ],
        "local_crop": {"scale": (0.05, 0.4)},
        "num_local": 8,
    },
    "small": {**SCRIPT, "optim": {**SCRIPT_OPTIM, "epochs": 800}, "norm_last_layer": False},
    "base8": {
        "optim": {"batch_size": 1056, "epochs": 300, "lr": 5e-4 * 1056 / 256, "clip": 3.0},
        "teacher_temperature": (0.03, 0.07),
    },
    # Small images on a CPU.
    "tiny": {
        "optim": {"batch_size": 32, "epochs": 0.6, "warmup_epochs": 0.1, "lr": 5e-4, "clip": 3.0},
        "num_local": 2,
        "local_size": 16,
        "num_prototypes": 256,
        "head_dim": 256,
        "bottleneck_dim": 64,
        "freeze_last_layer_epochs": 0,
        "teacher_temperature": (0.04, 0.04),
        "momentum": (0.95, 1.0),
        "drop_path": 0.0,
    },
}


def check(config: Config, vit: ViTConfig) -> None:
    """Raise ValueError if the local crops cannot be cut into patches."""
    if config.num_local and config.local_size % vit.patch_size:
        raise ValueError(
            f"recipe.local_size is {config.local_size}: it must be a multiple of vit.patch_size "
            f"({vit.patch_size})"
        )


class Prototypes(nn.Module):
    """Linear layer without bias whose rows are directions times gains (weight normalisation)."""

    def __init__(self, dim: int, num_prototypes: int, norm_last_layer: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), not norm_last_layer)
        self.weight_v = nn.Parameter(nn.Linear(dim, num_prototypes, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Scores, [R, S]."""
        v = self.weight_v
        return F.linear(x, self.weight_g * v / v.norm(dim=1, keepdim=True))


class Head(nn.Module):
    """Network from features to scores: three layers, scaling to length 1, prototypes."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, config.head_dim),
            nn.GELU(),
            nn.Linear(config.head_dim, config.head_dim),
            nn.GELU(),
            nn.Linear(config.head_dim, config.bottleneck_dim),
        )
        for part in self.mlp:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        self.last_layer = Prototypes(
            config.bottleneck_dim, config.num_prototypes, config.norm_last_layer
        )

    def forward(self, features: Tensor) -> Tensor:
        """Scores, [..., S]."""
        scores: Tensor = self.last_layer(F.normalize(self.mlp(features), dim=-1))
        return scores


class Network(nn.Module):
    """Encoder and the head on its features."""

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        self.encoder = ViT(vit, config.variant)
        self.head = Head(config, vit.dim)


class Method(method.Method):
    """Student, which sees all views, and teacher, which sees the global ones."""

    averages: ClassVar = {"teacher": "student"}
    centre: Tensor
    centre_sum: Tensor

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        self.config, self.vit = config, vit
        self.student = self.network()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.register_buffer("centre", torch.zeros(1, config.num_prototypes))
        self.register_buffer("centre_sum", torch.zeros(config.num_prototypes + 1), persistent=False)

    def network(self) -> Network:
        """One tower at initialisation."""
        return Network(self.config, self.vit)

    @property
    def encoder(self) -> ViT:
        """Encoder of the teacher, which the paper evaluates."""
        return self.teacher.encoder

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy between teacher and student over all pairs of different views."""
        views, coins = batch.views, self.coins(batch)
        student = self.student.encoder
        features = [student.of_cls(torch.cat(views[:NUM_GLOBAL]), coins[0])]
        if local := views[NUM_GLOBAL:]:
            features.append(student.of_cls(torch.cat(local), coins[1]))
        scores_RS = self.student.head(torch.cat(features))
        with torch.no_grad():
            targets_RS = self.teacher.head(
                self.teacher.encoder.of_cls(torch.cat(views[:NUM_GLOBAL]))
            )
        add_up(self.centre_sum, targets_RS)
        return {
            "loss": self.loss(scores_RS, targets_RS, self.config.temperature(batch.progress)),
            "teacher_entropy": entropy(self.sharpened(targets_RS, batch.progress)),
        }

    def coins(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Uniform numbers for stochastic depth, for the rows of the global and the local views."""
        coins_VBL2 = batch.coins(self.vit.depth)
        return coins_VBL2[:NUM_GLOBAL].flatten(0, 1), coins_VBL2[NUM_GLOBAL:].flatten(0, 1)

    def sharpened(self, targets_RS: Tensor, progress: float) -> Tensor:
        """Teacher's probabilities, after centring and division by the temperature."""
        temperature = self.config.temperature(progress)
        return ((targets_RS.float() - self.centre) / temperature).softmax(-1)

    def loss(self, scores_RS: Tensor, targets_RS: Tensor, temperature: float) -> Tensor:
        """Cross-entropy, averaged over images and over pairs of a teacher's and another view.

        ``scores_RS`` are the student's for all views, ``targets_RS`` the teacher's for the two
        global ones, both view after view.
        """
        B = len(targets_RS) // NUM_GLOBAL
        log_p_VBS = (scores_RS.float() / self.config.student_temperature).log_softmax(-1)
        log_p_VBS = log_p_VBS.unflatten(0, (-1, B))
        q_GBS = ((targets_RS.float() - self.centre) / temperature).softmax(-1).unflatten(0, (-1, B))
        # Elementwise, because autocast would round the sums of a matrix product to bfloat16.
        pairs = [
            -(q_BS * log_p_BS).sum(-1).mean()
            for g, q_BS in enumerate(q_GBS)
            for v, log_p_BS in enumerate(log_p_VBS)
            if v != g
        ]
        return torch.stack(pairs).mean()

    def before_step(self, progress: float) -> None:
        """Freeze the prototypes for the first ``freeze_last_layer_epochs``."""
        epoch = progress * self.config.optim.epochs + 1e-6  # against rounding, as in temperature
        if epoch < self.config.freeze_last_layer_epochs:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student, and the centre towards the teacher's mean."""
        follow(self.teacher, self.student, self.scheduled(progress)["momentum"])
        self.move_centres()

    @torch.no_grad()
    def move_centres(self) -> None:
        """Move the centre towards the mean of the teacher's scores in all parts of the batch."""
        move(self.centre, self.centre_sum, self.config.centre_momentum)

    def scheduled(self, progress: float) -> dict[str, float]:
        """Momentum, along a cosine, and the teacher's temperature."""
        return {
            "momentum": cosine(*self.config.momentum, progress),
            "teacher_temperature": self.config.temperature(progress),
        }


@torch.no_grad()
def add_up(sums: Tensor, scores: Tensor) -> None:
    """Add rows of scores [..., S] to their sum [S + 1], whose last element counts them."""
    rows = scores.detach().float().flatten(0, -2)
    sums[:-1] += rows.sum(0)
    sums[-1] += len(rows)


def move(centre: Tensor, sums: Tensor, momentum: float) -> None:
    """Move a centre towards the mean of the scores summed on all devices, and reset the sums."""
    all_sums = total(sums)
    mean = all_sums[:-1] / all_sums[-1]
    centre.copy_(centre * momentum + mean * (1 - momentum))
    sums.zero_()


def entropy(p: Tensor) -> Tensor:
    """Mean entropy of rows of probabilities in nats; 0 if the teacher has collapsed to a point."""
    return -(p * p.clamp_min(1e-12).log()).sum(-1).mean()
