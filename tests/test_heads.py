"""Stacked heads beside modules of torch that are trained one by one."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals.heads import Head, Heads, Optimizer, Stack, Whitening

LAYERS, DIM, CLASSES, BATCH = 3, 6, 5, 20
RATES, DECAYS = (0.5, 0.02), (0.0, 0.03)
FACTORS = (1.0, 1.0, 0.1, 0.1)
"""Factors of the rates in each of the steps."""

Name = Literal["lars", "sgd"]


def batches() -> list[tuple[Tensor, Tensor]]:
    """Features whose mean is far from 0 and whose scales differ.

    In double precision: a step at a high rate would turn a rounding error into more than the
    tolerance.
    """
    random = torch.Generator().manual_seed(0)
    scale = 4.0 ** torch.arange(-2, DIM - 2)
    return [
        (
            ((torch.randn(BATCH, LAYERS, DIM, generator=random) + 3) * scale).double(),
            torch.randint(CLASSES, (BATCH,), generator=random),
        )
        for _ in FACTORS
    ]


def new_heads(rates: tuple[float, ...] = RATES) -> Heads:
    return Heads(rates, DECAYS, LAYERS, DIM, CLASSES, seed=0).double()


def alone(heads: Heads, number: int) -> nn.Sequential:
    """A head as modules of its own, with its present weights."""
    stack = heads.stacks[number // 4]
    assert isinstance(stack, Stack)
    which, dim = number % 4, stack.weight_SCD.shape[2]
    linear = nn.Linear(dim, CLASSES, dtype=torch.double)
    with torch.no_grad():
        linear.weight.copy_(stack.weight_SCD[which])
        linear.bias.copy_(stack.bias_SC[which])
    if stack.norm == "none":
        return nn.Sequential(linear)
    return nn.Sequential(nn.BatchNorm1d(dim, dtype=torch.double), linear)


def seen_by(head: Head, x_BLD: Tensor) -> Tensor:
    return x_BLD[:, -1] if head.features == "last" else torch.cat(list(x_BLD.unbind(1)), 1)


def nesterov(module: nn.Module, head: Head) -> Callable[[float], None]:
    """torch's SGD, with no decay for what BatchNorm has."""
    norms = [p for m in module.modules() if isinstance(m, nn.BatchNorm1d) for p in m.parameters()]
    others = [p for m in module.modules() if isinstance(m, nn.Linear) for p in m.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": others, "weight_decay": head.weight_decay},
        {"params": norms},
    ]
    optimizer = torch.optim.SGD(groups, lr=head.lr, momentum=0.9, nesterov=True)

    def step(factor: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = head.lr * factor
        optimizer.step()

    return step


def lars(module: nn.Module, head: Head) -> Callable[[float], None]:
    """The rule of LARS, parameter by parameter."""
    buffers: dict[nn.Parameter, Tensor] = {}
    norms = {p for m in module.modules() if isinstance(m, nn.BatchNorm1d) for p in m.parameters()}

    def step(factor: float) -> None:
        with torch.no_grad():
            for p in module.parameters():
                assert p.grad is not None
                g = p.grad if p in norms else p.grad + head.weight_decay * p
                if p.ndim > 1 and p.norm() > 0 and g.norm() > 0:
                    g = g * (0.001 * p.norm() / g.norm())
                buffers[p] = 0.9 * buffers.get(p, torch.zeros_like(p)) + g
                p.sub_(head.lr * factor * buffers[p])

    return step


@pytest.mark.parametrize(("name", "rule"), [("sgd", nesterov), ("lars", lars)])
def test_stacked_heads_train_as_modules_of_their_own(
    name: Name, rule: Callable[[nn.Module, Head], Callable[[float], None]]
) -> None:
    heads = new_heads()
    optimizer = Optimizer(heads, name)
    modules = [alone(heads, number) for number in range(len(heads.settings))]
    steps = [rule(module, head) for module, head in zip(modules, heads.settings, strict=True)]
    for (x_BLD, y_B), factor in zip(batches(), FACTORS, strict=True):
        losses_H = heads.loss(x_BLD, y_B)
        losses_H.sum().backward()
        optimizer.step(factor)
        for number, (head, module) in enumerate(zip(heads.settings, modules, strict=True)):
            module.zero_grad()
            loss = F.cross_entropy(module(seen_by(head, x_BLD)), y_B)
            loss.backward()
            steps[number](factor)
            assert losses_H[number].item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)

    heads.eval()
    x_BLD, _ = batches()[0]
    predicted_HB = heads.classify(x_BLD)
    for number, (head, module) in enumerate(zip(heads.settings, modules, strict=True)):
        assert_like(heads, number, module)
        logits = module.eval()(seen_by(head, x_BLD))
        assert predicted_HB[number].equal(logits.argmax(1))


def assert_like(heads: Heads, number: int, module: nn.Sequential) -> None:
    """Weights and running statistics are the same within 1e-5 of their size."""
    stack, which = heads.stacks[number // 4], number % 4
    assert isinstance(stack, Stack)
    ours: list[Tensor | None] = [stack.weight_SCD[which], stack.bias_SC[which]]
    theirs = [module[-1].weight, module[-1].bias]
    if stack.norm == "batch":
        ours += [stack.scale_SD[which], stack.shift_SD[which]]
        ours += [stack.statistics.running_mean, stack.statistics.running_var]
        norm = module[0]
        theirs += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_there_is_a_head_for_every_combination() -> None:
    grid = new_heads().settings
    assert len(set(grid)) == len(grid) == 2 * 2 * len(RATES) * len(DECAYS)
    only = Heads(RATES, DECAYS, 1, DIM, CLASSES, seed=0)
    assert {head.features for head in only.settings} == {"last"}
    assert only.loss(torch.randn(4, 1, DIM), torch.zeros(4, dtype=torch.long)).shape == (8,)


def test_heads_start_as_a_linear_layer_does_and_as_the_seed_says() -> None:
    first, again, other = (Heads((0.1,), (0.0,), 1, 100, 400, seed) for seed in (0, 0, 1))
    for name, values in first.state_dict().items():
        assert values.equal(again.state_dict()[name])
        if name.endswith(("weight_SCD", "bias_SC")):
            assert not values.equal(other.state_dict()[name])
            assert 0.099 < values.abs().max() <= 0.1
            assert values.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.1)


def test_a_diverging_head_leaves_the_others_as_they_are() -> None:
    heads, beside = new_heads((0.5, 0.02)), new_heads((0.5, 1e308))
    for each in (heads, beside):
        optimizer = Optimizer(each, "sgd")
        for x_BLD, y_B in batches():
            each.loss(x_BLD, y_B).sum().backward()
            optimizer.step(1.0)
    assert heads.finite().all()
    assert beside.finite().tolist() == [head.lr == 0.5 for head in beside.settings]
    for name, values in heads.named_parameters():
        assert values[:2].equal(dict(beside.named_parameters())[name][:2])


def test_whitened_features_are_uncorrelated_and_of_variance_1() -> None:
    random = torch.Generator().manual_seed(0)
    turned_DD = torch.linalg.qr(torch.randn(18, 18, generator=random).double()).Q
    x_BD = (
        torch.randn(500, 18, generator=random).double() * torch.logspace(-1, 1, 18) @ turned_DD + 5
    )
    white_BD = Whitening(x_BD.mean(0), x_BD.T.cov(correction=0)).double()(x_BD)
    torch.testing.assert_close(white_BD.mean(0), torch.zeros(18).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        white_BD.T.cov(correction=0), torch.eye(18).double(), rtol=0, atol=0.02
    )
