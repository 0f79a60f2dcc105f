"""LeJEPA's step beside plain torch and timm, at sizes that no recorded file has."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ijepa.architecture import ViTConfig
from ijepa.batch_norm import BatchNorm
from ijepa.data.transforms import IJEPA, LEJEPA_GLOBAL, LEJEPA_LOCAL
from ijepa.method import Batch
from ijepa.methods import lejepa
from ijepa.sigreg import SIGReg
from tests.golden import replay
from workflow.plan.benchmark import read_files
from workflow.plan.check import planned

VIT = ViTConfig(image_size=32, patch_size=4, dim=32, depth=2, num_heads=2)


def make(**settings: Any) -> lejepa.Method:
    torch.manual_seed(0)
    sizes = {"local_size": 16, "projector_dim": 24, "output_dim": 8}
    return lejepa.Method(lejepa.Config(**{**sizes, "num_local": 3, **settings}), VIT)


def recorded_step(num_global: int, num_local: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """A step of timm's encoder and torch's projector, as the golden file has one."""
    torch.manual_seed(3)
    names = ("dim", "patch", "img", "local", "heads", "width", "proj", "batch", "slices", "lamb")
    dim, patch, img, local, heads, width, proj, batch, slices, lamb = (sizes[n] for n in names)
    encoder = VisionTransformer(
        img, patch, embed_dim=dim, depth=2, num_heads=heads, num_classes=0, dynamic_img_size=True
    )
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([dim, width, width]):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    projector = nn.Sequential(*layers, nn.Linear(width, proj))
    file: dict[str, Any] = {}
    for name, network in {"encoder": encoder, "projector": projector}.items():
        for key, value in network.state_dict().items():
            file[f"before/{name}/{key}"] = value.clone()
    views = [torch.randn(n, batch, 3, s, s) for n, s in ((num_global, img), (num_local, local))]
    directions = nn.functional.normalize(torch.randn(proj, slices), dim=0)
    embeddings = torch.cat([encoder(kind.flatten(0, 1)) for kind in views if len(kind)])
    projections = projector(embeddings).unflatten(0, (num_global + num_local, batch))
    prediction = (projections[:num_global].mean(0) - projections).square().mean()
    statistics = torch.stack([plain_statistic(view @ directions) for view in projections])
    loss = (1 - lamb) * prediction + lamb * statistics.mean()
    loss.backward()
    for name, network in {"encoder": encoder, "projector": projector}.items():
        file |= {f"grad/{name}/{key}": p.grad for key, p in network.named_parameters()}
    meta = {"depth": 2, "globals": num_global, "locals": num_local, "num_points": 9, "t_max": 2.5}
    file |= {
        "global_views": views[0],
        "local_views": views[1],
        "directions": directions,
        "embeddings": embeddings,
        "projections": projections,
        "sigreg_of_views": statistics,
        "prediction_loss": prediction,
        "sigreg_loss": statistics.mean(),
        "loss": loss,
    }
    return {k: v.detach().numpy() for k, v in file.items()} | {
        "meta": np.array(json.dumps({**sizes, **meta}))
    }


def plain_statistic(x_NS: Tensor) -> Tensor:
    """The formula, point by point and direction by direction: 9 points of [0, 2.5]."""
    step, total = 2.5 / 8, torch.zeros(())
    for number in range(9):
        t = number * step
        normal = np.exp(-(t**2) / 2)
        phi = torch.exp(1j * t * x_NS).mean(0)
        integrand = (phi - normal).abs().square() * normal
        total = total + integrand * step * (1 if number in (0, 8) else 2)
    return len(x_NS) * total.mean()


@pytest.mark.parametrize(("num_global", "num_local"), [(2, 6), (4, 0), (1, 1)])
@pytest.mark.parametrize(
    "sizes",
    [
        {"img": 24, "local": 16, "patch": 8, "dim": 24, "heads": 2, "width": 20, "lamb": 0.02},
        {"img": 28, "local": 14, "patch": 7, "dim": 32, "heads": 4, "width": 48, "lamb": 0.1},
    ],
    ids=["patches of 8", "patches of 7"],
)
def test_a_step_of_other_sizes_and_views_is_replayed(
    num_global: int, num_local: int, sizes: dict[str, Any]
) -> None:
    file = recorded_step(num_global, num_local, {**sizes, "proj": 5, "batch": 7, "slices": 33})
    if not num_local:  # then a recorder need not say anything of local views
        del file["local_views"]
        meta = json.loads(str(file["meta"]))
        file["meta"] = np.array(json.dumps({k: v for k, v in meta.items() if k != "local"}))
    errors = list(replay(file))
    assert not [error for error in errors if not error.value <= error.limit]
    assert {"loss", "sigreg_of_views", "grad/encoder/pos_embed"} <= {e.name for e in errors}


def test_both_losses_are_of_all_views_and_the_centre_of_the_global_ones() -> None:
    """Faults of two ports (lightly issue 2002, stable-pretraining issue 413)."""
    method = make()
    projections = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0))
    directions = method.config.sigreg.directions(8, torch.Generator().manual_seed(1))
    before = method.losses(projections, directions)
    for view in range(5):
        other = projections.clone()
        other[view] += 1
        changed = method.losses(other, directions)
        assert changed["loss_sigreg"] != before["loss_sigreg"]
        assert changed["loss_prediction"] != before["loss_prediction"]
    centre = projections[:2].mean(0)
    alike = torch.cat([centre.expand(2, -1, -1), projections[2:]])
    expected = (projections[2:] - centre).square().sum() / alike.numel()
    torch.testing.assert_close(method.losses(alike, directions)["loss_prediction"], expected)
    assert before["loss"] == 0.95 * before["loss_prediction"] + 0.05 * before["loss_sigreg"]


def test_gradients_flow_through_the_centre() -> None:
    """Without them a global view would feel its own error alone."""
    method = make(sigreg=SIGReg(lamb=0.0))
    projections = torch.zeros(5, 1, 8)
    projections[4] = 1.0
    projections.requires_grad_()
    directions = method.config.sigreg.directions(8, torch.Generator())
    method.losses(projections, directions)["loss"].backward()
    assert projections.grad is not None
    assert (projections.grad[:2] < 0).all()
    assert projections.grad.sum().abs() < 1e-6


def test_directions_are_new_at_every_step_and_the_same_for_every_part_of_a_batch() -> None:
    method = make()
    views = tuple(torch.randn(4, 3, s, s) for s in (32, 32, 16, 16, 16))
    drawn = []
    original = SIGReg.statistics

    def watched(self: SIGReg, samples: Tensor, directions: Tensor) -> Tensor:
        drawn.append(directions)
        return original(self, samples, directions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SIGReg, "statistics", watched)
        for step, offset in ((0, 0), (0, 4), (1, 0)):
            method(Batch(views, seed=0, step=step, offset=offset, total=8))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


def test_batch_norm_alone_is_torchs() -> None:
    """Outputs, gradients, running mean and variance; then the same in evaluation mode."""
    torch.manual_seed(0)
    ours, torchs = BatchNorm(5), nn.BatchNorm1d(5)
    torchs.weight.data.uniform_()
    ours.load_state_dict(torchs.state_dict())
    for network in (ours, torchs):
        network.train()
    for _ in range(3):
        x = torch.randn(12, 5) * 3 + 1
        given = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [network(part) for network, part in zip((ours, torchs), given, strict=True)]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.square().mul(x).sum().backward()
        torch.testing.assert_close(given[0].grad, given[1].grad)
    for key, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, msg=key)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


def test_the_projectors_batch_norm_sees_all_views_together() -> None:
    method = make()
    features = torch.randn(5 * 4, 32)
    together = method.project(features)
    alone = method.projector(features[:4])
    assert together.shape == (5, 4, 8)
    assert not torch.allclose(together[0], alone, atol=1e-3)


def test_views_are_two_large_and_six_small_ones_with_the_same_colours() -> None:
    views = lejepa.Config().views(224)
    assert [view.size for view in views] == [224, 224, *[96] * 6]
    assert {view.crop.scale for view in views} == {(0.3, 1.0), (0.05, 0.3)}
    colours = {(v.crop.flip, v.crop.jitter, v.crop.grey, v.crop.blur) for v in views}
    assert colours == {(0.5, (0.4, 0.4, 0.2, 0.1), 0.2, 0.5)}


def test_stochastic_depth_drops_the_branches_that_the_coins_say() -> None:
    """Every view of every image has coins of its own, the same on whatever device it is."""
    method = make(drop_path=0.9)
    views = tuple(torch.randn(4, 3, s, s) for s in (32, 32, 16, 16, 16))
    coins = Batch(views, seed=0, step=0, total=4).coins(VIT.depth)
    assert coins.shape == (5, 4, VIT.depth, 2)
    kept, dropped = torch.ones_like(coins), torch.zeros_like(coins)
    one = dropped.clone()
    one[3, 2] = 1.0
    whole, none, mixed = (method.embed(views, c) for c in (kept, dropped, one))
    different = (mixed != none).any(1).view(5, 4)
    assert different.nonzero().tolist() == [[3, 2]]
    torch.testing.assert_close(mixed.view(5, 4, -1)[3, 2], whole.view(5, 4, -1)[3, 2])


@pytest.mark.usefixtures("real_register")
@pytest.mark.parametrize("name", ["lejepa", "lejepa_paper"])
def test_the_configs_augment_equally_both_ways(name: str) -> None:
    """I-JEPA with LeJEPA's colours and LeJEPA with I-JEPA's crops, nothing else changed."""
    _, benchmark = read_files([Path(__file__).parents[1] / "config" / f"{name}.yaml"])
    runs: dict[str, Any] = {run.name: planned(run).run for run in benchmark.runs}
    (coloured,), (plain,) = (
        [key for key in runs if key.endswith(end)] for end in ("_colours", "_plain")
    )
    ours, theirs = (runs[key.rpartition("_")[0]].recipe for key in (coloured, plain))
    assert (ours.crop, theirs.global_crop) == (IJEPA, LEJEPA_GLOBAL)
    assert runs[coloured].recipe == dataclasses.replace(ours, crop=LEJEPA_GLOBAL)
    small = dataclasses.replace(IJEPA, scale=LEJEPA_LOCAL.scale)
    assert runs[plain].recipe == dataclasses.replace(theirs, global_crop=IJEPA, local_crop=small)
    assert {run.name for run in benchmark.runs} <= {
        run for table in benchmark.tables for run in table.runs or ()
    }
