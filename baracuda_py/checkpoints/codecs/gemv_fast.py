"""AWQ GEMV_FAST and llm-awq v2: int16 words of four input channels 8 apart, and -s * z in place of z.

    qweight (oc / 4, ic), int16: input channel k of output channel n is in row n / 4 and
        column 64 (k / 64) + 16 (n % 4) + 8 (k % 64 / 32) + k % 8,  nibble k % 32 / 8
    scales, qzeros (scaled_zeros in v2) (8 width, oc): groups beyond the last are padding;  w = q * s + qzeros

The product -s * z was rounded once to the type of the scales; z is recovered as the integer that rounds to what is
stored. What is exact in these formats are q, z and s; the weights of their kernels, q * s + qzeros, lie up to half a
unit in the last place of s * z away from (q - z) * s.
Sources: AutoAWQ, awq/modules/linear/gemv_fast.py; llm-awq, awq/quantize/qmodule.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baracuda_py.checkpoints import words
from baracuda_py.checkpoints.codecs.awq import padded_groups
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.nibbles import Nibbles

__all__ = ["pack_fast", "pack_v2", "recovered", "scaled_zeros", "unpack"]

_ZEROS_NAMES = ("qzeros", "scaled_zeros")


def unpack(layer: PackedLayer) -> Nibbles:
    """Of an AWQ_GEMV_FAST or LLM_AWQ_V2 layer.

    Raises:
        CheckpointError: scaled zeros that are no multiple 0..15 of their scale, to within one rounding.
    """
    part = next(name for name in _ZEROS_NAMES if name in layer.tensors)
    scales = layer.tensors["scales"][: layer.groups]
    stored = layer.tensors[part][: layer.groups]
    z, fits = recovered(scales, stored)
    if not fits.all():
        group, channel = (int(index) for index in np.argwhere(~fits)[0])
        raise layer.invalid(
            part, "a scaled zero must be -s * z with an integer z of 0..15", "scaled zeros",
            got=f"{float(stored[group, channel])!r} with the scale {float(scales[group, channel])!r} in group {group}, "
            f"channel {channel}; {np.count_nonzero(~fits)} like it",
        )  # fmt: skip
    return Nibbles(_unpack_words(layer.tensors["qweight"]), z, scales)


def pack_fast(nibbles: Nibbles) -> dict[str, NDArray[Any]]:
    """qweight, qzeros, scales; the padding is 0."""
    return _pack(nibbles, "qzeros")


def pack_v2(nibbles: Nibbles) -> dict[str, NDArray[Any]]:
    """qweight, scaled_zeros, scales; the padding is 0."""
    return _pack(nibbles, "scaled_zeros")


def scaled_zeros(scales: NDArray[Any], z: NDArray[np.uint8]) -> NDArray[Any]:
    """-s * z, rounded once to the type of `scales`."""
    with np.errstate(over="ignore", invalid="ignore"):  # scales that are infinite or NaN are for the caller to judge
        return (-(scales.astype(np.float32) * z)).astype(scales.dtype)


def recovered(scales: NDArray[Any], stored: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Zero points (uint8, 0..15) of scaled zeros, and where they are what was stored: one rounding away from -s * z."""
    s, product = scales.astype(np.float64), -stored.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = np.clip(np.nan_to_num(np.rint(product / s), nan=0.0), 0, 15).astype(np.uint8)
        exact = s * z
        spacing = np.spacing(np.abs(exact).astype(scales.dtype)).astype(np.float64)
        fits = np.abs(product - exact) <= spacing
        fits &= (s != 0) | (product == 0)
    return z, fits


def _pack(nibbles: Nibbles, zeros_name: str) -> dict[str, NDArray[Any]]:
    shape = (padded_groups(nibbles), nibbles.oc)
    scales, zeros = np.zeros(shape, nibbles.scales.dtype), np.zeros(shape, nibbles.scales.dtype)
    scales[: nibbles.groups] = nibbles.scales
    zeros[: nibbles.groups] = scaled_zeros(nibbles.scales, nibbles.zeros)
    return {"qweight": _pack_words(nibbles.words), zeros_name: zeros, "scales": scales}


# A run of 64 input channels of 4 output channels: 64 int16 with the axes (n % 4, k % 64 / 32, k % 8) and the nibble
# k % 32 / 8. The word k / 8 of an output channel is the nibble (k % 32 / 8) of 8 neighbours.


def _unpack_words(qweight: NDArray[Any]) -> NDArray[np.int32]:
    rows, ic = qweight.shape
    stored = qweight.view("<u2").reshape(rows, ic // 64, 4, 2, 8)
    result = np.empty((rows, 4, ic // 64, 2, 4), "<i4")
    for nibble in range(4):
        plane = (stored >> (4 * nibble)).astype(np.uint8)
        plane &= 15
        result[..., nibble] = words.pack(plane)[..., 0].transpose(0, 2, 1, 3)
    return result.reshape(rows * 4, ic // 8)


def _pack_words(natural: NDArray[np.int32]) -> NDArray[np.int16]:
    oc, width = natural.shape
    source = natural.reshape(oc // 4, 4, width // 8, 2, 4)
    result = np.zeros((oc // 4, width // 8, 4, 2, 8), "<u2")
    for nibble in range(4):
        plane = words.unpack(np.ascontiguousarray(source[..., nibble].transpose(0, 2, 1, 3))[..., None])
        result |= plane.astype(np.uint16) << (4 * nibble)
    return result.reshape(oc // 4, width * 8).view("<i2")
