"""Layers cut over ranks, each a process: Gloo on the CPU here; NCCL, torch's and nccl4py's, marked `gpu` on two."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import save_file

from baracuda_py import checkpoints
from baracuda_py.checkpoints.shard import qkv_parts
from baracuda_py.errors import InvalidProblem, Unsupported, UnsupportedCheckpoint
from baracuda_py.interop.torch.parallel import ColumnParallelAwqLinear, RowParallelAwqLinear, TorchCollective
from baracuda_py.quantize import quantize_checkpoint

RANKS = Path(__file__).with_name("parallel_ranks.py")
TIMEOUT_S = 20  # of the process group in `parallel_ranks`

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no torch.distributed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Layers `up`, `down` and `qkv`."""
    root = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    tensors = {f"{name}.weight": 0.05 * torch.randn(oc, ic)
               for name, oc, ic in (("up", 256, 256), ("down", 128, 256), ("qkv", 256, 128))}  # fmt: skip
    tensors |= {"up.bias": torch.randn(256), "down.bias": torch.randn(128)}
    (root / "dense").mkdir()
    save_file(tensors, root / "dense" / "model.safetensors")
    quantize_checkpoint(root / "dense", root / "model", group_size=64)
    return root / "model"


NCCL = [pytest.param("cuda", library, marks=pytest.mark.gpu) for library in ("torch", "nccl4py")]


def need(size, device, library):
    if device == "cuda" and torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    if library == "nccl4py":
        pytest.importorskip("nccl.core")


def run(case, folder, rendezvous, size, device, library, slowness):
    command = [sys.executable, str(RANKS), case, str(folder)]
    # So that torch raises in a process that lost another, instead of ending it. Graphs cannot be waited for so.
    environment = os.environ | ({"TORCH_NCCL_BLOCKING_WAIT": "1"} if case == "loss" else {})
    ranks = [
        subprocess.Popen([*command, str(rendezvous), str(rank), str(size), device, library], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(size)
    ]  # fmt: skip
    try:
        printed = [rank.communicate(timeout=120 * slowness)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(printed)
    return printed


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("device", "library"), [("cpu", "torch"), *NCCL])
def test_cut_over_ranks_a_block_computes_what_it_did(folder, tmp_path, size, device, library, slowness):
    need(size, device, library)
    run("mlp", folder, tmp_path / "rendezvous", size, device, library, slowness)


@pytest.mark.parametrize(("device", "library"), NCCL)
def test_a_graph_takes_the_sum_over_ranks(folder, tmp_path, device, library, slowness):
    need(2, device, library)
    run("graph", folder, tmp_path / "rendezvous", 2, device, library, slowness)


@pytest.mark.parametrize(("device", "library"), [("cpu", "torch"), *NCCL])
def test_a_rank_that_is_lost_is_an_error_on_the_others(folder, tmp_path, device, library, slowness):
    need(2, device, library)
    start = time.monotonic()
    printed = run("loss", folder, tmp_path / "rendezvous", 2, device, library, slowness)
    assert any(line.startswith("lost: ") for line in printed[0].splitlines()), printed[0]  # NCCL may have its say too
    assert time.monotonic() - start < (TIMEOUT_S + 60) * slowness


@pytest.mark.parametrize("waits", [False, True])
def test_collectives_are_waited_for_where_the_variable_of_nccl_says_so(monkeypatch, waits):
    monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", str(int(waits)))
    waited = []

    def collective(*tensors, group, async_op):
        return SimpleNamespace(wait=lambda: waited.append(len(tensors))) if async_op else None

    for name, double in {
        "is_initialized": lambda: True, "get_rank": lambda group: 0, "get_world_size": lambda group: 1,
        "all_reduce": collective, "all_gather_into_tensor": collective,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.distributed, name, double)
    world = TorchCollective()
    world.sum_(torch.zeros(2))
    world.gather(torch.zeros(2))
    assert waited == ([1, 2] if waits else [])


class One:
    """A collective of rank 0 of `size`, which nobody else is in."""

    def __init__(self, size):
        self.rank, self.size = 0, size


def test_a_fused_layer_is_not_gathered(folder):
    with pytest.raises(InvalidProblem, match="gather"):
        ColumnParallelAwqLinear.from_layer(
            checkpoints.open(folder)["qkv"], One(2), parts=qkv_parts(4, 2, 32), gather=True
        )


def test_a_cut_that_no_format_allows_is_refused(folder):
    with pytest.raises(UnsupportedCheckpoint):
        RowParallelAwqLinear.from_layer(checkpoints.open(folder)["down"], One(3))


def test_alone_nothing_is_communicated(folder):
    layer = checkpoints.open(folder)["down"]
    x = torch.randn(3, layer.ic).half()
    row = RowParallelAwqLinear.from_layer(layer, One(1), scatter=True)
    column = ColumnParallelAwqLinear.from_layer(layer, One(1), gather=True)
    assert torch.equal(row(x), column(x))


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_input_that_is_to_be_cut_is_as_wide_as_the_layer(folder, ranks):
    layer = checkpoints.open(folder)["down"]
    row = RowParallelAwqLinear.from_layer(layer, One(ranks), scatter=True)
    for width in (layer.ic // 2, layer.ic + 8):
        with pytest.raises(InvalidProblem, match=f"must have {layer.ic}"):
            row(torch.randn(3, width).half())


def test_without_a_process_group_what_to_do_is_said():
    with pytest.raises(Unsupported, match="init_process_group"):
        TorchCollective()
