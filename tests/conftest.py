"""A data set of 160 small images in CIFAR-10's own format, and runs that take a second."""

import copy
import functools
import hashlib
import http.server
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings

from ijepa import train
from ijepa.config import parse_run
from ijepa.data import register, tokens
from ijepa.data.build import build_shards
from ijepa.files import ROOT
from tests import durations
from tests.several_runs import sgd

CLASSES = 10

OPTIM = {"batch_size": 32, "epochs": 2, "warmup_epochs": 0.5}
CROPS = {"num_local": 2, "local_size": 16, "num_prototypes": 64, "head_dim": 32}
BLOCKS = {"masking": {"min_patches": 4}}
RECIPES: dict[str, dict[str, Any]] = {
    "ijepa": {
        "masking": {"mode": "fixed", "min_keep": 3, "group_size": 16},
        "predictor_dim": 16,
        "predictor_depth": 1,
    },
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "data2vec": {"top_layers": 2, **BLOCKS},
    "cae": {
        "tokenizer": "small",
        "vocabulary": 32,
        "regressor_depth": 1,
        "decoder_depth": 1,
        **BLOCKS,
    },
    "dino": CROPS,
    "ibot": CROPS | BLOCKS,
    "lejepa": {
        "num_local": 2,
        "local_size": 16,
        "projector_dim": 32,
        "output_dim": 8,
        "sigreg": {"num_directions": 16},
    },
}
"""The differences that make each method's published recipe fit 8 steps on 128 small images."""

# Time is measured in benchmarks, not in tests.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option for ``make durations``."""
    parser.addoption("--record-durations", action="store_true", help=durations.__doc__)


def pytest_configure(config: pytest.Config) -> None:
    """Record durations where all reports arrive: with xdist, not in the workers."""
    if config.getoption("--record-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(durations.Recorder())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all of tests/versions before tests are chosen by their marks; note each one's tier."""
    for item in items:
        if item.path.parent.name == "versions":
            item.add_marker("versions")
        item.user_properties.append(("tier", durations.tier(item)))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Check that a test restores torch's number of threads: another one would change later tests.

    With another number of threads, torch adds in another order.
    """
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with ``raw/`` and a register whose ``tiny`` has 128 training and 32 test images."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "raw").mkdir()
    random = np.random.default_rng(0)
    sums = {}
    for name, count in (("data_batch_1.bin", 128), ("test_batch.bin", 32)):
        labels = np.arange(count) % CLASSES
        # Smooth pictures whose colour tells the class, so that a probe has something to find.
        coarse = random.integers(0, 256, (count, 3, 4, 4)) * 0.5 + labels[:, None, None, None] * 12
        pixels = coarse.repeat(8, 2).repeat(8, 3).clip(0, 255)
        records = np.concatenate([labels[:, None], pixels.reshape(count, -1)], 1).astype(np.uint8)
        (folder / "raw" / name).write_bytes(records.tobytes())
        sums[name] = f"sha1:{hashlib.sha1(records.tobytes()).hexdigest()}"
    entry = {
        "source": "cifar",
        "title": "Tiny",
        "citation": "none",
        "licence": "none",
        "image_size": 32,
        "labels": {"class": [str(c) for c in range(CLASSES)]},
        "splits": {"train": 128, "test": 32},
        "shard_size": 48,
        "checksums": sums,
    }
    (folder / "datasets.yaml").write_text(yaml.safe_dump({"tiny": entry}, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(register, "REGISTER", folder / "datasets.yaml")
        patch.setenv("IJEPA_REGISTER", str(folder / "datasets.yaml"))
        yield folder


@pytest.fixture(scope="session")
def data(tiny: Path) -> Path:
    """The tiny data set as shards; not to be written to."""
    build_shards("tiny", tiny / "raw", tiny / "shards", num_workers=1)
    return tiny / "shards"


@pytest.fixture(scope="session")
def tokenised(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set as shards with a token cache, for CAE; not to be written to."""
    copy = Path(shutil.copytree(data, tmp_path_factory.mktemp("tokenised") / "shards"))
    tokens.build_tokens(copy, "small", vocabulary=32)
    return copy


class Trained(Protocol):
    """A method's encoder after its run of 8 steps (``descent``: without AdamW)."""

    def __call__(self, method: str, descent: bool = False, **recipe: str) -> Path:
        """The encoder's file, beside its log; not to be written to."""


@pytest.fixture(scope="session")
def trained(tokenised: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained encoders; each run is trained once for all tests that compare with it."""

    @cache
    def encoder(method: str, descent: bool = False, **recipe: str) -> Path:
        folder = tmp_path_factory.mktemp(method)
        out = folder / "out" / "encoder.safetensors"
        with pytest.MonkeyPatch.context() as patch:
            if descent:
                patch.setattr(train, "adamw", sgd)
            run = parse_run(raw_run_of(method, **recipe))
            train.train(run, tokenised, folder / "work", out)
        return out

    return encoder


@pytest.fixture
def raw_run(tiny: Path) -> dict[str, Any]:
    """A run of I-JEPA."""
    return raw_run_of("ijepa")


def raw_run_of(method: str, **recipe: str) -> dict[str, Any]:
    """A run of 8 steps, as it would stand in a file; ``recipe`` has further settings."""
    return {
        "method": method,
        "dataset": "tiny",
        "vit": {"image_size": 32, "patch_size": 4, "dim": 32, "depth": 2, "num_heads": 2},
        "recipe": {"optim": dict(OPTIM), **copy.deepcopy(RECIPES.get(method, {})), **recipe},
        "precision": "float32",
        # Every process that is started costs as much as these steps.
        "num_workers": 0,
        "log_every": 1,
        "monitor_every": 2,
        "checkpoint_every": 3,
    }


@pytest.fixture
def mini() -> dict[str, Any]:
    """The default config, as it stands in its file."""
    return raw_config("mini")


@pytest.fixture
def hour() -> dict[str, Any]:
    """The config of the hour, as it stands in its file."""
    return raw_config("hour")


def raw_config(name: str) -> dict[str, Any]:
    """A config of this repository, as it stands in its file."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    return config


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of the folder ``served``."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    (tmp_path / "served").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def wait_until(condition: Callable[[], Any], seconds: float = 120, every: float = 0.2) -> Any:
    """First true value that ``condition`` returns; raises AssertionError after ``seconds``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"not so within {seconds} seconds: {condition}")


@pytest.fixture
def real_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the register of the project's own data sets instead of the tests' own."""
    monkeypatch.setattr(register, "REGISTER", ROOT / "data" / "datasets.yaml")
