"""What one rank of a test does: `python parallel_ranks.py CASE FOLDER RENDEZVOUS RANK SIZE DEVICE LIBRARY`."""

from __future__ import annotations

import faulthandler
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch

import baracuda_py as bp
from baracuda_py import checkpoints
from baracuda_py.checkpoints.shard import qkv_parts
from baracuda_py.interop.torch import AwqLinear
from baracuda_py.interop.torch.nccl import NcclCollective
from baracuda_py.interop.torch.parallel import (
    Collective,
    ColumnParallelAwqLinear,
    RowParallelAwqLinear,
    TorchCollective,
)

TIMEOUT_S = 20


def mlp(folder: Path, world: Collective, device: torch.device) -> None:
    """Column, SiLU, row: as one rank computes it."""
    model = checkpoints.open(folder)
    up, down, qkv = (model[name] for name in ("up", "down", "qkv"))
    for dtype, limit in ((torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)):
        for layout in bp.AwqWeightLayout:
            torch.manual_seed(0)
            x = torch.randn(2, 3, up.ic).to(dtype).to(device)
            whole = [AwqLinear.from_layer(layer, device=device, layout=layout) for layer in (up, down)]
            column = ColumnParallelAwqLinear.from_layer(up, world, device=device, layout=layout)
            row = RowParallelAwqLinear.from_layer(down, world, device=device, layout=layout)
            assert column.linear.out_features == up.oc // world.size
            assert row.linear.in_features == down.ic // world.size
            assert (row.linear.bias is not None) == (world.rank == 0)
            hidden = whole[0](x)
            near(ColumnParallelAwqLinear(column.linear, world, gather=True)(x), hidden, limit)
            expected = whole[1](torch.nn.functional.silu(hidden))
            near(row(torch.nn.functional.silu(column(x))), expected, limit)
            whole_input = torch.nn.functional.silu(hidden)
            near(RowParallelAwqLinear(row.linear, world, scatter=True)(whole_input), expected, limit)
    # Each rank has its heads of q, k and v.
    parts = qkv_parts(4, 2, 32)
    fused = ColumnParallelAwqLinear.from_layer(qkv, world, parts=parts, device=device)
    x = torch.randn(3, qkv.ic).half().to(device)
    q, k, v = AwqLinear.from_layer(qkv, device=device)(x).split([128, 64, 64], -1)
    heads = min(world.size, 2)  # of k and v: with more ranks, neighbours have the same
    share = [q.chunk(world.size, -1)[world.rank], *(one.chunk(heads, -1)[world.rank * heads // world.size]
                                                    for one in (k, v))]  # fmt: skip
    near(fused(x), torch.cat(share, -1), 2e-3)


def near(y: torch.Tensor, expected: torch.Tensor, limit: float) -> None:
    assert y.shape == expected.shape
    assert torch.linalg.norm((y - expected).double()) <= limit * torch.linalg.norm(expected.double())


def loss(folder: Path, world: Collective, device: torch.device) -> None:
    """The last rank goes away in the middle; the others must say so."""
    row = RowParallelAwqLinear.from_layer(checkpoints.open(folder)["down"], world, device=device)
    x = torch.randn(2, row.linear.in_features).half().to(device)
    row(x)
    if device.type == "cuda":
        torch.cuda.synchronize()  # that sum is the others' too
    if world.rank == world.size - 1:
        os._exit(0)
    faulthandler.dump_traceback_later(TIMEOUT_S + 20, exit=True)  # where it hangs, if it does
    try:
        for _ in range(3):
            row(x)
            if device.type == "cuda":
                torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"lost: {type(error).__name__}")
        return
    raise AssertionError("nobody said that a rank is gone")


def graph(folder: Path, world: Collective, device: torch.device) -> None:
    """A block is captured in a CUDA graph, sum included, and replayed on other inputs."""
    model = checkpoints.open(folder)
    up, down = (model[name] for name in ("up", "down"))
    column = ColumnParallelAwqLinear.from_layer(up, world, device=device)
    row = RowParallelAwqLinear.from_layer(down, world, device=device)
    torch.manual_seed(0)
    x = torch.randn(2, up.ic).half().to(device)
    row(column(x))
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        y = row(column(x))
    for _ in range(3):
        x.copy_(torch.randn(2, up.ic).half())
        captured.replay()
        if isinstance(world, NcclCollective):
            world.watch()
        torch.cuda.synchronize()
        near(y, row(column(x)), 1e-6)


def main() -> None:
    case, folder, rendezvous, number, ranks, kind, library = sys.argv[1:]
    rank, size = int(number), int(ranks)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    world: TorchCollective | NcclCollective
    if library == "nccl4py":
        store = torch.distributed.FileStore(rendezvous, size)
        world = NcclCollective.from_store(store, rank, size, timeout_s=TIMEOUT_S)
    else:
        torch.distributed.init_process_group(
            "nccl" if kind == "cuda" else "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size,
            timeout=timedelta(seconds=TIMEOUT_S),
        )  # fmt: skip
        world = TorchCollective()
    with torch.no_grad():
        {"mlp": mlp, "loss": loss, "graph": graph}[case](Path(folder), world, device)
    if case == "loss":
        # The group's threads wait for the rank that is gone: torn down with them running, the process is ended by
        # std::terminate, now and then.
        sys.stdout.flush()
        os._exit(0)
    if isinstance(world, NcclCollective):
        world.close()
    else:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
