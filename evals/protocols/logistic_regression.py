"""Multinomial logistic regression on frozen, standardised features.

The paper trains its linear heads with SGD or LARS over augmented views (section A.2; see
``linear_probe``). On features that are extracted once, the convex problem can be solved outright:
here by L-BFGS (scikit-learn), on a GPU if there is one.

The 1 % rows of the paper's ablations (Tables 6 to 12) come without hyper-parameters. Most likely
they are from the authors' logistic tool, which MSN and StoP describe: multinomial logistic
regression without intercept (Cyanure) on pooled features of a centre crop, with a fixed penalty of
0.00025 or 0.0025 divided by the number of images. MSN centres each image's features and scales them
to length 1; StoP standardises each feature, that of test images by the test images' own statistics,
and rotates to the principal axes, which changes nothing here: the penalty is the same in every
rotation. This evaluation differs in three points: the head has an intercept, the penalty is chosen,
and test images are standardised by the training images' statistics, so that the prediction for a
test image does not depend on the other test images.

Shape suffixes: N images, D features.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from evals.balanced_draws import index_in_class
from evals.pooling import Pooled
from evals.protocol import Uses
from evals.result import Result, top1
from evals.subject import Subject, checked_labels, finite
from ijepa.cores import usable_memory
from ijepa.errors import UserError
from ijepa.randomness import generator
from ijepa.ranges import Count, Positive
from ijepa.transfer import first_device

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

USES: tuple[Uses, ...] = ("features",)


@dataclass(frozen=True)
class Config(Pooled):
    """Settings. A penalty weighs half the squared norm of the weights against the mean loss.

    One of ``penalties`` is chosen on ``selection_images`` of the training images, of which a fifth
    of each class is held out to compare them. ``tolerance`` bounds the largest element of the
    gradient at the end.
    """

    penalties: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        1e-2,
        1e-3,
        1e-4,
        1e-5,
        1e-6,
    )
    selection_images: Annotated[int, Field(ge=10)] = 20_000
    max_iterations: Count = 100
    tolerance: Positive = 1e-3


@dataclass(frozen=True)
class Head:
    """A fitted head, and the choices behind it."""

    mean: Tensor
    std: Tensor
    model: "LogisticRegression"
    chosen: dict[str, Any]

    def predict(self, x_ND: Tensor) -> Tensor:
        """Class numbers, [N] int64, from features that are not standardised yet."""
        if not len(x_ND):  # scikit-learn refuses to classify no images
            return torch.empty(0, dtype=torch.int64)
        return classify(self.model, (x_ND.to(self.mean.device) - self.mean) / self.std)


def evaluate(config: Config, subject: Subject) -> Result:
    """Fit the head on the training images and classify the test images."""
    y, test_y = (checked_labels(subject, split) for split in ("train", "test"))
    x_NLD = subject.features("train", config.pool, config.layers)
    check_memory(x_NLD.shape[1] * x_NLD.shape[2], y, subject.num_classes)
    head = fit(config, features(config, subject, "train"), y)
    predicted = head.predict(features(config, subject, "test"))
    return top1(predicted, test_y, subject.num_classes, head.chosen)


def check_memory(dim: int, y: Tensor, num_classes: int) -> None:
    """Raise UserError if the GPU, or a machine or container without one, has too little memory.

    A fit takes three times the features and three times the logits, in float32 (measured on
    scikit-learn 1.9: twice the features and 2.4 times the logits beside the features given).
    """
    needed = 3 * 4 * len(y) * (dim + num_classes)
    on_gpu = torch.cuda.is_available()
    memory = torch.cuda.mem_get_info()[0] if on_gpu else usable_memory()
    if needed > memory:
        raise UserError(
            f"logistic_regression on {len(y)} images takes {needed / 1e9:.0f} GB of memory, this "
            f"{'GPU' if on_gpu else 'machine'} has {memory / 1e9:.0f}: use linear_probe, which "
            "goes batch by batch, or give fewer training images"
        )


def features(config: Pooled, subject: Subject, split: str, numbers: Tensor | None = None) -> Tensor:
    """Pooled features of all images of a split, or of some, [N, D] float32."""
    x_ND = subject.features(split, config.pool, config.layers).flatten(1)
    return finite((x_ND if numbers is None else x_ND[numbers]).float())


def fit(
    config: Config, x_ND: Tensor, y_N: Tensor, held_out: tuple[Tensor, Tensor] | None = None
) -> Head:
    """Head fitted on all features [N, D] float32, with a penalty that held-out images choose.

    ``held_out`` are their features and labels; without them a part of the images given is held out
    for the choice. If no class has two images, nothing can be held out, and the strongest penalty
    is used: its head is closest to a comparison with the class means. Raises UserError for a single
    class.
    """
    if len(y_N.unique()) < 2:
        raise UserError(
            f"all {len(y_N)} training images are of class {y_N.unique().tolist()}: there must be "
            "two classes, or more"
        )
    device = first_device()
    x_ND = x_ND.to(device)
    mean, std = x_ND.mean(0), x_ND.std(0).clamp_min(1e-6)
    x_ND = (x_ND - mean) / std
    if held_out is None:
        order = torch.randperm(len(y_N), generator=generator("logistic_regression", "selection"))
        selection = order[: config.selection_images]
        is_held_out = a_fifth(y_N[selection])
        training, numbers = selection[~is_held_out], selection[is_held_out]
        held_out_x, held_out_y = x_ND[numbers], y_N[numbers]
    else:
        training = torch.arange(len(y_N))
        held_out_x, held_out_y = (held_out[0].to(device) - mean) / std, held_out[1]

    penalties = sorted(config.penalties, reverse=True)
    model, accuracy, best = new_model(config), {}, penalties[0]
    if len(held_out_y):
        # From strong to weak, each fit is warm-started from the last, which takes a fraction of the
        # steps.
        for penalty in tqdm(penalties, desc="penalties", mininterval=2, delay=2):
            fit_model(model, x_ND[training], y_N[training], penalty)
            right = classify(model, held_out_x) == held_out_y
            accuracy[penalty] = right.double().mean().item()
        best = max(accuracy, key=lambda penalty: accuracy[penalty])
        if len(model.classes_) < len(y_N.unique()):
            model = new_model(config)
    fit_model(model, x_ND, y_N, best)
    iterations = int(model.n_iter_.max())
    chosen = {
        "penalty": best,
        "held_out_top1": {str(penalty): round(top1, 4) for penalty, top1 in accuracy.items()},
        "iterations": iterations,
        "converged": iterations < config.max_iterations,
    }
    return Head(mean, std, model, chosen)


def new_model(config: Config) -> "LogisticRegression":
    """Model with warm start: a fit starts from the weights of the one before."""
    from sklearn.linear_model import LogisticRegression  # a plan reads Config alone, a second less

    return LogisticRegression(max_iter=config.max_iterations, tol=config.tolerance, warm_start=True)


def fit_model(model: "LogisticRegression", x_ND: Tensor, y_N: Tensor, penalty: float) -> None:
    """Fit the model; scikit-learn's C weighs the summed loss against half the squared norm."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), arrays_of(x_ND.device) as array:
        # The result says whether the last fit converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.set_params(C=1 / (penalty * len(y_N))).fit(array(x_ND), array(y_N.to(x_ND.device)))


def classify(model: "LogisticRegression", x_ND: Tensor) -> Tensor:
    """Class numbers of standardised features, [N] int64 on the CPU."""
    with arrays_of(x_ND.device) as array:
        return torch.as_tensor(model.predict(array(x_ND))).cpu()


@contextlib.contextmanager
def arrays_of(device: torch.device) -> Iterator[Callable[[Tensor], Any]]:
    """Let scikit-learn compute on a device; yields what makes its arrays of tensors.

    On a CPU they are NumPy's, which it fits in half the time that it needs for torch's.
    """
    if device.type == "cpu":
        yield Tensor.numpy
        return
    from sklearn import config_context

    os.environ["SCIPY_ARRAY_API"] = "1"  # scikit-learn asks for it
    with config_context(array_api_dispatch=True):
        yield lambda x: x


def a_fifth(y_N: Tensor) -> Tensor:
    """True for images to hold out, [N]: the first fifth of each class.

    Of two to nine images one is held out, of a single image none.
    """
    count_N = y_N.bincount()[y_N]
    return (index_in_class(y_N) < (count_N // 5).clamp_min(1)) & (count_N > 1)
