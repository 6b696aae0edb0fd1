"""The CUDA kernels of the AWQ GEMM for TILED weights, for compute_80 and later: which entry, which grid.

    stream   each warp streams blocks of 128 input channels, weights and tokens, through a ring of its own; one launch,
             no workspace, any m: 8 or 16 tokens a thread block, so that weights are read again, from L2, for more
    tile     128 output channels of 32, 64 or 128 tokens a thread block, which share what is copied; ic is cut only as
             far as that fills the GPU, f32 partials in the workspace, summed in their order by a second launch
    direct   the same code, ic in one range: no workspace, and m changes no bits
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

from baracuda_py.ops.quantize.awq_gemm_sm80 import guarantee, operands, reduce_launch, streaming_us
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
from baracuda_py.vocab.rules import Rule, at_most, one_of
from baracuda_py.vocab.sku import KernelSku

if TYPE_CHECKING:
    from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmDescriptor

__all__ = ["tiled_kernels"]

_STREAM, _TILE = "quantize.awq_gemm.tiled", "quantize.awq_gemm.tiled_tile"
_ARCH = ArchSku.SM80
_TOKEN_BYTES = 2 * TILE_COLUMNS
# KiB of shared memory that a thread block may have, by compute capability (CUDA programming guide, table of technical
# specifications); others have at least the least of these.
_SHARED_KIB = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227}
_LEAST_SHARED_KIB = 99
_SMALLEST = 32, 8  # channels and tokens of a thread block
_INT = _GRID_X = (1 << 31) - 1


# Thread blocks of the tile kernel that the registers of an SM hold at a time, by its tokens.
_RESIDENT = {32: 3, 64: 1, 128: 1}
_MIN_SPLIT_BLOCKS = 2  # blocks of 128 input channels that are worth a split of their own
_MAX_SPLITS = 32


def _constant(module_name: str, name: str) -> int:
    return module(module_name, _ARCH.name.lower()).constant(name)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# -- stream ------------------------------------------------------------------------------------------------------


def _ring_nbytes(tiling: Tiling, channels: int, tokens: int) -> int:
    """Shared memory of a warp."""
    stages = _constant(_STREAM, f"kT{tokens}Stages")
    return stages * (channels // 32 * tiling.block_nbytes + _TOKEN_BYTES * tokens)


def _stream_launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    """One launch. Its warps depend on everything but m; channels and tokens a thread block change no bits."""
    tiling = Tiling(desc.ic, desc.oc, desc.group_size)
    limit = _SHARED_KIB.get(device.capability or (0, 0), _LEAST_SHARED_KIB) * 1024
    most = _constant(_STREAM, "kTiledThreads") // 32
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


def _stream_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    again = 0.4 * (_ceil_div(desc.m, 16) - 1)  # reads of the weights from L2
    return 3.0 + streaming_us(desc, device, 0.7) * (1 + again)


# -- tile and direct ---------------------------------------------------------------------------------------------


def _tile_tokens(m: int) -> int:
    """Tokens of the tile that serves m rows."""
    return 32 if m <= 32 else 64 if m <= 64 else 128


def _tiles(desc: Int4AwqGemmDescriptor) -> int:
    return _ceil_div(desc.m, _tile_tokens(desc.m)) * _ceil_div(desc.oc, _constant(_TILE, "kTiledTileChannels"))


def _splits(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    """Ranges of ic that give every SM its thread blocks; 1 when the tiles do that alone."""
    fitting = _slots(desc, device) // max(_tiles(desc), 1)
    return max(1, min(fitting, _ceil_div(desc.ic, TILE_COLUMNS) // _MIN_SPLIT_BLOCKS, _MAX_SPLITS))


def _slots(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    """Thread blocks that the GPU holds at a time."""
    per_sm = (_SHARED_KIB.get(device.capability or (0, 0), _LEAST_SHARED_KIB) + 1) * 1024
    fitting = per_sm // (_tile_nbytes(desc) + 1024)  # the system takes a KiB for each
    return device.sm_count * min(_RESIDENT[_tile_tokens(desc.m)], fitting)


def _tile_nbytes(desc: Int4AwqGemmDescriptor) -> int:
    """Shared memory of a thread block: its stages, and in the end its sums."""
    tiling, tokens = Tiling(desc.ic, desc.oc, desc.group_size), _tile_tokens(desc.m)
    channels = _constant(_TILE, "kTiledTileChannels")
    stage = channels // 32 * tiling.block_nbytes + _TOKEN_BYTES * tokens
    return max(_constant(_TILE, f"kT{tokens}TileStages") * stage, tokens * (channels + 4) * 4)


def _tile_launches(desc: Int4AwqGemmDescriptor, splits: int) -> tuple[Launch, ...]:
    tiling, tokens = Tiling(desc.ic, desc.oc, desc.group_size), _tile_tokens(desc.m)
    main = Launch(
        f"awq_gemm_tiled_tile_sm80_{desc.element.name.lower()}_t{tokens}_g{tiling.groups_of_block}",
        (_tiles(desc), 1, splits),
        (_constant(_TILE, f"kT{tokens}TileThreads"), 1, 1),
        (*operands(desc), Pointer(WORKSPACE)),
        _tile_nbytes(desc),
    )
    return (main,) if splits == 1 else (main, reduce_launch(desc, splits))


def _free_launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    return _tile_launches(desc, _splits(desc, device))


def _direct_launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    return _tile_launches(desc, 1)


def _free_workspace(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    splits = _splits(desc, device)
    return splits * desc.m * desc.oc * 4 if splits > 1 else 0


def _tile_cost(desc: Int4AwqGemmDescriptor, device: Device, splits: int) -> float:
    tokens = _tile_tokens(desc.m)
    blocks, slots = _tiles(desc) * splits, _slots(desc, device)
    busy = blocks / (_ceil_div(blocks, slots) * slots)
    flop = 2 * _ceil_div(desc.m, tokens) * tokens * desc.ic * desc.oc
    arithmetic = flop / (device.flop_per_us * 0.35 * max(busy, 1e-3))
    partials = 2 * splits * desc.m * desc.oc * 4 / device.bytes_per_us + 2.5 if splits > 1 else 0.0
    return 4.0 + max(arithmetic, streaming_us(desc, device, 0.5 * min(1.0, busy * 2))) + partials


def _free_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    return _tile_cost(desc, device, _splits(desc, device))


def _direct_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    return _tile_cost(desc, device, 1)


# -- kernels -----------------------------------------------------------------------------------------------------

_LIMITS = (
    *(at_most(name, _INT, why="the kernel takes it as a 32-bit int") for name in ("m", "oc")),
    at_most("ic", _INT - (TILE_COLUMNS - 1), why="the kernel rounds it up to whole blocks in a 32-bit int"),
)
_STREAM_LIMITS = (at_most("outputs", 1 << 53, why="a grid has at most 2^31 x 65,535 blocks"),)
_TILE_LIMITS = (at_most("outputs", 128 * 128 << 30, why="a grid has at most 2^31 blocks"),)


def tiled_kernels(layout: AwqWeightLayout) -> tuple[Kernel, ...]:
    """The kernels, for every element and epilogue. `layout` is TILED."""
    reads = one_of("weight_layout", (layout,), why="a kernel reads one layout", fix="Repack, or let select choose")
    parts: tuple[tuple[str, bool, str, tuple[Rule, ...], Callable[..., Any], Callable[..., float], Any, str], ...] = (
        (
            "stream", True, _STREAM, _STREAM_LIMITS, _stream_launches, _stream_cost, None,
            "decoding: weights read as one stream, no workspace, a row's bits the same at every m",
        ),
        (
            "tile", False, _TILE, _TILE_LIMITS, _free_launches, _free_cost, _free_workspace,
            "more rows; cuts ic only as far as that fills the GPU",
        ),
        (
            "direct", True, _TILE, _TILE_LIMITS, _direct_launches, _direct_cost, None,
            "more rows without a workspace, a row's bits the same at every m",
        ),
    )  # fmt: skip
    return tuple(
        Kernel(
            KernelSku(
                OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_GEMM, element, ElementKind.U4, LayoutSku.RCR, epilogue,
                _ARCH, BackendKind.BESPOKE, guarantee(element, batch_invariant=invariant), f"{variant}_{layout.value}",
            ),
            PtxCode(part, _ARCH, launches),
            cost=cost,
            rules=(reads, *limits, *_LIMITS),
            alignment={"activation": 16, "weight_packed": 16},
            doc=doc,
            **({} if workspace is None else {"workspace": workspace}),
        )
        for (variant, invariant, part, limits, launches, cost, workspace, doc), element, epilogue in product(
            parts, (ElementKind.F16, ElementKind.BF16), EpilogueKind
        )
    )  # fmt: skip
