"""AWQ W4A8 GEMM: y = activation((x * activation_scales) @ dequant(w) + bias), x in fp8 with a scale a token.

    w[k, n] = (q[k, n] - z[k // group, n]) * scales[k // group, n]        q, z in 0..15

x is what `QuantizePerToken` makes: fp8 e4m3, x[r, :] * activation_scales[r] being the row. Weights are those of
`Int4AwqGemm`, in the same layouts; q - z is exact in e4m3, so that they lose nothing.

Beside `Int4AwqGemm` on the rows before they were quantised, the result differs by what that lost: of an element x at
most 2^-4 |x|, or 2^-10 activation_scales where that is more. Where such roundings are independent, the pair's relative
error (Frobenius) is at most about 2^-4 / sqrt(3), and near 2.5e-2 for normally distributed rows. A kernel's guarantee
is about its fp8 operands, and does not count that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from baracuda_py.ops.quantize.awq_fp8_gemm_sm90a import fp8_kernels
from baracuda_py.ops.quantize.awq_host import awq_gemm_host, awq_gemm_tiled_host
from baracuda_py.ops.quantize.awq_layout import WEIGHT_SHAPES, AwqWeightLayout, plain_reference, samples
from baracuda_py.ops.quantize.awq_problem import AwqProduct
from baracuda_py.ops.quantize.awq_reference import gemm_reference
from baracuda_py.registry import Kernel, Op
from baracuda_py.vocab.code import HostCode
from baracuda_py.vocab.descriptors import arguments, descriptor, enum_field, int_field, tensor
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import (
    ArchSku,
    BackendKind,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    MathPrecision,
    OpCategory,
    QuantizeKind,
)
from baracuda_py.vocab.rules import multiple_of, non_negative, one_of, positive
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

__all__ = ["OP", "Int4AwqFp8GemmArgs", "Int4AwqFp8GemmDescriptor"]

_ELEMENTS = (ElementKind.F16, ElementKind.BF16)
_WORDS = (ElementKind.I32, ElementKind.U32)


@descriptor
class Int4AwqFp8GemmDescriptor(AwqProduct):
    """An AWQ GEMM of fp8 activations: (m, ic), with a scale a row, times 4-bit (ic, oc) weights.

    Attributes:
        m: rows of the activation; 0 is valid and launches nothing.
        ic, oc: input and output channels.
        group_size: input channels that share a scale and a zero point: 32, 64, 128, or -1 for all of them.
        weight_layout: how weights and zero points are packed.
        element: of bias and output: F16 or BF16.
        epilogue: what is fused behind the product; all but IDENTITY add a bias.
        scales_element: of the weights' scales; None: the same as `element`.
    """

    m: int = int_field()
    ic: int = int_field()
    oc: int = int_field()
    group_size: int = int_field(default=128)
    weight_layout: AwqWeightLayout = enum_field(AwqWeightLayout, default=AwqWeightLayout.OC_MAJOR)
    element: ElementKind = enum_field(ElementKind, default=ElementKind.F16)
    epilogue: EpilogueKind = enum_field(EpilogueKind, default=EpilogueKind.IDENTITY)
    scales_element: ElementKind | None = enum_field(ElementKind, default=None)

    if TYPE_CHECKING:

        def with_group_size(self, value: int) -> Self: ...
        def with_weight_layout(self, value: AwqWeightLayout) -> Self: ...
        def with_element(self, value: ElementKind) -> Self: ...
        def with_epilogue(self, value: EpilogueKind) -> Self: ...
        def with_scales_element(self, value: ElementKind | None) -> Self: ...


@arguments
class Int4AwqFp8GemmArgs:
    """Tensors of one product. Rows of activation and output may be strided; all others are contiguous."""

    activation: Any = tensor(ElementKind.FP8_E4M3, ("m", "ic"), strides="rows", doc="(m, ic), row-major")
    activation_scales: Any = tensor(ElementKind.F32, ("m",), doc="(m,): factors of the activation's rows")
    weight_packed: Any = tensor(_WORDS, "weight_shape", role="constant", doc=WEIGHT_SHAPES)
    scales: Any = tensor(
        "scales_kind", ("groups", "oc"), role="constant", needed="scales_apart", positional=True,
        doc="(ic / group_size, oc), row-major; None for TILED",
    )  # fmt: skip
    zeros: Any = tensor(
        _WORDS, ("groups", "oc // 8"), role="constant", needed="scales_apart", positional=True,
        doc="(ic / group_size, oc / 8), packed along oc; None for TILED",
    )  # fmt: skip
    output: Any = tensor("element", ("m", "oc"), strides="rows", role="out", doc="(m, oc), row-major")
    bias: Any = tensor("element", ("oc",), needed="has_bias", doc="(oc,); for every epilogue but IDENTITY")


RULES = (
    non_negative("m"),
    positive("ic"),
    positive("oc"),
    one_of("group_size", (32, 64, 128, -1), why="AWQ checkpoints have groups of 32, 64 or 128, or one group (-1)"),
    multiple_of("oc", 8, why="a packed word of zero points holds 8 output channels"),
    multiple_of("ic", 32, why="the smallest group is 32 input channels"),
    multiple_of("ic", "group_size", why="groups do not end in the middle"),
    one_of("element", _ELEMENTS, why="sums are rounded to 16 bits"),
    one_of("scales_element", _ELEMENTS, why="checkpoints hold scales as f16 or bf16"),
)


def _reference(desc: Int4AwqFp8GemmDescriptor, activation: Any, activation_scales: Any, **tensors: Any) -> Any:
    import numpy as np

    rows = np.asarray(activation, np.float64) * np.asarray(activation_scales, np.float64)[:, None]
    return gemm_reference(
        rows, **plain_reference(desc.weight_layout, desc, tensors), group_size=desc.group_size,
        epilogue=int(desc.epilogue),
    )  # fmt: skip


_PASS_ROWS = 1024  # of the activation, widened to f32 at a time


def _host(
    desc: Int4AwqFp8GemmDescriptor,
    activation: Any,
    activation_scales: Any,
    weight_packed: Any,
    scales: Any,
    zeros: Any,
    output: Any,
    bias: Any,
) -> None:
    import numpy as np

    sizes: dict[str, Any] = {"group_size": desc.group_size, "epilogue": int(desc.epilogue)}
    for first in range(0, desc.m, _PASS_ROWS):
        part = slice(first, first + _PASS_ROWS)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            rows = activation[part].astype(np.float32)
            rows *= activation_scales[part, None]
        if desc.scales_apart:
            awq_gemm_host(
                rows, weight_packed, scales, zeros, output[part], bias, layout=desc.weight_layout.value, **sizes
            )
        else:
            dtype = numpy_dtype(desc.scales_kind)
            awq_gemm_tiled_host(rows, weight_packed, output[part], bias, oc=desc.oc, scales_dtype=dtype, **sizes)


# Given its fp8 operands: what quantising lost before is no error of the product.
_HOST_GUARANTEE = PrecisionGuarantee(
    MathPrecision.F32,
    ElementKind.F32,
    ElementKind.F32,
    bit_stable_on_same_hardware=False,  # BLAS sums in an order that depends on its threads
    deterministic=True,
    batch_invariant=False,
)


def _host_cost(desc: Int4AwqFp8GemmDescriptor, device: Device) -> float:
    weights = desc.ic * desc.oc
    return 20 + desc.m * desc.ic / 500 + weights / 1e3 + 2 * desc.m * weights / 5e4


def _host_kernel(element: ElementKind, epilogue: EpilogueKind) -> Kernel:
    return Kernel(
        KernelSku(
            OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_FP8_GEMM, element, ElementKind.U4, LayoutSku.RCR, epilogue,
            ArchSku.HOST, BackendKind.HOST, _HOST_GUARANTEE, "numpy",
        ),
        HostCode(_host),
        cost=_host_cost,
        doc="any shape and layout, in f32, in blocks that keep the float32 weights small",
    )  # fmt: skip


def _examples() -> tuple[Int4AwqFp8GemmDescriptor, ...]:
    every = [
        Int4AwqFp8GemmDescriptor(m, 256, 64, 128, layout, element, epilogue)
        for m in (0, 3, 17)
        for layout in AwqWeightLayout
        for element in _ELEMENTS
        for epilogue in EpilogueKind
    ]
    odd = [
        Int4AwqFp8GemmDescriptor(m, 224, 40, group, layout)
        for m in (5, 33)
        for group in (32, -1)
        for layout in AwqWeightLayout
    ]
    mixed = Int4AwqFp8GemmDescriptor(4, 128, 64, 64, element=ElementKind.BF16, scales_element=ElementKind.F16)
    return (*every, *odd, mixed)


OP = Op(
    name="int4_awq_fp8_gemm",
    category=OpCategory.QUANTIZATION,
    kinds=(QuantizeKind.INT4_AWQ_FP8_GEMM,),
    descriptor=Int4AwqFp8GemmDescriptor,
    args=Int4AwqFp8GemmArgs,
    rules=RULES,
    reference=_reference,
    kernels=(
        *(_host_kernel(element, epilogue) for element in _ELEMENTS for epilogue in EpilogueKind),
        *fp8_kernels(),
    ),
    examples=_examples(),
    sizes=("m", "ic", "oc"),
    samples=samples,
)
