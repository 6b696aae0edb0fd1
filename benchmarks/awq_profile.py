"""What holds kernels of the AWQ GEMM: Nsight Compute's counters of one call, and the clock and power under load.

    python benchmarks/awq_profile.py [--only KERNEL ...] [--output FILE]

For each case one call is profiled, by itself and at the clock that it gets: its time, the share of cycles in which the
tensor cores and the schedulers work, how busy L2 is, and what a warp waits for. Then the same call is replayed for a
second from a CUDA graph, while nvidia-smi says the clock and the power of the GPU. Needs `ncu`, with the right to read
counters. Writes benchmarks/results/<gpu>/awq_profile.json.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from attrs import asdict, frozen
from machine import gpu_environment, gpu_results, write_result

import baracuda_py as bp
from baracuda_py.bench.cells import Cell
from baracuda_py.plan import Plan
from baracuda_py.tuning.arguments import ROTATED_NBYTES, RotatedArguments, bound_calls
from baracuda_py.tuning.timing import timer_on
from baracuda_py.vocab.enums import ElementKind

_GROUP = 128
_DENSE = "cublas"
_LOAD_S = 1.0
_WARMED_S = 0.3  # of it, before clock and power are noted
_STALLS = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
_COUNTERS = {
    "time_us": "gpu__time_duration.sum",
    "clock_mhz": "sm__cycles_elapsed.avg.per_second",
    "tensor_active": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "issue_active": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "l2_busy": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram_nbytes": "dram__bytes_read.sum",
    "registers": "launch__registers_per_thread",
}
_SCALES = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "hz": 1e-6, "Mhz": 1.0, "Ghz": 1e3, "byte": 1.0, "Kbyte": 1e3,
           "Mbyte": 1e6, "Gbyte": 1e9, "%": 1e-2, "register/thread": 1.0, "inst": 1.0}  # fmt: skip


@frozen
class Case:
    """A kernel by its variant, or the dense GEMM in f16, and a problem."""

    kernel: str
    oc: int
    ic: int
    m: int


CASES = (
    Case("bulk_tiled", 4096, 14336, 1),
    Case("bulk_tiled", 14336, 4096, 1),
    Case("bulk_tiled", 14336, 4096, 16),
    Case("warpgroup_tiled", 14336, 4096, 32),
    Case("stream_hf_gemm", 4096, 14336, 1),
    Case("stream_hf_gemm", 4096, 14336, 16),
    Case("tile_tiled", 8192, 8192, 512),
    Case("wide_tiled", 8192, 8192, 256),
    Case("wide_tiled", 14336, 4096, 512),
    Case("wide_tiled", 8192, 8192, 4096),
    Case("fp8_tiled", 28672, 8192, 4096),
    Case(_DENSE, 8192, 8192, 4096),
    Case(_DENSE, 28672, 8192, 4096),
)


def _plan(case: Case, registry: Any, device: Any) -> Plan:
    if case.kernel == _DENSE:
        dense: Plan = registry.select(
            Cell(ElementKind.F16, _GROUP, case.oc, case.ic, case.m).dense(ElementKind.F16), device
        )
        return dense
    layout = bp.AwqWeightLayout.HF_GEMM if case.kernel.endswith("hf_gemm") else bp.AwqWeightLayout.TILED
    kind = bp.Int4AwqFp8GemmDescriptor if case.kernel.startswith("fp8") else bp.Int4AwqGemmDescriptor
    descriptor: Any = kind(case.m, case.ic, case.oc, _GROUP, weight_layout=layout, element=ElementKind.F16)
    for one in registry.explain(descriptor, device).candidates:
        if one.refusal is None and one.kernel.sku.variant == case.kernel:
            plan: Plan = registry.plan(one.kernel.sku, descriptor, device)
            return plan
    raise SystemExit(f"{case.kernel} does not serve {descriptor}")


def _calls(case: Case, stream: int, rotated_nbytes: int) -> list[Any]:
    registry = bp.default_registry()
    device = registry.current_device()
    plan = _plan(case, registry, device)
    constants = ("b",) if case.kernel == _DENSE else ()
    arguments = RotatedArguments(device, rotated_nbytes, constants).of(plan.op, plan.descriptor)
    return list(bound_calls(plan, arguments, stream))


def _profiled(cases: Sequence[Case]) -> None:
    """One call of each case: what runs under ncu."""
    registry = bp.default_registry()
    with timer_on(registry, registry.current_device()) as timer:
        for case in cases:
            _calls(case, timer.stream, 1)[0]()
            timer.driver.call("cuStreamSynchronize", timer.stream)


def _counters(cases: Sequence[Case]) -> dict[Case, list[dict[str, Any]]]:
    """Counters of the kernels of each case."""
    only = sorted({case.kernel for case in cases})
    ncu = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    command = [ncu, "--set", "full", "--clock-control", "none", "--csv", "--page", "raw"]
    done = subprocess.run(
        [*command, sys.executable, __file__, "--profiled", "--only", *only], capture_output=True, text=True, check=False
    )
    if done.returncode or '"ID"' not in done.stdout:
        raise SystemExit(f"ncu ended with {done.returncode}: {done.stdout[-800:]}{done.stderr[-800:]}")
    table = "\n".join(line for line in done.stdout.splitlines() if line.startswith('"'))
    units, *rows = csv.DictReader(io.StringIO(table))
    registry = bp.default_registry()
    device = registry.current_device()
    kernels = [0 if case.kernel == _DENSE else len(_plan(case, registry, device).launches) for case in cases]
    of_library, dense = len(rows) - sum(kernels), kernels.count(0)  # those of cuBLAS are its own affair
    waiting = iter(rows)
    return {
        case: [_kernel(next(waiting), units) for _ in range(count or of_library // dense)]
        for case, count in zip(cases, kernels, strict=True)
    }


def _kernel(row: dict[str, str], units: dict[str, str]) -> dict[str, Any]:
    def number(name: str) -> float:
        return float(row[name].replace(",", "")) * _SCALES[units[name]]

    stalls = {found[1]: number(name) for name in row if (found := _STALLS.fullmatch(name)) and row[name]}
    issued = sum(stalls.values())
    most = sorted(stalls, key=stalls.__getitem__, reverse=True)[:4]
    counters = {key: round(number(name), 4) for key, name in _COUNTERS.items()}
    return {
        "name": row["Kernel Name"][:80],
        **counters,
        "stalls": {key: round(stalls[key] / issued, 3) for key in most},
    }


def _under_load(case: Case) -> dict[str, float]:
    """Time of a call, clock and power while it is replayed again and again."""
    registry = bp.default_registry()
    query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw.instant", "--format=csv,noheader,nounits", "-lms", "50"]
    with timer_on(registry, registry.current_device()) as timer, tempfile.TemporaryFile("w+") as said:
        with timer.replay(_calls(case, timer.stream, ROTATED_NBYTES)) as replay:
            replay()
            watch = subprocess.Popen(query, stdout=said, text=True)
            start, times = time.monotonic(), []
            while time.monotonic() - start < _LOAD_S:
                times.append(replay())
            watch.terminate()
            watch.wait()
        said.seek(0)
        samples = [tuple(map(float, line.split(","))) for line in said.read().splitlines() if line.count(",") == 1]
    late = samples[int(len(samples) * _WARMED_S / _LOAD_S) :]
    if not late:
        raise SystemExit("nvidia-smi says neither clock nor power")
    return {
        "time_us": round(median(times[len(times) // 3 :]), 3),
        "clock_mhz": median(clock for clock, _ in late),
        "power_w": round(median(power for _, power in late), 1),
        "samples": len(late),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<gpu>/awq_profile.json")
    parser.add_argument("--only", nargs="+", metavar="KERNEL", help="such as fp8_tiled, or cublas")
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = [case for case in CASES if not options.only or case.kernel in options.only]
    if options.profiled:
        _profiled(wanted)
        return 0
    facts = gpu_environment()
    counters = _counters(wanted)
    cases = [asdict(case) | {"kernels": counters[case], "under_load": _under_load(case)} for case in wanted]
    path = options.output or gpu_results() / "awq_profile.json"
    write_result(path, {**facts, "cases": cases})
    print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
