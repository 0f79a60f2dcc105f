"""Switches and facts of a GPU, without one."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ijepa import gpu_meter
from ijepa.blocks import compile_blocks
from ijepa.config import parse_run
from ijepa.cost.cards import GPUS
from ijepa.distributed import ALONE, World
from ijepa.precision import kernels
from ijepa.ranges import Compile
from tests.conftest import raw_run_of
from tests.fake_device import CUDA, cuda
from tests.test_methods import batch, make

__all__ = ["cuda"]
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize("setting", ["float32", "tf32", "auto", "bfloat16"])
def test_products_are_rounded_to_tf32_only_if_a_run_says_so(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with kernels(setting, CUDA):
        pass
    assert chosen == ["high" if setting == "tf32" else "highest"]
    assert torch.backends.cudnn.allow_tf32 == (setting == "tf32")


@pytest.mark.parametrize("method", ["ijepa", "data2vec", "dino"])
def test_blocks_without_gradients_are_compiled_or_all_and_weights_keep_their_names(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: compiled.append((self, how))
    )
    network = make(method)
    names = list(network.state_dict())
    compile_blocks(network, False)
    assert not compiled
    compile_blocks(network, True)
    assert len(compiled) == 2  # the blocks of one encoder of two
    for block, how in compiled:
        assert not any(p.requires_grad for p in block.parameters())
        assert how == {"dynamic": None}
    compiled.clear()
    compile_blocks(network, "all")
    assert len(compiled) > 2
    for block, how in compiled:
        assert how == {"dynamic": any(p.requires_grad for p in block.parameters()) or None}
    assert list(network.state_dict()) == names


@pytest.mark.parametrize(
    ("method", "which", "num_graphs"),
    [("ijepa", True, 1), ("ijepa", "all", 2), ("mae", "all", 2), ("dino", "all", 2)],
)
def test_compiled_blocks_give_the_same_loss_and_are_compiled_once_for_all_lengths(
    method: str, which: Compile, num_graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dynamo's eager backend, which traces as every backend does. Over 5 s: it traces."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    original = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: original(self, backend=backend, **how)
    )
    plain, network = make(method), make(method)
    compile_blocks(network, which)
    lengths = set()
    for step in range(4):
        images = batch(method, step=step)
        scalars = network(images)
        lengths.add(scalars.get("context_patches", torch.tensor(0)).item())
        assert scalars["loss"].item() == plain(images)["loss"].item()
        scalars["loss"].backward()
    assert len(lengths) > 1 or method != "ijepa"
    assert len(graphs) == num_graphs


def test_the_meter_reads_memory_speed_share_and_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    run = parse_run(raw_run_of("mae"))
    joules = iter([100.0, 150.0, 175.0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2_000_000_000)
    monkeypatch.setattr(gpu_meter, "energy", lambda: lambda: next(joules))
    monkeypatch.setattr(gpu_meter, "size", lambda *_: SimpleNamespace(flops=1e9))
    reader = gpu_meter.Meter(run, World(0, 2, 0))
    facts = reader.read(images_per_s=134_000)
    # The run says float32: 67 TFLOP/s; each of two cards has half of the images.
    assert facts == {"gpu_gb": 2.0, "tflop_per_s": 67.0, "share_of_peak": 1.0, "joules": 50.0}
    assert reader.read(67_000)["joules"] == 25.0
    assert gpu_meter.Meter(run, World(1, 2, 1)).read(1.0) == {}


def test_without_a_gpu_the_meter_reads_nothing() -> None:
    assert gpu_meter.Meter(parse_run(raw_run_of("mae")), ALONE).read(1.0) == {}


def test_energy_is_that_of_the_card_that_cuda_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    uuids = []
    library = SimpleNamespace(
        NVMLError=ValueError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuids.append(uuid),
        nvmlDeviceGetTotalEnergyConsumption=lambda board: 5000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    properties = SimpleNamespace(uuid="12-ab")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    reader = gpu_meter.energy()
    assert reader is not None
    assert reader() == 5.0
    assert uuids == ["GPU-12-ab"]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_meter.energy() is None


@pytest.mark.parametrize(
    ("card", "precision", "peak"),
    [
        ("h200", "auto", 989),
        ("h200", "tf32", 494),
        ("h200", "float32", 67),
        ("v100-16gb", "auto", 15.7),
    ],
)
def test_a_cards_peak_is_that_of_the_format(card: str, precision: str, peak: float) -> None:
    assert GPUS[card].peak(precision) == peak
