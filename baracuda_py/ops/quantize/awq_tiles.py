"""The layout TILED on the host: packed weights in the order of tensor-core fragments, scales and zero points with them.

    weight_packed (tiles, words), int32: a row is a tile of 64 output channels, all ic long
    a tile        blocks (ic / 128, 2): 128 input channels times the tile's first or last 32 output channels
    a block       2048 bytes of nibbles, 64 * g of scales, 16 * g of zero points; g groups of the block's 128 channels

Output channels are padded to whole tiles, with scales of 0, and input channels to whole blocks, with nibbles that
equal the zero point: what is padded is a weight of 0. Groups longer than 128 channels are cut in groups of 128.

In a block, output channel 16 m + 8 h + r (m, h < 2; r < 8) and input channel 64 c + 16 j + 8 d + 2 t + e (c, d, e < 2;
j, t < 4) lie where the A operand of mma.m16n8k16, and a warp's quarter of wgmma.m64nNk16's, has them in registers:

    nibbles      word [m][c][4 r + t][j], its nibble h + 2 d + 4 e, low bits first: a lane's 16 bytes are 64 channels
    scales       [group][r][m][h], 2 bytes each
    zero points  [group][r][m], a byte each: h = 0 in its low bits

Layout after the A fragments of PTX's mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16").
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

__all__ = ["TILED", "TILE_COLUMNS", "TILE_ROWS", "Tiling", "ceil_div", "pack_tiles", "unpack_tiles"]

TILED = "tiled"
TILE_ROWS = 64  # output channels
TILE_COLUMNS = 128  # input channels of a block
_HALF = 32  # output channels of a block
_WEIGHTS, _SCALES, _ZEROS = 2048, 64, 16  # bytes: of a block, and of a group of it
_FRAGMENTS = 2, 2, 8, 4, 4, 2, 2  # the nibbles of a block: m, c, r, t, j, e, d


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@frozen
class Tiling:
    """Sizes of packed (ic, oc) weights with groups of `group_size`, or -1."""

    ic: int
    oc: int
    group_size: int

    @property
    def group(self) -> int:
        """Input channels that share a scale, as they are stored: at most a block's."""
        return TILE_COLUMNS if self.group_size == -1 else math.gcd(self.group_size, TILE_COLUMNS)

    @property
    def groups_of_block(self) -> int:
        """Groups of a block."""
        return TILE_COLUMNS // self.group

    @property
    def block_nbytes(self) -> int:
        """Bytes of a block, a multiple of 16."""
        return _WEIGHTS + (_SCALES + _ZEROS) * self.groups_of_block

    @property
    def tiles(self) -> int:
        """Tiles along oc."""
        return -(-self.oc // TILE_ROWS)

    @property
    def columns(self) -> int:
        """Blocks along ic."""
        return -(-self.ic // TILE_COLUMNS)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the packed array, in 32-bit words."""
        return self.tiles, self.columns * 2 * self.block_nbytes // 4


def pack_tiles(
    words: NDArray[Any],
    zeros: NDArray[np.uint8],
    scales: NDArray[Any],
    group_size: int,
    out: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """TILED words of a weight, or of some of its tiles.

    words: (oc, ic / 8), 32 bits, as OC_MAJOR has them.   zeros: (groups, oc), 0..15.   scales: (groups, oc), any 2-byte
    type.   group_size: a divisor of ic, or -1.   out: gets the result if given; of the shape that `Tiling` says.
    """
    oc, ic = words.shape[0], words.shape[1] * 8
    tiling = Tiling(ic, oc, group_size)
    tiles, columns, groups = tiling.tiles, tiling.columns, tiling.groups_of_block
    result = np.empty(tiling.shape, np.int32) if out is None else out
    if not result.size:
        return result
    # Groups that are padding have the last group's scale, and its zero point for all their nibbles.
    stored = np.minimum(np.arange(columns * groups) * tiling.group // (ic // len(zeros)), len(zeros) - 1)
    z = np.zeros((columns * groups, tiles * TILE_ROWS), np.uint8)
    s = np.zeros((columns * groups, tiles * TILE_ROWS), np.uint16)
    z[:, :oc], s[:, :oc] = zeros[stored], np.ascontiguousarray(scales).view(np.uint16)[stored]
    pairs = np.ascontiguousarray(words).view(np.uint8)
    if ic % TILE_COLUMNS or oc % TILE_ROWS:
        given, pairs = pairs, np.zeros((tiles * TILE_ROWS, columns * TILE_COLUMNS // 2), np.uint8)
        pairs[:oc, : ic // 2], pairs[:oc, ic // 2 :] = given, (zeros[-1] * 17)[:, None]

    blocks = result.view(np.uint8).reshape(tiles, columns, 2, tiling.block_nbytes)
    end = _WEIGHTS + _SCALES * groups
    fragments = blocks[..., :_WEIGHTS].reshape(tiles, columns, 2, *_FRAGMENTS)
    #                     n      half m  h  r  k        c  j  d  t
    pairs = pairs.reshape(tiles, 2, 2, 2, 8, columns, 2, 4, 2, 4).transpose(3, 0, 5, 1, 2, 6, 4, 9, 7, 8)
    upper, lower = pairs  # of h; a byte holds e = 0 low, e = 1 high: they become bytes that hold h = 0 low, h = 1 high
    fragments[..., 0, :] = upper & 15 | lower << 4
    fragments[..., 1, :] = upper >> 4 | lower & 0xF0
    #             k        group   n      half m  h  r
    s = s.reshape(columns, groups, tiles, 2, 2, 2, 8).transpose(2, 0, 3, 1, 6, 4, 5)
    blocks[..., _WEIGHTS:end] = np.ascontiguousarray(s).view(np.uint8).reshape(tiles, columns, 2, -1)
    z = z.reshape(columns, groups, tiles, 2, 2, 2, 8).transpose(2, 0, 3, 1, 6, 4, 5)
    blocks[..., end:] = (z[..., 0] | z[..., 1] << 4).reshape(tiles, columns, 2, -1)
    return result


def unpack_tiles(
    words: NDArray[Any], ic: int, oc: int, group_size: int, scales_dtype: Any
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[Any]]:
    """Words (oc, ic / 8) in OC_MAJOR, zero points (groups, oc) and scales (groups, oc) of a weight, or of some of its
    tiles."""
    tiling = Tiling(ic, oc, group_size)
    tiles, columns, groups = tiling.tiles, tiling.columns, tiling.groups_of_block
    whole = (ic or 1) if group_size == -1 else group_size
    if not tiles * columns:
        none = np.empty((ic // whole, oc), np.uint8)
        return np.empty((oc, ic // 8), np.int32), none, none.astype(scales_dtype)
    blocks = np.ascontiguousarray(words).view(np.uint8).reshape(tiles, columns, 2, tiling.block_nbytes)
    end = _WEIGHTS + _SCALES * groups
    fragments = blocks[..., :_WEIGHTS].reshape(tiles, columns, 2, *_FRAGMENTS)
    #                                n  half m  h  r  k  c  j  d  t
    even, odd = np.moveaxis(fragments, -2, 0).transpose(0, 1, 3, 4, 6, 2, 5, 8, 9, 7)
    pairs = np.empty((tiles, 2, 2, 2, 8, columns, 2, 4, 2, 4), np.uint8)
    pairs[:, :, :, 0] = even & 15 | odd << 4
    pairs[:, :, :, 1] = even >> 4 | odd & 0xF0
    unpacked = pairs.reshape(tiles * TILE_ROWS, -1).view("<i4")[:oc, : ic // 8]
    s = np.ascontiguousarray(blocks[..., _WEIGHTS:end]).view(scales_dtype).reshape(tiles, columns, 2, groups, 8, 2, 2)
    bytes_ = blocks[..., end:].reshape(tiles, columns, 2, groups, 8, 2)
    z = np.stack([bytes_ & 15, bytes_ >> 4], axis=-1)
    z, s = (array.transpose(1, 3, 0, 2, 5, 6, 4).reshape(columns * groups, -1) for array in (z, s))
    first = np.arange(ic // whole) * whole // tiling.group  # the stored groups that begin one of the weight's
    return np.ascontiguousarray(unpacked), z[first, :oc], s[first, :oc]
