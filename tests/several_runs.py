"""Train several runs in the processes that torchrun started: importing torch once for all."""

import sys
from pathlib import Path

import torch
from torch import nn

from ijepa import distributed
from ijepa import train as train_module
from ijepa.config import read_run
from ijepa.optim import Optim, adamw
from ijepa.train import train


def sgd(method: nn.Module, optim: Optim) -> torch.optim.SGD:
    """Plain gradient descent over AdamW's parameter groups."""
    groups = adamw(method, optim).param_groups
    return torch.optim.SGD([{k: g[k] for k in ("params", "decayed")} for g in groups], lr=optim.lr)


def main() -> None:
    """Entry point of the command line."""
    data, *folders = map(Path, sys.argv[1:])
    vars(train_module)["adamw"] = sgd  # AdamW would hide gradients of another scale

    with distributed.joined() as world:
        for folder in folders:
            out = folder / "out" / "encoder.safetensors"
            train(read_run(folder / "run.yaml"), data, folder / "work", out, world)


if __name__ == "__main__":
    main()
