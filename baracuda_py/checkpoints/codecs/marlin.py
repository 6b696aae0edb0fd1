"""AWQ-marlin: 16 x 16 tiles in the order in which a warp's tensor-core fragments want them; symmetric.

A block is 16 input channels k by 64 output channels n, four tiles. Its 128 words have, from the slowest axis on,

    n % 8,  k / 2 % 4,  n / 16 % 4           and in a word, from the highest nibble on: k % 2, n / 8 % 2, k / 8 % 2

so that nibble [7|6|5|4|3|2|1|0] is (k % 2, n / 8 % 2, k / 8 % 2) = [111|110|101|100|011|010|001|000] in binary.
qweight (ic / 16, 2 oc): a row holds the blocks of 16 input channels in order of n.

Scales are permuted along n too: with several groups (n / 8 % 8, n % 8) are swapped within each 64 channels; with one
group (n / 8 % 4, n / 2 % 4, n % 2) become (n / 2 % 4, n / 8 % 4, n % 2) within each 32.
Sources: IST-DASLab/marlin, marlin/__init__.py; AutoAWQ, awq/modules/linear/marlin.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baracuda_py.checkpoints import words
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.nibbles import Nibbles

__all__ = ["pack", "permuted_scales", "unpack"]

# ic is walked in runs of this many channels, which bounds what exists unpacked.
_RUN = 512


def unpack(layer: PackedLayer) -> Nibbles:
    """Of an AWQ_MARLIN layer."""
    ic, oc = layer.ic, layer.oc
    qweight = layer.tensors["qweight"]
    result = np.empty((oc, ic // 8), "<i4")
    for start in range(0, ic, _RUN):
        stop = min(start + _RUN, ic)
        nibbles = words.unpack(qweight[start // 16 : stop // 16])
        axes = nibbles.reshape(-1, oc // 64, 8, 4, 4, 2, 2, 2)  # k/16, n/64, n%8, k/2%4, n/16%4, k%2, n/8%2, k/8%2
        ordered = np.ascontiguousarray(axes.transpose(1, 4, 6, 2, 0, 7, 3, 5))
        result[:, start // 8 : stop // 8] = words.pack(ordered.reshape(oc, stop - start))
    return Nibbles(result, None, permuted_scales(layer.tensors["scales"]))


def pack(nibbles: Nibbles) -> dict[str, NDArray[Any]]:
    """qweight, scales."""
    ic, oc = nibbles.ic, nibbles.oc
    result = np.empty((ic // 16, oc * 2), "<i4")
    for start in range(0, ic, _RUN):
        stop = min(start + _RUN, ic)
        natural = words.unpack(nibbles.words[:, start // 8 : stop // 8])
        axes = natural.reshape(oc // 64, 4, 2, 8, -1, 2, 4, 2)  # n/64, n/16%4, n/8%2, n%8, k/16, k/8%2, k/2%4, k%2
        ordered = np.ascontiguousarray(axes.transpose(4, 0, 3, 6, 1, 7, 2, 5))
        result[start // 16 : stop // 16] = words.pack(ordered.reshape(-1, oc * 16))
    return {"qweight": result, "scales": permuted_scales(nibbles.scales)}


def permuted_scales(scales: NDArray[Any]) -> NDArray[Any]:
    """Scales (groups, oc) into the format's order, and back: two axes of one size are swapped."""
    groups, oc = scales.shape
    if groups > 1:
        return np.ascontiguousarray(scales.reshape(groups, oc // 64, 8, 8).swapaxes(2, 3)).reshape(groups, oc)
    return np.ascontiguousarray(scales.reshape(1, oc // 32, 4, 4, 2).swapaxes(2, 3)).reshape(1, oc)
