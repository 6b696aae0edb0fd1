"""AWQ W4A16 GEMM: y = activation(x @ dequant(w) + bias), weights in 4 bits with a scale and a zero point a group.

    w[k, n] = (q[k, n] - z[k // group, n]) * scales[k // group, n]        q, z in 0..15

Weight layouts (`AwqWeightLayout`), nibble order with high bits left:
    OC_MAJOR  weight_packed (oc, ic / 8), along ic: [7|6|5|4|3|2|1|0];  zeros (groups, oc / 8), along oc: the same
    HF_GEMM   weight_packed (ic, oc / 8), along oc: [7|5|3|1|6|4|2|0];  zeros (groups, oc / 8), along oc: the same
    TILED     weight_packed (oc / 64, words), with scales and zeros in it, in the order of tensor-core fragments:
              `awq_tiles` has it bit by bit. Made by `Int4AwqRepack` from either of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from baracuda_py.ops.quantize.awq_gemm_dequantized import dequantized_kernels
from baracuda_py.ops.quantize.awq_gemm_sm80 import sm80_kernels
from baracuda_py.ops.quantize.awq_gemm_sm90a import sm90a_kernels
from baracuda_py.ops.quantize.awq_gemm_sm90a_warpgroup import warpgroup_kernels
from baracuda_py.ops.quantize.awq_gemm_sm90a_wide import wide_kernels
from baracuda_py.ops.quantize.awq_gemm_stream import stream_kernels
from baracuda_py.ops.quantize.awq_gemm_tiled import tiled_kernels
from baracuda_py.ops.quantize.awq_host import awq_gemm_host, awq_gemm_tiled_host
from baracuda_py.ops.quantize.awq_layout import WEIGHT_SHAPES, AwqWeightLayout, plain_reference, samples
from baracuda_py.ops.quantize.awq_onnxruntime import PreparedAwqGemm, awq_gemm_onnxruntime
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

__all__ = ["OP", "AwqWeightLayout", "Int4AwqGemmArgs", "Int4AwqGemmDescriptor"]


@descriptor
class Int4AwqGemmDescriptor(AwqProduct):
    """An AWQ GEMM: (m, ic) activations times 4-bit (ic, oc) weights.

    Attributes:
        m: rows of the activation; 0 is valid and launches nothing.
        ic, oc: input and output channels.
        group_size: input channels that share a scale and a zero point: 32, 64, 128, or -1 for all of them.
        split_k_iters: ways in which split-K kernels cut ic; None lets the kernel choose; other kernels ignore it.
        weight_layout: how weights and zero points are packed.
        element: of activation, bias and output: F16 or BF16.
        epilogue: what is fused behind the product; all but IDENTITY add a bias.
        scales_element: of the scales; None: the same as `element`. F16 scales with BF16 activations are common.
    """

    m: int = int_field()
    ic: int = int_field()
    oc: int = int_field()
    group_size: int = int_field(default=128)
    split_k_iters: int | None = int_field(default=8)
    weight_layout: AwqWeightLayout = enum_field(AwqWeightLayout, default=AwqWeightLayout.OC_MAJOR)
    element: ElementKind = enum_field(ElementKind, default=ElementKind.F16)
    epilogue: EpilogueKind = enum_field(EpilogueKind, default=EpilogueKind.IDENTITY)
    scales_element: ElementKind | None = enum_field(ElementKind, default=None)

    if TYPE_CHECKING:

        def with_group_size(self, value: int) -> Self: ...
        def with_split_k_iters(self, value: int | None) -> Self: ...
        def with_weight_layout(self, value: AwqWeightLayout) -> Self: ...
        def with_element(self, value: ElementKind) -> Self: ...
        def with_epilogue(self, value: EpilogueKind) -> Self: ...
        def with_scales_element(self, value: ElementKind | None) -> Self: ...


_WORDS = (ElementKind.I32, ElementKind.U32)


@arguments
class Int4AwqGemmArgs:
    """Tensors of one AWQ GEMM. Rows of activation and output may be strided; the packed tensors are contiguous."""

    activation: Any = tensor("element", ("m", "ic"), strides="rows", doc="(m, ic), row-major")
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


_ELEMENTS = (ElementKind.F16, ElementKind.BF16)

# The op's own rules, in the order in which they are reported.
RULES = (
    non_negative("m"),
    positive("ic"),
    positive("oc"),
    one_of("group_size", (32, 64, 128, -1), why="AWQ checkpoints have groups of 32, 64 or 128, or one group (-1)"),
    positive("split_k_iters", fix="Pass None to let the kernel choose"),
    multiple_of("oc", 8, why="a packed word of zero points holds 8 output channels"),
    multiple_of("ic", 32, why="the smallest group is 32 input channels"),
    multiple_of("ic", "group_size", why="groups do not end in the middle"),
    one_of("element", _ELEMENTS, why="the A16 of W4A16"),
    one_of("scales_element", _ELEMENTS, why="checkpoints hold scales as f16 or bf16"),
)

# What baracuda's Int4AwqGemmPlan::select allows, in its order.
CONTRACT = (
    non_negative("m"),
    positive("ic"),
    positive("oc"),
    one_of("group_size", (64, 128), why="the contract's kernel knows these", fix="bp.select serves 32 and -1"),
    positive("split_k_iters", fix="Pass None to let the kernel choose"),
    multiple_of("oc", 64, why="the contract's tile is 64 columns wide", fix="Pad oc, or use bp.select"),
    multiple_of("ic", "group_size", why="groups do not end in the middle"),
    multiple_of(
        "ic", "32 * split_k_iters", why="each split takes whole steps of 32", fix="Use fewer splits, or bp.select"
    ),
    one_of("element", (ElementKind.F16,), why="the contract's kernel takes f16", fix="bp.select serves bf16"),
    one_of(
        "weight_layout", (AwqWeightLayout.OC_MAJOR, AwqWeightLayout.HF_GEMM), why="TILED is no layout of baracuda's",
        fix="bp.select serves it",
    ),
)  # fmt: skip


def _reference(desc: Int4AwqGemmDescriptor, **tensors: Any) -> Any:
    return gemm_reference(
        **plain_reference(desc.weight_layout, desc, tensors), group_size=desc.group_size, epilogue=int(desc.epilogue)
    )


def _host(desc: Int4AwqGemmDescriptor, **tensors: Any) -> None:
    sizes: dict[str, Any] = {"group_size": desc.group_size, "epilogue": int(desc.epilogue)}
    if desc.scales_apart:
        awq_gemm_host(**tensors, layout=desc.weight_layout.value, **sizes)
        return
    del tensors["scales"], tensors["zeros"]
    awq_gemm_tiled_host(**tensors, oc=desc.oc, scales_dtype=numpy_dtype(desc.scales_kind), **sizes)


def _onnxruntime(desc: Int4AwqGemmDescriptor, **tensors: Any) -> None:
    awq_gemm_onnxruntime(**tensors, group_size=desc.group_size, epilogue=int(desc.epilogue))


def _onnxruntime_bound(
    desc: Int4AwqGemmDescriptor,
    activation: Any,
    weight_packed: Any,
    scales: Any,
    zeros: Any,
    output: Any,
    bias: Any,
) -> Callable[[], None]:
    half = desc.element is ElementKind.F16
    prepared = PreparedAwqGemm(weight_packed, scales, zeros, group_size=desc.group_size, half=half)
    return partial(prepared, activation, output, bias, epilogue=int(desc.epilogue))


_HOST_GUARANTEE = PrecisionGuarantee(
    MathPrecision.F32,
    ElementKind.F32,
    ElementKind.F32,
    bit_stable_on_same_hardware=False,  # BLAS sums in an order that depends on its threads
    deterministic=True,
    batch_invariant=False,
)


def sku(
    element: ElementKind,
    epilogue: EpilogueKind,
    arch: ArchSku,
    guarantee: PrecisionGuarantee,
    variant: str,
    layout: LayoutSku = LayoutSku.RCR,
) -> KernelSku:
    """The SKU of an AWQ GEMM kernel; RCR stands for OC_MAJOR and TILED weights, RRR for HF_GEMM."""
    backend = BackendKind.HOST if arch is ArchSku.HOST else BackendKind.BESPOKE
    return KernelSku(
        OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_GEMM, element, ElementKind.U4, layout, epilogue, arch,
        backend, guarantee, variant,
    )  # fmt: skip


def _host_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    weights = desc.ic * desc.oc
    return 20 + weights / 1e3 + 2 * desc.m * weights / 5e4


def _onnxruntime_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    return 0.5 * _host_cost(desc, device)


def _host_kernels(element: ElementKind, epilogue: EpilogueKind) -> tuple[Kernel, ...]:
    oc_major = one_of("weight_layout", (AwqWeightLayout.OC_MAJOR,), why="MatMulNBits reads OC_MAJOR bytes as they lie")
    return (
        Kernel(
            sku(element, epilogue, ArchSku.HOST, _HOST_GUARANTEE, "onnxruntime"),
            HostCode(
                _onnxruntime, _onnxruntime_bound, requires="onnxruntime", install="pip install 'baracuda-py[host]'"
            ),
            cost=_onnxruntime_cost,
            rules=(oc_major,),
            doc="onnxruntime's MatMulNBits in f32; packs a weight once, fastest through `bind`",
        ),
        Kernel(
            sku(element, epilogue, ArchSku.HOST, _HOST_GUARANTEE, "numpy"),
            HostCode(_host),
            cost=_host_cost,
            doc="any shape and layout, in blocks that keep the float32 weights small",
        ),
    )


def _examples() -> tuple[Int4AwqGemmDescriptor, ...]:
    small = [Int4AwqGemmDescriptor(m, 256, 64, split_k_iters=2) for m in (0, 3, 17)]
    every = [
        desc.with_weight_layout(layout).with_element(element).with_epilogue(epilogue)
        for desc in small
        for layout in AwqWeightLayout
        for element in _ELEMENTS
        for epilogue in EpilogueKind
    ]
    odd = [
        Int4AwqGemmDescriptor(m, 224, 40, group_size=group, split_k_iters=None, weight_layout=layout)
        for m in (5, 33)
        for group in (32, -1)
        for layout in AwqWeightLayout
    ]
    mixed = Int4AwqGemmDescriptor(4, 128, 64, 64, element=ElementKind.BF16, scales_element=ElementKind.F16)
    long = Int4AwqGemmDescriptor(17, 1152, 64, split_k_iters=None, weight_layout=AwqWeightLayout.HF_GEMM)
    return (*every, *odd, mixed, long)


def _tuned() -> Iterator[Int4AwqGemmDescriptor]:
    """Layers of models of 8B to 70B parameters, from one token to a long prompt."""
    shapes = ((4096, 4096), (4096, 14336), (14336, 4096), (8192, 8192), (8192, 28672), (28672, 8192))
    rows = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
    return (
        Int4AwqGemmDescriptor(m, ic, oc, weight_layout=layout)
        for layout in AwqWeightLayout for ic, oc in shapes for m in rows
    )  # fmt: skip


_DIRECT = (AwqWeightLayout.OC_MAJOR, AwqWeightLayout.HF_GEMM)  # with scales and zero points apart

OP = Op(
    name="int4_awq_gemm",
    category=OpCategory.QUANTIZATION,
    kinds=(QuantizeKind.INT4_AWQ_GEMM,),
    descriptor=Int4AwqGemmDescriptor,
    args=Int4AwqGemmArgs,
    rules=RULES,
    reference=_reference,
    kernels=(
        *(kernel for layout in AwqWeightLayout for kernel in stream_kernels(layout)),
        *(kernel for layout in _DIRECT for kernel in sm80_kernels(layout)),
        *(kernel for layout in AwqWeightLayout for kernel in sm90a_kernels(layout)),
        *warpgroup_kernels(AwqWeightLayout.TILED),
        *wide_kernels(AwqWeightLayout.TILED),
        *tiled_kernels(AwqWeightLayout.TILED),
        *dequantized_kernels(),
        *(kernel for element in _ELEMENTS for epilogue in EpilogueKind for kernel in _host_kernels(element, epilogue)),
    ),
    examples=_examples(),
    contract=CONTRACT,
    sizes=("m", "ic", "oc"),
    tuned=_tuned,
    samples=samples,
)
