"""Replay a recorded training step and print how far each quantity is off.

``python tests/golden.py FILE.npz``: sizes come from the file's own ``meta``. The error is the norm
of the difference over the norm of the recorded value. Exit status 1 above 1e-4, for losses above
1e-5; for block sizes at the first that differs; for context lengths, which are random, beyond four
standard errors.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from ijepa.masking import Masking, Masks, MultiBlock
from ijepa.methods import ijepa
from ijepa.optim import Optim, adamw, learning_rate, schedule, weight_decay
from ijepa.vit import ViTConfig, take

LIMIT = 1e-4
LOSS_LIMIT = 1e-5
STANDARD_ERRORS = 4.0
NETS = {
    "encoder": "context_encoder",
    "predictor": "predictor",
    "target_encoder": "target_encoder",
}


class Error(NamedTuple):
    """One line of the comparison."""

    name: str
    value: float
    limit: float


def relative(ours: Any, recorded: Any) -> float:
    """Norm of the difference over norm of the recorded value."""
    ours, recorded = (np.asarray(torch.as_tensor(v).detach(), np.float64) for v in (ours, recorded))
    if ours.shape != recorded.shape:
        return float("inf")
    difference, norm = np.linalg.norm(ours - recorded), np.linalg.norm(recorded)
    return float(difference / norm if norm else difference)


def replay(file: dict[str, NDArray[Any]]) -> Iterator[Error]:
    """Every recorded quantity of an I-JEPA step beside ours."""
    if "before/predictor/predictor_embed.weight" not in file:
        raise SystemExit("error: this is not a recorded step of a method that is known here")
    meta = json.loads(str(file["meta"]))
    vit = ViTConfig(
        image_size=meta["img"],
        patch_size=meta["patch"],
        dim=meta["dim"],
        depth=meta["depth"],
        num_heads=meta["heads"],
        mlp_ratio=file["before/encoder/blocks.0.mlp.fc1.bias"].size / meta["dim"],
    )
    momentum = meta["ema_momentum"]
    config = ijepa.Config(
        masking=Masking(min_keep=0),
        predictor_dim=meta["pdim"],
        predictor_depth=meta["pdepth"],
        momentum=(momentum, 1.0),
    )
    method = ijepa.Method(config, vit)
    for recorded, ours in NETS.items():
        prefix = f"before/{recorded}/"
        state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in of(file, prefix)}
        net = method.get_submodule(ours)
        for name in ("pos_embed", "predictor_pos_embed"):
            if name in state:
                yield Error(prefix + name, relative(net.get_parameter(name), state[name]), LIMIT)
        net.load_state_dict(state)

    yield from replay_step(file, method)

    optimizer = adamw(method, Optim())
    schedule(optimizer, meta["lr"], meta["weight_decay"])
    optimizer.step()
    method.after_step(0.0)
    for recorded, ours in NETS.items():
        for key, value in of(file, prefix := f"after/{recorded}/"):
            parameter = method.get_submodule(ours).get_parameter(key.removeprefix(prefix))
            yield Error(key, relative(parameter, value), LIMIT)

    if "schedule/lr" in file:
        yield from replay_schedules(file, meta["note"])
    if "block_sizes" in file:
        yield from replay_block_sizes(file)
    if "mask_lengths" in file:
        yield from replay_mask_lengths(file)


def replay_step(file: dict[str, NDArray[Any]], method: ijepa.Method) -> Iterator[Error]:
    """Features, predictions, loss and gradients; leaves the gradients in place."""
    images = torch.from_numpy(file["images"])
    contexts, blocks = (torch.from_numpy(file[k]) for k in ("context_masks", "target_masks"))
    targets_BND = method.targets(images)
    # Recorded order: target block, then context block, then image.
    pairs = [(target, context) for target in blocks for context in contexts]
    targets = torch.cat([take(targets_BND, target) for target, _ in pairs])
    predictions = torch.cat([predict(method, images, c, t) for t, c in pairs])
    loss = method.loss(predictions, targets)
    loss.backward()
    ours: dict[str, Tensor] = {
        "encoder_all_patches": method.context_encoder(images),
        "target_all_patches": F.layer_norm(method.target_encoder(images), targets_BND.shape[-1:]),
        "targets": targets,
        "context": torch.cat([method.context_encoder(images, c) for c in contexts]),
        "predictions": predictions,
    }
    raw = method.target_encoder(images)
    if relative(raw, file["target_all_patches"]) < LIMIT:
        ours["target_all_patches"] = raw  # recorded before the LayerNorm of the targets
    for name, value in ours.items():
        yield Error(name, relative(value, file[name]), LIMIT)
    yield Error("loss", relative(loss, file["loss"]), LOSS_LIMIT)
    for key, recorded in of(file, "grad/"):
        net, name = key.removeprefix("grad/").split("/")
        gradient = method.get_submodule(NETS[net]).get_parameter(name).grad
        yield Error(key, relative(gradient, recorded), LIMIT)


def predict(method: ijepa.Method, images: Tensor, context: Tensor, target: Tensor) -> Tensor:
    """Predictions of one target block from one context block, [B, T, D]."""
    return method.predict(images, Masks(context, target.unsqueeze(1))).squeeze(1)


def replay_schedules(file: dict[str, NDArray[Any]], note: str) -> Iterator[Error]:
    """Learning rate, weight decay and momentum of every step, from the settings in the note."""
    number = r"([-+\d.e]+)"

    def noted(pattern: str) -> list[float]:
        found = re.search(pattern, note)
        if found is None:
            raise SystemExit(f"error: meta's note does not say {pattern!r}: {note}")
        return [float(group.rstrip(".,")) for group in found.groups()]

    decay, momentum = (
        (first, last)
        for first, last in (noted(rf"{name} {number} to {number}") for name in ("decay", "ema"))
    )
    optim = Optim(
        warmup_epochs=noted(rf"warmup {number} epochs")[0],
        epochs=noted(rf" {number} epochs, start")[0],
        start_lr=noted(rf"start_lr {number}")[0],
        lr=noted(rf" lr {number}")[0],
        final_lr=noted(rf"final_lr {number}")[0],
        weight_decay=decay,
    )
    config = ijepa.Config(masking=Masking(min_keep=0), momentum=momentum, predictor_dim=4)
    tiny = ViTConfig(image_size=32, patch_size=4, dim=4, depth=1, num_heads=1)
    method = ijepa.Method(config, tiny)
    n = len(file["schedule/lr"])
    ours = {
        "lr": [learning_rate(optim, step, n) for step in range(n)],
        "weight_decay": [weight_decay(optim, step, n) for step in range(n)],
        "ema_momentum": [method.scheduled(step / n)["momentum"] for step in range(n)],
    }
    for name, values in ours.items():
        key = f"schedule/{name}"
        yield Error(key, relative(torch.tensor(values, dtype=torch.float64), file[key]), LIMIT)


def replay_block_sizes(file: dict[str, NDArray[Any]]) -> Iterator[Error]:
    """The number of seeds whose block sizes differ."""
    different = 0
    for grid, seed, *sizes in file["block_sizes"].tolist():
        sampler = MultiBlock(Masking(min_keep=0), (grid, grid))
        target, context = sampler.block_sizes(torch.Generator().manual_seed(seed))
        different += [*target, *context] != sizes
    yield Error("block_sizes", float(different), 0.0)


def replay_mask_lengths(file: dict[str, NDArray[Any]]) -> Iterator[Error]:
    """Mean lengths after truncation, their difference in standard errors."""
    lengths = file["mask_lengths"]
    for grid, batch in np.unique(lengths[:, :2], axis=0).tolist():
        recorded = lengths[(lengths[:, :2] == (grid, batch)).all(1), 2:]
        sampler = MultiBlock(Masking(), (grid, grid))
        samples = [
            sampler.sample(batch, torch.Generator().manual_seed(seed))
            for seed in range(max(len(recorded), 30))
        ]
        ours = np.array([(s.context_GK.shape[1], s.targets_GMT.shape[2]) for s in samples])
        spread = ours.std(0, ddof=1) * np.sqrt(1 / len(ours) + 1 / len(recorded))
        gaps = np.abs(ours.mean(0) - recorded.mean(0)) / np.maximum(spread, 1e-9)
        for name, gap in zip(("context", "target"), gaps, strict=True):
            key = f"mask_lengths/{grid}x{grid}, batch {batch}: {name}, standard errors"
            yield Error(key, float(gap), STANDARD_ERRORS)


def of(file: dict[str, NDArray[Any]], prefix: str) -> list[tuple[str, NDArray[Any]]]:
    """The entries whose names begin with a prefix."""
    return [(key, value) for key, value in file.items() if key.startswith(prefix)]


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="a recorded step, .npz")
    with np.load(parser.parse_args().file) as archive:
        errors = list(replay({name: archive[name] for name in archive.files}))
    for error in errors:
        verdict = "" if error.value <= error.limit else f"   ABOVE {error.limit:g}"
        print(f"{error.value:10.2e}  {error.name}{verdict}")
    failed = [error for error in errors if not error.value <= error.limit]
    print(f"{len(errors) - len(failed)} of {len(errors)} quantities agree")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
