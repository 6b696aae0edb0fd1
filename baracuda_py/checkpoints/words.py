"""Words of eight nibbles on the host, as the codecs need them: what the AWQ ops have, and a transposition of words.

AWQ GEMM's order of the nibbles is `HF_COLUMN_OF_NIBBLE`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baracuda_py.ops.quantize.awq_packing import HF_COLUMN_OF_NIBBLE
from baracuda_py.ops.quantize.nibble_words import NATURAL, pack, transpose_nibbles, unpack

__all__ = ["HF_COLUMN_OF_NIBBLE", "NATURAL", "pack", "transpose_nibbles", "transpose_words", "unpack"]


def transpose_words(words: NDArray[Any]) -> NDArray[np.int32]:
    """A contiguous (columns, rows) copy of words (rows, columns), a tile at a time."""
    rows, columns = words.shape
    result = np.empty((columns, rows), "<i4")
    edge = 128  # 64 KiB on either side
    for top in range(0, rows, edge):
        for left in range(0, columns, edge):
            result[left : left + edge, top : top + edge] = words[top : top + edge, left : left + edge].T
    return result
