"""GPTQ: words along ic, zero points along oc, and perhaps groups that are not in the order of ic.

    qweight (ic / 8, oc), nibble per ic, qzeros (groups, oc / 8), nibble per oc, both natural: [7|6|5|4|3|2|1|0]
    g_idx (ic,): the group of each input channel; without desc_act it is k / group

v2 stores z. v1 stores z - 1, so that it has no z = 0: what says 15 was either 16, which no quantiser makes, or a 0 that
wrapped around. Readers take it for one or the other, so that it is not read here.
Sources: AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py; GPTQModel, gptqmodel/utils/model.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baracuda_py.checkpoints import words
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.nibbles import Nibbles

__all__ = ["pack_v1", "pack_v2", "read_g_idx", "unpack"]

_WRAPPED = 15


def unpack(layer: PackedLayer) -> Nibbles:
    """Of a GPTQ_V1 or GPTQ_V2 layer.

    Raises:
        CheckpointError: a g_idx beyond the groups.
        UnsupportedCheckpoint: a zero point stored as 15 in GPTQ_V1.
    """
    z = words.unpack(layer.tensors["qzeros"])
    if layer.format is PackedFormat.GPTQ_V1:
        wrapped = int(np.count_nonzero(z == _WRAPPED))
        if wrapped:
            raise layer.refuse(
                "zero points must not be 15 in GPTQ v1, which stores z - 1", "zero point",
                got=f"{wrapped} of {z.size}", why="it stands for 0 or for 16, and readers disagree on it",
                fix='If the file is GPTQ v2, its configuration must say checkpoint_format = "gptq_v2"',
            )  # fmt: skip
        z += 1
    natural = words.transpose_words(layer.tensors["qweight"])
    return Nibbles(natural, z, layer.tensors["scales"], read_g_idx(layer, "g_idx")).in_order()


def read_g_idx(layer: PackedLayer, part: str) -> NDArray[np.int32] | None:
    """The group of each input channel, or None if the layer has no such tensor.

    Raises:
        CheckpointError: a group that the layer does not have.
    """
    if part not in layer.tensors:
        return None
    g_idx = layer.tensors[part]
    if g_idx.min() < 0 or g_idx.max() >= layer.groups:
        raise layer.invalid(
            part, f"groups must be in 0..{layer.groups - 1}", "g_idx", got=f"{g_idx.min()}..{g_idx.max()}"
        )
    return g_idx.astype(np.int32)


def pack_v1(nibbles: Nibbles) -> dict[str, NDArray[Any]]:
    """qweight, qzeros, scales, g_idx; no zero point may be 0."""
    return _pack(nibbles, nibbles.zeros - np.uint8(1))


def pack_v2(nibbles: Nibbles) -> dict[str, NDArray[Any]]:
    """qweight, qzeros, scales, g_idx."""
    return _pack(nibbles, nibbles.zeros)


def _pack(nibbles: Nibbles, zeros: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    return {
        "qweight": words.transpose_words(nibbles.words),
        "qzeros": words.pack(zeros),
        "scales": np.ascontiguousarray(nibbles.scales),
        "g_idx": nibbles.group_of_row,
    }
