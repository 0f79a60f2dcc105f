"""Plain implementation of a step, its masks, loader, probe and evaluation, to measure against.

It is what one writes first: attention with an explicit softmax, every row of the predictor's last
block, one parameter after the other in the optimiser and in the moving average, masks image by
image in Python, torchvision's transforms, one head after the other, and a wait for the device after
every step. Networks are those of the project, so that only the way of computing differs.
"""

import random
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ijepa.data.transforms import MEAN, STD
from ijepa.masking import Masking, Masks
from ijepa.methods.ijepa import Method
from ijepa.precision import precision
from ijepa.vit import ViT

DECAY = 5e-4
"""Weight decay of every head."""


def explicit(network: nn.Module) -> None:
    """Let timm's attention compute the whole matrix and its softmax."""
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def adamw(method: nn.Module) -> torch.optim.AdamW:
    """AdamW that updates one parameter after the other."""
    learned = [p for p in method.parameters() if p.requires_grad]
    return torch.optim.AdamW(learned, lr=1e-4, foreach=False, fused=False)


def step(
    method: Method,
    optimizer: torch.optim.AdamW,
    images_BCHW: Tensor,
    groups: list[Masks],
    setting: str,
) -> float:
    """One update; returns the loss, for which the host waits.

    Masks are drawn, for the time that it takes, and then those of ``groups`` are used, with which
    our step has the same lengths.
    """
    device, size = images_BCHW.device, method.config.masking.group_size
    sample(method.config.masking, method.vit.grid, len(images_BCHW))
    losses = []
    with precision(setting, device), patch("ijepa.methods.ijepa.some_rows", all_rows):
        targets_BND = method.targets(images_BCHW)
        parts = zip(images_BCHW.split(size), targets_BND.split(size), groups, strict=True)
        for images, targets, masks in parts:
            masks = Masks(*(mask.to(device) for mask in masks))
            predictions = method.predict(images, masks).flatten(1, 2).float()
            index = masks.targets_GMT.flatten(1).unsqueeze(-1).expand(-1, -1, targets.shape[-1])
            loss = F.smooth_l1_loss(predictions, targets.gather(1, index))
            losses.append(loss * (len(images) / len(images_BCHW)))
        loss = torch.stack(losses).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    average(method.target_encoder, method.context_encoder, 0.996)
    return loss.item()


def all_rows(block: nn.Module, x_BND: Tensor, rows: slice) -> Tensor:
    """Rows of a block's output, of which all are computed."""
    out: Tensor = block(x_BND)[:, rows]
    return out


@torch.no_grad()
def average(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move one parameter after the other."""
    for mean, parameter in zip(target.parameters(), source.parameters(), strict=True):
        mean.mul_(momentum).add_((1 - momentum) * parameter)


def sample(config: Masking, grid: tuple[int, int], num_images: int) -> Masks:
    """I-JEPA's masks (paper, section 3), image by image; contexts are cut to the shortest."""
    H, W = grid

    def block(scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        area, ratio = H * W * random.uniform(*scale), random.uniform(*aspect)
        return min(round((area * ratio) ** 0.5), H), min(round((area / ratio) ** 0.5), W)

    def patches(rows: int, columns: int) -> list[int]:
        top, left = random.randint(0, H - rows), random.randint(0, W - columns)
        return [r * W + c for r in range(top, top + rows) for c in range(left, left + columns)]

    target_size = block(config.target_scale, config.target_aspect)
    context_size = block(config.context_scale, (1.0, 1.0))
    contexts: list[Any] = []
    targets: list[Any] = []
    while len(contexts) < num_images:
        image_targets = [patches(*target_size) for _ in range(config.num_targets)]
        claimed = {patch for target in image_targets for patch in target}
        context = [patch for patch in patches(*context_size) if patch not in claimed]
        if len(context) > config.min_keep:
            contexts.append(context)
            targets.append(image_targets)
    length = min(map(len, contexts))
    return Masks(torch.tensor([c[:length] for c in contexts]), torch.tensor(targets))


class Views(Dataset[Tensor]):
    """Crops by torchvision, as normalised floats [C, H, W]."""

    def __init__(self, images: Any, size: int) -> None:
        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.3, 1.0)),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor:
        view: Tensor = self.transform(self.images[number])
        return view


def batches(images: Any, size: int, batch_size: int, num_workers: int) -> DataLoader[Tensor]:
    """Batches by torchvision's transforms."""
    return DataLoader(Views(images, size), batch_size, shuffle=True, num_workers=num_workers)


@torch.no_grad()
def features(network: ViT, batches: Iterator[Tensor]) -> Tensor:
    """Averaged patch features, for which the host waits batch by batch."""
    rows = []
    for images_BCHW in batches:
        with precision("auto", images_BCHW.device):
            rows.append(network(images_BCHW).float().mean(1).cpu())
    return torch.cat(rows)


class Heads:
    """Linear heads, each with an optimiser of its own."""

    def __init__(self, dim: int, classes: int, rates: list[float], device: torch.device) -> None:
        self.heads = [nn.Linear(dim, classes).to(device) for _ in rates]
        self.optimizers = [
            torch.optim.SGD(head.parameters(), rate, 0.9, weight_decay=DECAY, nesterov=True)
            for head, rate in zip(self.heads, rates, strict=True)
        ]

    def step(self, x_BD: Tensor, y_B: Tensor) -> list[float]:
        """Update of every head; returns their losses."""
        losses = []
        for head, optimizer in zip(self.heads, self.optimizers, strict=True):
            loss = F.cross_entropy(head(x_BD), y_B)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses
