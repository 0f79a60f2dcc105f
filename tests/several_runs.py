"""Train several runs in the processes that torchrun started: importing torch once for all."""

import sys
from pathlib import Path

from ijepa import distributed
from ijepa.config import read
from ijepa.train import train

data, *folders = map(Path, sys.argv[1:])
with distributed.joined() as world:
    for folder in folders:
        out = folder / "out" / "encoder.safetensors"
        train(read(folder / "run.yaml"), data, folder / "work", out, world)
