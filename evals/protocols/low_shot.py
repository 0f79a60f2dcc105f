"""Classification from a few labelled images: logistic regression, and fine-tuning where possible.

Assran et al., CVPR 2023, section 6 and Table 2: with 1 % of ImageNet's labels, 12 or 13 images per
class, the encoder is fine-tuned or gets a linear head on frozen features, and the better of both on
the evaluation set is reported. Here this choice, too, is made without the test images. The training
images outside the subset have labels, and neither head is trained on them: up to 5,000 of them
decide. They are more labels than the subset's, but they only choose between two heads. The papers'
choice is also in ``chosen``, with both heads' values.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evals.balanced_draws import draw
from evals.pooling import Pooled
from evals.protocol import Counts, Facts, Uses
from evals.protocols.finetune import PRESETS as FINE_TUNING
from evals.protocols.finetune import Config as FineTuning
from evals.protocols.finetune import fine_tune
from evals.protocols.finetune import flops as fine_tuning_flops
from evals.protocols.logistic_regression import Config as LogisticRegression
from evals.protocols.logistic_regression import features, fit
from evals.result import Result, top1
from evals.subject import Subject, checked_labels
from ijepa.architecture import ViTConfig
from ijepa.errors import UserError
from ijepa.randomness import generator
from ijepa.ranges import Count, NotNegativeInt, PositiveShare

USES: tuple[Uses, ...] = ("both", "features")

PUBLISHED = "1pct"
PUBLISHED_SHARE = 0.01
"""Share of the training images that an official list has."""
HELD_OUT = 5000
"""Images that decide between the two heads: their standard error is below 0.7 points."""


@dataclass(frozen=True)
class Config(Pooled):
    """Choice of the labelled training images, and settings of the two heads.

    Args:
        subset: Name of an official list of images; the paper's ``1pct`` if no size is given.
        per_class: Number of images of each class, drawn by ``seed``.
        share: Share of the images of each class, at least one image, drawn by ``seed``. A smaller
            subset is part of a larger one of the same seed.
        seed: Seed of the drawing; ``finetune`` has its own.
        logistic: The head on frozen features, of which ``pool`` and ``layers`` are this config's
            and not its own. The paper gives no hyper-parameters, and few images
            need stronger penalties than many.
        finetune: Fine-tuning. Defaults are the paper's for ViT-H (Table 14); ViT-L has less weight
            decay (Table 13): ``PRESETS`` has both. Null leaves the linear head alone.
    """

    subset: str | None = None
    per_class: Count | None = None
    share: PositiveShare | None = None
    seed: NotNegativeInt = 0
    logistic: LogisticRegression = field(
        default_factory=lambda: LogisticRegression(
            penalties=(1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
        )
    )
    finetune: FineTuning | None = field(
        default_factory=lambda: FineTuning(**FINE_TUNING["low_shot_h14"])
    )

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("subset", "per_class", "share")}
        settings = [f"{name} {size!r}" for name, size in sizes.items() if size is not None]
        if len(settings) > 1:
            raise ValueError(f"{' and '.join(settings)} are given: give one of them")
        if (self.logistic.pool, self.logistic.layers) != (None, 1):
            raise ValueError("logistic.pool and logistic.layers: give pool and layers beside it")
        if self.finetune is not None and self.finetune.subset is not None:
            raise ValueError(
                f"finetune.subset is {self.finetune.subset!r}: give subset beside finetune, "
                "because both heads have the same images"
            )
        if not settings:
            object.__setattr__(self, "subset", PUBLISHED)


PRESETS: dict[str, dict[str, Any]] = {
    name: {"finetune": values} for name, values in FINE_TUNING.items() if "low_shot" in name
}


def check(config: Config, facts: Facts) -> None:
    """Raise ValueError for an unknown list, for classes that are too small, and for lack of [cls].

    ``finetune.pool`` is not among the settings that evals.pooling checks.
    """
    facts.check_subset(config.subset)
    facts.check_per_class(config.per_class)
    if config.finetune is None or facts.uses != "both":
        return
    try:
        config.finetune.check_policy()
    except ValueError as error:
        raise ValueError(f"finetune.{error}") from None
    if config.finetune.pool != "patches" and facts.class_token is False:
        raise ValueError(
            f"finetune.pool is {config.finetune.pool}, but the encoder has no [cls]: set it to "
            "patches (config_of), or leave it out"
        )


def flops(config: Config, vit: ViTConfig, counts: Counts) -> float:
    """FLOPs of fine-tuning, and of the images that decide between the heads."""
    if config.finetune is None:
        return vit.forward_flops * counts.test
    images = round(counts.train * (config.share or PUBLISHED_SHARE))
    if config.per_class is not None:
        images = config.per_class * counts.classes
    counts = counts._replace(train=images, test=counts.test + HELD_OUT)
    return fine_tuning_flops(config.finetune, vit, counts)


def evaluate(config: Config, subject: Subject) -> Result:
    """Top-1 of the head that does better on training images outside the subset.

    If there are no other training images, it is fine-tuning's, or with features alone the only
    head's.
    """
    y, test_y = (checked_labels(subject, split) for split in ("train", "test"))
    numbers = few(config, subject, y)
    held_out = outside(numbers, len(y), config.seed)
    queries = {"held_out": ("train", held_out), "test": ("test", torch.arange(len(test_y)))}

    head = fit(config.logistic, features(config, subject, "train", numbers), y[numbers])
    truth = {"train": y, "test": test_y}
    predicted = {
        "logistic": {
            name: head.predict(features(config, subject, split, indices))
            for name, (split, indices) in queries.items()
        }
    }
    if subject.encoder is not None and config.finetune is not None:
        predicted["finetune"] = fine_tune(config.finetune, subject, numbers, queries)
    correct = {
        name: {
            part: parts[part] == truth[split][indices] for part, (split, indices) in queries.items()
        }
        for name, parts in predicted.items()
    }

    def best(part: str) -> str:
        """Name of the head that is right most often, the last of equals."""
        return max(reversed(correct), key=lambda name: int(correct[name][part].sum()))

    results = {
        name: top1(parts["test"], test_y, subject.num_classes, {})
        for name, parts in predicted.items()
    }
    chosen = {
        "head": best("held_out"),
        "best_on_test": best("test"),
        "heads": {
            name: {
                "value": results[name].value,
                "interval": [round(end, 5) for end in results[name].interval],
                "held_out_top1": rounded_mean(parts["held_out"]),
            }
            for name, parts in correct.items()
        },
        "logistic": head.chosen,
        "training_images": len(numbers),
        "held_out_images": len(held_out),
    }
    return dataclasses.replace(results[best("held_out")], chosen=chosen)


def rounded_mean(correct: Tensor) -> float | None:
    """Share of right images, to four digits; None if there are none."""
    return round(correct.float().mean().item(), 4) if len(correct) else None


def few(config: Config, subject: Subject, y: Tensor) -> Tensor:
    """Numbers of the labelled training images, in order; raises UserError if a class has none."""
    count_C = y.bincount(minlength=subject.num_classes)
    if config.subset is not None:
        numbers = subject.subset(config.subset)
    else:
        if config.share is not None:
            wanted_C = (config.share * count_C).round().long().clamp_min(1)
        else:
            assert config.per_class is not None
            wanted_C = torch.full_like(count_C, config.per_class)
        numbers = draw(y, wanted_C, generator("low_shot", config.seed), subject.label)
    missing = (y[numbers].bincount(minlength=subject.num_classes) == 0).nonzero().flatten().tolist()
    if missing:
        raise UserError(
            f"the subset {config.subset} of {subject.data} has no image of class {missing[0]} of "
            f"{subject.label}, and of {len(missing)} classes altogether: give per_class or share, "
            "or leave more training images"
        )
    return numbers.sort().values


def outside(numbers: Tensor, count: int, seed: int) -> Tensor:
    """Numbers, in order, of up to HELD_OUT of ``count`` images that are not in ``numbers``."""
    is_left = torch.ones(count, dtype=torch.bool)
    is_left[numbers] = False
    others = is_left.nonzero().flatten()
    order = torch.randperm(len(others), generator=generator("low_shot", seed, "held out"))
    return others[order[:HELD_OUT]].sort().values
