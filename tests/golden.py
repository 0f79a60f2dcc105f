"""Replay a recorded training step and print how far each quantity is off.

``python tests/golden.py FILE.npz``: the keys of the file tell the method, its ``meta`` has the
sizes. The error is the norm of the difference over the norm of the recorded value. Exit
status 1 above 1e-4, for losses above 1e-5; for block sizes at the first that differs; for context
lengths, which are random, beyond four standard errors.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from ijepa.architecture import ViTConfig
from ijepa.masking import Masking, Masks, MultiBlock, num_hidden
from ijepa.methods import cae, data2vec, dino, ibot, ijepa, lejepa, mae
from ijepa.optim import Optim, adamw, learning_rate, schedule, weight_decay
from ijepa.sigreg import SIGReg
from ijepa.vit import patchify, take
from tests.recorded import (
    LIMIT,
    LOSS_LIMIT,
    Error,
    Recorded,
    compare,
    gradients,
    load,
    parameters,
    relative,
    shape,
)

STANDARD_ERRORS = 4.0


def replay(file: Recorded) -> Iterator[Error]:
    """Every recorded quantity of a step beside ours."""
    for key, replay_method in REPLAYS.items():
        if key in file:
            return replay_method(file, json.loads(str(file["meta"])))
    raise SystemExit("error: this is not a recorded step of a method that is known here")


def replay_ijepa(file: Recorded, meta: dict[str, Any]) -> Iterator[Error]:
    """Networks, targets, loss, gradients, an update of both encoders, schedules, masks."""
    vit = shape(file, meta, "before/encoder/")
    config = ijepa.Config(
        masking=Masking(min_keep=0),
        predictor_dim=meta["pdim"],
        predictor_depth=meta["pdepth"],
        momentum=(meta["ema_momentum"], 1.0),
    )
    method = ijepa.Method(config, vit)
    yield from load(method, file, ijepa.RELEASED)

    images = torch.from_numpy(file["images"])
    contexts, blocks = (torch.from_numpy(file[k]) for k in ("context_masks", "target_masks"))
    targets_BND = method.targets(images)
    # Recorded order: target block, then context block, then image.
    pairs = [(target, context) for target in blocks for context in contexts]
    targets = torch.cat([take(targets_BND, target) for target, _ in pairs])
    predictions = torch.cat(
        [method.predict(images, Masks(c, t.unsqueeze(1))).squeeze(1) for t, c in pairs]
    )
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
    yield from compare(ours, file)
    yield from compare({"loss": loss}, file, LOSS_LIMIT)
    yield from gradients(method, file, ijepa.RELEASED)

    optimizer = adamw(method, Optim())
    schedule(optimizer, meta["lr"], meta["weight_decay"])
    optimizer.step()
    method.after_step(0.0)
    yield from parameters(method, file, ijepa.RELEASED, "after/", lambda parameter: parameter)

    if "schedule/lr" in file:
        yield from replay_schedules(file, meta["note"])
    if "block_sizes" in file:
        yield from replay_block_sizes(file)
    if "mask_lengths" in file:
        yield from replay_mask_lengths(file)


def replay_mae(file: Recorded, meta: dict[str, Any]) -> Iterator[Error]:
    """Networks, patches, predictions, loss and gradients."""
    config = mae.Config(
        mask_ratio=meta["mask_ratio"],
        normalise_pixels=meta["norm_pix_loss"],
        decoder_dim=meta["decoder_dim"],
        decoder_depth=meta["decoder_depth"],
        decoder_heads=meta["decoder_heads"],
    )
    vit = shape(file, meta, "before/")
    mae.check(config, vit)
    method = mae.Method(config, vit)
    yield from load(method, file, mae.RELEASED)
    images, visible = (torch.from_numpy(file[k]) for k in ("images", "ids_keep"))
    hidden = torch.from_numpy(file["masked"])
    predictions = method.predict(images, visible)
    loss = method.loss(predictions, images, hidden)
    loss.backward()
    yield from compare(
        {"predictions": predictions, "patches": patchify(images, method.vit.patch_size)}, file
    )
    yield from compare({"loss": loss}, file, LOSS_LIMIT)
    count = num_hidden(config.mask_ratio, vit.grid)
    yield Error("number hidden", abs(int(hidden[0].sum()) - count), 0.0)
    yield from gradients(method, file, mae.RELEASED)


def replay_data2vec(file: Recorded, meta: dict[str, Any]) -> Iterator[Error]:
    """Networks, targets, predictions, loss and gradients."""
    config = data2vec.Config(
        top_layers=meta["top_layers"],
        beta=meta["smooth_l1_beta"],
        layer_scale=meta["layer_scale_init"],
        drop_path=0.0,
    )
    method = data2vec.Method(config, shape(file, meta, "before/student/"))
    yield from load(method, file, data2vec.RELEASED)
    images, hidden = (torch.from_numpy(file[k]) for k in ("images", "masked"))
    predictions, targets = method.predict(images, hidden), method.targets(images)[hidden]
    loss = method.loss(predictions, targets)
    loss.backward()
    yield from compare({"predictions": predictions, "targets": targets}, file)
    yield from compare({"loss": loss}, file, LOSS_LIMIT)
    # Only the student has gradients, and the file leaves its name out.
    names = {k.removeprefix("student."): v for k, v in data2vec.RELEASED.items()}
    yield from gradients(method, file, names)


def replay_cae(file: Recorded, meta: dict[str, Any]) -> Iterator[Error]:
    """Networks, features and their targets, token scores, losses and gradients."""
    config = cae.Config(
        vocabulary=meta["vocabulary"],
        regressor_depth=meta["regressor_depth"],
        decoder_depth=meta["decoder_depth"],
        alignment_weight=meta["alignment_weight"],
        layer_scale=meta["layer_scale"],
        drop_path=0.0,
    )
    method = cae.Method(config, shape(file, meta, "before/encoder."))
    yield from load(method, file, cae.RELEASED)
    positions = method.visible_encoder.pos_embed
    yield from compare({f"{n}_pos_embed": positions for n in ("encoder", "regressor")}, file)
    images, hidden = (torch.from_numpy(file[k]) for k in ("images", "masked"))
    features, scores = method.predict(images, hidden)
    targets = method.targets(images, hidden)
    losses = method.losses(features, targets, scores, torch.from_numpy(file["token_ids"])[hidden])
    losses["loss"].backward()
    yield from compare(
        {
            "latent_predictions": features,
            "latent_targets": targets,
            "logits": scores.flatten(0, 1),
        },
        file,
    )
    losses["loss_alignment"] *= config.alignment_weight  # recorded with its weight
    yield from compare(losses, file, LOSS_LIMIT)
    yield from gradients(method, file, cae.RELEASED)


def replay_dino(file: Recorded, meta: dict[str, Any]) -> Iterator[Error]:
    """Heads, loss and its gradients, the centre's update, the teacher's temperature."""
    temperatures, warmup = file["teacher_temperature"].tolist(), meta["warmup_epochs"]
    first, *others = temperatures
    # The last temperature, also of a run that ends before the warm-up does.
    last = first + (others[0] - first) * (warmup - 1) if len(others) < warmup - 1 else others[-1]
    config = dino.Config(
        **head_sizes(file),
        optim=Optim(epochs=meta["epochs"]),
        norm_last_layer=f"grad/{HEAD}last_layer.weight_g" not in file,
        student_temperature=meta["student_temperature"],
        teacher_temperature=(first, last),
        temperature_warmup_epochs=warmup,
    )
    method = dino.Method(config, shape(file, meta, ""))
    heads = {f"{tower}_head.": f"{tower}.head." for tower in ("student", "teacher")}
    yield from load(method, file, heads, strict=False)
    method.centre.copy_(torch.from_numpy(file["center_before"]))
    ours = [config.temperature(epoch / meta["epochs"]) for epoch in range(len(temperatures))]
    yield Error("teacher_temperature", relative(ours, temperatures), LIMIT)

    features = torch.from_numpy(file["student_features"]).requires_grad_()
    scores = method.student.head(features)
    targets = method.teacher.head(torch.from_numpy(file["teacher_features"]))
    loss = method.loss(scores, targets, config.temperature(meta["epoch"] / meta["epochs"]))
    loss.backward()
    dino.add_up(method.centre_sum, targets)
    method.move_centres()
    yield from compare({"loss": loss}, file, LOSS_LIMIT)
    yield from compare(
        {
            "student_logits": scores,
            "center_after": method.centre,
            "feature_grad": features.grad,
        },
        file,
    )
    yield from gradients(method, file, heads)


def replay_ibot(file: Recorded, meta: dict[str, Any]) -> Iterator[Error]:
    """The shared head, both losses and their gradients, the updates of both centres."""
    config = ibot.Config(
        **head_sizes(file),
        norm_last_layer=f"grad/{HEAD}last_layer.weight_g" not in file,
        temperature_warmup_epochs=30,  # of the command for ViT-S
    )
    method = ibot.Method(config, shape(file, meta, ""))
    heads = {f"{tower}_head.": f"{tower}.head." for tower in ("student", "teacher")}
    yield from load(method, file, heads, strict=False)
    method.centre.copy_(torch.from_numpy(file["center_before"]))
    method.patch_centre.copy_(torch.from_numpy(file["patch_center_before"]))
    progress = meta["epoch"] / config.optim.epochs
    hidden = torch.from_numpy(file["masked"]).flatten(2).flatten(0, 1)

    given = {k: torch.from_numpy(file[k]) for k in file if k.endswith("_features")}
    features = given["student_features"].requires_grad_()
    patch_features = given["student_patch_features"].requires_grad_()
    targets, patch_targets = (
        method.teacher.head(given[k]) for k in ("teacher_features", "teacher_patch_features")
    )
    loss_class = method.loss(method.student.head(features), targets, config.temperature(progress))
    loss_patch = method.patch_loss(
        method.student.head(patch_features[hidden]),
        patch_targets[hidden],
        hidden,
        config.patches(progress),
    )
    loss = config.class_weight * loss_class + config.patch_weight * loss_patch
    loss.backward()
    dino.add_up(method.centre_sum, targets)
    dino.add_up(method.patch_centre_sum, patch_targets)
    method.move_centres()
    losses = {"loss_cls": loss_class, "loss_patch": loss_patch, "loss": loss}
    yield from compare(losses, file, LOSS_LIMIT)
    yield from compare(
        {
            "center_after": method.centre,
            "patch_center_after": method.patch_centre,
            "feature_grad": features.grad,
            "patch_feature_grad": patch_features.grad,
        },
        file,
    )
    yield from gradients(method, file, heads)


def replay_lejepa(file: Recorded, meta: dict[str, Any]) -> Iterator[Error]:
    """Features of [cls], projections, statistics of every view, losses and gradients."""
    width, output_dim = (len(file[f"before/projector/{layer}.bias"]) for layer in (0, 6))
    directions = torch.from_numpy(file["directions"])
    config = lejepa.Config(
        num_global=meta["globals"],
        num_local=meta["locals"],
        local_size=meta.get("local", 0),
        projector_dim=width,
        output_dim=output_dim,
        sigreg=SIGReg(
            meta["lamb"], directions.shape[1], meta["num_points"], meta.get("t_max", 3.0)
        ),
        drop_path=0.0,
    )
    vit = shape(file, meta, "before/encoder/")
    lejepa.check(config, vit)
    method = lejepa.Method(config, vit)
    names = {"encoder.": "network.", "projector.": "projector."}
    yield from load(method, file, names)
    given = [torch.from_numpy(file[k]) for k in ("global_views", "local_views") if k in file]
    views = tuple(view for kind in given for view in kind)
    embeddings = method.embed(views, torch.empty(len(views), len(views[0]), vit.depth, 2))
    projections = method.project(embeddings)
    losses = method.losses(projections, directions)
    losses["loss"].backward()
    statistics = config.sigreg.statistics(projections, directions)
    yield from compare(
        {"embeddings": embeddings, "projections": projections, "sigreg_of_views": statistics}, file
    )
    recorded = {
        "prediction_loss": losses["loss_prediction"],
        "sigreg_loss": losses["loss_sigreg"],
        "loss": losses["loss"],
    }
    yield from compare(recorded, file, LOSS_LIMIT)
    # The projector's BatchNorms take away what is added to all images alike.
    cancelled = ("grad/projector/0.bias", "grad/projector/3.bias", "grad/encoder/norm.bias")
    yield from gradients(method, file, names, cancelled)


REPLAYS: dict[str, Callable[[Recorded, dict[str, Any]], Iterator[Error]]] = {
    "before/predictor/predictor_embed.weight": replay_ijepa,
    "before/decoder_pred.weight": replay_mae,
    "before/student/lm_head.weight": replay_data2vec,
    "before/regresser.norm.weight": replay_cae,
    "before/projector/0.weight": replay_lejepa,
    "patch_center_before": replay_ibot,
    "center_before": replay_dino,
}
"""Replay of each method, by a key that only its file has; iBOT's file has all that DINO's has."""

HEAD = "student_head/"


def head_sizes(file: Recorded) -> dict[str, Any]:
    """The sizes of a projection head."""
    num_prototypes, bottleneck = file[f"before/{HEAD}last_layer.weight_v"].shape
    head_dim = file[f"before/{HEAD}mlp.0.bias"].size
    return {
        "num_prototypes": num_prototypes,
        "bottleneck_dim": bottleneck,
        "head_dim": head_dim,
    }


def replay_schedules(file: Recorded, note: str) -> Iterator[Error]:
    """Learning rate, weight decay and momentum of every step, from the settings in the note."""
    number = r"([-+\d.e]+)"

    def noted(pattern: str) -> list[float]:
        match = re.search(pattern, note)
        if match is None:
            raise SystemExit(f"error: meta's note does not say {pattern!r}: {note}")
        return [float(group.rstrip(".,")) for group in match.groups()]

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


def replay_block_sizes(file: Recorded) -> Iterator[Error]:
    """The number of seeds whose block sizes differ."""
    different = 0
    for grid, seed, *sizes in file["block_sizes"].tolist():
        sampler = MultiBlock(Masking(min_keep=0), (grid, grid))
        target, context = sampler.block_sizes(torch.Generator().manual_seed(seed))
        different += [*target, *context] != sizes
    yield Error("block_sizes", float(different), 0.0)


def replay_mask_lengths(file: Recorded) -> Iterator[Error]:
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
