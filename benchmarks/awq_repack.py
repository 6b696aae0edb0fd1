"""Speed of AWQ repacking between every two layouts, beside a copy of as many bytes in the same run.

    python benchmarks/awq_repack.py [--shapes 4096x4096 ...]

Timed as in awq_gemm.py: CUDA graphs of enough calls to walk over 320 MB of weights, contenders in turn, median of 20.
Writes benchmarks/results/<gpu>/awq_repack.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from awq_gemm import ROTATED_BYTES, SAMPLES, capture, measure, random_words, shape_of
from machine import gpu_environment, gpu_results, write_result
from rich.console import Console
from rich.progress import track

import baracuda_py as bp

SHAPES = [(4096, 4096), (14336, 4096), (28672, 8192)]  # (oc, ic)
COPY = "copy"
WORDS = (-(1 << 31), 1 << 31)


def calls(desc: bp.Int4AwqRepackDescriptor, copies: int) -> list[Callable[[], None]]:
    """One bound run a copy of the weights."""
    zeros = [random_words((desc.groups, desc.oc // 8), WORDS) for _ in range(2)]
    scales = torch.ones((desc.groups, desc.oc), dtype=torch.float16, device="cuda")
    made = []
    plan = bp.select(desc, zeros[0])
    for _ in range(copies):
        args = bp.Int4AwqRepackArgs(
            random_words(desc.source_shape, WORDS),
            zeros[0] if desc.source_apart else None,
            torch.empty(desc.target_shape, dtype=torch.int32, device="cuda"),
            zeros[1] if desc.target_apart else None,
            scales if desc.reads_scales else None,
            scales if desc.writes_scales else None,
        )
        made.append(plan.bind(args, bp.Workspace.NONE))
    return made


def cell(oc: int, ic: int) -> list[dict[str, Any]]:
    """Every change of layout, and the copy."""
    nbytes = oc * ic // 2
    copies = max(2, -(-ROTATED_BYTES // nbytes))
    words = [random_words((2, nbytes // 4), WORDS) for _ in range(copies)]
    graphs = {COPY: (capture([lambda pair=pair: pair[1].copy_(pair[0]) for pair in words]), copies)}
    kept = []
    for source, target in permutations(bp.AwqWeightLayout, 2):
        kept.append(calls(bp.Int4AwqRepackDescriptor(ic, oc, source=source, target=target), copies))
        graphs[f"{source.value} to {target.value}"] = (capture(kept[-1]), copies)
    times = measure(graphs)
    base = statistics.median(times[COPY])
    return [
        {
            "oc": oc,
            "ic": ic,
            "what": name,
            "median_us": round(statistics.median(values), 3),
            "quartiles_us": [round(q, 3) for q in statistics.quantiles(values, n=4)[::2]],
            "gb_per_s": round(2 * nbytes / statistics.median(values) / 1e3, 1),
            "over_copy": round(statistics.median(values) / base, 4),
        }
        for name, values in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=SHAPES, metavar="OCxIC")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cells = []
    for oc, ic in track(arguments.shapes, console=Console(stderr=True)):
        cells += cell(oc, ic)
        torch.cuda.empty_cache()
    headlines = [
        {"what": f"AWQ repacking, {c['what']}, over a copy", "value": c["over_copy"], "unit": "x"}
        for c in cells
        if c["what"] != COPY and (c["oc"], c["ic"]) == arguments.shapes[-1]
    ]
    record = {**gpu_environment(), "samples": SAMPLES, "cells": cells, "headlines": headlines}
    print(write_result(arguments.output or gpu_results() / "awq_repack.json", record))


if __name__ == "__main__":
    main()
