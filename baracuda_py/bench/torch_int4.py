"""torch's int4 GEMM, `aten._weight_int4pack_mm`: bf16 activations, a scale and an offset a group, weights packed.

Source: pytorch, aten/src/ATen/native/cuda/int4mm.cu (tinygemm).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from baracuda_py.bench.cells import Cell
from baracuda_py.tuning.arguments import copies_of
from baracuda_py.tuning.timing import GraphTimer, Replay
from baracuda_py.vocab.device import Device

__all__ = ["refusal", "replay"]

_INNER_TILES = 8  # tiles of 16 input channels that are packed together
_GROUPS = (32, 64, 128, 256)


def refusal(cell: Cell, device: Device) -> str:
    """Why the op cannot take part, in words; empty if it can."""
    if device.kind == "host":
        return "the op that is compared runs on CUDA devices"
    if cell.group_size not in _GROUPS:
        return f"the op knows groups of {', '.join(map(str, _GROUPS))}, not {cell.group_size}"
    if cell.ic % (16 * _INNER_TILES):
        return f"ic must be a multiple of {16 * _INNER_TILES}, not {cell.ic}"
    try:
        import torch
    except Exception as error:  # an installation that is broken raises what it will
        return f"torch cannot be imported: {type(error).__name__}: {error}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm"):
        return f"torch {torch.__version__} has no aten._weight_int4pack_mm"
    return ""


@contextmanager
def replay(cell: Cell, device: Device, rotated_nbytes: int, timer: GraphTimer) -> Iterator[Replay]:
    """The op over as many random weights as make `rotated_nbytes`, captured by torch on the timer's stream."""
    import torch

    place = torch.device("cuda", device.ordinal)
    stream: Any = torch.cuda.ExternalStream(timer.stream, device=place)
    with torch.cuda.device(place), torch.cuda.stream(stream):
        x = torch.randn(cell.m, cell.ic, device=place).to(torch.bfloat16)
        shape = (cell.oc // 8, cell.ic // (16 * _INNER_TILES), 32, _INNER_TILES // 2)
        weights = [
            torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int64, device=place).to(torch.int32)
            for _ in range(copies_of(cell.weight_nbytes, rotated_nbytes))
        ]
        scales = torch.randn(cell.ic // cell.group_size, cell.oc, 2, device=place).to(torch.bfloat16)

        def call(weight: Any) -> Any:
            return torch.ops.aten._weight_int4pack_mm(x, weight, cell.group_size, scales)

        call(weights[0])
        torch.cuda.synchronize(place)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for weight in weights:
                call(weight)

    def launch() -> None:
        with torch.cuda.stream(stream):
            graph.replay()

    try:
        yield timer.of_launch(launch, len(weights))
    finally:
        torch.cuda.synchronize(place)
        graph.reset()
