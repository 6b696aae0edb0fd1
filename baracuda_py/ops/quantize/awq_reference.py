"""The float64 oracle of the AWQ ops: w[k, n] = (q[k, n] - z[k // g, n]) * s[k // g, n], y = x @ w.

Written from the definition of the formats, slowly and in the open, and sharing no code with any kernel or packer.

    natural int32, element per nibble, high bits left:  [7|6|5|4|3|2|1|0]
    hf_gemm int32, column per nibble, high bits left:   [7|5|3|1|6|4|2|0]

oc_major: weight_packed (oc, ic / 8), natural along ic; zeros (groups, oc / 8), natural along oc.
hf_gemm:  weight_packed (ic, oc / 8) and zeros (groups, oc / 8), both interleaved along oc.
scales are (groups, oc) in both; a group size of -1 is one group of all ic rows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["dequantize_reference", "gemm_reference", "repack_reference", "unpack_hf_gemm", "unpack_natural"]

_HF_NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)
EPILOGUES = ("identity", "bias", "bias_relu", "bias_gelu", "bias_silu")


def unpack_natural(words: NDArray[Any], columns: int) -> NDArray[np.int64]:
    """Nibbles (rows, columns) of int32 words (rows, columns / 8): column c is nibble c % 8 of word c // 8."""
    nibbles = np.empty((words.shape[0], columns), dtype=np.int64)
    for column in range(columns):
        nibbles[:, column] = (words[:, column // 8] >> (4 * (column % 8))) & 15
    return nibbles


def unpack_hf_gemm(words: NDArray[Any], columns: int) -> NDArray[np.int64]:
    """Nibbles (rows, columns) of int32 words (rows, columns / 8) in AutoAWQ's interleaved order."""
    nibbles = np.empty((words.shape[0], columns), dtype=np.int64)
    for column in range(columns):
        nibbles[:, column] = (words[:, column // 8] >> (4 * _HF_NIBBLE_OF_COLUMN[column % 8])) & 15
    return nibbles


def dequantize_reference(
    weight_packed: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any], *, layout: str, group_size: int
) -> NDArray[np.float64]:
    """The weights (ic, oc) in float64, not rounded."""
    q, z = _unpacked(weight_packed, zeros, layout)
    groups, ic = len(scales), len(q)
    rows_per_group = ic if group_size == -1 else group_size
    if groups * rows_per_group != ic:
        raise ValueError(f"scales must have {ic} / {rows_per_group} rows (got {groups})")
    group_of_row = np.arange(ic) // rows_per_group
    return (q - z[group_of_row]) * scales.astype(np.float64)[group_of_row]


def _unpacked(
    weight_packed: NDArray[Any], zeros: NDArray[Any], layout: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The nibbles (ic, oc) of the weights and (groups, oc) of the zero points."""
    oc = zeros.shape[1] * 8
    if layout == "oc_major":
        return unpack_natural(weight_packed, weight_packed.shape[1] * 8).T, unpack_natural(zeros, oc)
    if layout == "hf_gemm":
        return unpack_hf_gemm(weight_packed, oc), unpack_hf_gemm(zeros, oc)
    raise ValueError(f"layout must be 'oc_major' or 'hf_gemm' (got {layout!r})")


def repack_reference(
    weight_packed: NDArray[Any], zeros: NDArray[Any], *, source: str, target: str
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Weights and zero points of the layout `source`, as the layout `target` has them."""
    q, z = _unpacked(weight_packed, zeros, source)
    if target == "oc_major":
        return _packed(q.T, range(8)), _packed(z, range(8))
    if target == "hf_gemm":
        return _packed(q, _HF_NIBBLE_OF_COLUMN), _packed(z, _HF_NIBBLE_OF_COLUMN)
    raise ValueError(f"layout must be 'oc_major' or 'hf_gemm' (got {target!r})")


def _packed(nibbles: NDArray[np.int64], nibble_of_column: Sequence[int]) -> NDArray[np.int32]:
    """int32 words (rows, columns / 8) of nibbles (rows, columns)."""
    rows, columns = nibbles.shape
    words = np.zeros((rows, columns // 8), dtype=np.int64)
    for column in range(columns):
        words[:, column // 8] |= nibbles[:, column] << (4 * nibble_of_column[column % 8])
    return words.astype(np.uint32).view(np.int32)


def gemm_reference(
    activation: NDArray[Any],
    weight_packed: NDArray[Any],
    scales: NDArray[Any],
    zeros: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    layout: str,
    group_size: int,
    epilogue: int | str = 0,
) -> NDArray[np.float64]:
    """epilogue(activation @ weights + bias), (m, oc) in float64, not rounded.

    activation: (m, ic). bias: (oc,), read by every epilogue but identity. epilogue: a code 0..4 or a name of
    `EPILOGUES`. GELU is the exact one.
    """
    w = dequantize_reference(weight_packed, scales, zeros, layout=layout, group_size=group_size)
    y = activation.astype(np.float64) @ w
    name = epilogue if isinstance(epilogue, str) else EPILOGUES[epilogue]
    if name == "identity":
        return y
    if bias is None:
        raise ValueError(f"epilogue {name} needs a bias (got None)")
    v = y + bias.astype(np.float64)
    if name == "bias":
        return v
    if name == "bias_relu":
        return np.where(v > 0, v, 0.0)
    if name == "bias_gelu":
        return v * 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-v / math.sqrt(2.0))
    if name == "bias_silu":
        return v / (1.0 + np.exp(np.minimum(-v, 700.0)))  # exp(710) overflows; past 700 the quotient is 0 anyway
    raise ValueError(f"epilogue must be 0..4 or one of {EPILOGUES} (got {epilogue!r})")
