"""LeJEPA: predict the mean of an image's global views from every view, without a teacher.

SIGReg (ijepa.sigreg) alone prevents a collapse: there is no moving average, no stop of a gradient,
no predictor.

Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the
Heuristics", arXiv:2511.08544, 2025. https://arxiv.org/abs/2511.08544

Shape suffixes: V views (the global ones first), G global views, B images, R = V * B rows (view
after view), C channels, H rows and W columns of pixels, D features, K projected features, S
directions, L blocks.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ijepa import method
from ijepa.architecture import Variant, ViTConfig
from ijepa.batch_norm import BatchNorm
from ijepa.data.loader import View
from ijepa.data.transforms import LEJEPA_GLOBAL, LEJEPA_LOCAL, Crop
from ijepa.image_size import Size
from ijepa.method import Batch
from ijepa.optim import Optim
from ijepa.ranges import BelowOne, Count, NotNegativeInt, Positive
from ijepa.sigreg import SIGReg
from ijepa.transfer import placed
from ijepa.vit import ViT


@dataclass(frozen=True)
class Config(method.Recipe):
    """Defaults are the README's recipe, 100 epochs of ImageNet-1k, for encoders with patches of 16.

    The README's local views have 98 pixels, 7 patches of 14; here they have 6 of 16. Preset
    ``readme`` is that of its ViT-L/14, with the stochastic depth of its examples.

    It leaves open the batch (128 to 512 images; here 512), the warm-up (about an epoch; here 1) and
    ``output_dim`` (16 to 128 in the minimal example, 512 in a port; here 128). The initial weights
    are timm's for a ViT but for [cls], whose deviation is 0.02 here and 1e-6 there.
    """

    optim: Optim = field(
        default_factory=lambda: Optim(
            batch_size=512,
            epochs=100,
            warmup_epochs=1,
            lr=5e-4,
            start_lr=5e-6,
            final_lr=5e-7,
            weight_decay=(0.05, 0.05),
            counted_from=0,
        )
    )
    global_crop: Crop = LEJEPA_GLOBAL
    local_crop: Crop = LEJEPA_LOCAL
    num_global: Count = 2
    num_local: NotNegativeInt = 6
    local_size: Count = 96
    projector_dim: Count = 2048
    output_dim: Count = 128
    sigreg: SIGReg = field(default_factory=SIGReg)
    drop_path: BelowOne = 0.0
    layer_scale: Positive | None = None

    def __post_init__(self) -> None:
        if self.num_global + self.num_local < 2:
            raise ValueError(
                f"num_local is {self.num_local} and num_global {self.num_global}: a view alone "
                "predicts itself; two views are the least"
            )

    @property
    def variant(self) -> Variant:
        """Variant with learned positions, which are resampled for small views, and [cls]."""
        return Variant(
            class_token=True,
            positions="learned",
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            init="dino",
            antialias=True,
        )

    def views(self, image_size: Size) -> list[View]:
        """Global views, then the local ones."""
        return [
            *(View(image_size, self.global_crop) for _ in range(self.num_global)),
            *(View(self.local_size, self.local_crop) for _ in range(self.num_local)),
        ]

    @property
    def whole_batch(self) -> bool:
        """True: SIGReg and BatchNorm compare the images of a batch."""
        return True


PRESETS: dict[str, dict[str, Any]] = {
    "readme": {"local_size": 98, "drop_path": 0.1},
    # The minimal example: ViT-S/8 on Imagenette at 128 pixels, 90.7 % by its online linear probe.
    "minimal": {
        "optim": {"batch_size": 256, "epochs": 800, "lr": 2e-3, "start_lr": 2e-5, "final_lr": 2e-6},
        "global_crop": asdict(
            replace(LEJEPA_GLOBAL, scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2))
        ),
        "num_global": 4,
        "num_local": 0,
        "output_dim": 16,
        "sigreg": {"lamb": 0.02, "num_directions": 256},
    },
    # Small images on a CPU.
    "tiny": {
        "optim": {
            "batch_size": 64,
            "epochs": 1.0,
            "warmup_epochs": 0.1,
            "lr": 1e-3,
            "start_lr": 1e-5,
            "final_lr": 1e-6,
        },
        "num_local": 2,
        "local_size": 16,
        "projector_dim": 256,
        "output_dim": 16,
        "sigreg": {"num_directions": 256},
    },
}


def check(config: Config, vit: ViTConfig) -> None:
    """Raise ValueError if the local views cannot be cut into patches."""
    if config.num_local and config.local_size % vit.patch_size:
        raise ValueError(
            f"recipe.local_size is {config.local_size}: it must be a multiple of vit.patch_size "
            f"({vit.patch_size})"
        )


def projector(dim: int, width: int, output_dim: int) -> nn.Sequential:
    """Three layers with BatchNorm, from features [R, D] to projections [R, K]."""
    return nn.Sequential(
        nn.Linear(dim, width),
        BatchNorm(width),
        nn.ReLU(),
        nn.Linear(width, width),
        BatchNorm(width),
        nn.ReLU(),
        nn.Linear(width, output_dim),
    )


class Method(method.Method):
    """Encoder, and a projector that evaluation does not use; both learn from every view."""

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__()
        self.config, self.vit = config, vit
        self.network = ViT(vit, config.variant)
        self.projector = projector(vit.dim, config.projector_dim, config.output_dim)

    @property
    def encoder(self) -> ViT:
        """The only encoder."""
        return self.network

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Prediction loss and SIGReg of every view, both of all processes' images."""
        projections_VBK = self.project(self.embed(batch.views, batch.coins(self.vit.depth)))
        directions_KS = self.config.sigreg.directions(
            self.config.output_dim, batch.generator("directions")
        )
        device = projections_VBK.device
        return self.losses(projections_VBK, placed(directions_KS, device))

    def embed(self, views: tuple[Tensor, ...], coins_VBL2: Tensor) -> Tensor:
        """Features of [cls], [R, D]; each view is [B, C, H, W]."""
        G = self.config.num_global
        rows = [
            self.network.of_cls(torch.cat(alike), coins_vBL2.flatten(0, 1))
            for alike, coins_vBL2 in ((views[:G], coins_VBL2[:G]), (views[G:], coins_VBL2[G:]))
            if alike
        ]
        return torch.cat(rows)

    def project(self, features_RD: Tensor) -> Tensor:
        """Projections, float32 [V, B, K]; BatchNorm sees all views together."""
        num_views = self.config.num_global + self.config.num_local
        projections_RK: Tensor = self.projector(features_RD)
        projections_VBK: Tensor = projections_RK.float().unflatten(0, (num_views, -1))
        return projections_VBK

    def losses(self, projections_VBK: Tensor, directions_KS: Tensor) -> dict[str, Tensor]:
        """Prediction loss, mean of the views' SIGReg, and their weighed sum.

        Gradients flow through the centres too.
        """
        centres_BK = projections_VBK[: self.config.num_global].mean(0)
        prediction = (centres_BK - projections_VBK).square().mean()
        statistics_V = self.config.sigreg.statistics(projections_VBK, directions_KS)
        return {
            "loss": self.config.sigreg.weighed(prediction, statistics_V),
            "loss_prediction": prediction,
            "loss_sigreg": statistics_V.mean(),
        }
