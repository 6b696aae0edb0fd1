"""Speed of the AWQ GEMM's host kernels beside what they are judged by, in one interleaved run.

    python benchmarks/host_awq.py

Per m: a dense float32 `x @ w`; the NumPy kernel on both layouts; the onnxruntime kernel with its weight prepared once,
and called with the plain tensors, which it compares with what it packed; a bare MatMulNBits session with
onnxruntime's default options on the same bytes and on float32 activations. In every round each of them is called for
a while, the first half of its calls only to wake its threads and fill the caches, and the median of the others counts;
a turn that other processes disturbed is taken again.
Writes benchmarks/results/<cpu>/host_awq.json and prints a table; progress goes to stderr.
"""

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
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from baracuda_py.bench.environment import cpu_name
from baracuda_py.ops.quantize import awq_host, awq_onnxruntime, awq_packing, awq_reference
from baracuda_py.tuning import slug

DENSE = "dense x @ w"
BARE = "bare MatMulNBits"
NUMPY = {layout: f"numpy, {layout}" for layout in (awq_packing.OC_MAJOR, awq_packing.HF_GEMM)}
PREPARED = "onnxruntime, prepared"
CHECKED = "onnxruntime, tensors"
# Time of one contender in one round, and before the next: OpenBLAS workers spin for about 100 ms before they sleep,
# and whoever comes too early after them is measured 20 % slower.
TURN_S = 0.1
PAUSE_S = 0.2
# A turn in which other processes took more than this is taken again; the clock of /proc/stat ticks every 10 ms.
DISTURBED_CORES = 0.25
MOST_TURNS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--m", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--ic", type=int, default=4096)
    parser.add_argument("--oc", type=int, default=4096)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<cpu>/host_awq.json")
    arguments = parser.parse_args()

    record = environment()
    record["problem"] = {"ic": arguments.ic, "oc": arguments.oc, "group_size": arguments.group_size, "element": "f16"}
    layer = Layer(arguments.ic, arguments.oc, arguments.group_size)
    others = OtherProcesses()
    record["cells"] = [cell for m in arguments.m for cell in measure(layer, m, arguments.rounds)]
    record["cores_used_by_others"] = others.cores_used()
    record["headlines"] = headlines(record["cells"])

    path = arguments.output or Path(__file__).parent / "results" / slug(record["cpu"]) / "host_awq.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print_table(record)
    print(f"cores used by other processes meanwhile: {record['cores_used_by_others']}\n{path}")


def headlines(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the kernels are judged by: the NumPy one over a dense product, onnxruntime's over a bare session."""
    judged = {NUMPY[awq_packing.OC_MAJOR]: ("over_dense", DENSE), PREPARED: ("over_bare_session", BARE)}
    return [
        {"what": f"AWQ GEMM on the host, {c['kernel']}, m = {c['m']}, over {other}", "value": c[ratio], "unit": "x"}
        for c in cells
        if c["kernel"] in judged
        for ratio, other in (judged[c["kernel"]],)
    ]


class Layer:
    """A random layer in every form that a contender wants."""

    def __init__(self, ic: int, oc: int, group_size: int) -> None:
        import onnxruntime

        rng = np.random.default_rng(0)
        self.ic, self.oc, self.group_size = ic, oc, group_size
        groups = ic // group_size
        nibbles = rng.integers(0, 16, (ic, oc), dtype=np.uint8)
        zeros = rng.integers(0, 16, (groups, oc), dtype=np.uint8)
        self.scales = (rng.uniform(0.5, 1.5, (groups, oc)) / 400).astype(np.float16)
        self.weight = {layout: awq_packing.pack_weight(nibbles, layout) for layout in NUMPY}
        self.zeros = {layout: awq_packing.pack_zeros(zeros, layout) for layout in NUMPY}
        oc_major = self.weight[awq_packing.OC_MAJOR], self.scales, self.zeros[awq_packing.OC_MAJOR]
        self.exact = awq_reference.dequantize_reference(*oc_major, layout=awq_packing.OC_MAJOR, group_size=group_size)
        self.dense = self.exact.astype(np.float32)
        self.prepared = awq_onnxruntime.PreparedAwqGemm(*oc_major, group_size=group_size, half=True)
        model, constants = awq_onnxruntime.matmul_nbits(*oc_major, group_size=group_size, half=False)
        options = onnxruntime.SessionOptions()
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in constants.values()]
        options.add_external_initializers(list(constants), values)
        self.bare = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def contenders(self, x: np.ndarray, output: np.ndarray) -> dict[str, Callable[[], Any]]:
        """Calls by name. x: (m, ic), f16. output: (m, oc), f16."""
        x_float = x.astype(np.float32)
        oc_major = awq_packing.OC_MAJOR

        def numpy_kernel(layout: str) -> Callable[[], None]:
            tensors = x, self.weight[layout], self.scales, self.zeros[layout], output
            return lambda: awq_host.awq_gemm_host(*tensors, layout=layout, group_size=self.group_size)

        return {
            DENSE: lambda: x_float @ self.dense,
            **{name: numpy_kernel(layout) for layout, name in NUMPY.items()},
            PREPARED: lambda: self.prepared(x, output),
            CHECKED: lambda: awq_onnxruntime.awq_gemm_onnxruntime(
                x, self.weight[oc_major], self.scales, self.zeros[oc_major], output, group_size=self.group_size
            ),
            BARE: lambda: self.bare.run(None, {"x": x_float}),
        }


def measure(layer: Layer, m: int, rounds: int) -> list[dict[str, Any]]:
    """A cell per contender: times in ms over `rounds`, and the relative Frobenius error of its result."""
    x = np.random.default_rng(m).standard_normal((m, layer.ic)).astype(np.float16)
    output = np.empty((m, layer.oc), dtype=np.float16)
    expected = x.astype(np.float64) @ layer.exact
    contenders = layer.contenders(x, output)
    times_ms: dict[str, list[float]] = {name: [] for name in contenders}
    errors = {}
    for name, call in contenders.items():
        returned = call()
        result = output if returned is None else np.asarray(returned).reshape(expected.shape)
        errors[name] = float(np.linalg.norm(result.astype(np.float64) - expected) / np.linalg.norm(expected))
    for done in range(rounds):
        for name, call in contenders.items():
            times_ms[name].append(1e3 * quiet_turn_s(call))
        print(f"\rm = {m}: round {done + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    medians = {name: statistics.median(times) for name, times in times_ms.items()}
    return [
        {
            "m": m,
            "kernel": name,
            "median_ms": round(medians[name], 4),
            "quartiles_ms": [round(q, 4) for q in statistics.quantiles(times, n=4)[::2]],
            "minimum_ms": round(min(times), 4),
            "over_dense": round(medians[name] / medians[DENSE], 3),
            "over_bare_session": round(medians[name] / medians[BARE], 3),
            "relative_error": errors[name],
        }
        for name, times in times_ms.items()
    ]


def quiet_turn_s(call: Callable[[], Any]) -> float:
    """`median_of_turn_s` of the first turn that other processes left alone, or of the last allowed one."""
    for _ in range(MOST_TURNS):
        time.sleep(PAUSE_S)
        others = OtherProcesses()
        duration_s = median_of_turn_s(call)
        if (others.cores_used() or 0.0) <= DISTURBED_CORES:
            break
        time.sleep(1.0)
    return duration_s


def median_of_turn_s(call: Callable[[], Any]) -> float:
    """Median duration of the later half of the calls that fit into a turn; of three at least."""
    durations_s: list[float] = []
    end = time.perf_counter() + TURN_S
    while len(durations_s) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        durations_s.append(time.perf_counter() - start)
    return statistics.median(durations_s[len(durations_s) // 2 :])


def environment() -> dict[str, Any]:
    import onnxruntime

    root = Path(__file__).parents[1]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=root, capture_output=True, text=True
    )
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "blas": f"{blas['name']} {blas['version']}",
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or "all cores",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


class OtherProcesses:
    """What other processes took of this machine's cores since this was made; retaken turns of a run count too."""

    def __init__(self) -> None:
        self._start = self._seconds()

    def cores_used(self) -> float | None:
        """Mean number of cores; None where /proc/stat does not tell."""
        if self._start is None:
            return None
        machine, own, now = (end - start for start, end in zip(self._start, self._seconds() or (), strict=True))
        return round(max(0.0, machine - own) / now, 3)

    @staticmethod
    def _seconds() -> tuple[float, float, float] | None:
        """CPU seconds of the machine (user, nice, system) and of this process, and the clock."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        ticks = sum(map(int, stat.read_text().split()[1:4]))
        return ticks / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()


def print_table(record: dict[str, Any]) -> None:
    problem = record["problem"]
    title = f"{problem['ic']} x {problem['oc']}, group {problem['group_size']}, f16: {record['cpu']}"
    table = Table("m", "kernel", "median ms", "quartiles ms", "x dense", "x bare", "error", title=title)
    for cell in record["cells"]:
        low, high = cell["quartiles_ms"]
        table.add_row(
            str(cell["m"]),
            cell["kernel"],
            f"{cell['median_ms']:.2f}",
            f"{low:.2f} .. {high:.2f}",
            f"{cell['over_dense']:.2f}",
            f"{cell['over_bare_session']:.2f}",
            f"{cell['relative_error']:.1e}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
