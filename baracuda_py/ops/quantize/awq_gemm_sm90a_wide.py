"""The CUDA kernel of the AWQ GEMM for TILED weights and many tokens on compute capability 9.0: entry and grid.

    wide     128 output channels of 32, 64 or 128 tokens a thread block, by warpgroup instructions; ic is cut only as
             far as that fills the GPU, f32 partials in the workspace, summed in their order by a second launch
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from baracuda_py.ops.quantize.awq_gemm_sm80 import guarantee, operands, reduce_launch, streaming_us
from baracuda_py.ops.quantize.awq_gemm_sm90a import BARRIER_BYTES, BOX_CHANNELS, SHARED_BYTES, token_boxes
from baracuda_py.ops.quantize.awq_tiles import TILE_COLUMNS, Tiling
from baracuda_py.registry import Kernel
from baracuda_py.sys import module
from baracuda_py.vocab.code import WORKSPACE, Launch, Pointer, PtxCode
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
_MAX_STAGES = 6
_MIN_SPLIT_BLOCKS = 4  # blocks of 128 input channels that are worth a split of their own
_MAX_SPLITS = 16
_INT = (1 << 31) - 1


def _module(element: ElementKind) -> str:
    return f"quantize.awq_gemm.tiled_wide_{element.name.lower()}"


def _constant(desc: Int4AwqGemmDescriptor, name: str) -> int:
    return module(_module(desc.element), _ARCH.name.lower()).constant(name)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _tokens(m: int) -> int:
    """Tokens of the tile that serves m rows."""
    return 32 if m <= 32 else 64 if m <= 64 else 128


def _tiles(desc: Int4AwqGemmDescriptor) -> int:
    return _ceil_div(desc.m, _tokens(desc.m)) * _ceil_div(desc.oc, _constant(desc, "kTiledTileChannels"))


def _splits(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    """Ranges of ic that give every SM a thread block; 1 when the tiles do that alone."""
    fitting = device.sm_count // max(_tiles(desc), 1)
    return max(1, min(fitting, _ceil_div(desc.ic, TILE_COLUMNS) // _MIN_SPLIT_BLOCKS, _MAX_SPLITS))


def _launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    tiling, tokens, splits = Tiling(desc.ic, desc.oc, desc.group_size), _tokens(desc.m), _splits(desc, device)
    weights = _constant(desc, "kTiledTileChannels") // 32 * tiling.block_nbytes
    stage = 2 * TILE_COLUMNS * tokens + weights + 2 * BARRIER_BYTES
    stages = min(_MAX_STAGES, SHARED_BYTES // stage, max(2, _ceil_div(tiling.columns, splits)))  # two hold the sums
    main = Launch(
        f"awq_gemm_tiled_wide_sm90a_{desc.element.name.lower()}_t{tokens}_g{tiling.groups_of_block}",
        (_tiles(desc), 1, splits),
        (_constant(desc, "kWideThreads"), 1, 1),
        (*operands(desc), Pointer(WORKSPACE), token_boxes(desc, tokens, 1), stages),
        stages * stage,
        overlaps=True,
    )
    return (main,) if splits == 1 else (main, reduce_launch(desc, splits))


def _workspace(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    splits = _splits(desc, device)
    return splits * desc.m * desc.oc * 4 if splits > 1 else 0


def _cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    tokens, splits = _tokens(desc.m), _splits(desc, device)
    blocks = _tiles(desc) * splits
    busy = blocks / (_ceil_div(blocks, device.sm_count) * device.sm_count) if device.sm_count else 1.0
    flop = 2 * _ceil_div(desc.m, tokens) * tokens * desc.ic * desc.oc
    arithmetic = flop / (device.flop_per_us * 0.5 * max(busy, 1e-3))
    partials = 2 * splits * desc.m * desc.oc * 4 / device.bytes_per_us + 2.5 if splits > 1 else 0.0
    return 4.0 + max(arithmetic, streaming_us(desc, device, 0.7 * min(1.0, busy * 1.5))) + partials


_LIMITS = (
    multiple_of("ic", BOX_CHANNELS, why="x is copied in boxes of 64 input channels"),
    at_most("m", _INT, why="the kernel takes it as a 32-bit int"),
    at_most("ic", _INT - (TILE_COLUMNS - 1), why="the kernel rounds it up to whole blocks in a 32-bit int"),
    at_most("oc", _INT, why="the kernel takes it as a 32-bit int"),
    at_most("outputs", 64 * 128 << 30, why="a grid has at most 2^31 blocks"),
)


def wide_kernels(layout: AwqWeightLayout) -> tuple[Kernel, ...]:
    """The kernels, for every element and epilogue. `layout` is TILED."""
    reads = one_of("weight_layout", (layout,), why="a kernel reads one layout", fix="Repack, or let select choose")
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
            PtxCode(_module(element), _ARCH, _launches),
            cost=_cost,
            rules=(reads, *scales[element], *_LIMITS),
            workspace=_workspace,
            alignment={"activation": 16, "weight_packed": 16},
            doc="many rows: weights made on the way to the tensor cores; cuts ic only as far as that fills the GPU",
        )
        for element, epilogue in product((ElementKind.F16, ElementKind.BF16), EpilogueKind)
    )  # fmt: skip
