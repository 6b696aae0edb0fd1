"""The CUDA kernel of the AWQ GEMM that decodes on compute capability 9.0: which entry, which grid.

    bulk     weights by bulk copies, by boxes where scales lie apart, into a ring of each warp, tokens by boxes; one
             launch, no workspace, any m: 8, 16 or 32 tokens a thread block, so that weights are read again, from L2,
             for more
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from attrs import frozen

from baracuda_py.ops.quantize.awq_gemm_sm80 import guarantee, operands, streaming_us
from baracuda_py.ops.quantize.awq_layout import reads_layout
from baracuda_py.ops.quantize.awq_tiles import TILE_COLUMNS, TILE_ROWS, Tiling, ceil_div
from baracuda_py.registry import Kernel
from baracuda_py.sys import module
from baracuda_py.vocab.code import Launch, PtxCode, Stride, TensorMap, WhenOverlapping
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
    from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmDescriptor

__all__ = [
    "ALONE_BYTES",
    "BARRIER_BYTES",
    "BOX_CHANNELS",
    "GRID_Y",
    "SHARED_BYTES",
    "ChannelTile",
    "sm90a_kernels",
    "token_boxes",
]

_ARCH = ArchSku.SM90A
_CHANNELS = (64, 32)  # output channels of a tile
_CHANNELS_OF_HF_GEMM = (128, 64)  # of whose sectors 32 channels are a half
_SHORT = 4  # blocks of input channels a warp: the sums of two thread blocks cost more than half sectors
BOX_CHANNELS = 64  # kBoxChannels of awq_gemm_bulk.cuh
SHARED_BYTES = 227 * 1024  # that a thread block of this architecture may have
BARRIER_BYTES = 8
_BOX_BYTES = 128  # at multiples of which a box lies
# Bytes of weights that an SM keeps in flight: with few, all SMs are served alike, so that they end together, and x does
# not queue. Where a thread block has several tiles, more, which come while it ends one. On an H100 at m = 1, one tile,
# 4096 x 14336: 13.4 us, with twice as many 14.1; two, 14336 x 4096: 13.3, with half as many 14.2.
_IN_FLIGHT = 40 * 1024
_IN_FLIGHT_OF_TILES = 76 * 1024
# How many more channels the SM with the most may have for a larger tile: memory feeds the others meanwhile, and a
# larger tile reads x less often.
_UNEVEN = 1.2
# An SM takes one thread block: of two launches that overlap, those of the next would share SMs while others idle (on an
# H100, 6.6 us instead of 5.2 for 4096 x 4096, m = 1): half of what one may have, and the KiB that each takes besides.
ALONE_BYTES = SHARED_BYTES // 2 + 1024
GRID_Y = (1 << 16) - 1
_INT = (1 << 31) - 1
_ENTRY_TOKENS = (8, 16, 32)
# How much longer a launch streams with up to so many tokens: x is a good part of what an SM is sent, and products take
# as long as weights do. Measured on an H100; for TILED and 16 tokens, what fits an H200 too.
_LONGER = {
    "tiled": (1.0, 1.3, 1.7),
    "hf_gemm": (1.0, 1.12, 1.55),
    "oc_major": (1.0, 1.2, 1.8),
}


def _module(layout: str, element: ElementKind, groups: int) -> str:
    """A module each: a driver compiles a module as a whole, and a checkpoint needs one."""
    return f"quantize.awq_gemm.{'tiled' if layout == 'tiled' else f'bulk_{layout}'}_{element.name.lower()}_g{groups}"


def _constant(name: str) -> int:
    """Of the kernels' sources."""
    return module(_module("tiled", ElementKind.F16, 1), _ARCH.name.lower()).constant(name)  # all say the same


@frozen
class ChannelTile:
    """Output channels of a tile, and thread blocks of a cluster that share out its ic."""

    channels: int
    parts: int

    @property
    def name(self) -> str:
        """As in an entry's."""
        return f"c{self.channels}{f'_p{self.parts}' if self.parts > 1 else ''}"

    def tiles_of_block(self, oc: int, sm_count: int) -> int:
        """Tiles that a thread block takes, so that an SM has one."""
        return ceil_div(ceil_div(oc, self.channels), max(sm_count // self.parts, 1))

    def blocks(self, oc: int, sm_count: int) -> int:
        """Thread blocks along oc, and along ic."""
        return ceil_div(ceil_div(oc, self.channels), self.tiles_of_block(oc, sm_count)) * self.parts


@frozen
class _Tile(ChannelTile):
    """One of the kernel's tiles, and its warps down it and along ic."""

    row_warps: int
    depth_warps: int

    @classmethod
    def of(cls, channels: int, parts: int = 1) -> _Tile:
        row_warps, depth_warps = (_constant(f"kC{channels}{part}Warps") for part in ("Row", "Depth"))
        return cls(channels, parts, row_warps, depth_warps)

    @property
    def warps(self) -> int:
        return self.row_warps * self.depth_warps

    @property
    def warp_channels(self) -> int:
        return self.channels // self.row_warps

    def unit_nbytes(self, tiling: Tiling, *, apart: bool) -> int:
        """What a warp takes at a time; scales and zero points that lie apart begin where boxes may."""
        if not apart:
            return self.warp_channels // 32 * tiling.block_nbytes
        scales = ceil_div(self.warp_channels * 2 * tiling.groups_of_block, _BOX_BYTES) * _BOX_BYTES
        zeros = self.warp_channels // 2 * tiling.groups_of_block
        return ceil_div(self.warp_channels // 2 * TILE_COLUMNS + scales + zeros, 2 * _BOX_BYTES) * (2 * _BOX_BYTES)

    def threads(self, tokens: int, tiles: int) -> int:
        """Of a thread block that takes so many tiles, with those that copy x and those that add sums."""
        return 32 * (self.warps + _constant("kT8OtherWarps" if tokens <= 8 and tiles == 1 else "kOtherWarps"))

    def slot_nbytes(self, tokens: int) -> int:
        """A chunk of x: as many blocks as the tile has warps along ic."""
        return ceil_div(self.depth_warps * TILE_COLUMNS * 2 * tokens, 1024) * 1024

    def shared_nbytes(self, unit: int, tokens: int, stages: int, slots: int) -> int:
        """BulkLayout of awq_gemm_bulk.cuh, of units of so many bytes."""
        rings = self.warps * stages * (unit + BARRIER_BYTES)
        sum_tokens = min(_entry_tokens(tokens), _constant("kMostSumTokens"))
        sums = (2 * self.depth_warps + self.parts - 1) * sum_tokens * self.channels * 2
        return slots * (self.slot_nbytes(tokens) + 2 * BARRIER_BYTES) + rings + sums


def token_boxes(desc: Int4AwqGemmDescriptor, tokens: int, blocks: int) -> TensorMap:
    """x as boxes of 64 input channels: what one copy takes is `tokens` rows of some blocks of 128."""
    return TensorMap(
        "activation", desc.element, (BOX_CHANNELS, desc.m, desc.ic // BOX_CHANNELS),
        (Stride("activation", 0), BOX_CHANNELS), (BOX_CHANNELS, tokens, blocks * TILE_COLUMNS // BOX_CHANNELS),
    )  # fmt: skip


def _tokens(m: int) -> int:
    """Rows of x that a thread block takes: as few passes as can be, of as many each."""
    return ceil_div(m, ceil_div(m, _ENTRY_TOKENS[-1]))


def _entry_tokens(tokens: int) -> int:
    """Tokens that an entry has sums for."""
    return next(count for count in _ENTRY_TOKENS if tokens <= count)


def _halves_sectors(desc: Int4AwqGemmDescriptor) -> bool:
    """Whether 32 channels are half of what memory is read by."""
    layout: str = desc.weight_layout.value
    return layout == "hf_gemm"


def _tile(desc: Int4AwqGemmDescriptor, device: Device) -> _Tile:
    """The largest tile with which the SM that has the most channels has about as few as with any.

    HF_GEMM's 32 channels are half of what memory is read by: where 64 would leave half of the SMs idle, two thread
    blocks share out ic, if it is long and that takes most SMs. It does not depend on m, so that m changes no bits.
    """
    channels = _CHANNELS
    if _halves_sectors(desc) and 2 * ceil_div(desc.oc, 64) > device.sm_count:
        channels = _CHANNELS_OF_HF_GEMM
    elif _halves_sectors(desc):
        halves = _Tile.of(64, 2)
        columns = Tiling(desc.ic, desc.oc, desc.group_size).columns
        long = columns > _SHORT * halves.depth_warps and 2 * halves.blocks(desc.oc, device.sm_count) > device.sm_count
        return halves if long else _Tile.of(32)
    tiles = [_Tile.of(count) for count in channels]
    most = [tile.tiles_of_block(desc.oc, device.sm_count) * tile.channels for tile in tiles]
    return next(tile for tile, channels in zip(tiles, most, strict=True) if channels <= _UNEVEN * min(most))


def _in_flight(desc: Int4AwqGemmDescriptor, device: Device, tile: _Tile, nbytes: int) -> int:
    """Bytes that rings hold, of a tile's `nbytes`."""
    several = tile.tiles_of_block(desc.oc, device.sm_count) > 1
    # Boxes for tiles of 64 want more up to 8 rows (at m = 1, HF_GEMM, 4096 x 14336: 17.3 us instead of 17.7; OC_MAJOR,
    # 8192 x 8192: 15.6 instead of 16.4), and not above.
    boxes = desc.scales_apart and tile.channels == 64 and desc.m <= 8
    # So do OC_MAJOR tiles that rings can hold, on most SMs (4096 x 4096 at m = 1, H100: 5.7 us instead of 6.1), but for
    # TILED (groups of 64, H200: 5.9 instead of 5.6) and HF_GEMM.
    slow = desc.scales_apart and not _halves_sectors(desc)
    whole = slow and nbytes <= _IN_FLIGHT_OF_TILES and 2 * tile.blocks(desc.oc, device.sm_count) > device.sm_count
    return _IN_FLIGHT_OF_TILES if several or boxes or whole else _IN_FLIGHT


def _weight_boxes(desc: Int4AwqGemmDescriptor, tile: _Tile, groups: int) -> tuple[TensorMap, ...]:
    """Weights, scales and zero points of a warp's channels, a block and its groups."""
    channels, stored = tile.warp_channels, desc.ic // desc.group
    rows, row, box = desc.oc, desc.ic // 2, (TILE_COLUMNS // 2, channels, 1)
    if desc.weight_layout.value == "hf_gemm":
        rows, row, box = desc.ic, desc.oc // 2, (channels // 2, TILE_COLUMNS, 1)
    return (
        TensorMap("weight_packed", ElementKind.U8, (row, rows, 1), (row, row), box, swizzled=box[0] > 16),
        TensorMap("scales", desc.scales_kind, (desc.oc, stored, 1), (desc.oc, desc.oc), (channels, groups, 1),
                  swizzled=False),
        TensorMap("zeros", ElementKind.U8, (desc.oc // 2, stored, 1), (desc.oc // 2, desc.oc // 2),
                  (channels // 2, groups, 1), swizzled=False),
    )  # fmt: skip


def _launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    tiling, tile, layout = Tiling(desc.ic, desc.oc, desc.group_size), _tile(desc, device), desc.weight_layout.value
    tokens = _tokens(desc.m)
    tiles = tile.tiles_of_block(desc.oc, device.sm_count)
    chunks = ceil_div(ceil_div(tiling.columns, tile.depth_warps), tile.parts)
    unit = tile.unit_nbytes(tiling, apart=desc.scales_apart)
    in_flight = _in_flight(desc, device, tile, chunks * tile.warps * unit)
    stages = min(max(1, chunks * tiles), in_flight // (tile.warps * unit))
    slot = tile.slot_nbytes(tokens) + 2 * BARRIER_BYTES
    free = SHARED_BYTES - tile.shared_nbytes(unit, tokens, stages, 0)
    if stages > 1 and free < min(chunks, 2) * slot:  # x comes while warps multiply
        stages, free = 1, SHARED_BYTES - tile.shared_nbytes(unit, tokens, 1, 0)
    slots = min(chunks, free // slot)
    groups, element = tiling.groups_of_block, desc.element.name.lower()
    family = f"bulk_sm90a_{element}_{layout}" if desc.scales_apart else f"tiled_sm90a_{element}"
    weights = _weight_boxes(desc, tile, groups) if desc.scales_apart else ()
    return (
        Launch(
            f"awq_gemm_{family}_{tile.name}_t{_entry_tokens(tokens)}_g{groups}",
            (tile.blocks(desc.oc, device.sm_count), ceil_div(desc.m, tokens), 1),
            (tile.threads(tokens, tiles), 1, 1),
            (*operands(desc), tokens, stages, slots, tiles, WhenOverlapping(0, 1),
             token_boxes(desc, tokens, tile.depth_warps), *weights),
            max(ALONE_BYTES, tile.shared_nbytes(unit, tokens, stages, slots)),
            _module(layout, desc.element, groups),
            overlaps=True,
        ),
    )  # fmt: skip


def _cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    tile, sms = _tile(desc, device), max(device.sm_count, 1)
    busy = ceil_div(desc.oc, TILE_ROWS) * TILE_ROWS * tile.parts / (
        tile.tiles_of_block(desc.oc, device.sm_count) * tile.channels * sms
    )  # fmt: skip
    # Reads of the weights again, from L2, and the arithmetic, which starts to count.
    passes = ceil_div(desc.m, _ENTRY_TOKENS[-1])
    rounds = ceil_div(tile.blocks(desc.oc, device.sm_count) * passes, sms)
    oc_major = desc.weight_layout.value == "oc_major"
    again = (0.9 if desc.weight_layout.holds_scales else 0.85) * (rounds - 1) + 0.2 * (passes - rounds)
    # Launch and end, which takes longer where more SMs end together, or wait for each other; and the share of bandwidth
    # that is reached, of all of it and of an SM's part. Measured on an H100.
    filled = min(1.0, desc.oc * desc.ic / 2 / (_IN_FLIGHT * sms))
    fixed_us = 2.1 + filled + (1.0 if tile.parts > 1 else 0.0)
    if not _halves_sectors(desc):
        reached = min(0.58 if oc_major else 0.62, 0.84 * busy)
    elif tile.channels > 32 and tile.parts == 1:
        reached = min(0.55, 0.84 * busy)
    else:
        reached = min(0.49, 0.5 * busy)
    longer = _LONGER[desc.weight_layout.value][_ENTRY_TOKENS.index(_entry_tokens(_tokens(desc.m)))]
    return (fixed_us + streaming_us(desc, device, reached) * longer) * (1 + again)


_LIMITS = (
    multiple_of("ic", BOX_CHANNELS, why="x is copied in boxes of 64 input channels"),
    at_most("m", _ENTRY_TOKENS[-1] * GRID_Y, why="a grid has at most 65,535 blocks along y"),
    at_most("ic", _INT - (TILE_COLUMNS * 16 - 1), why="the kernel rounds it up to whole chunks in a 32-bit int"),
    at_most("oc", _INT - (max(_CHANNELS_OF_HF_GEMM) - 1), why="the kernel rounds it up to whole tiles in a 32-bit int"),
)


def sm90a_kernels(layout: AwqWeightLayout) -> tuple[Kernel, ...]:
    """The kernels that read weights in `layout`, for every element and epilogue."""
    reads = reads_layout(layout)
    channels = multiple_of("oc", 32, why="copies begin at 16 bytes, the zero points of 32 output channels")
    apart = {} if layout.holds_scales else {"scales": 16, "zeros": 16}
    return tuple(
        Kernel(
            KernelSku(
                OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_GEMM, element, ElementKind.U4,
                LayoutSku.RRR if layout.value == "hf_gemm" else LayoutSku.RCR, epilogue,
                _ARCH, BackendKind.BESPOKE, guarantee(element, batch_invariant=True), f"bulk_{layout.value}",
            ),
            PtxCode(_module(layout.value, element, 1), _ARCH, _launches),
            cost=_cost,
            rules=(reads, *_LIMITS, *(() if layout.holds_scales else (channels,))),
            alignment={"activation": 16, "weight_packed": 16, **apart},
            doc="decoding: weights read as one stream by bulk copies, no workspace, a row's bits the same at every m",
        )
        for element, epilogue in product((ElementKind.F16, ElementKind.BF16), EpilogueKind)
    )  # fmt: skip
