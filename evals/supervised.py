"""Training of classifiers on augmented images, for fine-tuning and for attentive probes.

Shape suffixes: B images, C channels, H rows of pixels, W columns of pixels, L blocks, K classes,
S networks that learn from the same batches, side by side.
"""

import hashlib
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset
from tqdm import tqdm

from evals import replicas
from evals.labelled_views import LabelledViews, loaded, mixed
from evals.learners import Learner, Learners
from evals.losses import Losses
from evals.subject import Subject, checked_labels
from evals.training_config import TrainingConfig
from ijepa.data.loader import EvaluationViews, Steps, evaluation_batches
from ijepa.data.transforms import normalised
from ijepa.errors import UserError
from ijepa.precision import precision
from ijepa.randomness import generator
from ijepa.transfer import first_device, placed
from ijepa.update import gradients

CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 20.0, 0.05
"""Least seconds between two checkpoints, and largest share of the time that they may take.

A period in epochs would not do: an epoch is one step for some trainings and hours for others, and a
checkpoint has a megabyte or eight gigabytes.
"""

LOSS_EVERY = 10
"""Steps after which losses are read: the host waits for the device then."""


def train(
    config: TrainingConfig, subject: Subject, numbers: Tensor | None, learners: Learners, what: str
) -> list[dict[str, Any]]:
    """Train on training images; returns each network's batch size, rate and mean loss by epoch.

    The training goes on from the subject's checkpoint if that is of the same training, even a
    finished one. On a CPU, a training that was killed and went on ends bit-identical to an
    undisturbed one.

    A network whose loss is not finite does not change the others, and its losses are not finite
    from then on. Raises UserError once that is true of all.

    Args:
        config: The protocol.
        subject: The data, and the keeper of checkpoints.
        numbers: Numbers of the training images to use, None for all of them.
        learners: The networks; they are moved to the device.
        what: Name of the training, on the progress bar and in the identity of its checkpoint.
    """
    labels = checked_labels(subject, "train")
    checked_labels(subject, "test")  # before the training, not after it
    numbers = torch.arange(len(labels)) if numbers is None else numbers
    batch_size = fitting_batch(config, subject, len(numbers))
    per_epoch = len(numbers) // batch_size
    num_steps = config.epochs * per_epoch

    device, vit = first_device(), learners.vit
    for learner in learners.all:
        learner.begin(config, batch_size, device)
    identity = hashlib.sha256(repr((what, config, numbers.tolist())).encode()).hexdigest()
    first, means_S = resume(subject, identity, learners.all)
    losses = Losses(means_S, per_epoch, what)

    views = LabelledViews(config, subject.images("train"), labels, numbers, vit.image_size)
    batches = loaded(views, Steps(len(numbers), batch_size, first, num_steps, config.seed))
    save_at = time.monotonic() + CHECKPOINT_SECONDS
    with tqdm(total=num_steps, initial=first, desc=what, unit="step", mininterval=2) as bar:
        for step, (images_BHWC, labels_B) in enumerate(batches, start=first):
            images_BCHW, targets_BK = mixed(
                config,
                normalised(images_BHWC, vit, device),
                placed(labels_B, device),
                subject.num_classes,
                step,
            )
            # Drawn for the whole batch, so that the result does not depend on accumulation.
            draws = generator(config.seed, "drop_path", step)
            coins_BL2 = placed(torch.rand(batch_size, vit.depth, 2, generator=draws), device)

            batch = (images_BCHW, targets_BK, coins_BL2)
            for part in zip(*(tensor.chunk(config.accumulate) for tensor in batch), strict=True):
                for gpu, (images, targets, coins) in enumerate(replicas.sent(device, *part)):
                    inputs = learners.inputs(gpu, config.precision, images, coins)
                    share = len(images) / batch_size
                    loss_S = descend(config, learners.networks(gpu), inputs, targets, share)
                    losses.add(step, share, loss_S.to(device, non_blocking=True))
            for learner in learners.all:
                learner.update(step, num_steps)

            bar.update()
            save = step + 1 == num_steps or time.monotonic() >= save_at
            if save or (step + 1) % LOSS_EVERY == 0:
                bar.set_postfix(loss=f"{losses.read():.4f}", refresh=False)
            if save:
                start = time.monotonic()
                checkpoint(subject, identity, learners.all, step + 1, means_S)
                duration = time.monotonic() - start
                save_at = start + duration + max(CHECKPOINT_SECONDS, duration / CHECKPOINT_SHARE)
    return [
        {
            "batch_size": batch_size,
            "lr": learner.optim.lr,
            "train_loss": [round(float(mean_S[number]), 4) for mean_S in means_S],
        }
        for number, learner in enumerate(learners.all)
    ]


def fitting_batch(config: TrainingConfig, subject: Subject, images: int) -> int:
    """Images of a batch, no more than there are; raises UserError if there are too few for one."""
    batch_size = min(config.batch_size, images)
    batch_size -= batch_size % 2 if config.mixes else 0
    if not batch_size:
        raise UserError(
            f"{subject.data}: {images} training images are too few to train on"
            + (" with mixup or cutmix, which pair them" if config.mixes else "")
        )
    return batch_size


def descend(
    config: TrainingConfig,
    networks: list[nn.Module],
    inputs: tuple[Tensor | None, ...],
    targets_BK: Tensor,
    share: float,
) -> Tensor:
    """Losses [S] of the networks; adds to each one's gradients, one after the other for memory.

    Losses are cross-entropies with soft targets, averaged over images.
    """

    def loss_of(network: nn.Module) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(network(*inputs).float(), targets_BK)}

    device = targets_BK.device
    losses = [
        gradients(partial(loss_of, network), share, config.precision, device)["loss"].detach()
        for network in networks
    ]
    return torch.stack(losses)


def checkpoint(
    subject: Subject, identity: str, learners: list[Learner], step: int, means_S: list[Tensor]
) -> None:
    """Write the state after ``step`` updates, without the weights of a frozen encoder."""
    subject.checkpoint(
        {
            "training": identity,
            "step": step,
            "networks": [learner.state() for learner in learners],
            "losses": means_S,
        }
    )


def resume(subject: Subject, identity: str, learners: list[Learner]) -> tuple[int, list[Tensor]]:
    """Restore the networks; returns the number of updates done and the epochs' losses.

    Without a checkpoint of this training these are 0 and none: an evaluation may train several
    classifiers one after the other, and the checkpoint of another one is ignored.
    """
    state = subject.resume()
    if state is None or state.get("training") != identity:
        return 0, []
    for learner, its_state in zip(learners, state["networks"], strict=True):
        learner.restore(its_state)
    return state["step"], state["losses"]


@torch.no_grad()
def classify(
    config: TrainingConfig, subject: Subject, learners: Learners, split: str, numbers: Tensor
) -> Tensor:
    """Classes, [S, B] int64, that the networks predict for the images ``numbers`` of a split."""
    device, vit = first_device(), learners.vit
    for learner in learners.all:
        for network in (learner.network, *learner.copies):
            network.eval()
    views = EvaluationViews(subject.images(split), vit.image_size, subject.index.view)
    batches = evaluation_batches(
        Subset(views, numbers.tolist()),
        -(-config.batch_size // config.accumulate),
        config.num_workers,
    )
    # The empty one is for no images.
    predictions = [torch.empty(len(learners.all), 0, dtype=torch.int64, device=device)]
    for images_BHWC in tqdm(batches, desc=f"classify {split}", unit="batch", mininterval=2):
        images_BCHW = normalised(images_BHWC, vit, device)
        for gpu, (images,) in enumerate(replicas.sent(device, images_BCHW)):
            inputs = learners.inputs(gpu, config.precision, images)
            with precision(config.precision, device):
                classes = [network(*inputs).argmax(1) for network in learners.networks(gpu)]
            predictions.append(torch.stack(classes).to(device, non_blocking=True))
    return torch.cat(predictions, 1).cpu()
