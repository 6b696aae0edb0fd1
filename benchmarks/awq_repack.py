"""Speed of AWQ repacking between every two layouts, beside a copy of as many bytes in the same run.

    python benchmarks/awq_repack.py [--shapes 4096x4096 ...]

Timed as `baracuda-py bench` times: CUDA graphs of enough calls to walk over 320 MB of weights, contenders in turn,
median of 20. Writes benchmarks/results/<gpu>/awq_repack.json.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from machine import gpu_environment, gpu_results, write_result
from rich.console import Console
from rich.progress import track

import baracuda_py as bp
from baracuda_py.arrays import empty
from baracuda_py.bench.cells import parse_shape
from baracuda_py.tuning.arguments import ROTATED_NBYTES, RotatedArguments, bound_calls, copies_of
from baracuda_py.tuning.timing import Spread, in_turns, timer_on

SHAPES = [(4096, 4096), (14336, 4096), (28672, 8192)]  # (oc, ic)
COPY = "copy"
SAMPLES = 20


def copies(device: Any, nbytes: int, stream: int) -> list[Any]:
    """A copy of so many bytes from each of many places to another."""
    driver: Any = bp.default_registry().backend("cuda").driver
    made = []
    for _ in range(max(2, copies_of(nbytes, ROTATED_NBYTES))):
        source, target = (empty((nbytes,), bp.ElementKind.U8, device) for _ in range(2))
        call = partial(driver.call, "cuMemcpyDtoDAsync", target.pointer, source.pointer, nbytes, stream)
        call.held = source, target  # type: ignore[attr-defined]
        made.append(call)
    return made


def cell(oc: int, ic: int) -> list[dict[str, Any]]:
    """Every change of layout, and the copy."""
    nbytes = oc * ic // 2
    registry = bp.default_registry()
    device = registry.current_device()
    with timer_on(registry, device) as timer, ExitStack() as stack:
        replays = {COPY: stack.enter_context(timer.replay(copies(device, nbytes, timer.stream)))}
        for source, target in permutations(bp.AwqWeightLayout, 2):
            desc = bp.Int4AwqRepackDescriptor(ic, oc, source=source, target=target)
            plan = bp.select(desc, device)
            every = tuple(spec.name for spec in plan.op.specs)  # the op calls none of them constant
            arguments = RotatedArguments(device, constants=every).of(plan.op, desc)
            replays[f"{source.value} to {target.value}"] = stack.enter_context(
                timer.replay(bound_calls(plan, arguments, timer.stream))
            )
        times = {name: Spread.of(taken) for name, taken in in_turns(replays, SAMPLES).items()}
    return [
        {
            "oc": oc,
            "ic": ic,
            "what": name,
            "median_us": round(spread.median_us, 3),
            "quartiles_us": [round(quartile, 3) for quartile in spread.quartiles_us],
            "gb_per_s": round(2 * nbytes / spread.median_us / 1e3, 1),
            "over_copy": round(spread.median_us / times[COPY].median_us, 4),
        }
        for name, spread in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=parse_shape, nargs="+", default=SHAPES, metavar="OCxIC")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cells = []
    for oc, ic in track(arguments.shapes, console=Console(stderr=True)):
        cells += cell(oc, ic)
    headlines = [
        {"what": f"AWQ repacking, {c['what']}, over a copy", "value": c["over_copy"], "unit": "x"}
        for c in cells
        if c["what"] != COPY and (c["oc"], c["ic"]) == arguments.shapes[-1]
    ]
    record = {**gpu_environment(), "samples": SAMPLES, "cells": cells, "headlines": headlines}
    print(write_result(arguments.output or gpu_results() / "awq_repack.json", record))


if __name__ == "__main__":
    main()
