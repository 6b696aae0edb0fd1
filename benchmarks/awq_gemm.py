"""Speed of the AWQ GEMM's CUDA kernels over the frontier's shapes, beside cuBLAS fp16 in the same run (H200 or other).

    python benchmarks/awq_gemm.py [--m 1 8 16] [--shapes 4096x4096 ...]

Every contender's calls are captured in one CUDA graph of enough launches to walk over 320 MB of weights, more than any
L2, on random data; replays of all contenders are interleaved, and the median of 20 counts. What matters is the ratio
to cuBLAS fp16 (torch.matmul), because the card is power-limited. Writes benchmarks/results/<gpu>/awq_gemm.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import gpu_environment, gpu_results, write_result
from rich.console import Console
from rich.progress import track
from rich.table import Table

import baracuda_py as bp

SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336), (8192, 8192), (28672, 8192), (8192, 28672)]  # (oc, ic)
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096]
ROTATED_BYTES = 320 << 20
SAMPLES = 20
CUBLAS = "cublas_f16"


class Layer:
    """Copies of one random layer, enough of them to outsize every cache."""

    def __init__(self, oc: int, ic: int, layout: bp.AwqWeightLayout) -> None:
        self.desc = bp.Int4AwqGemmDescriptor(1, ic, oc, weight_layout=layout)
        copies = -(-ROTATED_BYTES // (ic * oc // 2))
        words = (-(1 << 31), 1 << 31)
        zeros = random_words((self.desc.groups, oc // 8), words)
        scales = torch.rand(self.desc.groups, oc, device="cuda").mul_(0.01).half()
        if self.desc.scales_apart:
            self.zeros, self.scales = zeros, scales
            self.weights = [random_words(self.desc.weight_shape, words) for _ in range(copies)]
        else:  # random words would be random scales
            self.zeros = self.scales = None
            self.weights = [_tiled(ic, oc, zeros, scales, words) for _ in range(copies)]

    def calls(self, kernel: bp.Kernel, x: torch.Tensor, y: torch.Tensor) -> list[Callable[[], None]] | None:
        """One bound run a copy of the weights; None if the kernel refuses this m."""
        m, ic = x.shape
        desc = bp.Int4AwqGemmDescriptor(m, ic, y.shape[1], weight_layout=self.desc.weight_layout)
        if bp.explain(desc, x, bp.PlanPreference(sku=kernel.sku)).chosen is None:
            return None
        plan = bp.default_registry().plan(kernel.sku, desc, x)
        workspace = bp.allocate_workspace(plan)
        return [
            plan.bind(bp.Int4AwqGemmArgs(x, weight, self.scales, self.zeros, y), workspace) for weight in self.weights
        ]


def random_words(shape: tuple[int, ...], bounds: tuple[int, int]) -> torch.Tensor:
    return torch.randint(*bounds, shape, dtype=torch.int64, device="cuda").to(torch.int32)


def _tiled(ic: int, oc: int, zeros: torch.Tensor, scales: torch.Tensor, bounds: tuple[int, int]) -> torch.Tensor:
    desc = bp.Int4AwqRepackDescriptor(ic, oc, source=bp.AwqWeightLayout.OC_MAJOR, target=bp.AwqWeightLayout.TILED)
    tiled = torch.empty(desc.target_shape, dtype=torch.int32, device="cuda")
    args = bp.Int4AwqRepackArgs(random_words(desc.source_shape, bounds), zeros, tiled, None, scales)
    bp.select(desc, tiled).run(None, bp.Workspace.NONE, args)
    return tiled


def capture(calls: list[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """A graph of the calls, in order, after a first run outside it."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def measure(graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]]) -> dict[str, list[float]]:
    """Microseconds a call, SAMPLES times each, contenders in turn."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(SAMPLES):
        for name, (graph, launches) in graphs.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # On an idle stream the time between the events would have the host's launch in it.
            graph.replay()
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            times[name].append(start.elapsed_time(stop) * 1e3 / launches)
    return times


def cell(oc: int, ic: int, m: int, layers: list[Layer], dense: list[torch.Tensor]) -> list[dict[str, Any]]:
    """All contenders at one shape and m."""
    x = torch.randn(m, ic, device="cuda").half()
    y = torch.empty(m, oc, device="cuda", dtype=torch.float16)
    graphs = {CUBLAS: (capture([lambda w=w: torch.matmul(x, w.t(), out=y) for w in dense]), len(dense))}
    kept: list[Any] = []
    registry = bp.default_registry()
    for layer in layers:
        chosen = bp.select(_at(layer, m), x).sku
        for sku in registry.skus(op="int4_awq_gemm", arch=bp.ArchSku.SM80, element=bp.ElementKind.F16):
            if sku.epilogue is not bp.EpilogueKind.IDENTITY:
                continue
            calls = layer.calls(registry.kernel(sku), x, y)
            if calls is not None:
                kept.append(calls)
                graphs[sku.variant + ("*" if sku == chosen else "")] = (capture(calls), len(calls))
    times = measure(graphs)
    base = statistics.median(times[CUBLAS])
    return [
        {
            "oc": oc,
            "ic": ic,
            "m": m,
            "kernel": name.rstrip("*"),
            "selected": name.endswith("*"),
            "median_us": round(statistics.median(values), 3),
            "quartiles_us": [round(q, 3) for q in statistics.quantiles(values, n=4)[::2]],
            "over_cublas": round(statistics.median(values) / base, 4),
        }
        for name, values in times.items()
    ]


def _at(layer: Layer, m: int) -> bp.Int4AwqGemmDescriptor:
    return bp.Int4AwqGemmDescriptor(m, layer.desc.ic, layer.desc.oc, weight_layout=layer.desc.weight_layout)


def shape_of(text: str) -> tuple[int, int]:
    oc, ic = text.split("x")
    return int(oc), int(ic)


def headlines(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratio of the selected OC_MAJOR kernel to cuBLAS fp16 at m = 1 and 8 on the two largest shapes."""
    what = "AWQ GEMM over cuBLAS fp16, {oc} x {ic}, m = {m}"
    return [
        {"what": what.format(**c), "value": c["over_cublas"], "unit": "x"}
        for c in cells
        if c["selected"] and c["m"] in (1, 8) and c["oc"] * c["ic"] > 1 << 27 and c["kernel"].endswith("oc_major")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--m", type=int, nargs="+", default=ROWS)
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=SHAPES, metavar="OCxIC")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cells = []
    for oc, ic in track(arguments.shapes, console=Console(stderr=True)):
        layers = [Layer(oc, ic, layout) for layout in bp.AwqWeightLayout]
        copies = -(-ROTATED_BYTES // (ic * oc * 2))
        dense = [torch.randn(oc, ic, device="cuda").mul_(0.02).half() for _ in range(max(copies, 2))]
        for m in arguments.m:
            cells += cell(oc, ic, m, layers, dense)
        del layers, dense
        torch.cuda.empty_cache()
    table = Table("oc x ic", "m", "kernel", "us", "over cuBLAS", title="AWQ GEMM, group 128, f16 (* selected)")
    for c in cells:
        name = c["kernel"] + (" *" if c["selected"] else "")
        table.add_row(f"{c['oc']} x {c['ic']}", str(c["m"]), name, f"{c['median_us']:.1f}", f"{c['over_cublas']:.3f}")
    Console(width=100).print(table)
    record = {**gpu_environment(), "samples": SAMPLES, "cells": cells, "headlines": headlines(cells)}
    print(write_result(arguments.output or gpu_results() / "awq_gemm.json", record))


if __name__ == "__main__":
    main()
