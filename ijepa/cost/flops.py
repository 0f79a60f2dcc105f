"""FLOPs of a training step, and the bytes that it saves for its backward pass, counted on no GPU.

FLOPs are counted by torch's own counter while a whole step (forward and backward, all networks)
runs on the meta device, which has sizes and no numbers: neither weights' memory nor a GPU is
needed. For a ViT of L blocks of width D whose MLP is r times as wide, on N tokens (patches that are
kept, and [cls]) of N0 patches of p x p pixels, they agree with the closed form of a forward pass,

    2 N0 (3 p^2) D  +  L (2 (4 + 2 r) N D^2  +  4 N^2 D),

two FLOPs a multiply-add: 4 D^2 for queries, keys, values and projection and 2 r D^2 for the MLP of
each token, N^2 D each for scores and for weighted values. Backward costs twice as much, and nothing
for a network that is not trained, so that I-JEPA's step is target(N0) + 3 context(K) + 3 M
predictor(K + T), of whose last block the MLP is for the T patches alone. Attention is counted as
plain products, without the products that flash kernels compute twice. With
``activation_checkpointing`` the second forward pass counts too.

The saved bytes are, tensor by tensor, those that a step keeps under autocast with flash attention,
the weights' bfloat16 copies included: 36 D bytes for each token and block of a trained network;
Korthikanti et al., MLSys 2023, have 34 (no float32 residual stream, but dropout).
"""

import dataclasses
import math
import statistics
from functools import cache
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward, saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ijepa.config import RunConfig
from ijepa.image_size import sides
from ijepa.method import Batch, Method, load_method
from ijepa.optim import Optim
from ijepa.vit import ViT

NUM_DRAWS = 32
"""Largest number of steps whose masks are drawn, to choose a typical one."""


class Size(NamedTuple):
    """Sizes that do not depend on a card: FLOPs of an image's step, parameters, bytes saved."""

    flops: float
    parameters: int
    trained: int
    saved: int


class Saved(torch.autograd.Function):
    """Function that returns its first tensor and saves all for backward, by the active hooks."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        """View of the first tensor."""
        ctx.save_for_backward(*tensors)
        ctx.num_others = len(tensors) - 1
        return tensors[0].view_as(tensors[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradient of the first tensor."""
        return *gradients, *(None for _ in range(ctx.num_others))


class Autocast(TorchFunctionMode):
    """CUDA's autocast for the meta device, which has none, and a record of the saved tensors.

    A flash kernel saves its arguments and its output, and not the matrix of attention.
    """

    def __init__(self, method: nn.Module, bfloat16: bool) -> None:
        super().__init__()
        self.bfloat16 = bfloat16
        self.copies: dict[int, Tensor] = {}
        self.weights = {p.untyped_storage()._cdata for p in method.parameters()}
        self.saved: dict[int, Tensor] = {}
        self.linear = 0
        """FLOPs of linear layers, backward included: faster than the counter, to compare draws."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        attention = func is F.scaled_dot_product_attention
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        passes = 3 if func is F.linear and weight.requires_grad else 1
        if self.bfloat16 and (attention or func in (F.linear, torch.conv2d)):
            args, kwargs = tree_map_only(Tensor, self.cast, (args, kwargs))
        if not attention:
            out = func(*args, **kwargs)
            if func is F.linear:
                self.linear += passes * 2 * args[0].numel() * out.shape[-1]
            return out
        with saved_tensors_hooks(lambda x: x, lambda x: x):
            out = func(*args, **kwargs)
        return Saved.apply(out, *(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)))

    def cast(self, x: Tensor) -> Tensor:
        """Tensor in bfloat16; each weight has one copy."""
        if not x.is_floating_point() or x.dtype is torch.bfloat16:
            return x
        if not isinstance(x, nn.Parameter):
            return x.bfloat16()
        return self.copies.setdefault(id(x), x.bfloat16())

    def keep(self, x: Tensor) -> Tensor:
        """Record a saved tensor; views of one tensor share its memory."""
        storage = x.untyped_storage()
        if x.is_meta and storage._cdata not in self.weights:
            self.saved[storage._cdata] = x
        return x

    def bytes(self) -> int:
        """Number of bytes of all saved tensors."""
        return sum(x.untyped_storage().nbytes() for x in self.saved.values())


def size(run: RunConfig, images: int, bfloat16: bool = True) -> Size:
    """FLOPs of an image's step and bytes saved by ``images`` images; equal runs are counted once.

    If masks differ from step to step, the step counted is the one of up to NUM_DRAWS whose FLOPs
    are nearest to their mean.
    """
    optim = Optim(batch_size=run.recipe.optim.batch_size)
    recipe = dataclasses.replace(run.recipe, optim=optim)  # type: ignore[type-var]
    alike = RunConfig(
        run.method,
        run.dataset,
        run.vit,
        recipe,
        activation_checkpointing=run.activation_checkpointing,
    )
    return _size(alike, images, bfloat16)


@cache
def _size(run: RunConfig, images: int, bfloat16: bool) -> Size:
    # Blocks of a part are alike but for the last, so every number is linear in each part's depth:
    # two blocks and three are counted, and not forty. Each network has a weight in the sum.
    depths = _depths(run)
    low = {part: min(depth, 2) for part, depth in depths.items()}
    more = {part: depth - low[part] for part, depth in depths.items() if depth > low[part]}
    shallow = [low, *({**low, part: low[part] + 1} for part in more)]
    weights = [1 - sum(more.values()), *more.values()]
    methods = [on_meta(_of_depths(run, depths)) for depths in shallow]

    # Their forward passes quickly show how the draws of masks differ.
    draws: list[int] = []
    while len(draws) < NUM_DRAWS and not _settled(draws):
        batch = batch_of_noise(run, images, len(draws), torch.device("meta"))
        draws.append(sum(map(mul, weights, (_linear(m, batch, bfloat16) for m in methods))))
    mean = statistics.mean(draws)
    step = min(range(len(draws)), key=lambda step: abs(draws[step] - mean))

    def counted(method: Method) -> list[float]:
        flops, saved = _count(method, run, images, bfloat16, step)
        parameters = list(method.parameters())
        trained = [p.numel() for p in parameters if p.requires_grad]
        return [flops, sum(p.numel() for p in parameters), sum(trained), saved]

    rows = zip(*map(counted, methods), strict=True)
    flops, parameters, trained, saved = (sum(map(mul, weights, row)) for row in rows)
    return Size(flops / images * mean / draws[step], int(parameters), int(trained), int(saved))


@torch.no_grad()
def _linear(method: Method, batch: Batch, bfloat16: bool) -> int:
    """FLOPs of the linear layers in a step on a batch."""
    watched = Autocast(method, bfloat16)
    with watched:
        method(batch)
    return watched.linear


def _settled(draws: list[int]) -> bool:
    """True if the mean of the draws is known to 0.1 %: masks of fixed size never differ."""
    if len(draws) < 4:
        return len(draws) > 1 and draws[0] == draws[1]
    error = statistics.stdev(draws) / math.sqrt(len(draws))
    return error < 1e-3 * statistics.mean(draws)


def _depths(run: RunConfig) -> dict[str, int]:
    """Number of blocks of each part: of the encoder, under ``depth``, and of the recipe's parts."""
    names = [f.name for f in dataclasses.fields(run.recipe) if f.name.endswith("_depth")]  # type: ignore[arg-type]
    return {"depth": run.vit.depth, **{name: getattr(run.recipe, name) for name in names}}


def _of_depths(run: RunConfig, depths: dict[str, int]) -> RunConfig:
    """Run whose parts have so many blocks."""
    parts = {name: depth for name, depth in depths.items() if name != "depth"}
    vit = dataclasses.replace(run.vit, depth=depths["depth"])
    return dataclasses.replace(run, vit=vit, recipe=dataclasses.replace(run.recipe, **parts))  # type: ignore[type-var]


def on_meta(run: RunConfig) -> Method:
    """Networks of a run on the meta device, which have shapes and no weights."""
    with torch.device("meta"):
        method = load_method(run.method).Method(run.recipe, run.vit)
    for network in method.modules():
        if isinstance(network, ViT):
            network.activation_checkpointing = run.activation_checkpointing
    return method


def _count(
    method: Method, run: RunConfig, images: int, bfloat16: bool, step: int
) -> tuple[float, int]:
    """FLOPs and saved bytes of one step on ``images`` images of a batch."""
    batch = batch_of_noise(run, images, step, torch.device("meta"))
    autocast = Autocast(method, bfloat16)
    with (
        FlopCounterMode(display=False) as counter,
        autocast,
        sdpa_kernel(SDPBackend.MATH),
        saved_tensors_hooks(autocast.keep, lambda x: x),
    ):
        # This is what loss.backward() does. But the mode intercepts loss.backward() and is off
        # within it, so blocks that are recomputed there would not be cast.
        loss = method(batch)["loss"]
        _engine_run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), accumulate_grad=True
        )
    return counter.get_total_flops(), autocast.bytes()


def batch_of_noise(run: RunConfig, images: int, step: int, device: torch.device) -> Batch:
    """Batch of images of noise."""
    views = run.recipe.views(run.vit.image_size)
    rows, columns = run.vit.grid
    channels = run.vit.channels
    return Batch(
        tuple(torch.randn(images, channels, *sides(v.size), device=device) for v in views),
        seed=0,
        step=step,
        total=run.recipe.optim.batch_size,
        tokens_BN=torch.zeros(images, rows * columns, dtype=torch.long, device=device),
    )
