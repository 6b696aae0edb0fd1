"""The CUDA kernel of the AWQ GEMM for TILED weights, for compute_80 and later: which entry, which grid.

    stream   each warp streams blocks of 128 input channels, weights and tokens, through a ring of its own; one launch,
             no workspace, any m: 8 or 16 tokens a thread block, so that weights are read again, from L2, for more
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from baracuda_py.ops.quantize.awq_gemm_sm80 import guarantee, operands, streaming_us
from baracuda_py.ops.quantize.awq_tiles import TILE_COLUMNS, Tiling
from baracuda_py.registry import Kernel
from baracuda_py.sys import PtxModule, module
from baracuda_py.vocab.code import Launch, PtxCode
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import (
    ArchSku,
    BackendKind,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    OpCategory,
    QuantizeKind,
)
from baracuda_py.vocab.rules import at_most, one_of
from baracuda_py.vocab.sku import KernelSku

if TYPE_CHECKING:
    from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmDescriptor

__all__ = ["tiled_kernels"]

_MODULE = "quantize.awq_gemm.tiled"
_ARCH = ArchSku.SM80
_TOKEN_BYTES = 2 * TILE_COLUMNS
# KiB of shared memory that a thread block may have, by compute capability (CUDA programming guide, table of technical
# specifications); others have at least the least of these.
_SHARED_KIB = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227}
_LEAST_SHARED_KIB = 99
_SMALLEST = 32, 8  # channels and tokens of a thread block
_INT = _GRID_X = (1 << 31) - 1


def _module() -> PtxModule:
    return module(_MODULE, _ARCH.name.lower())


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _ring_nbytes(tiling: Tiling, channels: int, tokens: int) -> int:
    """Shared memory of a warp."""
    stages = _module().constant(f"kT{tokens}Stages")
    return stages * (channels // 32 * tiling.block_nbytes + _TOKEN_BYTES * tokens)


def _launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    """One launch. Its warps depend on everything but m; channels and tokens a thread block change no bits."""
    tiling = Tiling(desc.ic, desc.oc, desc.group_size)
    limit = _SHARED_KIB.get(device.capability or (0, 0), _LEAST_SHARED_KIB) * 1024
    most = _module().constant("kTiledThreads") // 32
    warps = min(tiling.columns, most, limit // _ring_nbytes(tiling, *_SMALLEST))
    wide = (64, 32) if _ceil_div(desc.oc, 64) >= 2 * device.sm_count else (32,)
    high = (16, 8) if desc.m > 8 else (8,)
    fitting = (shape for shape in product(wide, high) if warps * _ring_nbytes(tiling, *shape) <= limit)
    channels, tokens = next(fitting, _SMALLEST)
    across = _ceil_div(desc.oc, channels)
    row = min(_ceil_div(desc.m, tokens), _GRID_X // across)  # blocks of tokens in a row of the grid
    return (
        Launch(
            f"awq_gemm_tiled_sm80_{desc.element.name.lower()}_c{channels}_t{tokens}_g{tiling.groups_of_block}",
            (across * row, _ceil_div(_ceil_div(desc.m, tokens), row), 1),
            (32 * warps, 1, 1),
            operands(desc),
            warps * _ring_nbytes(tiling, channels, tokens),
        ),
    )


def _cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    again = 0.4 * (_ceil_div(desc.m, 16) - 1)  # reads of the weights from L2
    return 3.0 + streaming_us(desc, device, 0.7) * (1 + again)


def tiled_kernels(layout: AwqWeightLayout) -> tuple[Kernel, ...]:
    """The kernels, for every element and epilogue. `layout` is TILED."""
    return tuple(
        Kernel(
            KernelSku(
                OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_GEMM, element, ElementKind.U4, LayoutSku.RCR, epilogue,
                _ARCH, BackendKind.BESPOKE, guarantee(element, batch_invariant=True), f"stream_{layout.value}",
            ),
            PtxCode(_MODULE, _ARCH, _launches),
            cost=_cost,
            rules=(
                one_of("weight_layout", (layout,), why="a kernel reads one layout", fix="Repack, or let select choose"),
                at_most("m", _INT, why="the kernel takes it as a 32-bit int"),
                at_most("outputs", 1 << 53, why="a grid has at most 2^31 x 65,535 blocks"),
                at_most("ic", _INT, why="the kernel takes it as a 32-bit int"),
                at_most("oc", _INT, why="the kernel takes it as a 32-bit int"),
            ),
            alignment={"activation": 16, "weight_packed": 16},
            doc="decoding: weights read as one stream, no workspace, a row's bits the same at every m",
        )
        for element, epilogue in product((ElementKind.F16, ElementKind.BF16), EpilogueKind)
    )  # fmt: skip
