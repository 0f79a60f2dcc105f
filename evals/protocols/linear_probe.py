"""Linear heads on a frozen encoder, trained all at once by the papers' schedules.

Assran et al., CVPR 2023, section A.2: the target encoder's patch features, averaged, of the last
layer or of the last four together, go into a linear layer or into BatchNorm and a linear layer, and
learning rate and weight decay are swept. The papers report the head that does best on the test
images. Here the head is chosen on a part of the training images, which no head is trained on, and
the test images are classified once, at the end. The result also has the papers' choice.

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

from evals.heads import Heads, Optimizer
from evals.protocol import Uses
from evals.result import Result, top1
from evals.subject import Subject, checked_labels
from evals.views import Encoded, Source, Stored, epoch_batches
from ijepa.data.transforms import Crop
from ijepa.errors import UserError
from ijepa.optim import cosine
from ijepa.randomness import generator
from ijepa.ranges import Count, NotNegative, NotNegativeInt, Positive, Share

USES: tuple[Uses, ...] = ("features", "images")


@dataclass(frozen=True)
class Config:
    """Settings. Defaults are the paper's for ImageNet-1k (A.2): LARS, batches of 16384, 50 epochs.

    The paper sweeps rates of .01, .05 and .001 without saying whether they are per 256 images.
    The config of its ViT-H/16 in VISSL (commit 04788de9) has .1 and .01 per 256. All four are swept
    here, per 256 images: an update's rate is ``learning_rates`` * ``batch_size`` / 256.

    Rates change from epoch to epoch, as in VISSL. ``step`` divides them by 10 at each of the
    ``milestones``, in epochs; ``cosine`` goes from the full rate in the first epoch towards a
    hundredth, which would be the rate of the epoch after the last, and has no milestones.

    ``whiten`` adds heads on whitened features, which the papers do not have. These heads are linear
    too, but SGD brings them to their optimum in a few epochs even if the features are too
    ill-conditioned for the other heads. For stored features only.

    ``layers`` is the number of last layers that are concatenated; a network with fewer gives all of
    them. ``crop`` is for images only: stored features have no augmented views. ``held_out`` is the
    share of the training images, ``max_held_out`` at most, on which the head is chosen.
    """

    optimiser: Literal["lars", "sgd"] = "lars"
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[int, ...] = (15, 30, 45)
    epochs: Count = 50
    batch_size: Annotated[int, Field(ge=2)] = 16_384
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.001, 0.01, 0.05, 0.1)
    weight_decays: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (5e-4, 0.0)
    layers: Count = 4
    whiten: bool = False
    held_out: Share = 0.1
    max_held_out: Count = 10_000
    crop: Crop = field(
        default_factory=lambda: Crop(scale=(0.08, 1.0), flip=0.5, interpolation="bicubic")
    )
    seed: NotNegativeInt = 0
    num_workers: NotNegativeInt = 1

    def __post_init__(self) -> None:
        ends = [0, *self.milestones, self.epochs]
        if self.schedule == "step" and not all(a < b for a, b in pairwise(ends)):
            raise ValueError(
                f"milestones is {list(self.milestones)}: it must rise within (0, epochs), and "
                f"epochs is {self.epochs}"
            )

    def factor(self, epoch: int) -> float:
        """Factor of ``learning_rates`` in an epoch, counted from 0."""
        scale = self.batch_size / 256
        if self.schedule == "cosine":
            return scale * cosine(1.0, 0.01, epoch / self.epochs)
        return scale * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)


SGD = {
    "optimiser": "sgd",
    "batch_size": 256,
    "learning_rates": (0.01,),
    "weight_decays": (5e-4,),
}
CLEVR = {**SGD, "schedule": "cosine", "milestones": (), "crop": {"whole": True}}

PRESETS: dict[str, dict[str, Any]] = {
    "in1k": {},
    # VISSL's own defaults, with which I-JEPA's ViT-B, L and g were measured.
    "in1k_vissl": {**SGD, "epochs": 28, "milestones": (8, 16, 24)},
    "cifar100": {**SGD, "epochs": 28, "milestones": (8, 16, 24)},
    "places205": {**SGD, "epochs": 14, "milestones": (4, 8, 12)},
    "inat18": {**SGD, "epochs": 84, "milestones": (24, 48, 72)},
    # The whole image squashed and flipped, as in VISSL; the paper's text says centre crop and flip.
    "clevr_count": {**CLEVR, "epochs": 50},
    "clevr_dist": {**CLEVR, "epochs": 100},
}


def evaluate(config: Config, subject: Subject) -> Result:
    """Train every head, choose one on held-out training images, classify the test images with it.

    ``chosen`` has the chosen head, and all heads with their accuracies.
    """
    held_out, numbers = divide(config, subject)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source: Source
    moments = None
    if subject.features_of is not None:
        source = Stored(subject, config.layers, device)
        if config.whiten:
            moments = source.moments(numbers)
    elif config.whiten:
        raise UserError(
            "whiten is true, but there are no stored features to take the covariance of: set "
            "uses: features, or whiten: false"
        )
    else:
        source = Encoded(
            subject, config.layers, device, config.crop, config.seed, config.num_workers
        )
    heads = Heads(
        config.learning_rates,
        config.weight_decays,
        source.num_layers,
        source.dim,
        subject.num_classes,
        config.seed,
        moments,
    ).to(device)
    train(config, subject, source, heads, numbers)

    heads.eval()
    test_y = subject.labels("test")
    held_HB = classify(heads, source.evaluation("train", held_out))
    held_HB = held_HB == subject.labels("train")[held_out]
    predicted_HB = classify(heads, source.evaluation("test", torch.arange(len(test_y))))
    test_HB = predicted_HB == test_y
    converged = heads.finite().tolist()
    rows = [
        {
            **asdict(head),
            "held_out_top1": round(held_HB[number].float().mean().item(), 4),
            "test_top1": round(test_HB[number].float().mean().item(), 4),
            "diverged": not converged[number],
        }
        for number, head in enumerate(heads.grid)
    ]

    def best(correct_HB: Tensor) -> int:
        """Number of the head that is right most often, the first of equals."""
        right = correct_HB.sum(1).tolist()
        return max((h for h in range(len(rows)) if converged[h]), key=lambda h: right[h])

    chosen = {
        **rows[best(held_HB)],
        "layers": source.num_layers,
        "held_out_images": len(held_out),
        "best_on_test": {
            **rows[best(test_HB)],
            "chosen_on": "test: the papers' way, not this result's value",
        },
        "heads": rows,
    }
    return top1(predicted_HB[best(held_HB)], test_y, subject.num_classes, chosen)


def divide(config: Config, subject: Subject) -> tuple[Tensor, Tensor]:
    """Numbers of the training images that are held out, and of those that heads are trained on.

    Raises UserError if there are too few of either, or if a label is outside its classes.
    """
    labels, _ = (checked_labels(subject, split) for split in ("train", "test"))
    images = len(labels)
    order = torch.randperm(images, generator=generator(config.seed, "held out"))
    count = min(int(config.held_out * images), config.max_held_out)
    held_out, numbers = order[:count].sort().values, order[count:].sort().values
    if not count:
        raise UserError(
            f"held_out is {config.held_out}: of {images} training images that is none; raise it"
        )
    if len(numbers) < config.batch_size:
        raise UserError(
            f"batch_size is {config.batch_size}, but only {len(numbers)} training images are left "
            f"besides {count} held-out ones: choose a smaller batch"
        )
    return held_out, numbers


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
        desc=f"{len(heads.grid)} linear heads",
        unit="batch",
        mininterval=2,
    ) as bar:
        for epoch in range(first_epoch, config.epochs):
            batches = epoch_batches(numbers, config.batch_size, config.seed, epoch)
            for x_BLD, y_B in source.training(batches, epoch):
                heads.loss(x_BLD, y_B).sum().backward()
                optimizer.step(config.factor(epoch))
                bar.update()
            if not heads.finite().any():
                raise UserError(
                    f"all {len(heads.grid)} heads diverged by epoch {epoch + 1}: choose smaller "
                    f"learning_rates than {list(config.learning_rates)}"
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
    return torch.cat([heads.classify(x_BLD).cpu() for x_BLD in batches], 1)
