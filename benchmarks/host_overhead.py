"""Host time of a repeated `select`, of `plan.run` with torch tensors, and of a bound call beside a bare launch.

    python benchmarks/host_overhead.py [--samples 10000] [--stub]

All of them take turns within one loop, on one small AWQ GEMM of a single launch; the GPU is waited for outside the
timed calls, before its queue fills. The bare launch is cuLaunchKernel on arguments that were packed beforehand. Writes
benchmarks/results/<gpu>/host_overhead.json, and ends with 1 if a target is missed. `--stub` needs no GPU: it runs
against the tests' stand-in for libcuda and doubles of torch tensors, prints, and writes nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cuda.bindings import driver
from machine import gpu_environment, gpu_results, write_result
from rich.console import Console
from rich.table import Table

import baracuda_py as bp
from baracuda_py import sys as kernels
from baracuda_py.vocab.code import Pointer, Stride

STUB = Path(__file__).resolve().parents[1] / "tests" / "backends" / "cuda" / "stub"
STUB_VARIABLE = "BARACUDA_PY_HOST_OVERHEAD_STUB"  # set for the process that runs with the stub's library path
WAIT_EVERY = 64  # timed rounds between two waits for the GPU; the driver queues about a thousand launches
# Kernels that take tensor maps, which `bare_launch` makes none of, do not serve oc = 72.
DESCRIPTOR = bp.Int4AwqGemmDescriptor(1, 256, 72, split_k_iters=None)
# Name -> (limit in microseconds, the call whose median is taken off first).
TARGETS = {"select": (2.0, ""), "run": (12.0, ""), "bound": (3.0, "bare")}


def check(answer: tuple[Any, ...]) -> Any:
    """The result of a driver call."""
    if answer[0]:
        raise RuntimeError(f"{answer[0]!r}")
    return answer[1] if len(answer) > 1 else None


def torch_tensors() -> tuple[bp.Int4AwqGemmArgs, Callable[[], None]]:
    """The arguments as torch tensors, and what waits for the GPU."""
    import torch

    output = DESCRIPTOR.m, DESCRIPTOR.oc
    words = {"dtype": torch.int32, "device": "cuda"}
    halves = {"dtype": torch.float16, "device": "cuda"}
    args = bp.Int4AwqGemmArgs(
        torch.zeros(DESCRIPTOR.m, DESCRIPTOR.ic, **halves), torch.zeros(DESCRIPTOR.weight_shape, **words),
        torch.zeros(DESCRIPTOR.groups, DESCRIPTOR.oc, **halves),
        torch.zeros(DESCRIPTOR.groups, DESCRIPTOR.oc // 8, **words), torch.zeros(output, **halves),
    )  # fmt: skip
    return args, torch.cuda.synchronize


def doubles() -> tuple[bp.Int4AwqGemmArgs, Callable[[], None]]:
    """The same as doubles of torch tensors in the stub's memory."""
    sys.path.insert(0, str(STUB))
    import kit

    kit.install_torch({})
    check(driver.cuInit(0))
    check(driver.cuCtxPushCurrent(check(driver.cuDevicePrimaryCtxRetain(0))))

    def tensor(spec: Any) -> Any:
        shape, element = spec.shape_on(DESCRIPTOR), spec.elements_on(DESCRIPTOR)[0]
        array = bp.empty(shape, element)
        dtype = kit.torch_float16 if element is bp.ElementKind.F16 else kit.torch_int32
        double = kit.TorchTensor(array.pointer, shape, array.strides, dtype)
        double.owner = array
        return double

    specs = bp.default_registry().op_for(DESCRIPTOR).specs
    return bp.Int4AwqGemmArgs(*(tensor(spec) for spec in specs if spec.needed_on(DESCRIPTOR))), lambda: None


def bare_launch(plan: Any, args: Any, workspace: bp.Workspace) -> Callable[[], Any]:
    """`cuLaunchKernel` alone, on a function and parameters of its own."""
    (launch,) = plan.launches
    code = plan.kernel.code
    ptx = kernels.module(launch.module or code.module, (launch.arch or code.arch).name.lower()).ptx
    library = check(driver.cuLibraryLoadData(ptx + b"\0", [], [], 0, [], [], 0))
    function = check(driver.cuKernelGetFunction(check(driver.cuLibraryGetKernel(library, launch.entry.encode()))))
    slots, firsts = b"", []

    def value(part: Any) -> int:
        if isinstance(part, Pointer):
            if part.argument == "workspace":
                return workspace.pointer + part.offset
            tensor = getattr(args, part.argument)
            return 0 if tensor is None else tensor.data_ptr() + part.offset
        return getattr(args, part.argument).stride()[part.axis] if isinstance(part, Stride) else part

    for parameter in launch.parameters:
        firsts.append(len(slots))
        for part in parameter if isinstance(parameter, tuple) else (parameter,):
            slots += struct.pack("<Q", value(part) & (1 << 64) - 1)
    buffer = ctypes.create_string_buffer(slots, len(slots))
    pointers = (ctypes.c_void_p * len(firsts))(*(ctypes.addressof(buffer) + first for first in firsts))
    head = (function, *launch.grid, *launch.block, launch.shared_bytes, 0, ctypes.addressof(pointers), 0)
    cu_launch_kernel = driver.cuLaunchKernel

    def bare(_kept: Any = (buffer, pointers, library)) -> Any:
        return cu_launch_kernel(*head)

    if launch.shared_bytes > 48 * 1024:
        raise RuntimeError("this benchmark takes a launch that needs no shared memory attribute")
    check(bare())
    return bare


def contenders(args: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    plan = bp.select(DESCRIPTOR)
    workspace = bp.allocate_workspace(plan)
    select, run, twin = bp.select, plan.run, DESCRIPTOR.with_group_size(DESCRIPTOR.group_size)
    return {
        "timer": lambda: None,
        "select": lambda: select(DESCRIPTOR),
        "select, equal descriptor": lambda: select(twin),
        "run": lambda: run(None, workspace, args),
        "bare": bare_launch(plan, args, workspace),
        "bound": plan.bind(args, workspace, 0),
    }


def measure(calls: dict[str, Callable[[], Any]], wait: Callable[[], None], samples: int) -> dict[str, list[float]]:
    """Microseconds of each call, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.perf_counter_ns
    rounds = [(calls[name], times[name].append) for name in calls]
    gc.disable()
    for sample in range(-WAIT_EVERY, samples):  # the first ones warm up
        if sample == 0:
            for values in times.values():
                values.clear()
        if sample % WAIT_EVERY == 0:
            wait()
        for call, keep in rounds:
            start = clock()
            call()
            keep((clock() - start) / 1e3)
    gc.enable()
    wait()
    return times


def judge(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Median and spread of each, and whether it keeps its target."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, values in times.items():
        tenths = statistics.quantiles(values, n=10)
        row = {
            "call": name,
            "median_us": round(medians[name], 3),
            "p10_us": round(tenths[0], 3),
            "p90_us": round(tenths[-1], 3),
        }
        if name in TARGETS:
            limit, over = TARGETS[name]
            counted = medians[name] - medians.get(over, 0.0)
            row |= {"counted_us": round(counted, 3), "over": over, "limit_us": limit, "kept": counted <= limit}
        rows.append(row)
    return rows


def rerun_with_stub() -> int:
    """This script again, with the stub's folder on the library path, which is read when a process starts."""
    sys.path.insert(0, str(STUB))
    from build import build

    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        environment = {**os.environ, "LD_LIBRARY_PATH": folder, STUB_VARIABLE: "1"}
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--stub", action="store_true", help="no GPU: measure the Python side, print, write nothing")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.stub and STUB_VARIABLE not in os.environ:
        return rerun_with_stub()
    environment = None if options.stub else gpu_environment()
    args, wait = doubles() if options.stub else torch_tensors()
    rows = judge(measure(contenders(args), wait, options.samples))
    table = Table("call", "median", "p10", "p90", "counted", "limit", title="Host microseconds a call")
    for row in rows:
        over = f" over {row['over']}" if row.get("over") else ""
        counted = f"{row['counted_us']:.2f}{over}" if "limit_us" in row else ""
        numbers = [f"{row[key]:.2f}" for key in ("median_us", "p10_us", "p90_us")]
        table.add_row(row["call"], *numbers, counted, str(row.get("limit_us", "")))
    Console(width=100).print(table)
    kept = all(row.get("kept", True) for row in rows)
    if environment is not None:
        headlines = [
            {"what": f"Host time of {row['call']}" + (f" over {row['over']}" if row["over"] else ""),
             "value": row["counted_us"], "unit": "us"}
            for row in rows if "limit_us" in row
        ]  # fmt: skip
        record = {**environment, "samples": options.samples, "calls": rows, "headlines": headlines}
        print(write_result(options.output or gpu_results() / "host_overhead.json", record))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
