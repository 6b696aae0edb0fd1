"""The CUDA kernel of the AWQ GEMM for TILED weights and some tokens on compute capability 9.0: entry, tiles and grid.

warpgroup    64 or 128 output channels of 16, 32 or 64 tokens a tile, by warpgroup instructions, whose sums are scaled;
             two warpgroups share out ic; one launch, no workspace, any m
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from baracuda_py.ops.quantize.awq_gemm_sm80 import guarantee, operands, streaming_us
from baracuda_py.ops.quantize.awq_gemm_sm90a import (
    ALONE_BYTES,
    BARRIER_BYTES,
    BOX_CHANNELS,
    GRID_Y,
    SHARED_BYTES,
    ChannelTile,
    token_boxes,
)
from baracuda_py.ops.quantize.awq_layout import reads_layout
from baracuda_py.ops.quantize.awq_tiles import TILE_COLUMNS, TILE_ROWS, Tiling, ceil_div
from baracuda_py.registry import Kernel
from baracuda_py.sys import module
from baracuda_py.vocab.code import Launch, PtxCode, WhenOverlapping
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
from baracuda_py.vocab.rules import at_most, multiple_of
from baracuda_py.vocab.sku import KernelSku

if TYPE_CHECKING:
    from baracuda_py.ops.quantize.awq_gemm import Int4AwqGemmDescriptor
    from baracuda_py.ops.quantize.awq_layout import AwqWeightLayout

__all__ = ["warpgroup_kernels"]

_ARCH = ArchSku.SM90A
_ENTRY_TOKENS = (16, 32, 64)
_DEPTHS = 2  # warpgroups that share out ic
_IN_FLIGHT = 76 * 1024  # bytes of weights that an SM keeps in flight, at least
_INT = (1 << 31) - 1


def _module(element: ElementKind, groups: int) -> str:
    """A module each: a driver compiles a module as a whole, and a checkpoint needs one."""
    return f"quantize.awq_gemm.warpgroup_{element.name.lower()}_g{groups}"


def _constant(name: str) -> int:
    return module(_module(ElementKind.F16, 1), _ARCH.name.lower()).constant(name)  # all say the same


def _entry_tokens(tokens: int) -> int:
    """Tokens that an entry has sums for."""
    return next(count for count in _ENTRY_TOKENS if tokens <= count)


def _share(tile: ChannelTile, oc: int, sm_count: int) -> float:
    """Output channels, with all of ic, of the SM that has the most."""
    return tile.tiles_of_block(oc, sm_count) * tile.channels / tile.parts


def _tile(desc: Int4AwqGemmDescriptor, device: Device) -> ChannelTile:
    """The tile with which the SM that has the most has the least; of those the larger, which reads x less often.

    It does not depend on m, so that m changes no bits.
    """
    columns = Tiling(desc.ic, desc.oc, desc.group_size).columns
    tiles = [ChannelTile(128, 1), ChannelTile(64, 1), *([ChannelTile(64, 2)] if columns > 2 else [])]
    tiles = [tile for tile in tiles if tile.parts == 1 or tile.tiles_of_block(desc.oc, device.sm_count) == 1]
    return min(tiles, key=lambda tile: _share(tile, desc.oc, device.sm_count))


def _launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    tiling, tile = Tiling(desc.ic, desc.oc, desc.group_size), _tile(desc, device)
    groups, element = tiling.groups_of_block, desc.element.name.lower()
    tokens = ceil_div(desc.m, ceil_div(desc.m, _ENTRY_TOKENS[-1]))  # as few passes as can be, of as many each
    entry_tokens = _entry_tokens(tokens)
    even = ceil_div(tokens, 8) * 8
    tiles = tile.tiles_of_block(desc.oc, device.sm_count)
    blocks = 128 // tile.channels  # of 128 input channels, of an item
    unit = 4 * tiling.block_nbytes
    item = unit + blocks * TILE_COLUMNS * 2 * entry_tokens + 2 * BARRIER_BYTES
    fixed = tile.channels * tile.parts * entry_tokens * 4 + _DEPTHS * _constant("kWideStoreBytes")
    items = ceil_div(ceil_div(tiling.columns, blocks), tile.parts)
    wanted = ceil_div(_IN_FLIGHT, _DEPTHS * unit)
    stages = min(ceil_div(items, _DEPTHS) * tiles, wanted, (SHARED_BYTES - fixed) // (_DEPTHS * item))
    return (
        Launch(
            f"awq_gemm_warpgroup_sm90a_{element}_{tile.name}_t{entry_tokens}_g{groups}",
            (tile.blocks(desc.oc, device.sm_count), ceil_div(desc.m, even), 1),
            (_constant("kWarpgroupKernelThreads"), 1, 1),
            (*operands(desc), even, stages, tiles, WhenOverlapping(0, 1), token_boxes(desc, even, blocks)),
            max(ALONE_BYTES, _DEPTHS * stages * item + fixed),
            _module(desc.element, groups),
            overlaps=True,
        ),
    )


# How much longer a launch streams with up to so many tokens; less so in tiles of 128 channels, for which x is read half
# as often. Measured on an H200.
_LONGER = {16: 1.08, 32: 1.22, 64: 1.65}
_WIDER = 0.93


def _cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    tile, sms = _tile(desc, device), max(device.sm_count, 1)
    busy = ceil_div(desc.oc, TILE_ROWS) * TILE_ROWS / (_share(tile, desc.oc, sms) * sms)
    passes = ceil_div(desc.m, _ENTRY_TOKENS[-1])
    longer = _LONGER[_entry_tokens(ceil_div(desc.m, passes))]
    fixed_us = 2.7 + (1.0 if tile.parts > 1 else 0.0)
    wider = _WIDER if tile.channels == 2 * TILE_ROWS else 1.0
    return fixed_us + streaming_us(desc, device, 0.84 * min(busy, 1.0)) * longer * wider * passes


_LIMITS = (
    multiple_of("ic", BOX_CHANNELS, why="x is copied in boxes of 64 input channels"),
    at_most("m", _ENTRY_TOKENS[-1] * GRID_Y, why="a grid has at most 65,535 blocks along y"),
    at_most("ic", _INT - (16 * TILE_COLUMNS - 1), why="the kernel counts some blocks beyond it in a 32-bit int"),
    at_most("oc", _INT - (2 * TILE_ROWS - 1), why="the kernel rounds it up to whole tiles in a 32-bit int"),
)


def warpgroup_kernels(layout: AwqWeightLayout) -> tuple[Kernel, ...]:
    """The kernels, for every element and epilogue. `layout` is TILED."""
    reads = reads_layout(layout)
    return tuple(
        Kernel(
            KernelSku(
                OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_GEMM, element, ElementKind.U4, LayoutSku.RCR, epilogue,
                _ARCH, BackendKind.BESPOKE, guarantee(element, batch_invariant=True), f"warpgroup_{layout.value}",
            ),
            PtxCode(_module(element, 1), _ARCH, _launches),
            cost=_cost,
            rules=(reads, *_LIMITS),
            alignment={"activation": 16, "weight_packed": 16},
            doc="some rows: weights made on the way to tensor cores, no workspace, a row's bits the same at every m",
        )
        for element, epilogue in product((ElementKind.F16, ElementKind.BF16), EpilogueKind)
    )  # fmt: skip
