"""The layouts of packed AWQ weights, and what every op that reads them shares: shapes, oracles' arguments, samples."""

from __future__ import annotations

from enum import Enum
from typing import Any

from baracuda_py.ops.quantize.awq_reference import untiled_reference
from baracuda_py.ops.quantize.awq_tiles import Tiling, pack_tiles
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.rules import Rule, one_of

__all__ = ["WEIGHT_SHAPES", "AwqWeightLayout", "plain_reference", "reads_layout", "samples"]

WEIGHT_SHAPES = "(oc, ic / 8) for OC_MAJOR, (ic, oc / 8) for HF_GEMM; for TILED as `AwqWeightLayout.weight_shape` says"


class AwqWeightLayout(Enum):
    """How the 4-bit weights and zero points lie in memory."""

    OC_MAJOR = "oc_major"  # baracuda's: a row of words an output channel
    HF_GEMM = "hf_gemm"  # what Hugging Face *-AWQ checkpoints hold: a row of words an input channel
    TILED = "tiled"  # ours: fragments for tensor cores, scales and zero points beside them

    @property
    def holds_scales(self) -> bool:
        """Whether scales and zero points lie in the packed weights, and are no tensors of their own."""
        return self is AwqWeightLayout.TILED

    def weight_shape(self, ic: int, oc: int, group_size: int) -> tuple[int, int]:
        """Shape of packed (ic, oc) weights, in 32-bit words. The group size counts for TILED alone."""
        if self is AwqWeightLayout.TILED:
            return Tiling(ic, oc, group_size).shape
        return (oc, ic // 8) if self is AwqWeightLayout.OC_MAJOR else (ic, oc // 8)


def plain_reference(layout: AwqWeightLayout, desc: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the oracles, which know OC_MAJOR and HF_GEMM: TILED weights are taken apart."""
    if not layout.holds_scales:
        return {**tensors, "layout": layout.value}
    parts = untiled_reference(
        tensors["weight_packed"], desc.ic, desc.oc, desc.group_size, numpy_dtype(desc.scales_kind)
    )
    return {**tensors, **dict(zip(("weight_packed", "zeros", "scales"), parts, strict=True)), "layout": "oc_major"}


def samples(desc: Any, random: Any) -> dict[str, Any]:
    """TILED weights: random nibbles and zero points, distinct scales."""
    if desc.scales_apart:
        return {}
    import numpy as np

    words = random.integers(0, 1 << 32, (desc.oc, desc.ic // 8), np.uint32)
    zeros = random.integers(0, 16, (desc.groups, desc.oc)).astype(np.uint8)
    zeros.reshape(-1)[:2] = (0, 15)[: zeros.size]
    scales = (1 + random.permutation(desc.groups * desc.oc) % 128 / 128).reshape(zeros.shape)
    return {"weight_packed": pack_tiles(words, zeros, scales.astype(numpy_dtype(desc.scales_kind)), desc.group_size)}


def reads_layout(layout: AwqWeightLayout) -> Rule:
    """The rule of a kernel that reads weights in `layout` alone."""
    fix = f"Repack them as {layout.name} (int4_awq_repack)"
    return one_of("weight_layout", (layout,), why="a kernel reads one layout", fix=fix)
