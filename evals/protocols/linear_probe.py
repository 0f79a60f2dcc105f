"""Linear heads on a frozen encoder, trained all at once by the papers' schedules.

Assran et al., CVPR 2023, section A.2: the target encoder's patch features, averaged, of the last
layer or of the last four together, go into a linear layer or into BatchNorm and a linear layer, and
learning rate and weight decay are swept. Of encoders with [cls] these are [cls] features
(evals.pooling). The papers report the head that does best on the test images. Here the head is
chosen on a part of the training images, which no head is trained on, and the test images are
classified once, at the end. The result also has the papers' choice.

Shape suffixes: B images, L layers, D features, H heads.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from evals import choice
from evals.choice import Choice, choose
from evals.heads import Heads, Optimizer
from evals.pooling import Pooled
from evals.protocol import Counts, Facts, Uses
from evals.result import Result
from evals.subject import Subject, checked_labels
from evals.views import Encoded, Source, Stored, epoch_batches
from ijepa.architecture import ViTConfig
from ijepa.data.transforms import Crop
from ijepa.errors import UserError
from ijepa.optim import cosine
from ijepa.ranges import Count, NotNegative, NotNegativeInt, Positive, Probability
from ijepa.transfer import first_device

USES: tuple[Uses, ...] = ("features", "images")


@dataclass(frozen=True)
class Config(Choice, Pooled):
    """Settings. Defaults are the paper's for ImageNet-1k (A.2): LARS, batches of 16384, 50 epochs.

    The paper sweeps rates of .01, .05 and .001 without saying whether they are per 256 images.
    The config of its ViT-H/16 in VISSL (commit 04788de9) has .1 and .01 per 256. All four are swept
    here, per 256 images: an update's rate is ``learning_rates`` * ``batch_size`` / 256.

    ``sgd`` has Nesterov momentum, as VISSL's; ``plain_sgd`` has not, as DINO's and iBOT's.

    Rates change from epoch to epoch, as in VISSL. ``step`` divides them by 10 at each of the
    ``milestones``, in epochs; ``cosine`` goes from the full rate in the first epoch towards the
    share ``final_lr`` of it, which would be the rate of the epoch after the last, and has no
    milestones. With ``warmup_epochs``, rates rise linearly from 0 first, and change from step to
    step, as in MAE.

    ``norms`` are the layers before the linear one, each a head of its own; ``init_std`` is the
    deviation of its initial weights, by default nn.Linear's own distribution. ``layers: 4``, also
    where it is written out, takes all layers of a shallower network.

    ``whiten`` adds heads on whitened features, which the papers do not have. These heads are linear
    too, but SGD brings them to their optimum in a few epochs even if the features are too
    ill-conditioned for the other heads. For stored features only.

    ``crop`` is for images only: stored features have no augmented views. Evaluation views are
    resized by ``view_interpolation``, by default the crop's. The papers also report the best epoch
    on the test images; here it is the last one.
    """

    optimiser: Literal["lars", "sgd", "plain_sgd"] = "lars"
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[int, ...] = (15, 30, 45)
    warmup_epochs: NotNegative = 0
    final_lr: Probability = 0.01
    epochs: Count = 50
    batch_size: Annotated[int, Field(ge=2)] = 16_384
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.001, 0.01, 0.05, 0.1)
    weight_decays: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (5e-4, 0.0)
    norms: Annotated[tuple[Literal["none", "batch", "plain_batch"], ...], Field(min_length=1)] = (
        "none",
        "batch",
    )
    init_std: Positive | None = None
    layers: Count = 4
    whiten: bool = False
    crop: Crop = field(
        default_factory=lambda: Crop(scale=(0.08, 1.0), flip=0.5, interpolation="bicubic")
    )
    view_interpolation: Literal["bilinear", "bicubic"] | None = None
    seed: NotNegativeInt = 0
    num_workers: NotNegativeInt = 1

    def __post_init__(self) -> None:
        ends = [0, *self.milestones, self.epochs]
        if self.schedule == "step" and not all(a < b for a, b in pairwise(ends)):
            raise ValueError(
                f"milestones is {list(self.milestones)}: it must rise within (0, epochs), and "
                f"epochs is {self.epochs}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}: it must be below epochs ({self.epochs})"
            )

    def factor(self, epoch: float) -> float:
        """Factor of ``learning_rates`` in an epoch, counted from 0, or at a part of one."""
        scale = self.batch_size / 256
        if epoch < self.warmup_epochs:
            return scale * epoch / self.warmup_epochs
        if self.schedule == "cosine":
            rest = self.epochs - self.warmup_epochs
            return scale * cosine(1.0, self.final_lr, (epoch - self.warmup_epochs) / rest)
        return scale * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)


SGD = {
    "optimiser": "sgd",
    "batch_size": 256,
    "learning_rates": (0.01,),
    "weight_decays": (5e-4,),
}
BILINEAR = {"interpolation": "bilinear"}
CLEVR = {**SGD, "schedule": "cosine", "milestones": (), "crop": {"whole": True, **BILINEAR}}
COSINE = {"schedule": "cosine", "milestones": (), "final_lr": 0.0}
MAE = {
    **COSINE,
    "warmup_epochs": 10,
    "learning_rates": (0.1,),
    "weight_decays": (0.0,),
    "layers": 1,
    "norms": ("plain_batch",),
    "init_std": 0.01,
    "chosen_on": "test",
}
DINO = {
    **COSINE,
    "optimiser": "plain_sgd",
    "epochs": 100,
    "batch_size": 1024,
    "learning_rates": (0.001,),
    "weight_decays": (0.0,),
    "pool": "cls_patches",
    "layers": 1,
    "norms": ("none",),
    "init_std": 0.01,
    "crop": BILINEAR,
    "view_interpolation": "bicubic",
    "chosen_on": "test",
}

PRESETS: dict[str, dict[str, Any]] = {
    "in1k": {},
    # VISSL's own defaults, with which I-JEPA's ViT-B, L and g were measured.
    "in1k_vissl": {**SGD, "epochs": 28, "milestones": (8, 16, 24)},
    # ViT-H/16 at 448: its LARS is commented out in VISSL, the factors of its heads are not.
    "in1k_vissl_448": {
        **SGD,
        "epochs": 28,
        "milestones": (8, 16, 24),
        "learning_rates": (0.01, 0.001),
        "weight_decays": (5e-4, 0.0),
    },
    # MAE's own (FINETUNE.md, main_linprobe): [cls], 90 epochs for ViT-B, 50 for L and H. CAE's own
    # (run_linear --use_cls) is MAE's with 90 epochs for every size. One head: no choice is made.
    "mae": {**MAE, "epochs": 90},
    "mae_large": {**MAE, "epochs": 50},
    "cae": {**MAE, "epochs": 90},
    # DINO's own for ViT-B (eval_linear): [cls] and the average of the last block. For ViT-S [cls]
    # of the last four blocks. Crops are bilinear, evaluation views bicubic.
    "dino": DINO,
    "dino_small": {**DINO, "pool": "cls", "layers": 4},
    # iBOT's own (eval_linear_multi, --sweep_lr_only): DINO's at 45 rates, of which the one that
    # does best on the test images counts.
    "ibot": {
        **DINO,
        "learning_rates": tuple(
            round(n * 10.0**power, 6) for power in range(-4, 1) for n in range(1, 10)
        ),
    },
    "cifar100": {**SGD, "epochs": 28, "milestones": (8, 16, 24)},
    # VISSL's configs of these name no interpolation: its default is bilinear.
    "places205": {**SGD, "epochs": 14, "milestones": (4, 8, 12), "crop": BILINEAR},
    "inat18": {**SGD, "epochs": 84, "milestones": (24, 48, 72), "crop": BILINEAR},
    # The whole image squashed and flipped, as in VISSL; the paper's text says centre crop and flip.
    "clevr_count": {**CLEVR, "epochs": 50},
    "clevr_dist": {**CLEVR, "epochs": 100},
}


def check(config: Config, facts: Facts) -> None:
    """Raise ValueError for whitened images, and for too few images to hold out or to train on."""
    if config.whiten and facts.uses == "images":
        raise ValueError(
            "whiten is true, but there are no stored features to take the covariance of: set "
            "uses: features, or whiten: false"
        )
    if facts.images is not None:
        checked_held_out(config, facts.images)


def flops(config: Config, vit: ViTConfig, counts: Counts) -> float:
    """FLOPs of the encoder on views of every epoch."""
    return vit.forward_flops * (config.epochs * counts.train + counts.test)


def features_read(config: Config, dim: int, layers: int) -> int:
    """Features of an image that the heads read in all epochs.

    There are heads of the last layer, and as many of the last ones together.
    """
    last = min(layers, config.layers)
    read = dim if last == 1 else dim * (1 + last)
    heads = len(config.learning_rates) * len(config.weight_decays) * len(config.norms)
    return config.epochs * read * heads


def evaluate(config: Config, subject: Subject) -> Result:
    """Train every head, choose one on held-out training images, classify the test images with it.

    ``chosen`` has the chosen head, and all heads with their accuracies.
    """
    held_out, numbers = divide(config, subject)
    device = first_device()
    source: Source
    moments = None
    assert config.pool is not None, "evals.pooling.resolved gives the method's own"
    if subject.features_of is not None:
        source = Stored(subject, config.layers, config.pool, device)
        if config.whiten:
            moments = source.moments(numbers)
    else:
        source = Encoded(
            subject,
            config.layers,
            config.pool,
            device,
            config.crop,
            config.seed,
            config.num_workers,
            config.view_interpolation,
        )
    heads = Heads(
        config.learning_rates,
        config.weight_decays,
        source.num_layers,
        source.dim,
        subject.num_classes,
        config.seed,
        moments,
        config.norms,
        config.init_std,
    ).to(device)
    train(config, subject, source, heads, numbers)

    heads.eval()
    return choose(
        config,
        subject,
        held_out,
        [asdict(head) for head in heads.settings],
        heads.finite().tolist(),
        lambda split, images: classify(heads, source.evaluation(split, images)),
        [{"layers": source.num_layers}] * len(heads.settings),
    )


def divide(config: Config, subject: Subject) -> tuple[Tensor, Tensor]:
    """Numbers of the training images that are held out, and of those that heads are trained on.

    Raises UserError if there are too few of either, or if a label is outside its classes.
    """
    labels, _ = (checked_labels(subject, split) for split in ("train", "test"))
    count = checked_held_out(config, len(labels))
    return choice.divide(count, len(labels), config.seed)


def checked_held_out(config: Config, images: int) -> int:
    """Number of held-out images; raises UserError if too few are left for a batch."""
    count = choice.num_held_out(config, images)
    if images - count < config.batch_size:
        raise UserError(
            f"batch_size is {config.batch_size}, but only {images - count} training images are "
            f"left besides {count} held-out ones: choose a smaller batch"
        )
    return count


def train(config: Config, subject: Subject, source: Source, heads: Heads, numbers: Tensor) -> None:
    """Train the heads on the images ``numbers``, from the checkpoint of an interrupted evaluation.

    Raises UserError once all heads have diverged.
    """
    optimizer = Optimizer(heads, config.optimiser)
    first_epoch = 0
    if (state := subject.resume()) is not None:
        first_epoch = state["epoch"]
        heads.load_state_dict(state["heads"])
        for key, momentum in state["momentum"].items():
            optimizer.momentum[key].copy_(momentum)
    steps = len(numbers) // config.batch_size
    heads.train()
    with tqdm(
        total=config.epochs * steps,
        initial=first_epoch * steps,
        desc=f"{len(heads.settings)} linear heads",
        unit="batch",
        mininterval=2,
    ) as bar:
        for epoch in range(first_epoch, config.epochs):
            batches = epoch_batches(numbers, config.batch_size, config.seed, epoch)
            for step, (x_BLD, y_B) in enumerate(source.training(batches, epoch)):
                heads.loss(x_BLD, y_B).sum().backward()
                part = step / steps if config.warmup_epochs else 0
                optimizer.step(config.factor(epoch + part))
                bar.update()
            if not heads.finite().any():
                raise UserError(
                    f"all {len(heads.settings)} heads diverged by epoch {epoch + 1}: choose "
                    f"smaller learning_rates than {list(config.learning_rates)}"
                )
            subject.checkpoint(
                {
                    "epoch": epoch + 1,
                    "heads": heads.state_dict(),
                    "momentum": optimizer.momentum,
                }
            )


@torch.no_grad()
def classify(heads: Heads, batches: Iterable[Tensor]) -> Tensor:
    """Class that each head predicts for each image, [H, images] int64, on the CPU."""
    return torch.cat([heads.classify(x_BLD) for x_BLD in batches], 1).cpu()
