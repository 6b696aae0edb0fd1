"""AWQ GEMM and GEMV.

    GEMM    qweight (ic, oc / 8), qzeros (groups, oc / 8), nibble per oc, high bits left: [7|5|3|1|6|4|2|0]
    GEMV    qweight (oc, ic / 8), nibble per ic: [7|6|5|4|3|2|1|0]; qzeros (oc, width), the same along the groups;
            scales (oc, 8 width); the groups beyond the last are padding

Sources: AutoAWQ, awq/modules/linear/gemm.py and gemv.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baracuda_py.checkpoints import words
from baracuda_py.checkpoints.formats import Geometry, zeros_width
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.nibbles import Nibbles

__all__ = ["pack_gemm", "pack_gemv", "padded_groups", "unpack_gemm", "unpack_gemv"]


def unpack_gemm(layer: PackedLayer) -> Nibbles:
    """Of an AWQ_GEMM layer."""
    tensors = layer.tensors
    return Nibbles(
        words.transpose_nibbles(tensors["qweight"], source=words.HF_COLUMN_OF_NIBBLE),
        words.unpack(tensors["qzeros"], words.HF_COLUMN_OF_NIBBLE),
        tensors["scales"],
    )


def pack_gemm(nibbles: Nibbles) -> dict[str, NDArray[Any]]:
    """qweight, qzeros, scales."""
    return {
        "qweight": words.transpose_nibbles(nibbles.words, target=words.HF_COLUMN_OF_NIBBLE),
        "qzeros": words.pack(nibbles.zeros, words.HF_COLUMN_OF_NIBBLE),
        "scales": np.ascontiguousarray(nibbles.scales),
    }


def unpack_gemv(layer: PackedLayer) -> Nibbles:
    """Of an AWQ_GEMV layer; its words are the tensor itself."""
    tensors, groups = layer.tensors, layer.groups
    z = words.unpack(tensors["qzeros"])[:, :groups]
    return Nibbles(tensors["qweight"], np.ascontiguousarray(z.T), np.ascontiguousarray(tensors["scales"][:, :groups].T))


def pack_gemv(nibbles: Nibbles) -> dict[str, NDArray[Any]]:
    """qweight, qzeros, scales; the padding is 0."""
    padded = padded_groups(nibbles)
    z = np.zeros((nibbles.oc, padded), np.uint8)
    scales = np.zeros((nibbles.oc, padded), nibbles.scales.dtype)
    z[:, : nibbles.groups], scales[:, : nibbles.groups] = nibbles.zeros.T, nibbles.scales.T
    return {"qweight": np.ascontiguousarray(nibbles.words), "qzeros": words.pack(z), "scales": scales}


def padded_groups(nibbles: Nibbles) -> int:
    """Groups of the GEMV formats, padding included."""
    return 8 * zeros_width(Geometry(nibbles.ic, nibbles.oc, nibbles.ic // nibbles.groups))
