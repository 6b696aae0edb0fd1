"""Whether plans that many threads share stay right, keep no memory, and wait for nothing but the driver.

    python benchmarks/soak.py [--device cuda|host|stub] [--threads 8] [--seconds 60] [--calls 100000]

The soak: every thread has a stream and tensors of its own and calls the same plans, run and bound in turns, until both
time and calls are spent. Now and then it poisons the output before a call and compares the bits behind it with those of
a first call that was alone. Memory of the process, blocks of Python and free memory of the GPU are read every second;
growth, time and calls count from when caches are warm, a tenth of the time or 2 s after the start.

The scaling: calls a second of one small AWQ GEMM, run and bound, at 1, 2, 4 and 8 threads, beside as many threads that
call cuLaunchKernel on an empty kernel; a thread waits for its stream every 64 calls. Python's own lock is in all three.

Ends with 1 if a result is wrong or memory grows. Writes benchmarks/results/<machine>/soak.json, for the host
soak-host.json. `stub` is the tests' stand-in for libcuda, which computes nothing: it shows leaks, and writes nothing
without --output.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver
from host_awq import OtherProcesses, cpu_name
from host_overhead import STUB_VARIABLE, check, rerun_with_stub
from machine import ROOT, commit, gpu_environment, gpu_results, packages, slug, write_result
from rich.console import Console
from rich.table import Table

import baracuda_py as bp
from baracuda_py.testing.data import inputs_for
from baracuda_py.vocab.elements import numpy_dtype

MIX = (
    *(bp.Int4AwqGemmDescriptor(m, 256, 64, split_k_iters=None) for m in (1, 4, 33)),
    bp.Int4AwqGemmDescriptor(4, 256, 64, split_k_iters=None, weight_layout=bp.AwqWeightLayout.HF_GEMM),
    bp.Int4AwqDequantizeDescriptor(256, 64),
    bp.SoftmaxDescriptor((37, 64)),
    bp.RmsNormDescriptor(37, 64),
)
SMALL = MIX[0]
THREADS = (1, 2, 4, 8)
WAIT_EVERY = 64  # calls
CHECK_EVERY = 50  # rounds of the mix
SAMPLES = 5  # of each rate
WARM_S = 2.0
MOST_GROWTH_NBYTES = 8 << 20  # the allocator's arenas and threads' stacks come late; 100 bytes a call are more
MOST_BLOCKS, MOST_BLOCKS_A_CALL = 1000, 0.05  # what threads have in hand when they are looked at, and a leak
EMPTY = b".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry empty() { ret; }\n\0"


class Place:
    """Where the plans run: tensors, streams, memory."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.gpu = kind != "host"
        self.device = bp.default_registry().device(0) if self.gpu else "host"
        self.context: Any = None
        self._streams: dict[int, int] = {}
        if self.gpu:
            check(driver.cuInit(0))
            self.context = check(driver.cuDevicePrimaryCtxRetain(0))
            check(driver.cuCtxSetCurrent(self.context))

    def enter(self, number: int) -> int | None:
        """Make a thread ready; the stream of its number."""
        if not self.gpu:
            return None
        check(driver.cuCtxSetCurrent(self.context))
        if number not in self._streams:
            self._streams[number] = int(check(driver.cuStreamCreate(1)))  # which does not wait for the default one
        return self._streams[number]

    def wait(self, stream: int | None) -> None:
        if self.gpu:
            check(driver.cuStreamSynchronize(stream))

    def fill(self, tensor: Any, array: Any) -> None:
        if self.gpu:
            tensor.copy_from(array)
        else:
            tensor[...] = array

    def free_nbytes(self) -> int | None:
        """Of the GPU; None without one."""
        if self.kind != "cuda":
            return None
        status, free, _total = driver.cuMemGetInfo()
        check((status,))
        return int(free)


class Job:
    """One plan with a thread's own tensors."""

    def __init__(self, place: Place, plan: Any, stream: int | None) -> None:
        self.place, self.plan, self.stream = place, plan, stream
        given = inputs_for(plan.op, plan.descriptor)
        self.poison = {}
        tensors: dict[str, Any] = {}
        for spec in plan.op.specs:
            if not spec.needed_on(plan.descriptor):
                tensors[spec.name] = None
            elif spec.role == "out":
                element = spec.elements_on(plan.descriptor)[0]
                shape = spec.shape_on(plan.descriptor)
                self.poison[spec.name] = np.full(shape, 0xFF, f"u{numpy_dtype(element).itemsize}").view(
                    numpy_dtype(element)
                )
                tensors[spec.name] = bp.to_device(self.poison[spec.name].copy(), plan.device)
            else:
                tensors[spec.name] = bp.to_device(given[spec.name].copy(), plan.device)
        self.outputs = {name: tensors[name] for name in self.poison}
        self.args = plan.op.args(**tensors)
        self.workspace = bp.allocate_workspace(plan)
        self.bound = plan.bind(self.args, self.workspace, stream)

    def run(self) -> None:
        self.plan.run(self.stream, self.workspace, self.args)

    def result(self, call: Callable[[], None]) -> bytes:
        """What a call puts over poison."""
        for name, tensor in self.outputs.items():
            self.place.fill(tensor, self.poison[name])
        call()
        self.place.wait(self.stream)
        return b"".join(bp.TensorRef.of(tensor).numpy().tobytes() for tensor in self.outputs.values())


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` in threads; the first error is raised."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def memory(place: Place) -> dict[str, Any]:
    """What is taken now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_nbytes": pages * os.sysconf("SC_PAGE_SIZE"), "blocks": sys.getallocatedblocks(),
        "gpu_free_nbytes": place.free_nbytes(),
    }  # fmt: skip


def soak(place: Place, plans: list[Any], threads: int, seconds: float, wanted: int) -> dict[str, Any]:
    """Calls, wrong results and the growth of memory."""
    alone = place.enter(0)
    jobs = [Job(place, plan, alone) for plan in plans]
    expected = [job.result(job.run) for job in jobs]
    assert place.kind == "stub" or not any(b"\xff" * 16 in result for result in expected), "poison was left"
    calls, wrong, compared = [0] * threads, [0] * threads, [0] * threads
    stop, ready = threading.Event(), threading.Barrier(threads + 1)

    def work(number: int) -> None:
        stream = place.enter(number)
        mine = [Job(place, plan, stream) for plan in plans]
        order = mine[number % len(mine) :] + mine[: number % len(mine)]
        ready.wait()
        for turn in range(sys.maxsize):
            for job in order:
                job.run()
                job.bound()
            calls[number] += 2 * len(order)
            place.wait(stream)
            if turn % CHECK_EVERY == 0:
                for job, right in zip(mine, expected, strict=True):
                    for call in (job.run, job.bound):
                        wrong[number] += job.result(call) != right
                        compared[number] += 1
            if stop.is_set():
                ready.wait()  # the last sample is taken before any thread frees what it has
                return

    runner = threading.Thread(target=in_threads, args=(threads, work))
    runner.start()
    ready.wait()
    begun = time.monotonic()
    samples: list[dict[str, Any]] = []
    warm_s, first = max(WARM_S, seconds / 10), None
    while True:
        passed = time.monotonic() - begun
        samples.append({"s": round(passed, 2), "calls": sum(calls), **memory(place)})
        if first is None and passed >= warm_s:
            first = samples[-1]
        if not runner.is_alive():
            raise SystemExit("a thread ended early")
        if first is not None and passed >= warm_s + seconds and samples[-1]["calls"] - first["calls"] >= wanted:
            break
        time.sleep(min(1.0, seconds / 20))
    stop.set()
    ready.wait()
    runner.join()
    last = samples[-1]
    growth = {name: last[name] - first[name] for name in ("rss_nbytes", "blocks")}
    growth["gpu_nbytes"] = 0 if last["gpu_free_nbytes"] is None else first["gpu_free_nbytes"] - last["gpu_free_nbytes"]
    return {
        "threads": threads, "seconds": last["s"], "calls": last["calls"], "compared": sum(compared),
        "wrong": sum(wrong), "growth": growth, "growth_over_calls": last["calls"] - first["calls"],
        "samples": samples[:: max(1, len(samples) // 60)],
    }  # fmt: skip


def bare_launch(stream: int | None) -> Callable[[], None]:
    """cuLaunchKernel of a kernel that does nothing and takes nothing."""
    library = check(driver.cuLibraryLoadData(EMPTY, [], [], 0, [], [], 0))
    function = check(driver.cuKernelGetFunction(check(driver.cuLibraryGetKernel(library, b"empty"))))
    launch = driver.cuLaunchKernel
    return lambda: launch(function, 1, 1, 1, 32, 1, 1, 0, stream, 0, 0)


def rate(place: Place, threads: int, make: Callable[[int | None], Callable[[], None]], seconds: float) -> float:
    """Calls a second of all threads together."""
    counts, start = [0] * threads, threading.Barrier(threads)
    spent = [0.0] * threads

    def work(number: int) -> None:
        stream = place.enter(number)
        call = make(stream)
        call()
        place.wait(stream)
        start.wait()
        begun = time.perf_counter()
        while (now := time.perf_counter() - begun) < seconds:
            for _ in range(WAIT_EVERY):
                call()
            place.wait(stream)
            counts[number] += WAIT_EVERY
        spent[number] = now

    in_threads(threads, work)
    return sum(counts) / max(spent)


def scaling(place: Place, plan: Any, seconds: float) -> list[dict[str, Any]]:
    """Rates by kind and number of threads, all of them in turns."""
    kinds: dict[str, Callable[[int | None], Callable[[], None]]] = {
        "run": lambda stream: Job(place, plan, stream).run,
        "bound": lambda stream: Job(place, plan, stream).bound,
    }
    if place.gpu:
        kinds["bare launch"] = bare_launch
    rates: dict[tuple[str, int], list[float]] = {(kind, n): [] for kind in kinds for n in THREADS}
    for _ in range(SAMPLES):
        for (kind, n), found in rates.items():
            found.append(rate(place, n, kinds[kind], seconds))
    return [
        {
            "kind": kind, "threads": n, "calls_per_s": round(statistics.median(found)),
            "spread": [round(min(found)), round(max(found))],
            "over_one_thread": round(statistics.median(found) / statistics.median(rates[kind, 1]), 3),
        }
        for (kind, n), found in rates.items()
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "host", "stub"), default="cuda")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--rate-seconds", type=float, default=0.5, help="of each rate, SAMPLES times")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.device == "stub" and STUB_VARIABLE not in os.environ:
        return rerun_with_stub()
    others = OtherProcesses()
    host = {
        "cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(),
        "packages": packages("baracuda-py", "numpy"), "commit": commit(),
    }  # fmt: skip
    environment = {"device": options.device, **host, **(gpu_environment() if options.device == "cuda" else {})}
    place = Place(options.device)
    plans = [plan for plan in (bp.select(one, place.device) for one in MIX) if plan.precision_guarantee.deterministic]
    found = soak(place, plans, options.threads, options.seconds, options.calls)
    rates = scaling(place, bp.select(SMALL, place.device), options.rate_seconds)
    growth = found["growth"]
    kept = (
        not found["wrong"] and growth["gpu_nbytes"] <= 0 and growth["rss_nbytes"] <= MOST_GROWTH_NBYTES
        and growth["blocks"] <= MOST_BLOCKS + MOST_BLOCKS_A_CALL * found["growth_over_calls"]
    )  # fmt: skip
    text = f"{found['calls']} calls of {len(plans)} plans in {found['threads']} threads"
    print(f"{text}, {found['seconds']} s: {found['wrong']} of {found['compared']} wrong, growth {growth}")
    table = Table("kind", "threads", "calls/s", "spread", "over one thread", title=f"Threads, on {options.device}")
    for row in rates:
        low, high = row["spread"]
        numbers = str(row["threads"]), str(row["calls_per_s"]), f"{low} .. {high}", f"{row['over_one_thread']:.2f}"
        table.add_row(row["kind"], *numbers)
    Console(width=100).print(table)
    where = "" if place.gpu else " on the host"
    record = {
        **environment, "plans": [str(plan.sku) for plan in plans], "soak": found, "rates": rates, "kept": kept,
        "samples": SAMPLES, "cores_used_by_others": others.cores_used(),
        "headlines": [
            {"what": f"Soak{where}: wrong results", "value": found["wrong"], "unit": f"of {found['compared']}"},
            {"what": f"Soak{where}: growth of memory over {found['growth_over_calls']} calls",
             "value": round(growth["rss_nbytes"] / 1e6, 1), "unit": "MB"},
            *({"what": f"Calls a second at 8 threads over 1{where}, {row['kind']}", "value": row["over_one_thread"],
               "unit": "x"} for row in rates if row["threads"] == 8),
        ],
    }  # fmt: skip
    if options.output is None and options.device != "stub":
        folder = gpu_results() if place.gpu else ROOT / "results" / slug(cpu_name())
        options.output = folder / ("soak.json" if place.gpu else "soak-host.json")
    if options.output is not None:
        print(write_result(options.output, record))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
