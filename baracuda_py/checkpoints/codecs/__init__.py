"""Between the tensors of each format and `Nibbles`: `unpack(layer)`, `pack(format, nibbles)`. Both are exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from baracuda_py.checkpoints.codecs import awq, compressed_tensors, gemv_fast, gptq, marlin
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.nibbles import Nibbles

__all__ = ["pack", "unpack"]

_F = PackedFormat
_UNPACK: Mapping[PackedFormat, Callable[[PackedLayer], Nibbles]] = {
    _F.AWQ_GEMM: awq.unpack_gemm,
    _F.AWQ_GEMV: awq.unpack_gemv,
    _F.AWQ_GEMV_FAST: gemv_fast.unpack,
    _F.LLM_AWQ_V2: gemv_fast.unpack,
    _F.AWQ_MARLIN: marlin.unpack,
    _F.GPTQ_V1: gptq.unpack,
    _F.GPTQ_V2: gptq.unpack,
    _F.COMPRESSED_TENSORS: compressed_tensors.unpack,
}
_PACK: Mapping[PackedFormat, Callable[[Nibbles], dict[str, NDArray[Any]]]] = {
    _F.AWQ_GEMM: awq.pack_gemm,
    _F.AWQ_GEMV: awq.pack_gemv,
    _F.AWQ_GEMV_FAST: gemv_fast.pack_fast,
    _F.LLM_AWQ_V2: gemv_fast.pack_v2,
    _F.AWQ_MARLIN: marlin.pack,
    _F.GPTQ_V1: gptq.pack_v1,
    _F.GPTQ_V2: gptq.pack_v2,
    _F.COMPRESSED_TENSORS: compressed_tensors.pack,
}


def unpack(layer: PackedLayer) -> Nibbles:
    """The nibbles, zero points and scales of a layer, exactly; the words may be a view of the file.

    Raises:
        CheckpointError: data that the format does not allow, such as a g_idx beyond the groups.
        UnsupportedCheckpoint: zero points that readers of the format disagree on.
    """
    return _UNPACK[layer.format](layer)


def pack(format: PackedFormat, nibbles: Nibbles) -> dict[str, NDArray[Any]]:
    """The tensors of `nibbles` in `format`, by the last part of their names; no bias.

    The nibbles must fit: `transcode` makes them so, or says why they do not.
    """
    return _PACK[format](nibbles)
