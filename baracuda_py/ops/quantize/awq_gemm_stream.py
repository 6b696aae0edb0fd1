"""The stream kernel of the AWQ GEMM, for compute_80 and later and weights in any layout: which entry, which grid.

    stream   each warp streams blocks of 128 input channels of its weights through a ring of its own; one launch, no
             workspace, any m: 8 or 16 tokens a thread block, so that weights are read again, from L2, for more
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from attrs import frozen

from baracuda_py.ops.quantize.awq_gemm_sm80 import IC_LIMIT, even_share, guarantee, operands, streaming_us
from baracuda_py.ops.quantize.awq_layout import reads_layout
from baracuda_py.ops.quantize.awq_tiles import TILE_COLUMNS, Tiling, ceil_div
from baracuda_py.registry import Kernel
from baracuda_py.sys import module
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
from baracuda_py.vocab.rules import at_most
from baracuda_py.vocab.sku import KernelSku

if TYPE_CHECKING:
    from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmDescriptor

__all__ = ["shared_nbytes_of", "stream_kernels"]

_ARCH = ArchSku.SM80
_TOKENS = (8, 16)  # of a thread block
# KiB of shared memory that a thread block may have, by compute capability (CUDA programming guide, table of technical
# specifications); others have at least the least of these.
_SHARED_KIB = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227}
_LEAST_SHARED_KIB = 99
_RESERVED_BYTES = 1024  # of an SM's shared memory, for each thread block
_HALF_COLUMNS = 4
_INT = _GRID_X = (1 << 31) - 1


def _module(layout: str, element: ElementKind, groups: int) -> str:
    """A module each: a driver compiles a module as a whole, and a checkpoint needs one."""
    return f"quantize.awq_gemm.stream_{layout}_{element.name.lower()}_g{groups}"


def _constant(name: str) -> int:
    return module(_module("tiled", ElementKind.F16, 1), _ARCH.name.lower()).constant(name)  # all say the same


def shared_nbytes_of(device: Device) -> int:
    """Shared memory that a thread block may have."""
    return _SHARED_KIB.get(device.capability or (0, 0), _LEAST_SHARED_KIB) * 1024


@frozen
class _Tile:
    """The output channels of a warp, warps that take neighbouring ones, and columns of those along ic."""

    channels: int
    rows: int
    columns: int

    @property
    def block_channels(self) -> int:
        return self.channels * self.rows


def _warp_nbytes(desc: Int4AwqGemmDescriptor, channels: int, tokens: int) -> int:
    """Shared memory of a warp: its ring, and for TILED the tokens of a block."""
    unit = channels // 32 * Tiling(desc.ic, desc.oc, desc.group_size).block_nbytes
    return _constant("kStreamStages") * unit + (0 if desc.scales_apart else 2 * TILE_COLUMNS * tokens)


def _two_an_sm(desc: Int4AwqGemmDescriptor, device: Device, channels: int) -> bool:
    """Whether 32-channel tiles are more than the SMs, and an SM has room for two thread blocks of half the warps."""
    nbytes = _HALF_COLUMNS * _warp_nbytes(desc, channels, max(_TOKENS)) + _RESERVED_BYTES
    return (
        channels == 32
        and ceil_div(desc.oc, channels) > device.sm_count
        and 2 * nbytes <= shared_nbytes_of(device) + _RESERVED_BYTES
    )


def _tile(desc: Int4AwqGemmDescriptor, device: Device) -> _Tile:
    """The widest tile that gives most SMs a thread block; two an SM, of half the warps, rather than a second round.

    It does not depend on m, so that m changes no bits. Measured on an H100, for oc from 4096 to 28672.
    """
    tiles = ceil_div(desc.oc, 64) / max(device.sm_count, 1)
    channels, rows, columns = (
        (32, 1, 8) if tiles <= 0.75 else (64, 1, 8) if tiles <= 1 else (64, 1, 4) if tiles <= 2 else (64, 2, 4)
    )
    if _two_an_sm(desc, device, channels):
        columns = _HALF_COLUMNS
    fitting = shared_nbytes_of(device) // _warp_nbytes(desc, channels, max(_TOKENS))
    return _Tile(channels, rows, max(1, min(columns, fitting // rows, ceil_div(desc.ic, TILE_COLUMNS))))


def _launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    tile, layout = _tile(desc, device), desc.weight_layout.value
    tokens = next((count for count in _TOKENS if desc.m <= count), max(_TOKENS))
    across = ceil_div(desc.oc, tile.block_channels)
    row = min(ceil_div(desc.m, tokens), _GRID_X // across)  # blocks of tokens in a row of the grid
    groups = Tiling(desc.ic, desc.oc, desc.group_size).groups_of_block
    return (
        Launch(
            f"awq_gemm_stream_sm80_{desc.element.name.lower()}_{layout}_c{tile.channels}_t{tokens}_g{groups}",
            (across * row, ceil_div(ceil_div(desc.m, tokens), row), 1),
            (32 * tile.rows * tile.columns, 1, 1),
            (*operands(desc), tile.rows),
            tile.rows * tile.columns * _warp_nbytes(desc, tile.channels, tokens),
            _module(layout, desc.element, groups),
        ),
    )


# Shares of bandwidth of up to 8 rows and of more, which take more instructions, and what narrow rows leave of them, for
# they take more copies: measured on an H100.
_SHARES = {"oc_major": (0.53, 0.4, 0.8), "hf_gemm": (0.54, 0.39, 0.66), "tiled": (0.6, 0.48, 0.87)}


def _cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    tile, (few, many, narrow) = _tile(desc, device), _SHARES[desc.weight_layout.value]
    share = (few if desc.m <= min(_TOKENS) else many) * (narrow if tile.channels == 32 else 1)
    if tile.columns > _HALF_COLUMNS:  # an SM has one thread block
        share *= 0.92
    again = 0.8 * (ceil_div(desc.m, max(_TOKENS)) - 1)  # reads of the weights from L2, and the arithmetic
    even = even_share(ceil_div(desc.oc, tile.block_channels), device)
    if _two_an_sm(desc, device, tile.channels):  # the second of an SM takes bandwidth that the others leave
        even = min(1.0, 1.2 * even)
    return 3.0 + streaming_us(desc, device, share * even) * (1 + again)


_LIMITS = (
    *(at_most(name, _INT, why="the kernel takes it as a 32-bit int") for name in ("m", "oc")),
    IC_LIMIT,
    at_most("outputs", 1 << 53, why="a grid has at most 2^31 x 65,535 blocks"),
)


def stream_kernels(layout: AwqWeightLayout) -> tuple[Kernel, ...]:
    """The kernels that read weights in `layout`, for every element and epilogue."""
    reads = reads_layout(layout)
    apart = {} if layout.holds_scales else {"scales": 16, "zeros": 4}
    return tuple(
        Kernel(
            KernelSku(
                OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_GEMM, element, ElementKind.U4,
                LayoutSku.RRR if layout.value == "hf_gemm" else LayoutSku.RCR, epilogue,
                _ARCH, BackendKind.BESPOKE, guarantee(element, batch_invariant=True), f"stream_{layout.value}",
            ),
            PtxCode(_module(layout.value, element, 1), _ARCH, _launches),
            cost=_cost,
            rules=(reads, *_LIMITS),
            alignment={"activation": 16, "weight_packed": 16, **apart},
            doc="decoding: weights read as one stream, no workspace, a row's bits the same at every m",
        )
        for element, epilogue in product((ElementKind.F16, ElementKind.BF16), EpilogueKind)
    )  # fmt: skip
