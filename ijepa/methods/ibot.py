"""iBOT: DINO, and the student also predicts the prototypes of patches that are hidden from it.

Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR 2022.
https://arxiv.org/abs/2111.07832

Shape suffixes: as in ``dino``; N patches of the grid, F = 2 * B rows of the global views.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ijepa.architecture import ViTConfig
from ijepa.data.transforms import IBOT_GLOBAL_1, IBOT_GLOBAL_2, IBOT_LOCAL, Crop
from ijepa.masking import BlockWise
from ijepa.method import Batch
from ijepa.methods import dino
from ijepa.methods.dino import NUM_GLOBAL, add_up, entropy, move
from ijepa.ranges import Count, NotNegative, Positive, Probability, Rising
from ijepa.transfer import placed
from ijepa.vit import Hidden

RELEASED = {
    **{f"{tower}.backbone.masked_embed": f"{tower}.mask_token" for tower in ("student", "teacher")},
    **{theirs: ours for theirs, ours in dino.RELEASED.items() if ours != "centre"},
    "ibot_loss.center": "centre",
    "ibot_loss.center2": "patch_centre",
}
COPIES = {f"{t}.head.last_layer2.": f"{t}.head.last_layer." for t in ("student", "teacher")}
UNUSED = {"teacher.mask_token"}


@dataclass(frozen=True)
class Config(dino.Config):
    """Defaults are ViT-B/16's: 400 epochs in batches of 1024 images, 7.5e-4 for every 256 images.

    The only command with all arguments in the release is that of ViT-S/16 (README), the preset
    ``small``. The arguments of ViT-B/16 (args.txt, not seen here) are as quoted alike by SERE, HSSL
    and a third collection of recipes; those of ViT-L/16, preset ``large``, are from one such file
    alone. One head serves [cls] and patches. In half of the views nothing is hidden; in the others
    the hidden share is drawn uniformly from ``mask_ratio``. Some released models hide random
    patches (70 % +- 5) instead of blocks, which cannot be set here.
    """

    global_crops: tuple[Crop, Crop] = (IBOT_GLOBAL_1, IBOT_GLOBAL_2)
    local_crop: Crop = IBOT_LOCAL
    num_prototypes: Count = 8192
    patch_temperature: tuple[Positive, Positive] = (0.04, 0.07)
    masking: BlockWise = field(default_factory=lambda: BlockWise(min_patches=None))
    mask_ratio: Rising[Probability] = (0.1, 0.5)
    masked_views: Probability = 0.5
    class_weight: NotNegative = 1.0
    patch_weight: NotNegative = 1.0

    def hidden(self, num_views: int, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Hidden patches of each view, boolean [views, N]."""
        ratio, coin = torch.rand(2, num_views, generator=generator)
        low, high = self.mask_ratio
        share = (low + (high - low) * ratio) * (coin < self.masked_views)
        counts = (share * grid[0] * grid[1]).long()
        return self.masking.hide(counts, grid, generator)

    def masks(
        self, num_images: int, grid: tuple[int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Patches of the first global view that the student sees, under ``visible``."""
        return {"visible": ~self.hidden(num_images, grid, generator)}

    def patches(self, progress: float) -> float:
        """Teacher's temperature for patches."""
        return replace(self, teacher_temperature=self.patch_temperature).temperature(progress)


QUARTER: dict[str, Any] = {
    "global_crops": [
        asdict(replace(crop, scale=(0.25, 1.0))) for crop in (IBOT_GLOBAL_1, IBOT_GLOBAL_2)
    ],
    "local_crop": {"scale": (0.05, 0.25)},
}
"""Crops of the README's command."""

PRESETS: dict[str, dict[str, Any]] = {
    "small": {**QUARTER, **dino.PRESETS["small"]},
    "large": {
        **QUARTER,
        "optim": {"epochs": 250, "lr": 2e-3, "final_lr": 2e-4, "weight_decay": (0.04, 0.48)},
        "drop_path": 0.2,
    },
    # Small images on a CPU: DINO's, and what iBOT adds.
    "tiny": {
        **dino.PRESETS["tiny"],
        "optim": {**dino.PRESETS["tiny"]["optim"], "epochs": 0.4},
        "masking": {"min_patches": 4},
        "patch_temperature": (0.04, 0.04),
    },
}


def check(config: Config, vit: ViTConfig) -> None:
    """Raise ValueError if the local crops cannot be cut into patches."""
    dino.check(config, vit)


class Network(dino.Network):
    """Encoder, the token that stands for hidden patches, and the head for [cls] and patches."""

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__(config, vit)
        self.mask_token = nn.Parameter(torch.zeros(1, vit.dim))


class Method(dino.Method):
    """DINO's two towers, with a second centre."""

    config: Config
    student: Network
    teacher: Network
    patch_centre: Tensor
    patch_centre_sum: Tensor

    def __init__(self, config: Config, vit: ViTConfig) -> None:
        super().__init__(config, vit)
        self.register_buffer("patch_centre", torch.zeros(1, 1, config.num_prototypes))
        self.register_buffer(
            "patch_centre_sum", torch.zeros_like(self.centre_sum), persistent=False
        )

    def network(self) -> Network:
        """One tower at initialisation."""
        return Network(self.config, self.vit)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """DINO's loss on [cls], and the cross-entropy of hidden patches in the same view."""
        views, coins = batch.views, self.coins(batch)
        whole_FCHW = torch.cat(views[:NUM_GLOBAL])
        hidden_FN, device = self.hidden(batch), whole_FCHW.device
        index_H = placed(hidden_FN.flatten().nonzero().squeeze(1), device)
        student, teacher = self.student, self.teacher
        hidden = Hidden(placed(hidden_FN, device), student.mask_token)
        features = student.encoder(whole_FCHW, hidden=hidden, coins_BL2=coins[0])
        rows_RD = [features[:, 0]]
        if local := views[NUM_GLOBAL:]:
            rows_RD.append(student.encoder.of_cls(torch.cat(local), coins[1]))
        scores_RS = student.head(torch.cat(rows_RD))
        with torch.no_grad():
            targets = teacher.head(teacher.encoder(whole_FCHW))
        add_up(self.centre_sum, targets[:, 0])
        add_up(self.patch_centre_sum, targets[:, 1:])
        # Only hidden patches have a loss: the head need not see the others.
        scores_HS = student.head(student.encoder.patches(features).flatten(0, 1)[index_H])
        config = self.config
        loss_class = self.loss(scores_RS, targets[:, 0], config.temperature(batch.progress))
        loss_patch = self.patch_loss(
            scores_HS,
            targets[:, 1:].flatten(0, 1)[index_H],
            hidden_FN,
            config.patches(batch.progress),
        )
        return {
            "loss": config.class_weight * loss_class + config.patch_weight * loss_patch,
            "loss_class": loss_class,
            "loss_patch": loss_patch,
            "teacher_entropy": entropy(self.sharpened(targets[:, 0], batch.progress)),
        }

    def hidden(self, batch: Batch) -> Tensor:
        """Patches of the global views that are hidden from the student, boolean [F, N] on the CPU.

        Their number is a shape and differs from step to step: on a GPU it would be waited for.
        """
        num_views, random = batch.num_images() * NUM_GLOBAL, batch.generator("masks")
        masks = self.config.hidden(num_views, self.vit.grid, random)
        return batch.rows(masks.unflatten(0, (-1, NUM_GLOBAL))).transpose(0, 1).flatten(0, 1)

    def patch_loss(
        self, scores_HS: Tensor, targets_HS: Tensor, hidden_FN: Tensor, temperature: float
    ) -> Tensor:
        """Cross-entropy averaged over the hidden patches of a view, then over all global views.

        A view in which nothing is hidden counts as one without loss, as in the release.
        """
        log_p_HS = (scores_HS.float() / self.config.student_temperature).log_softmax(-1)
        q_HS = ((targets_HS.float() - self.patch_centre[0]) / temperature).softmax(-1)
        view_H = hidden_FN.nonzero()[:, 0]
        share_H = placed(1 / hidden_FN.sum(1).to(log_p_HS.dtype)[view_H], log_p_HS.device)
        return -((q_HS * log_p_HS).sum(-1) * share_H).sum() / len(hidden_FN)

    def move_centres(self) -> None:
        """Move both centres."""
        super().move_centres()
        move(self.patch_centre, self.patch_centre_sum, self.config.centre_momentum)
