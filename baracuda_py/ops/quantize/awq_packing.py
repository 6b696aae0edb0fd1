"""Pack, unpack and repack AWQ nibbles on the host, for both weight layouts.

    OC_MAJOR  weight (oc, ic / 8), nibble per ic, high bits left:   [7|6|5|4|3|2|1|0]
              zeros (groups, oc / 8), the same order along oc
    HF_GEMM   weight (ic, oc / 8), nibble per oc, high bits left:   [7|5|3|1|6|4|2|0]
              zeros (groups, oc / 8), the same order along oc

Words are int32; nibbles are uint8 in 0..15, weights (ic, oc) and zero points (groups, oc), whatever the layout.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HF_COLUMN_OF_NIBBLE",
    "HF_GEMM",
    "OC_MAJOR",
    "REPACK_ROWS",
    "pack_weight",
    "pack_zeros",
    "repack_weight",
    "repack_zeros",
    "unpack_weight",
    "unpack_zeros",
]

OC_MAJOR = "oc_major"
HF_GEMM = "hf_gemm"

# Which of a word's eight columns each nibble holds, low bits first. AutoAWQ's order, made for GPU unpacking.
HF_COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)
_NATURAL = tuple(range(8))

# ic rows that a repack holds unpacked at a time: 256 rows of 32768 columns are 8 MiB.
REPACK_ROWS = 256


def pack_weight(nibbles: NDArray[np.uint8], layout: str) -> NDArray[np.int32]:
    """Words of `nibbles` (ic, oc): (oc, ic / 8) for OC_MAJOR, (ic, oc / 8) for HF_GEMM."""
    if _check_layout(layout) == OC_MAJOR:
        return _pack(nibbles.T, _NATURAL)
    return _pack(nibbles, HF_COLUMN_OF_NIBBLE)


def unpack_weight(words: NDArray[Any], layout: str) -> NDArray[np.uint8]:
    """Nibbles (ic, oc) of a packed weight; for OC_MAJOR a transposed view of the unpacked array."""
    if _check_layout(layout) == OC_MAJOR:
        return _unpack(words, _NATURAL).T
    return _unpack(words, HF_COLUMN_OF_NIBBLE)


def pack_zeros(nibbles: NDArray[np.uint8], layout: str) -> NDArray[np.int32]:
    """Words (groups, oc / 8) of zero points (groups, oc)."""
    return _pack(nibbles, _zeros_order(layout))


def unpack_zeros(words: NDArray[Any], layout: str) -> NDArray[np.uint8]:
    """Zero points (groups, oc) of words (groups, oc / 8)."""
    return _unpack(words, _zeros_order(layout))


def repack_weight(words: NDArray[Any], *, source: str, target: str) -> NDArray[np.int32]:
    """The same weight in the other layout. Beside the result it holds `REPACK_ROWS` unpacked rows at most."""
    if _check_layout(source) == _check_layout(target):
        return np.array(words, dtype=np.int32)
    to_oc_major = target == OC_MAJOR
    ic, oc = (words.shape[0], words.shape[1] * 8) if to_oc_major else (words.shape[1] * 8, words.shape[0])
    result = np.empty((oc, ic // 8) if to_oc_major else (ic, oc // 8), dtype=np.int32)
    for start in range(0, ic, REPACK_ROWS):
        rows = slice(start, min(start + REPACK_ROWS, ic))
        packed_rows = slice(start // 8, rows.stop // 8)
        if to_oc_major:
            result[:, packed_rows] = pack_weight(unpack_weight(words[rows], source), target)
        else:
            result[rows] = pack_weight(unpack_weight(words[:, packed_rows], source), target)
    return result


def repack_zeros(words: NDArray[Any], *, source: str, target: str) -> NDArray[np.int32]:
    """The same zero points (groups, oc / 8) in the other layout's nibble order."""
    return pack_zeros(unpack_zeros(words, source), target)


def _check_layout(layout: str) -> str:
    if layout not in (OC_MAJOR, HF_GEMM):
        raise ValueError(f"layout must be {OC_MAJOR!r} or {HF_GEMM!r} (got {layout!r})")
    return layout


def _zeros_order(layout: str) -> tuple[int, ...]:
    return _NATURAL if _check_layout(layout) == OC_MAJOR else HF_COLUMN_OF_NIBBLE


def _pack(nibbles: NDArray[np.uint8], order: tuple[int, ...]) -> NDArray[np.int32]:
    """Words (rows, columns / 8); `order[i]` is the column of nibble i, low bits first."""
    rows, columns = nibbles.shape
    if columns % 8:
        raise ValueError(f"the packed axis must be a multiple of 8, the nibbles of a word (got {columns})")
    octets = nibbles.reshape(rows, columns // 8, 8)
    packed = np.empty((rows, columns // 8, 4), dtype=np.uint8)
    for byte in range(4):
        np.left_shift(octets[..., order[2 * byte + 1]], 4, out=packed[..., byte])
        packed[..., byte] |= octets[..., order[2 * byte]]
    return packed.view("<i4")[..., 0].astype(np.int32, copy=False)


def _unpack(words: NDArray[Any], order: tuple[int, ...]) -> NDArray[np.uint8]:
    """Nibbles (rows, columns) of words (rows, columns / 8)."""
    packed = np.ascontiguousarray(words, dtype="<i4").view(np.uint8).reshape(*words.shape, 4)
    octets = np.empty((*words.shape, 8), dtype=np.uint8)
    for byte in range(4):
        np.bitwise_and(packed[..., byte], 15, out=octets[..., order[2 * byte]])
        np.right_shift(packed[..., byte], 4, out=octets[..., order[2 * byte + 1]])
    return octets.reshape(words.shape[0], -1)
