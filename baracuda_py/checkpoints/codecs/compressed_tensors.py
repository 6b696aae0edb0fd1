"""compressed-tensors, pack-quantized: a row of words an output channel, symmetric or with zero points.

    weight_packed (oc, ic / 8), nibble per ic: [7|6|5|4|3|2|1|0]
    weight_scale (oc, groups)
    weight_zero_point (oc / 8, groups), nibble per oc, in the same order; not there when symmetric
    weight_shape (2,): oc, ic        weight_g_idx (ic,): the group of each input channel, if not in order

Both nibbles are the signed value plus 8.
Source: compressed-tensors, compressors/quantized_compressors/pack_quantized.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baracuda_py.checkpoints import words
from baracuda_py.checkpoints.codecs.gptq import read_g_idx
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.nibbles import Nibbles

__all__ = ["pack", "unpack"]


def unpack(layer: PackedLayer) -> Nibbles:
    """Of a COMPRESSED_TENSORS layer; its words are the tensor itself.

    Raises:
        CheckpointError: a weight_shape other than the headers', or a g_idx beyond the groups.
    """
    tensors = layer.tensors
    packed = [layer.oc, layer.ic]
    shape = [int(size) for size in tensors["weight_shape"]] if "weight_shape" in tensors else packed
    if shape != packed:
        raise layer.invalid("weight_shape", f"it must be {packed}, as packed", "weight_shape", got=f"{shape}")
    z = None
    if not layer.symmetric:
        along_groups = np.ascontiguousarray(tensors["weight_zero_point"].T)  # (groups, oc / 8)
        z = words.unpack(along_groups)
    scales = np.ascontiguousarray(tensors["weight_scale"].T)
    return Nibbles(tensors["weight_packed"], z, scales, read_g_idx(layer, "weight_g_idx")).in_order()


def pack(nibbles: Nibbles) -> dict[str, NDArray[Any]]:
    """weight_packed, weight_scale, weight_shape, and what there is of weight_zero_point and weight_g_idx."""
    made: dict[str, NDArray[Any]] = {
        "weight_packed": np.ascontiguousarray(nibbles.words),
        "weight_scale": np.ascontiguousarray(nibbles.scales.T),
        "weight_shape": np.array([nibbles.oc, nibbles.ic], np.int64),
    }
    if nibbles.z is not None:
        made["weight_zero_point"] = np.ascontiguousarray(words.pack(nibbles.z).T)
    if nibbles.g_idx is not None:
        made["weight_g_idx"] = nibbles.g_idx
    return made
