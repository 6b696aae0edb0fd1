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

from baracuda_py.ops.quantize.nibble_words import NATURAL, pack, transpose_nibbles, unpack

__all__ = [
    "HF_COLUMN_OF_NIBBLE",
    "HF_GEMM",
    "OC_MAJOR",
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


def pack_weight(nibbles: NDArray[np.uint8], layout: str) -> NDArray[np.int32]:
    """Words of `nibbles` (ic, oc): (oc, ic / 8) for OC_MAJOR, (ic, oc / 8) for HF_GEMM."""
    return pack(nibbles if layout == HF_GEMM else nibbles.T, _order(layout))


def unpack_weight(words: NDArray[Any], layout: str) -> NDArray[np.uint8]:
    """Nibbles (ic, oc) of a packed weight; for OC_MAJOR a transposed view of the unpacked array."""
    nibbles = unpack(words, _order(layout))
    return nibbles if layout == HF_GEMM else nibbles.T


def pack_zeros(nibbles: NDArray[np.uint8], layout: str) -> NDArray[np.int32]:
    """Words (groups, oc / 8) of zero points (groups, oc)."""
    return pack(nibbles, _order(layout))


def unpack_zeros(words: NDArray[Any], layout: str) -> NDArray[np.uint8]:
    """Zero points (groups, oc) of words (groups, oc / 8)."""
    return unpack(words, _order(layout))


def repack_weight(
    words: NDArray[Any], *, source: str, target: str, out: NDArray[Any] | None = None
) -> NDArray[np.int32]:
    """The same weight in the other layout, without unpacking it.

    words: 32-bit words in the source's shape.   out: if given, it gets the result: 32-bit words in the target's shape.
    """
    orders = {"source": _order(source), "target": _order(target)}
    if source == target:
        result = np.empty(words.shape, np.int32) if out is None else out.view(np.int32)
        result[...] = words.view(np.int32)
        return result
    return transpose_nibbles(words, **orders, out=out)


def repack_zeros(words: NDArray[Any], *, source: str, target: str) -> NDArray[np.int32]:
    """The same zero points (groups, oc / 8) in the other layout's nibble order."""
    return pack_zeros(unpack_zeros(words, source), target)


def _order(layout: str) -> tuple[int, ...]:
    """Which of a word's eight elements each nibble holds, low bits first."""
    if layout not in (OC_MAJOR, HF_GEMM):
        raise ValueError(f"layout must be {OC_MAJOR!r} or {HF_GEMM!r} (got {layout!r})")
    return NATURAL if layout == OC_MAJOR else HF_COLUMN_OF_NIBBLE
