"""The float64 oracle of the AWQ ops: w[k, n] = (q[k, n] - z[k // g, n]) * s[k // g, n], y = x @ w.

Written from the definition of the formats, slowly and in the open, and sharing no code with any kernel or packer.

    natural int32, element per nibble, high bits left:  [7|6|5|4|3|2|1|0]
    hf_gemm int32, column per nibble, high bits left:   [7|5|3|1|6|4|2|0]

oc_major: weight_packed (oc, ic / 8), natural along ic; zeros (groups, oc / 8), natural along oc.
hf_gemm:  weight_packed (ic, oc / 8) and zeros (groups, oc / 8), both interleaved along oc.
scales are (groups, oc) in both; a group size of -1 is one group of all ic rows.

tiled:    weight_packed (ceil(oc / 64), words). Output channel 64 T + 32 f + 16 m + 8 h + r and input channel
128 b + 64 c + 16 j + 8 d + 2 t + e are in block ((T * ceil(ic / 128) + b) * 2 + f) of 2048 + 80 * g bytes, where g is
the number of groups of 128 channels (1 for group sizes 128 and -1):
    its nibble h + 2 d + 4 e of the word at byte ((((2 m + c) * 8 + r) * 4 + t) * 4 + j) * 4;
    of its group G of the block, the scale at byte 2048 + ((8 G + r) * 4 + 2 m + h) * 2,
    and the zero point, nibble h of the byte 2048 + 64 g + (8 G + r) * 2 + m.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "dequantize_reference",
    "gemm_reference",
    "repack_reference",
    "unpack_hf_gemm",
    "unpack_natural",
    "untiled_reference",
]

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


def untiled_reference(
    words: NDArray[Any], ic: int, oc: int, group_size: int, scales_dtype: Any
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[Any]]:
    """Weights and zero points of the layout tiled as oc_major has them, and the scales, bit for bit."""
    group = ic if group_size == -1 else group_size
    parts = max(128 // group, 1) if group_size != -1 else 1
    stored = 128 // parts
    image = np.ascontiguousarray(words).view(np.uint8).reshape(-1)
    width = 2048 + 80 * parts

    def block(k: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.int64]:
        return ((n // 64 * -(-ic // 128) + k // 128) * 2 + n % 64 // 32) * width

    k, n = np.arange(ic)[:, None], np.arange(oc)[None, :]
    m, h, r = n % 32 // 16, n % 16 // 8, n % 8
    c, j, d, t, e = k % 128 // 64, k % 64 // 16, k % 16 // 8, k % 8 // 2, k % 2
    place = h + 2 * d + 4 * e
    at = block(k, n) + ((((2 * m + c) * 8 + r) * 4 + t) * 4 + j) * 4 + place // 2
    q = (image[at].astype(np.int64) >> 4 * (place % 2)) & 15
    first = np.arange(ic // group)[:, None] * group
    in_block = first % 128 // stored
    at = block(first, n) + 2048 + 64 * parts + (8 * in_block + r) * 2 + m
    z = (image[at].astype(np.int64) >> 4 * h) & 15
    at = block(first, n) + 2048 + ((8 * in_block + r) * 4 + 2 * m + h) * 2
    bits = image[at].astype(np.uint16) | image[at + 1].astype(np.uint16) << 8
    return _packed(q.T, range(8)), _packed(z, range(8)), bits.astype(np.uint16).view(scales_dtype)


def repack_reference(
    weight_packed: NDArray[Any],
    zeros: NDArray[Any] | None,
    scales: NDArray[Any] | None,
    *,
    source: str,
    target: str,
    ic: int,
    oc: int,
    group_size: int,
) -> tuple[NDArray[Any], ...]:
    """Weights of the layout `source`, as the layout `target` has them; then zero points and scales that lie apart.

    Scales are given with tiled as the target, and returned with it as the source, as float64.
    """
    if source == "tiled":
        weight_packed, zeros, scales = untiled_reference(weight_packed, ic, oc, group_size, np.float16)
        source = "oc_major"
        moved: tuple[NDArray[Any], ...] = (scales.astype(np.float64),)
    else:
        moved = ()
    assert zeros is not None
    q, z = _unpacked(weight_packed, zeros, source)
    if target == "oc_major":
        return _packed(q.T, range(8)), _packed(z, range(8)), *moved
    if target == "hf_gemm":
        return _packed(q, _HF_NIBBLE_OF_COLUMN), _packed(z, _HF_NIBBLE_OF_COLUMN), *moved
    if target == "tiled":
        assert scales is not None
        return (_tiled(q, z, scales, group_size),)
    raise ValueError(f"layout must be 'oc_major', 'hf_gemm' or 'tiled' (got {target!r})")


def _tiled(
    q: NDArray[np.int64], z: NDArray[np.int64], scales: NDArray[Any], group_size: int
) -> NDArray[np.int32]:
    """Words of the layout tiled, byte by byte, in the order in which they lie. What is padded is a weight of 0."""
    ic, oc = q.shape
    group = ic if group_size == -1 else group_size
    parts = 1 if group_size == -1 else max(128 // group, 1)
    bits = np.ascontiguousarray(scales).view(np.uint16)
    last = len(z) - 1
    image: list[int] = []
    for tile, b, f in np.ndindex(-(-oc // 64), -(-ic // 128), 2):
        rows, columns = 64 * tile + 32 * f, 128 * b
        for m, c, r, t, j, d_e in np.ndindex(2, 2, 8, 4, 4, 4):
            byte = 0
            for h in range(2):
                n, k = rows + 16 * m + 8 * h + r, columns + 64 * c + 16 * j + 8 * (d_e % 2) + 2 * t + d_e // 2
                inside = int(q[k, n]) if k < ic and n < oc else int(z[last, n]) if n < oc else 0
                byte |= inside << 4 * h
            image.append(byte)
        stored = [min((columns + 128 // parts * g) // group, last) for g in range(parts)]
        for g, r, m, h in np.ndindex(parts, 8, 2, 2):
            n = rows + 16 * m + 8 * h + r
            value = int(bits[stored[g], n]) if n < oc else 0
            image += [value & 255, value >> 8]
        for g, r, m in np.ndindex(parts, 8, 2):
            pair = [rows + 16 * m + 8 * h + r for h in range(2)]
            low, high = (int(z[stored[g], n]) if n < oc else 0 for n in pair)
            image.append(low | high << 4)
    return np.array(image, np.uint8).view(np.int32).reshape(-(-oc // 64), -1)


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
        return np.where(v < 0, 0.0, v)
    if name == "bias_gelu":
        return v * 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-v / math.sqrt(2.0))
    if name == "bias_silu":
        with np.errstate(over="ignore", invalid="ignore"):  # exp(710) is inf, and the quotient the right -0
            return v / (1.0 + np.exp(-v))
    raise ValueError(f"epilogue must be 0..4 or one of {EPILOGUES} (got {epilogue!r})")
