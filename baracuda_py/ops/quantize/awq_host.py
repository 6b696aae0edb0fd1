"""AWQ GEMM and dequantisation in NumPy: y = epilogue(x @ ((q - z) * s) + bias), computed in float32.

A byte of packed weights is a pair of nibbles. The low nibbles of a block of bytes make one float32 plane and the high
ones another; they are never put side by side. What a plane holds is the layout's business:

    OC_MAJOR  (oc, ic / 2) bytes: the low plane holds the even ic rows, the high plane the odd ones
    HF_GEMM   (ic, oc / 2) bytes: the low plane holds the columns 0 4 1 5 of each eight, the high plane 2 6 3 7

so it is x, or the small result, that gets shuffled. Zero points are subtracted from nibbles, in bytes, since a product
with z and one with the row sums of x would cancel. BLAS does the rest, on `BLOCK_WEIGHTS` weights at a time. TILED
weights are put in order instead, some tiles at a time, and dequantised.

A row of x that holds an inf or a NaN gives a row of sums without a finite value, though an inf may come out as NaN,
where w = 0 as in any GEMM. Values beyond a type's range become inf silently, as on a GPU; so do, there as here, sums of
a group beyond that of float32 before they are scaled.
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from baracuda_py.ops.host_epilogue import IDENTITY, apply_epilogue
from baracuda_py.ops.quantize.awq_packing import HF_COLUMN_OF_NIBBLE, HF_GEMM, OC_MAJOR, unpack_weight, unpack_zeros
from baracuda_py.ops.quantize.awq_tiles import TILE_ROWS, unpack_tiles

__all__ = [
    "BLOCK_WEIGHTS",
    "awq_dequantize_host",
    "awq_dequantize_tiled_host",
    "awq_gemm_host",
    "awq_gemm_tiled_host",
]

# A block is this many rows of packed storage, and this many weights along a row; half of them make a plane.
_BLOCK_ROWS = 512
_BLOCK_ROW_WEIGHTS = 4096
# The most weights that exist as float32 at a time: 4 MiB of them, a plane.
BLOCK_WEIGHTS = _BLOCK_ROWS * _BLOCK_ROW_WEIGHTS // 2

# Rows of x per pass: bounds the float32 copies of x and of the result. Each pass expands the weights once more.
_PASS_ROWS = 1024

# The longest run of ic rows treated as one group; a longer group becomes several with the same scale.
_LONGEST_GROUP = 128

# From this m on it is cheaper to scale the block's weights than the m partial results of each of its groups.
_SCALE_WEIGHTS_FROM_M = 16

LOW, HIGH = 0, 1
Floats = NDArray[np.float32]
Bytes = NDArray[np.int8]
Pair = tuple[Floats, Floats]  # indexed by LOW and HIGH


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def awq_gemm_host(
    activation: NDArray[Any],
    weight_packed: NDArray[np.int32],
    scales: NDArray[Any],
    zeros: NDArray[np.int32],
    output: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    layout: str,
    group_size: int,
    epilogue: int = IDENTITY,
) -> None:
    """Write epilogue(activation @ dequantised weight + bias) into `output`; f32 accumulation, one rounding at the end.

    activation: (m, ic), f16, bf16 or f32, any strides.   output: (m, oc), any float type and strides.
    weight_packed: int32, contiguous rows; (oc, ic / 8) for OC_MAJOR, (ic, oc / 8) for HF_GEMM.
    scales: (ic / group_size, oc), any float type.   zeros: (ic / group_size, oc / 8), int32.
    bias: (oc,), any float type; read by every epilogue but IDENTITY.
    group_size: a divisor of ic and a multiple of 32, or -1 for one group.   ic % 32 == 0, oc % 8 == 0.
    """
    planes = _planes(weight_packed, layout)
    ic, oc = planes.ic, planes.oc
    scales, zeros, group = _split_groups(scales, zeros, ic, group_size)
    for start in range(0, activation.shape[0], _PASS_ROWS):
        x = np.ascontiguousarray(activation[start : start + _PASS_ROWS], dtype=np.float32)
        y = output[start : start + _PASS_ROWS]
        x_halves = planes.split_inputs(x)
        buffer = _product_buffer(planes, len(x), group)
        for columns in _slices(oc, planes.block_columns):
            column_scales = scales[:, columns].astype(np.float32)
            column_zeros = _column_zeros(planes, zeros, columns, layout)
            values = _multiply(planes, x_halves, column_scales, column_zeros, columns, group, buffer)
            apply_epilogue(values, None if bias is None else bias[columns], epilogue)
            y[:, columns] = values


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def awq_gemm_tiled_host(
    activation: NDArray[Any],
    weight_packed: NDArray[np.int32],
    output: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    oc: int,
    scales_dtype: Any,
    group_size: int,
    epilogue: int = IDENTITY,
) -> None:
    """`awq_gemm_host` for TILED weights, which hold their scales, of `scales_dtype`, and zero points."""
    for start in range(0, activation.shape[0], _PASS_ROWS):
        x = np.ascontiguousarray(activation[start : start + _PASS_ROWS], dtype=np.float32)
        for columns, weight in _untiled(weight_packed, x.shape[1], oc, group_size, scales_dtype):
            values = x @ weight
            apply_epilogue(values, None if bias is None else bias[columns], epilogue)
            output[start : start + _PASS_ROWS, columns] = values


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def awq_dequantize_tiled_host(
    weight_packed: NDArray[np.int32],
    output: NDArray[Any],
    *,
    ic: int,
    oc: int,
    scales_dtype: Any,
    group_size: int,
    transposed: bool,
) -> None:
    """`awq_dequantize_host` for TILED weights."""
    target = output.T if transposed else output
    for columns, weight in _untiled(weight_packed, ic, oc, group_size, scales_dtype):
        target[:, columns] = weight


def _untiled(
    weight_packed: NDArray[np.int32], ic: int, oc: int, group_size: int, scales_dtype: Any
) -> Iterator[tuple[slice, Floats]]:
    """Output channels, and their weights (ic, columns) in float32, some tiles at a time."""
    tiles = max(1, BLOCK_WEIGHTS // max(ic * TILE_ROWS, 1))
    for start in range(0, len(weight_packed), tiles):
        columns = slice(start * TILE_ROWS, min((start + tiles) * TILE_ROWS, oc))
        words = weight_packed[start : start + tiles]
        packed, z, s = unpack_tiles(words, ic, columns.stop - columns.start, group_size, scales_dtype)
        weight = unpack_weight(packed, OC_MAJOR).astype(np.float32)
        if ic:
            group = ic // len(z)
            weight -= np.repeat(z, group, axis=0)
            weight *= np.repeat(s.astype(np.float32), group, axis=0)
        yield columns, weight


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def awq_dequantize_host(
    weight_packed: NDArray[np.int32],
    scales: NDArray[Any],
    zeros: NDArray[np.int32],
    output: NDArray[Any],
    *,
    layout: str,
    group_size: int,
    transposed: bool,
) -> None:
    """Write (q - z) * s into `output`, exact up to the one rounding to its type (f16, bf16 or f32).

    output: (ic, oc), or (oc, ic) if `transposed`; any strides. The other arguments are those of `awq_gemm_host`.
    """
    planes = _planes(weight_packed, layout)
    scales, zeros, group = _split_groups(scales, zeros, planes.ic, group_size)
    target = output.T if transposed else output
    for columns in _slices(planes.oc, planes.block_columns):
        column_scales = planes.split_columns(scales[:, columns].astype(np.float32))
        column_zeros = _column_zeros(planes, zeros, columns, layout)
        for groups in _slices(len(scales), max(1, planes.block_inputs // group)):
            inputs = slice(groups.start * group, groups.stop * group)
            for half in LOW, HIGH:
                plane = planes.expand(half, inputs, columns, column_zeros[half][groups])
                _scale_per_group(plane, column_scales[half][groups])
                planes.scatter(half, plane, target[inputs, columns])


class _Planes(Protocol):
    """One layout's reading of packed weights (ic, oc) as a LOW and a HIGH plane of floats.

    x @ w is `merge` of the products split_inputs(x)[half] @ expand(half, ...), and the columns of the latter are those
    of split_columns(...)[half].
    """

    ic: int
    oc: int
    block_inputs: int
    block_columns: int

    def expand(self, half: int, inputs: slice, columns: slice, zeros: Bytes) -> Floats:
        """q - z of a block's plane, (ic rows, columns), valid until the next call. zeros: (groups, columns)."""

    def split_inputs(self, x: Floats) -> Pair: ...

    def split_columns(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]: ...

    def merge(self, low: Floats, high: Floats) -> Floats: ...

    def scatter(self, half: int, plane: Floats, target: NDArray[Any]) -> None:
        """Write a block's plane to its places in `target`, (ic rows, columns) in natural order."""


class _OcMajorPlanes:
    """LOW: even ic rows. HIGH: odd ic rows. Columns in natural order."""

    block_inputs = _BLOCK_ROW_WEIGHTS
    block_columns = _BLOCK_ROWS

    def __init__(self, weight_packed: NDArray[np.int32]) -> None:
        self.oc, self.ic = weight_packed.shape[0], weight_packed.shape[1] * 8
        self._bytes = weight_packed.view(np.uint8)
        self._scratch = _Scratch()

    def expand(self, half: int, inputs: slice, columns: slice, zeros: Bytes) -> Floats:
        nibbles = self._scratch.nibbles(half, self._bytes[columns, inputs.start // 2 : inputs.stop // 2])
        by_group = nibbles.reshape(len(nibbles), len(zeros), -1)
        by_group -= zeros.T[:, :, None]
        return self._scratch.widened(nibbles).T

    def split_inputs(self, x: Floats) -> Pair:
        return np.ascontiguousarray(x[:, 0::2]), np.ascontiguousarray(x[:, 1::2])

    def split_columns(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        # In the planes' own order of axes: NumPy then runs along them, and scaling a plane takes 2.5 times less.
        values = np.asfortranarray(values)
        return values, values

    def merge(self, low: Floats, high: Floats) -> Floats:
        return low + high

    def scatter(self, half: int, plane: Floats, target: NDArray[Any]) -> None:
        target[half::2] = plane


class _HfGemmPlanes:
    """LOW: the columns in the low nibbles of each word's four bytes. HIGH: in the high nibbles."""

    block_inputs = _BLOCK_ROWS
    block_columns = _BLOCK_ROW_WEIGHTS
    _COLUMNS = (HF_COLUMN_OF_NIBBLE[0::2], HF_COLUMN_OF_NIBBLE[1::2])

    def __init__(self, weight_packed: NDArray[np.int32]) -> None:
        self.ic, self.oc = weight_packed.shape[0], weight_packed.shape[1] * 8
        self._bytes = weight_packed.view(np.uint8)
        self._scratch = _Scratch()

    def expand(self, half: int, inputs: slice, columns: slice, zeros: Bytes) -> Floats:
        nibbles = self._scratch.nibbles(half, self._bytes[inputs, columns.start // 2 : columns.stop // 2])
        by_group = nibbles.reshape(len(zeros), -1, nibbles.shape[1])
        by_group -= zeros[:, None, :]
        return self._scratch.widened(nibbles)

    def split_inputs(self, x: Floats) -> Pair:
        return x, x

    def split_columns(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        octets = values.reshape(len(values), -1, 8)
        low, high = (octets[:, :, order].reshape(len(values), -1) for order in self._COLUMNS)
        return low, high

    def merge(self, low: Floats, high: Floats) -> Floats:
        merged = np.empty((len(low), low.shape[1] * 2), dtype=np.float32)
        self.scatter(LOW, low, merged)
        self.scatter(HIGH, high, merged)
        return merged

    def scatter(self, half: int, plane: Floats, target: NDArray[Any]) -> None:
        for byte, column in enumerate(self._COLUMNS[half]):
            target[:, column::8] = plane[:, byte::4]


class _Scratch:
    """Memory of a block's plane, allocated once: fresh pages cost as much as the arithmetic on them."""

    def __init__(self) -> None:
        self._nibbles = np.empty(BLOCK_WEIGHTS, dtype=np.uint8)
        self._plane = np.empty(BLOCK_WEIGHTS, dtype=np.float32)

    def nibbles(self, half: int, pairs: NDArray[np.uint8]) -> Bytes:
        """The low or the high nibbles of `pairs`, contiguous, of its shape."""
        nibbles = self._nibbles[: pairs.size].reshape(pairs.shape)
        if half == LOW:
            np.bitwise_and(pairs, 15, out=nibbles)
        else:
            np.right_shift(pairs, 4, out=nibbles)
        return nibbles.view(np.int8)

    def widened(self, values: Bytes) -> Floats:
        plane = self._plane[: values.size].reshape(values.shape)
        plane[...] = values
        return plane


def _column_zeros(planes: _Planes, zeros: NDArray[np.int32], columns: slice, layout: str) -> tuple[Bytes, Bytes]:
    """Zero points (groups, columns) of some columns, for each plane."""
    unpacked = unpack_zeros(zeros[:, columns.start // 8 : columns.stop // 8], layout)
    return planes.split_columns(unpacked.astype(np.int8))


def _planes(weight_packed: NDArray[np.int32], layout: str) -> _Planes:
    if layout == OC_MAJOR:
        return _OcMajorPlanes(weight_packed)
    if layout == HF_GEMM:
        return _HfGemmPlanes(weight_packed)
    raise ValueError(f"layout must be {OC_MAJOR!r} or {HF_GEMM!r} (got {layout!r})")


def _split_groups(
    scales: NDArray[Any], zeros: NDArray[np.int32], ic: int, group_size: int
) -> tuple[NDArray[Any], NDArray[np.int32], int]:
    """Scales, zeros and group size with no group longer than `_LONGEST_GROUP`; repeats are views where possible."""
    whole = ic if group_size == -1 else group_size
    group = math.gcd(whole, _LONGEST_GROUP)
    if group == whole:
        return scales, zeros, group
    parts = whole // group

    def repeat(rows: NDArray[Any]) -> NDArray[Any]:
        if len(rows) == 1:
            return np.broadcast_to(rows, (parts, rows.shape[1]))
        return np.repeat(rows, parts, axis=0)

    return repeat(scales), repeat(zeros), group


def _multiply(
    planes: _Planes,
    x_halves: Pair,
    scales: Floats,
    zeros: tuple[Bytes, Bytes],
    columns: slice,
    group: int,
    buffer: Floats,
) -> Floats:
    """x @ ((q - z) * s) for some columns, (m, columns); `scales` is (groups, columns), `zeros` that of each plane."""
    m = len(x_halves[LOW])
    plane_scales = planes.split_columns(scales)
    low, high = (np.zeros((m, s.shape[1]), dtype=np.float32) for s in plane_scales)
    totals = low, high
    group_inputs = x_halves[LOW].shape[1] // len(scales)
    for groups in _slices(len(scales), max(1, planes.block_inputs // group)):
        inputs = slice(groups.start * group_inputs, groups.stop * group_inputs)
        for half in LOW, HIGH:
            rows = slice(groups.start * group, groups.stop * group)
            plane = planes.expand(half, rows, columns, zeros[half][groups])
            _accumulate(totals[half], x_halves[half][:, inputs], plane, plane_scales[half][groups], buffer)
    return planes.merge(*totals)


def _accumulate(total: Floats, x: Floats, plane: Floats, scales: Floats, buffer: Floats) -> None:
    """total += x @ (plane, scaled per group). x: (m, k), plane: (k, n), scales: (groups, n)."""
    groups, m = len(scales), len(x)
    if m >= _SCALE_WEIGHTS_FROM_M:
        _scale_per_group(plane, scales)
        total += np.matmul(x, plane, out=buffer[: total.size].reshape(total.shape))
        return
    partial = buffer[: groups * total.size].reshape(groups, *total.shape)
    np.matmul(x.reshape(m, groups, -1).transpose(1, 0, 2), _per_group(plane, groups), out=partial)
    partial *= scales[:, None, :]
    total += partial.sum(axis=0)


def _product_buffer(planes: _Planes, m: int, group: int) -> Floats:
    """Memory for the products of one plane, allocated once."""
    products = 1 if m >= _SCALE_WEIGHTS_FROM_M else max(1, planes.block_inputs // group)
    return np.empty(products * m * min(planes.oc, planes.block_columns), dtype=np.float32)


def _scale_per_group(plane: Floats, scales: Floats) -> None:
    grouped = _per_group(plane, len(scales))
    grouped *= scales[:, None, :]


def _per_group(plane: Floats, groups: int) -> Floats:
    """`plane` (k, n) as a view (groups, k / groups, n)."""
    grouped = plane.reshape(groups, -1, plane.shape[1])
    assert np.may_share_memory(grouped, plane), "splitting the first axis of a plane must not copy it"
    return grouped


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
