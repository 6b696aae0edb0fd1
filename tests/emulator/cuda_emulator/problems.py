"""Problems beyond the examples of the ops: small, yet as large as it takes to meet every path of a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

from attrs import evolve

import baracuda_py as bp
from baracuda_py.ops import builtin_ops
from baracuda_py.plan import Plan
from baracuda_py.registry import Kernel, Op, Registry
from baracuda_py.testing.calls import Case, cases, serves
from baracuda_py.vocab.code import PtxCode, SequenceCode

__all__ = ["composed_kernels", "cuda_kernels", "cuda_ops", "not_served", "problems"]

_BOTH = (bp.AwqWeightLayout.OC_MAJOR, bp.AwqWeightLayout.HF_GEMM)
_TILED, _HF_GEMM, _OC_MAJOR = bp.AwqWeightLayout.TILED, bp.AwqWeightLayout.HF_GEMM, bp.AwqWeightLayout.OC_MAJOR
_CHANGES = tuple(permutations(bp.AwqWeightLayout, 2))

_FURTHER: dict[str, tuple[Any, ...]] = {
    "int4_awq_gemm": (
        # More stages than the ring of any tile has; ragged last tiles of rows, columns and k; 136 channels do not
        # start at multiples of 16 bytes in HF_GEMM weights.
        *(bp.Int4AwqGemmDescriptor(20, 1056, 136, 32, None, layout) for layout in _BOTH),
        *(bp.Int4AwqGemmDescriptor(9, 1056, 136, -1, None, layout) for layout in _BOTH),
        *(bp.Int4AwqGemmDescriptor(130, 640, 192, 128, 2, layout) for layout in _BOTH),
        *(bp.Int4AwqGemmDescriptor(20, 640, 64, 64, 5, layout, bp.ElementKind.BF16) for layout in _BOTH),
        # Every warp of the small-m kernels takes more than one block of k.
        *(bp.Int4AwqGemmDescriptor(3, 2304, 136, group, None, layout) for group in (128, 64, 32) for layout in _BOTH),
        *(bp.Int4AwqGemmDescriptor(8, 2080, 72, -1, None, layout, bp.ElementKind.BF16) for layout in _BOTH),
        # Every warp goes round its ring more than once; more tokens than a block takes; ragged last blocks of k.
        *(bp.Int4AwqGemmDescriptor(m, 4160, 40, group, None, _TILED) for m, group in ((3, -1), (9, 64), (35, 32))),
        *(bp.Int4AwqGemmDescriptor(m, 4224, 72, 128, None, _TILED, bp.ElementKind.BF16) for m in (8, 17)),
        # Tiles of every height; more stages than a ring has, in ranges of k; channels and tokens that are ragged.
        *(bp.Int4AwqGemmDescriptor(m, ic, oc, group, None, _TILED) for m, ic, oc, group in
          ((31, 800, 200, 32), (64, 1088, 72, 64), (70, 896, 264, 128), (150, 544, 136, -1))),
    ),
    "int4_awq_fp8_gemm": (
        # Tiles of every height; more stages than a ring has, in ranges of k; all that can be is ragged.
        *(bp.Int4AwqFp8GemmDescriptor(m, ic, oc, group, _TILED) for m, ic, oc, group in
          ((40, 800, 200, 32), (70, 1600, 72, 64), (150, 544, 136, -1), (130, 1152, 264, 128))),
        # On a slice of a GPU, more tiles than SMs take at a time: so short that no wait for a stage parts one from the
        # next, and longer than the ring.
        *(bp.Int4AwqFp8GemmDescriptor(20, 128, 2056, 128, _TILED, element, bp.EpilogueKind.BIAS_GELU)
          for element in (bp.ElementKind.F16, bp.ElementKind.BF16)),
        bp.Int4AwqFp8GemmDescriptor(20, 1152, 1032, 128, _TILED, bp.ElementKind.BF16),
    ),
    "int4_awq_dequantize": (
        # Several tiles each way, the last ones ragged; every number of groups of a block; scales of the other element.
        *(bp.Int4AwqDequantizeDescriptor(ic, oc, group, _TILED, element, scales, layout) for ic, oc, group in
          ((288, 136, 32), (448, 72, 64), (384, 200, 128), (160, 64, -1))
          for element, scales in ((bp.ElementKind.F16, bp.ElementKind.BF16), (bp.ElementKind.BF16, bp.ElementKind.F16))
          for layout in (bp.LayoutSku.RRR, bp.LayoutSku.RCR)),
        bp.Int4AwqDequantizeDescriptor(288, 136, 32, _TILED, bp.ElementKind.F32),
    ),
    "int4_awq_repack": (
        # Several tiles each way, the last ones ragged; rows of 33 words lie at no multiples of 16 bytes.
        *(bp.Int4AwqRepackDescriptor(544, 288, 32, *layouts) for layouts in _CHANGES),
        *(bp.Int4AwqRepackDescriptor(288, 264, -1, *layouts) for layouts in _CHANGES),
        # A group's zero points take more than one block.
        *(bp.Int4AwqRepackDescriptor(32, 2056, 32, *layouts) for layouts in _CHANGES),
    ),
    "softmax": (
        # Several threads share a slice that is not innermost.
        *(
            bp.SoftmaxDescriptor((2, 200, 3), 1, kind, element)
            for kind in (bp.SoftmaxKind.SOFTMAX, bp.SoftmaxKind.LOG_SOFTMAX)
            for element in (bp.ElementKind.F32, bp.ElementKind.F16, bp.ElementKind.BF16, bp.ElementKind.F64)
        ),
        bp.SoftmaxDescriptor((300, 40), 0, element=bp.ElementKind.F64),
        bp.SoftmaxDescriptor((2, 9001), -1, element=bp.ElementKind.BF16),  # a thread of a block takes several pieces
        bp.SoftmaxDescriptor((9, 1000), -1, element=bp.ElementKind.F16),  # a warp a slice, in 16-byte pieces
    ),
}

# What only kernels of one variant have paths for.
_OF_VARIANT: dict[str, tuple[Any, ...]] = {
    # On a slice of a GPU, several tiles a thread block: x in one chunk, and in more than its slots take.
    "bulk_tiled": (
        bp.Int4AwqGemmDescriptor(3, 128, 520, -1, None, _TILED, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(16, 5760, 520, -1, None, _TILED, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(16, 9472, 264, 128, None, _TILED, bp.ElementKind.BF16),  # one tile, the same
        # Sums of 16 rows, then of the others; the second half of the rows to thread blocks of their own.
        bp.Int4AwqGemmDescriptor(27, 2304, 520, 128, None, _TILED, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(45, 2240, 264, 64, None, _TILED),
    ),
    "bulk_hf_gemm": (
        bp.Int4AwqGemmDescriptor(3, 128, 1056, -1, None, _HF_GEMM, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(16, 3200, 1056, -1, None, _HF_GEMM, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(16, 5696, 544, 64, None, _HF_GEMM, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(9, 192, 32, 32, None, _HF_GEMM),
        bp.Int4AwqGemmDescriptor(27, 1728, 1056, 32, None, _HF_GEMM, bp.ElementKind.BF16),
        # Two thread blocks share out ic, the second with less of it.
        bp.Int4AwqGemmDescriptor(19, 4416, 160, 64, None, _HF_GEMM, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(16, 9408, 160, -1, None, _HF_GEMM, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(14, 4416, 160, 64, None, _HF_GEMM, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(29, 4352, 160, 128, None, _HF_GEMM, bp.ElementKind.BF16),
    ),
    "bulk_oc_major": (
        bp.Int4AwqGemmDescriptor(3, 128, 544, -1, None, _OC_MAJOR, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(16, 5760, 544, 64, None, _OC_MAJOR, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(9, 192, 32, 32, None, _OC_MAJOR),
        bp.Int4AwqGemmDescriptor(27, 2240, 544, 64, None, _OC_MAJOR, bp.ElementKind.BF16),
    ),
    # Tiles of 128 channels, one and several a thread block, of 64, and of 64 by two thread blocks; more items than
    # rings hold, and nothing for the second warpgroup; the last channels, tokens and blocks of ic are ragged.
    "warpgroup_tiled": (
        bp.Int4AwqGemmDescriptor(9, 4288, 1032, 64, None, _TILED),
        bp.Int4AwqGemmDescriptor(33, 2240, 2056, 64, None, _TILED, bp.ElementKind.BF16),
        bp.Int4AwqGemmDescriptor(70, 128, 520, -1, None, _TILED),
        bp.Int4AwqGemmDescriptor(17, 3392, 456, 32, None, _TILED),
        bp.Int4AwqGemmDescriptor(64, 2176, 200, 128, None, _TILED, bp.ElementKind.BF16),
    ),
    # There, more tiles than SMs take at a time, so short that no wait for a stage parts one from the next; by two pairs
    # of warpgroups, and by one.
    "wide_tiled": (
        *(
            bp.Int4AwqGemmDescriptor(m, 256, 2056, 128, None, _TILED, element)
            for m in (20, 36) for element in (bp.ElementKind.F16, bp.ElementKind.BF16)
        ),
        bp.Int4AwqGemmDescriptor(20, 128, 264, 128, None, _TILED),  # nothing for the second pair
        bp.Int4AwqGemmDescriptor(225, 128, 520, 32, None, _TILED, bp.ElementKind.BF16),  # room for one chunk of outputs
    ),
}


def cuda_ops() -> tuple[Op, ...]:
    """The built-in ops that have CUDA kernels of ours."""
    return tuple(op for op in builtin_ops() if any(isinstance(kernel.code, PtxCode) for kernel in op.kernels))


def cuda_kernels() -> tuple[Kernel, ...]:
    """Every CUDA kernel of the built-in ops."""
    return tuple(kernel for op in cuda_ops() for kernel in op.kernels if isinstance(kernel.code, PtxCode))


def composed_kernels() -> tuple[Kernel, ...]:
    """Every kernel of the built-in ops that is made of others."""
    return tuple(kernel for op in cuda_ops() for kernel in op.kernels if isinstance(kernel.code, SequenceCode))


def problems(registry: Registry[Plan], kernel: Kernel) -> Iterator[Case]:
    """The examples and further problems that the kernel serves and that are not empty, on the emulated GPU."""
    device = registry.device(0)
    for case in cases(registry, device, kernel):
        if not case.empty:
            yield case
    for op in registry.ops():
        if kernel in op.kernels:
            case = Case(registry, op, kernel, None, device)
            for descriptor in (*_FURTHER.get(op.name, ()), *_OF_VARIANT.get(kernel.sku.variant, ())):
                if serves(op, kernel, descriptor):
                    yield evolve(case, descriptor=descriptor)


def not_served() -> list[Any]:
    """Problems above that no kernel they are meant for serves."""
    ops = {op.name: op for op in builtin_ops()}
    meant = [(descriptor, ops[name], ops[name].kernels) for name, those in _FURTHER.items() for descriptor in those]
    for variant, those in _OF_VARIANT.items():
        for op in ops.values():
            kernels = tuple(kernel for kernel in op.kernels if kernel.sku.variant == variant)
            meant += [(one, op, kernels) for one in those if kernels and type(one) is op.descriptor]
    return [descriptor for descriptor, op, kernels in meant if not any(serves(op, one, descriptor) for one in kernels)]
