"""The CUDA kernel of the AWQ GEMM for TILED weights and many tokens on compute capability 9.0: entry, tiles and grid.

wide     128 output channels of 64 to 256 tokens a tile, by warpgroup instructions; a thread block takes tile after
         tile. Those of a last round that leaves most of the GPU idle are cut along ic: f32 partials in the
         workspace, summed in their order by a second launch
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from baracuda_py.ops.quantize.awq_gemm_sm80 import guarantee, operands, streaming_us
from baracuda_py.ops.quantize.awq_gemm_sm90a import BARRIER_BYTES, BOX_CHANNELS, SHARED_BYTES
from baracuda_py.ops.quantize.awq_layout import reads_layout
from baracuda_py.ops.quantize.awq_tiles import TILE_COLUMNS, TILE_ROWS, Tiling
from baracuda_py.ops.quantize.awq_wide_schedule import WideCut, finish_launches
from baracuda_py.registry import Kernel
from baracuda_py.sys import module
from baracuda_py.vocab.code import WORKSPACE, Launch, Pointer, PtxCode, Stride, TensorMap
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
from baracuda_py.vocab.rules import at_most, multiple_of, one_of
from baracuda_py.vocab.sku import KernelSku

if TYPE_CHECKING:
    from baracuda_py.ops.quantize.awq_gemm import Int4AwqGemmDescriptor
    from baracuda_py.ops.quantize.awq_layout import AwqWeightLayout

__all__ = ["wide_kernels"]

_ARCH = ArchSku.SM90A
_TOKENS = (64, 96, 128, 160, 192, 224, 256)  # that a tile has room for
_MAX_STAGES = 6  # blocks of 128 input channels that are asked for ahead
_TILES = 2  # of weights, in a tile of outputs
_BOX_ROW_BYTES = 2 * BOX_CHANNELS
_INT = (1 << 31) - 1


def _module(element: ElementKind, groups: int, *, few: bool) -> str:
    """Modules for few tokens and for many: a driver compiles a module as a whole, and a checkpoint needs two."""
    return f"quantize.awq_gemm.tiled_wide_{'few' if few else 'many'}_{element.name.lower()}_g{groups}"


def _constant(name: str) -> int:
    return module(_module(ElementKind.F16, 1, few=True), _ARCH.name.lower()).constant(name)  # all say the same


def _cut(desc: Int4AwqGemmDescriptor, device: Device) -> WideCut:
    return min(WideCut.all(desc, device, _TOKENS), key=lambda cut: _cut_us(device, cut))


def _launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    tiling, cut = Tiling(desc.ic, desc.oc, desc.group_size), _cut(desc, device)
    groups = tiling.groups_of_block
    few = cut.tokens <= _constant("kWideFewTokens")
    stage = 2 * _BOX_ROW_BYTES * cut.tokens + _TILES * 2 * tiling.block_nbytes + 3 * BARRIER_BYTES
    tight = groups == 4 and cut.tokens > _constant("kWideMostTokens")
    fixed = _TILES * _constant("kWideStoreBytes") // (2 if tight else 1)
    stages = min(_MAX_STAGES, (SHARED_BYTES - fixed) // stage)
    boxes = TensorMap(
        "activation", desc.element, (BOX_CHANNELS, desc.m, desc.ic // BOX_CHANNELS),
        (Stride("activation", 0), BOX_CHANNELS), (BOX_CHANNELS, cut.even, 1),
    )  # fmt: skip
    schedule = (*cut.schedule, cut.token_tiles, cut.even)
    code = _module(desc.element, groups, few=few)
    name = f"awq_gemm_tiled_wide_sm90a_{desc.element.name.lower()}_t{cut.tokens}_g{groups}"
    main = Launch(
        name,
        (cut.blocks, 1, 1),
        (_constant("kWideThreads" if few else "kWideManyThreads"), 1, 1),
        (*operands(desc), Pointer(WORKSPACE), boxes, stages, *schedule),
        stages * stage + fixed,
        code,
        overlaps=True,
    )
    return (main, *finish_launches(main, cut, device, (*operands(desc), Pointer(WORKSPACE), *schedule)))


def _workspace(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    return _cut(desc, device).partial_nbytes


# Of the peak that tiles of so many tokens reach (H200). The fewer they are, the more often a weight is made.
_SHARE_OF_PEAK = {64: 0.55, 96: 0.74, 128: 0.77, 160: 0.81, 192: 0.82, 224: 0.74, 256: 0.81}


def _cut_us(device: Device, cut: WideCut) -> float:
    return cut.us(device, device.flop_per_us * _SHARE_OF_PEAK[cut.tokens])


def _cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    return max(_cut_us(device, _cut(desc, device)), 4.0 + streaming_us(desc, device, 0.7))


_LIMITS = (
    multiple_of("ic", BOX_CHANNELS, why="x is copied in boxes of 64 input channels"),
    at_most("m", _INT, why="the kernel takes it as a 32-bit int"),
    at_most("ic", _INT - (TILE_COLUMNS - 1), why="the kernel rounds it up to whole blocks in a 32-bit int"),
    at_most("oc", _INT - (TILE_ROWS - 1), why="the kernel rounds it up to whole strips in a 32-bit int"),
    at_most("outputs", 64 * 128 << 30, why="the kernel counts tiles in a 32-bit int"),
)


def wide_kernels(layout: AwqWeightLayout) -> tuple[Kernel, ...]:
    """The kernels, for every element and epilogue. `layout` is TILED."""
    reads = reads_layout(layout)
    # A bf16 scale may lie beyond f16's range; an f16 one loses digits as bf16, no more than the weight does.
    scales = {
        ElementKind.F16: (one_of("scales_kind", (ElementKind.F16,), why="it multiplies weights by scales in f16"),),
        ElementKind.BF16: (),
    }
    return tuple(
        Kernel(
            KernelSku(
                OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_GEMM, element, ElementKind.U4, LayoutSku.RCR, epilogue,
                _ARCH, BackendKind.BESPOKE, guarantee(element, batch_invariant=False), f"wide_{layout.value}",
            ),
            PtxCode(_module(element, 1, few=True), _ARCH, _launches),
            cost=_cost,
            rules=(reads, *scales[element], *_LIMITS),
            workspace=_workspace,
            alignment={"activation": 16, "weight_packed": 16},
            doc="many rows: weights made on the way to the tensor cores; cuts ic only where that fills the GPU",
        )
        for element, epilogue in product((ElementKind.F16, ElementKind.BF16), EpilogueKind)
    )  # fmt: skip
