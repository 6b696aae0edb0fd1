"""The AWQ GEMM for many rows: weights are dequantised into the workspace, at copy speed, and multiplied by cuBLASLt.

    weight = dequantize(weight_packed)        f16 or bf16, each weight rounded once; (ic, oc) for HF_GEMM, else (oc, ic)
    output = activation(x @ weight + bias)    f32 sums, rounded once

Each is a kernel of an op of its own, `int4_awq_dequantize` and `dense_gemm`. What is promised is what `dense_gemm`
promises of a product of 16-bit operands: weights are rounded to that type before it, and have its range. In f16 they
end at 65504 and lose digits below 2^-14.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from baracuda_py.ops.gemm import dense_gemm
from baracuda_py.ops.gemm.dense_gemm import DenseGemmDescriptor
from baracuda_py.ops.quantize import awq_dequantize
from baracuda_py.ops.quantize.awq_dequantize import Int4AwqDequantizeDescriptor
from baracuda_py.ops.quantize.awq_layout import AwqWeightLayout, reads_layout
from baracuda_py.registry import Kernel, Op
from baracuda_py.vocab.code import LibraryCode, PtxCode, Scratch, SequenceCode, Step
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import BackendKind, ElementKind, EpilogueKind, LayoutSku, OpCategory, QuantizeKind
from baracuda_py.vocab.sku import KernelSku

if TYPE_CHECKING:
    from baracuda_py.ops.quantize.awq_gemm import Int4AwqGemmDescriptor

__all__ = ["dequantized_kernels"]

_WEIGHT = "weight"
# What cuBLASLt fuses. Its GELU is the tanh form and this op's the exact one, and it has no SiLU.
_EPILOGUES = (EpilogueKind.IDENTITY, EpilogueKind.BIAS, EpilogueKind.BIAS_RELU)


def _order(layout: AwqWeightLayout) -> LayoutSku:
    """The order of the dequantised weight: the one in which its packed form lies."""
    return LayoutSku.RRR if layout is AwqWeightLayout.HF_GEMM else LayoutSku.RCR


def _dequantization(desc: Int4AwqGemmDescriptor) -> Int4AwqDequantizeDescriptor:
    return Int4AwqDequantizeDescriptor(
        desc.ic, desc.oc, desc.group_size, desc.weight_layout, desc.element, desc.scales_kind,
        _order(desc.weight_layout),
    )  # fmt: skip


def _product(desc: Int4AwqGemmDescriptor) -> DenseGemmDescriptor:
    return DenseGemmDescriptor(
        desc.m, desc.oc, desc.ic, layout=_order(desc.weight_layout), element=desc.element, epilogue=desc.epilogue
    )


def _scratch(desc: Int4AwqGemmDescriptor) -> tuple[Scratch, ...]:
    return (Scratch(_WEIGHT, _dequantization(desc).output_shape, desc.element),)


def _kernel_of(op: Op, backend: BackendKind, **wanted: Any) -> Kernel:
    """The one kernel of `op` on `backend` whose SKU has these fields."""
    [found] = (
        kernel for kernel in op.kernels
        if kernel.sku.backend is backend and all(getattr(kernel.sku, name) == value for name, value in wanted.items())
    )  # fmt: skip
    return found


def _kernel(layout: AwqWeightLayout, element: ElementKind, epilogue: EpilogueKind) -> Kernel:
    order = _order(layout)
    variant = "tiled" if layout is AwqWeightLayout.TILED else ""
    first = _kernel_of(awq_dequantize.OP, BackendKind.BESPOKE, element=element, layout=order, variant=variant)
    second = _kernel_of(dense_gemm.OP, BackendKind.CUBLAS, element=element, layout=order, epilogue=epilogue)
    assert isinstance(first.code, PtxCode)
    assert isinstance(second.code, LibraryCode)
    tensors = ("weight_packed",) if layout.holds_scales else ("weight_packed", "scales", "zeros")
    code = SequenceCode(
        (
            Step(first.code, _dequantization, {name: name for name in tensors} | {"output": _WEIGHT}, first.workspace),
            Step(
                second.code, _product,
                {"a": "activation", "b": _WEIGHT, "output": "output", "bias": "bias"}, second.workspace,
            ),
        ),
        _scratch,
    )  # fmt: skip

    def cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
        return first.cost(_dequantization(desc), device) + second.cost(_product(desc), device)

    sku = KernelSku(
        OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_GEMM, element, ElementKind.U4, order, epilogue,
        first.sku.arch, BackendKind.CUBLAS, second.sku.precision_guarantee, f"dequantized_{layout.value}",
    )  # fmt: skip
    return Kernel(
        sku,
        code,
        cost=cost,
        rules=(
            reads_layout(layout),
            *(rule for rule in first.rules if rule.subject != "weight_layout"),  # limits of sizes
        ),
        workspace=code.workspace,
        alignment=dict(first.alignment),
        doc="prompts: weights made dense in the workspace, 2 * ic * oc bytes and 32 MiB, then cuBLASLt",
    )


def dequantized_kernels() -> tuple[Kernel, ...]:
    """The kernels, for every layout and element and the epilogues that cuBLASLt fuses as this op defines them."""
    elements = (ElementKind.F16, ElementKind.BF16)
    return tuple(_kernel(*which) for which in product(AwqWeightLayout, elements, _EPILOGUES))
