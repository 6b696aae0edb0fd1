"""Words of eight nibbles on the host: pack, unpack, and transpose without unpacking.

Nibble i of a word is its bits 4 i .. 4 i + 3. An order says which of a word's eight elements each nibble holds, low
bits first; in `NATURAL` order nibble i is element i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NATURAL", "pack", "transpose_nibbles", "unpack"]

NATURAL = tuple(range(8))

# A tile of a transposition: 8 * 16 rows of 256 words are 128 KiB, and as much again for a copy: both fit a 1 MiB L2.
# 16 words are one cache line of the result.
_TILE_OCTETS = 16
_TILE_WORDS = 256
# Distance of the halves that a stage swaps, and the mask of the half that moves.
_STAGES = ((16, 0x0000FFFF), (8, 0x00FF00FF), (4, 0x0F0F0F0F))


def pack(nibbles: NDArray[np.uint8], order: Sequence[int] = NATURAL) -> NDArray[np.int32]:
    """Words (..., columns / 8) of nibbles (..., columns); nibble i of a word is column `order[i]` of its eight.

    Raises ValueError unless the columns are a multiple of 8.
    """
    columns = nibbles.shape[-1]
    if columns % 8:
        raise ValueError(f"the packed axis must be a multiple of 8, the nibbles of a word (got {columns})")
    octets = nibbles.reshape(*nibbles.shape[:-1], columns // 8, 8)
    packed = np.empty((*octets.shape[:-1], 4), np.uint8)
    for byte in range(4):
        np.left_shift(octets[..., order[2 * byte + 1]], 4, out=packed[..., byte])
        packed[..., byte] |= octets[..., order[2 * byte]]
    return packed.view("<i4")[..., 0]


def unpack(words: NDArray[Any], order: Sequence[int] = NATURAL) -> NDArray[np.uint8]:
    """Nibbles (..., columns) of words (..., columns / 8): the inverse of `pack`."""
    packed = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
    octets = np.empty((*words.shape, 8), np.uint8)
    for byte in range(4):
        np.bitwise_and(packed[..., byte], 15, out=octets[..., order[2 * byte]])
        np.right_shift(packed[..., byte], 4, out=octets[..., order[2 * byte + 1]])
    return octets.reshape(*words.shape[:-1], words.shape[-1] * 8)


def transpose_nibbles(
    words: NDArray[Any],
    *,
    source: Sequence[int] = NATURAL,
    target: Sequence[int] = NATURAL,
    out: NDArray[Any] | None = None,
) -> NDArray[np.int32]:
    """Words (columns, rows / 8) of the transposed matrix of words (rows, columns / 8).

    Nibble i of a word of `words` is column `source[i]` of its eight; nibble i of a word of the result is row
    `target[i]` of its eight. 8 x 8 nibbles are transposed in three stages of masks and shifts on whole words, a
    tile of the matrix at a time. `out`, if given, gets the result: words of 32 bits, its rows contiguous.

    Source of the idea: H. S. Warren, Hacker's Delight, section 7-3, for bits.
    """
    rows, width = words.shape
    octets = rows // 8
    source_rows = words.view("<u4").reshape(octets, 8, width)
    result = np.empty((width * 8, octets), "<u4") if out is None else out.view("<u4")
    result_rows = result.reshape(width, 8, octets)
    tile = np.empty((8, _TILE_OCTETS, _TILE_WORDS), "<u4")
    moved = np.empty((4, _TILE_OCTETS, _TILE_WORDS), "<u4")
    for start in range(0, octets, _TILE_OCTETS):
        tall = slice(start, min(start + _TILE_OCTETS, octets))
        for left in range(0, width, _TILE_WORDS):
            wide = slice(left, min(left + _TILE_WORDS, width))
            size = (slice(None), slice(tall.stop - tall.start), slice(wide.stop - wide.start))
            block, swapped = tile[size], moved[size]
            for nibble, row in enumerate(target):
                block[nibble] = source_rows[tall, row, wide]
            _transpose_octets(block, swapped)
            for nibble, column in enumerate(source):
                result_rows[wide, column, tall] = block[nibble].T
    return result.view("<i4")


def _transpose_octets(block: NDArray[np.uint32], moved: NDArray[np.uint32]) -> None:
    """Nibble j of block[i] becomes nibble i of block[j], in place. block: (8, ...); moved: (4, ...), scratch."""
    for stage, (shift, mask) in enumerate(_STAGES):
        halves = block.reshape(2**stage, 2, 4 >> stage, *block.shape[1:])
        first, second = halves[:, 0], halves[:, 1]
        swapped = moved.reshape(first.shape)
        np.right_shift(first, shift, out=swapped)
        swapped ^= second
        swapped &= np.uint32(mask)
        second ^= swapped
        swapped <<= shift
        first ^= swapped
