"""Host time of `AwqLinear.forward` at batch 1 beside `torch.nn.Linear`'s, in one interleaved run.

    python benchmarks/awq_linear.py [--samples 10000] [--stub] [--profile]

Both only enqueue; the GPU is waited for outside the timed calls, before its queue fills. The limit is 1.5 times
torch.nn.Linear's median; the script ends with 1 if a layout misses it. Writes
benchmarks/results/<gpu>/awq_linear.json.

`--stub` needs no GPU: real torch tensors on the CPU, which plans for the tests' stand-in for libcuda take for its own,
and launches that go to it. That times the Python side of AwqLinear alone; torch.nn.Linear computes on the CPU there, so
their ratio means nothing. It prints, and writes nothing; `--profile` prints where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cuda.bindings import driver
from host_overhead import STUB_VARIABLE, check, measure, rerun_with_stub
from machine import gpu_environment, gpu_results, write_result
from rich.console import Console
from rich.table import Table

import baracuda_py as bp
from baracuda_py.interop.torch import AwqLinear
from baracuda_py.vocab.tensors import HOST_MEMORY

LIMIT = 1.5
SIZES = {"cuda": (4096, 4096), "cpu": (64, 16)}  # on the CPU as small as can be: torch.nn.Linear computes there
PAIR = "AwqLinear, {layout}", "torch.nn.Linear"


def contenders(device: str) -> dict[str, Callable[[], Any]]:
    """Calls by name."""
    ic, oc = SIZES[device]
    dtype = torch.float16 if device == "cuda" else torch.float32
    dense, x = torch.nn.Linear(ic, oc, bias=False, device=device, dtype=dtype), torch.zeros(1, ic, device=device)
    calls: dict[str, Callable[[], Any]] = {"timer": lambda: None}
    half, given = x.half(), x.to(dtype)
    for layout in bp.AwqWeightLayout:
        linear = AwqLinear(ic, oc, bias=False, group_size=64, layout=layout, device=device)
        for buffer in linear.buffers():
            buffer.zero_()
        if device == "cpu":
            _on_the_stub(linear)
        calls[PAIR[0].format(layout=layout.value)] = lambda linear=linear: linear(half)  # type: ignore[misc]
    calls[PAIR[1]] = lambda: dense(given)
    return calls


def _on_the_stub(linear: AwqLinear) -> None:
    """Let a module on the CPU launch on the stub."""
    torch._C._cuda_getCurrentRawStream = lambda _ordinal: 0
    check(driver.cuInit(0))
    check(driver.cuCtxSetCurrent(check(driver.cuDevicePrimaryCtxRetain(0))))  # as torch has it on a GPU
    select = bp.default_registry().select

    def plan(flat: Any) -> Any:
        made = select(linear._descriptor(flat.shape[0], bp.ElementKind.F16, False), "cuda:0")
        made._checker._device = HOST_MEMORY
        return made

    linear._plan = plan  # type: ignore[method-assign]


def profiled(calls: dict[str, Callable[[], Any]]) -> None:
    """Print what each module spends its time in."""
    for name, call in calls.items():
        if name == "timer":
            continue
        print(f"\n{name}")
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(20_000):
            call()
        profile.disable()
        pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(12)


def rows_of(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Median and spread of each call, and its ratio to torch.nn.Linear's."""
    empty = statistics.median(times["timer"])
    medians = {name: statistics.median(values) - empty for name, values in times.items()}
    rows = []
    for name, values in times.items():
        tenths = statistics.quantiles(values, n=10)
        rows.append({
            "call": name, "median_us": round(medians[name], 3), "p10_us": round(tenths[0] - empty, 3),
            "p90_us": round(tenths[-1] - empty, 3), "over_linear": round(medians[name] / medians[PAIR[1]], 3),
        })  # fmt: skip
    return [row for row in rows if row["call"] != "timer"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--stub", action="store_true", help="no GPU: measure the Python side, print, write nothing")
    parser.add_argument("--profile", action="store_true", help="print a profile of each call")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.stub and STUB_VARIABLE not in os.environ:
        return rerun_with_stub()
    environment = None if options.stub else gpu_environment()
    torch.set_num_threads(1)
    with torch.inference_mode():
        calls = contenders("cpu" if options.stub else "cuda")
        wait = (lambda: None) if options.stub else torch.cuda.synchronize
        rows = rows_of(measure(calls, wait, options.samples))
        if options.profile:
            profiled(calls)
    table = Table("call", "median", "p10", "p90", "over torch.nn.Linear", title="Host microseconds a call, batch 1")
    for row in rows:
        numbers = [f"{row[key]:.2f}" for key in ("median_us", "p10_us", "p90_us")]
        table.add_row(row["call"], *numbers, "" if options.stub else f"{row['over_linear']:.2f}")
    Console(width=100).print(table)
    if environment is None:
        return 0
    ours = [row for row in rows if row["call"] != PAIR[1]]
    headlines = [
        {"what": f"Host time of {row['call']}, over torch.nn.Linear's", "value": row["over_linear"], "unit": "x"}
        for row in ours
    ]
    record = {**environment, "samples": options.samples, "limit": LIMIT, "calls": rows, "headlines": headlines}
    print(write_result(options.output or gpu_results() / "awq_linear.json", record))
    return 0 if all(row["over_linear"] <= LIMIT for row in ours) else 1


if __name__ == "__main__":
    sys.exit(main())
