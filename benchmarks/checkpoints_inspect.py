"""Time of `inspect` on large folders, sparse on disk: in a process that runs already, in one of its own, as a command.

    python benchmarks/checkpoints_inspect.py [--rounds 15]

The folders are a 70B model in AWQ GEMM (80 layers of 7 linears in 15 shards) and a mixture of 128 experts (94 layers,
36,096 linears in 48 shards). Every round takes each in turn, the files in the page cache. `read` is what the process
reads in one inspection, as the kernel counts it, beside the size that the files have.
Writes benchmarks/results/<cpu>/checkpoints_inspect.json, and ends with 1 if the 70B folder takes a second or more in a
process that runs already.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import machine
from checkpoints import CONFIG, GROUP_SIZE, write_large, write_sparse
from host_awq import OtherProcesses, cpu_name
from rich.console import Console
from rich.table import Table

from baracuda_py.checkpoints.inspection import inspect

DEVICE = "sm_90"
LIMIT_S = 1.0
DENSE_SHARDS, EXPERT_SHARDS = 15, 48
EXPERT_LAYERS, EXPERTS = 94, 128
EXPERT_HIDDEN, EXPERT_WIDTH = 4096, 1536
API = f"import sys; from baracuda_py.checkpoints import inspect; inspect(sys.argv[1], {DEVICE!r})"
COMMAND = "from baracuda_py.cli import main; main()"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<cpu>/checkpoints_inspect.json")
    options = parser.parse_args()
    cpu = cpu_name()
    others = OtherProcesses()
    with TemporaryDirectory() as scratch:
        dense, experts = Path(scratch, "70B"), Path(scratch, "experts")
        write_large(dense, DENSE_SHARDS)
        write_experts(experts)
        folders = [facts(dense), facts(experts)]
        cells = measure(contenders(dense, experts), options.rounds)
    record: dict[str, Any] = {
        "cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(),
        "packages": machine.packages("baracuda-py", "numpy"), "commit": machine.commit(), "device": DEVICE,
        "folders": folders, "cells": cells, "cores_used_by_others": others.cores_used(),
    }  # fmt: skip
    median = cells[0]["median_s"]
    record["headlines"] = [
        {"what": f"Checkpoints: a 70B model in {DENSE_SHARDS} shards inspected", "value": round(median, 2), "unit": "s"}
    ]
    path = options.output or machine.ROOT / "results" / machine.slug(cpu) / "checkpoints_inspect.json"
    machine.write_result(path, record)
    print_table(record)
    return 0 if median < LIMIT_S else 1


def write_experts(folder: Path) -> None:
    """Experts as Mixture-of-Experts checkpoints name them, in AWQ GEMM; a hole for data."""
    folder.mkdir()
    shapes = {"gate_proj": (EXPERT_HIDDEN, EXPERT_WIDTH), "up_proj": (EXPERT_HIDDEN, EXPERT_WIDTH)}
    shapes["down_proj"] = (EXPERT_WIDTH, EXPERT_HIDDEN)
    weight_map = {}
    for shard in range(EXPERT_SHARDS):
        tensors: dict[str, tuple[str, list[int]]] = {}
        for layer in range(shard * EXPERT_LAYERS // EXPERT_SHARDS, (shard + 1) * EXPERT_LAYERS // EXPERT_SHARDS):
            for expert in range(EXPERTS):
                for module, (ic, oc) in shapes.items():
                    name = f"model.layers.{layer}.mlp.experts.{expert}.{module}"
                    tensors[f"{name}.qweight"] = ("I32", [ic, oc // 8])
                    tensors[f"{name}.qzeros"] = ("I32", [ic // GROUP_SIZE, oc // 8])
                    tensors[f"{name}.scales"] = ("F16", [ic // GROUP_SIZE, oc])
        file = f"model-{shard + 1:05}-of-{EXPERT_SHARDS:05}.safetensors"
        write_sparse(folder / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"quantization_config": CONFIG}))


def facts(folder: Path) -> dict[str, Any]:
    """What is in a folder, and what an inspection reads of it."""
    before = bytes_read()
    inspection = inspect(folder, DEVICE)
    read = bytes_read() - before
    return {
        "folder": folder.name,
        "layers": len(inspection.layers),
        "tensors": sum(len(layer.dtypes) for layer in inspection.layers) + len(inspection.plain),
        "files": len(inspection.files),
        "nbytes": inspection.totals.packed_nbytes + inspection.totals.plain_nbytes,
        "nbytes_read": read,
    }


def bytes_read() -> int:
    """By this process, as Linux counts them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def contenders(dense: Path, experts: Path) -> dict[str, Callable[[], Any]]:
    def fresh(*arguments: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", *arguments], check=True, capture_output=True)

    found: dict[str, Callable[[], Any]] = {}
    for folder in (dense, experts):
        found[f"{folder.name}: inspect()"] = lambda folder=folder: inspect(folder, DEVICE)  # type: ignore[misc]
        found[f"{folder.name}: a new process, inspect()"] = fresh(API, str(folder))
        found[f"{folder.name}: baracuda-py inspect"] = fresh(COMMAND, "inspect", str(folder), "--device", DEVICE)
    return found


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> list[dict[str, Any]]:
    """Wall time of each call, in turns, after a round to warm up."""
    taken: dict[str, list[float]] = {what: [] for what in calls}
    for turn in range(rounds + 1):
        print(f"round {turn} of {rounds}", file=sys.stderr, end="\r")
        for what, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                taken[what].append(time.perf_counter() - start)
    cells = []
    for what, values in taken.items():
        low, median, high = statistics.quantiles(values, n=4)
        cells.append({"what": what, "median_s": median, "quartiles_s": [low, high], "rounds": rounds})
    return cells


def print_table(record: dict[str, Any]) -> None:
    table = Table("what", "median s", "quartiles s", title=record["cpu"])
    for cell in record["cells"]:
        low, high = cell["quartiles_s"]
        table.add_row(cell["what"], f"{cell['median_s']:.3f}", f"{low:.3f} .. {high:.3f}")
    Console().print(table)
    for one in record["folders"]:
        print(f"{one['folder']}: {one['layers']} layers in {one['files']} files of {one['nbytes']:,} bytes, "
              f"{one['nbytes_read']:,} read")  # fmt: skip
    print(f"cores used by other processes: {record['cores_used_by_others']}")


if __name__ == "__main__":
    sys.exit(main())
