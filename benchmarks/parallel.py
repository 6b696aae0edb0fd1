"""An MLP of AWQ layers cut over the GPUs of one machine, beside the same MLP on one of them.

    python benchmarks/parallel.py [--shapes HIDDENxINNER ...] [--m 1,16,256,2048] [--ranks 2]

Column-parallel, SiLU, row-parallel and the sum over the ranks, through torch.distributed's NCCL and through nccl4py.
Each rank walks over at least 320 MB of weights in one CUDA graph, replayed; the ranks start together, and the slowest
counts, median of 20. The MLP alone is timed on every rank, in turns with the cut one. Writes
benchmarks/results/<gpu>/parallel.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import gpu_environment, gpu_results, write_result
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch.nn.functional import silu

import baracuda_py as bp
from baracuda_py import checkpoints
from baracuda_py.interop.torch import AwqLinear
from baracuda_py.interop.torch.nccl import NcclCollective
from baracuda_py.interop.torch.parallel import ColumnParallelAwqLinear, RowParallelAwqLinear, TorchCollective
from baracuda_py.quantize import quantize_checkpoint

SAMPLES = 20
ROTATED_NBYTES = 320 << 20
LAYOUT = bp.AwqWeightLayout.TILED


def write_layers(folder: Path, hidden: int, inner: int) -> Path:
    """A packed checkpoint of `up` and `down`, random."""
    generator = torch.Generator("cuda").manual_seed(0)
    sizes = {"up": (inner, hidden), "down": (hidden, inner)}
    tensors = {
        f"{name}.weight": (torch.randn(oc, ic, generator=generator, device="cuda") * ic**-0.5).half().cpu()
        for name, (oc, ic) in sizes.items()
    }
    (folder / "dense").mkdir()
    save_file(tensors, folder / "dense" / "model.safetensors")
    quantize_checkpoint(folder / "dense", folder / "packed", device="cuda")
    return folder / "packed"


def replay_of(calls: list[Callable[[], Any]], stream: torch.cuda.Stream) -> Callable[[], None]:
    """All of them in one graph."""
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph.replay


def elapsed_us(replay: Callable[[], None], calls: int) -> float:
    """Of one call, behind a replay that keeps the GPU busy meanwhile."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    replay()
    start.record()
    replay()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) * 1e3 / calls


def rank_main(rank: int, size: int, folder: str, shapes: list[tuple[int, int]], rows: list[int], out: str) -> None:
    """One rank; the first one writes what it found to the file `out`."""
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", init_method=f"file://{folder}/torch", rank=rank, world_size=size)
    store = torch.distributed.FileStore(f"{folder}/nccl4py", size)
    worlds = {"torch": TorchCollective(), "nccl4py": NcclCollective.from_store(store, rank, size)}
    found = []
    with torch.inference_mode():
        for hidden, inner in shapes:
            found += _shape(worlds, Path(folder) / f"{hidden}x{inner}" / "packed", hidden, inner, rows)
    if rank == 0:
        torch.save(found, out)
    worlds["nccl4py"].close()
    torch.distributed.destroy_process_group()


def _shape(worlds: dict[str, Any], packed: Path, hidden: int, inner: int, rows: list[int]) -> list[dict[str, Any]]:
    device, stream = torch.device("cuda", torch.cuda.current_device()), torch.cuda.Stream()
    up, down = (checkpoints.open(packed)[name] for name in ("up", "down"))
    nbytes = hidden * inner  # two layers of 4 bits
    copies = -(-ROTATED_NBYTES // nbytes)

    def whole() -> Any:
        first, second = (AwqLinear.from_layer(layer, device=device, layout=LAYOUT) for layer in (up, down))
        return lambda x: second(silu(first(x)))

    def cut(world: Any) -> Any:
        column = ColumnParallelAwqLinear.from_layer(up, world, device=device, layout=LAYOUT)
        row = RowParallelAwqLinear.from_layer(down, world, device=device, layout=LAYOUT)
        return lambda x: row(silu(column(x)))

    size = worlds["torch"].size
    blocks = {"alone": [whole() for _ in range(copies)]}
    blocks |= {name: [cut(world) for _ in range(copies * size)] for name, world in worlds.items()}
    found = []
    for m in rows:
        torch.manual_seed(0)
        x = torch.randn(m, hidden, device=device).half()
        exact = blocks["alone"][0](x).double()
        errors = {
            name: float(torch.linalg.norm(blocks[name][0](x).double() - exact) / torch.linalg.norm(exact))
            for name in worlds
        }
        calls = {name: [lambda b=b, x=x: b(x) for b in made] for name, made in blocks.items()}
        replays = {name: replay_of(those, stream) for name, those in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in replays}
        for _ in range(SAMPLES):
            for name, replay in replays.items():
                torch.distributed.barrier()
                with torch.cuda.stream(stream):
                    took = torch.tensor(elapsed_us(replay, len(calls[name])), device=device)
                torch.distributed.all_reduce(took, torch.distributed.ReduceOp.MAX)
                times[name].append(float(took))
        for name, values in times.items():
            quartiles = statistics.quantiles(values, n=4)
            found.append(
                {
                    "hidden": hidden, "inner": inner, "m": m, "what": name, "ranks": 1 if name == "alone" else size,
                    "median_us": quartiles[1], "quartiles_us": [quartiles[0], quartiles[2]],
                    "speedup": statistics.median(times["alone"]) / quartiles[1], "error": errors.get(name, 0.0),
                }
            )  # fmt: skip
    return found


def _sizes(text: str) -> tuple[int, int]:
    hidden, inner = map(int, text.split("x"))
    return hidden, inner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=_sizes, default=[(4096, 14336), (8192, 28672)], metavar="HxI")
    parser.add_argument("--m", type=lambda text: [int(one) for one in text.split(",")], default=[1, 16, 256, 2048])
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    environment = gpu_environment()
    if torch.cuda.device_count() < options.ranks:
        sys.exit(f"{options.ranks} GPUs are needed, and there are {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory() as folder:
        for hidden, inner in options.shapes:
            place = Path(folder) / f"{hidden}x{inner}"
            place.mkdir()
            write_layers(place, hidden, inner)
        out = f"{folder}/found"
        given = options.ranks, folder, options.shapes, options.m, out
        torch.multiprocessing.spawn(rank_main, given, nprocs=options.ranks)
        rows = torch.load(out)
    table = Table("hidden x inner", "m", "what", "us", "speed-up", "error")
    for row in rows:
        numbers = f"{row['median_us']:.1f}", f"{row['speedup']:.2f}", f"{row['error']:.1e}"
        table.add_row(f"{row['hidden']} x {row['inner']}", str(row["m"]), row["what"], *numbers)
    Console(width=100).print(table)
    headlines = [
        {
            "what": f"AWQ MLP {row['hidden']} x {row['inner']}, m = {row['m']}, {row['ranks']} GPUs by {row['what']}, "
            "speed-up over one", "value": round(row["speedup"], 3), "unit": "x",
        }
        for row in rows if row["what"] != "alone"
    ]  # fmt: skip
    record = {**environment, "samples": SAMPLES, "rows": rows, "headlines": headlines}
    print(write_result(gpu_results() / "parallel.json", record))


if __name__ == "__main__":
    main()
