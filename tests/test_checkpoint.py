"""Checkpoints as trainings save them: wrapped modules, metrics beside the weights, averages."""

import argparse
from collections import defaultdict, deque
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ijepa.checkpoint import load_encoder
from ijepa.released.tensors import read_tensors
from ijepa.released.weights import import_encoder
from tests.released_files import PLAIN, Weights, network, under


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def imported(file: Path, **options: Any) -> Weights:
    """Weights of the encoder that a file holds."""
    out = file.with_name("ours.safetensors")
    import_encoder(file, out, num_heads=3, force=True, **options)
    return load_encoder(out)[0].state_dict()


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.",
        "_fsdp_wrapped_module.", "_fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_compiled_or_wrapped_network_is_read_like_a_plain_one(
    prefix: str, ending: str, tmp_path: Path
) -> None:
    weights = network(PLAIN).state_dict()
    path = tmp_path / f"file.{ending}"
    wrapped = under(prefix, weights)
    if ending == "pth":
        torch.save({"model": wrapped}, path)
    else:
        save_file(wrapped, path)
    assert same(imported(path), weights)


def test_blocks_that_are_wrapped_one_by_one_are_read_too(tmp_path: Path) -> None:
    weights = {"blocks.0.norm1.bias": torch.ones(3), "blocks.1.norm1.bias": torch.zeros(3)}
    names = ("blocks.0._orig_mod.norm1.bias", "blocks.1._checkpoint_wrapped_module.norm1.bias")
    torch.save(dict(zip(names, weights.values(), strict=True)), tmp_path / "file.pth")
    assert same(read_tensors(tmp_path / "file.pth"), weights)


BESIDE = {
    "best": np.float64(81.5),
    "epoch": np.int64(299),
    "curve": np.linspace(0, 1, 5, dtype=np.float32),
    "is_best": np.bool_(True),
    "split": np.str_("val"),
    "args": argparse.Namespace(lr=1e-3, output=Path("somewhere")),
    "out": PureWindowsPath("somewhere"),
    "curves": defaultdict(list, {"loss": [1.0]}),
    "counts": defaultdict(int, {"steps": 3}),
    "last": deque([1, 2], maxlen=2),
    "seen": deque([1, 2]),
    "began": datetime(2026, 1, 1, tzinfo=UTC),
    "day": date(2026, 1, 1),
    "took": timedelta(seconds=3),
    "config": SimpleNamespace(lr=1e-3),
    "time": np.datetime64("2026-01-01"),
    "times": np.array(["2026-01-01"], "datetime64[D]"),
    "durations": np.array([3], "timedelta64[s]"),
}


@pytest.mark.parametrize("key", BESIDE)
@pytest.mark.parametrize("numpy", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_metrics_and_arguments_beside_the_weights_are_left_out(
    key: str, numpy: str, tmp_path: Path
) -> None:
    """numpy has another name for what makes its values since version 2."""
    path, weights = tmp_path / "file.pth", {"norm.bias": torch.ones(3)}
    torch.save({"model": weights, key: BESIDE[key]}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", numpy.encode()))
    assert same(read_tensors(path), under("model.", weights))


@pytest.mark.parametrize("name", [b"pathlib._local\nPosixPath", b"pathlib\nWindowsPath"])
def test_paths_of_other_pythons_and_systems_are_left_out(name: bytes, tmp_path: Path) -> None:
    """Python 3.13 has another module for them; a path of Windows cannot be made here."""
    path, weights = tmp_path / "file.pth", {"norm.bias": torch.ones(3)}
    torch.save({**weights, "out": tmp_path}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"pathlib\nPosixPath", name))
    assert same(read_tensors(path), weights)


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema"])
def test_of_a_training_of_timm_the_weights_are_taken_and_their_average_on_request(
    average: str, tmp_path: Path
) -> None:
    """timm's training script keeps a moving average (EMA) of the weights beside them."""
    heads: Weights = {"head.weight": torch.ones(10, 48), "head.bias": torch.ones(10)}
    both: list[dict[str, Tensor]] = [network(PLAIN, seed=seed).state_dict() for seed in (0, 1)]
    file = {"state_dict": {**both[0], **heads}, average: {**both[1], **heads}, "epoch": 3}
    torch.save(file, tmp_path / "file.pth")
    assert same(imported(tmp_path / "file.pth"), both[0])
    assert same(imported(tmp_path / "file.pth", tower="ema"), both[1])
