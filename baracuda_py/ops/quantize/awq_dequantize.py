"""AWQ dequantisation: packed 4-bit weights to a dense matrix.

    w[k, n] = (q[k, n] - z[k // group, n]) * scales[k // group, n]

Computed in f32 and rounded once. The layouts are those of `awq_gemm`.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from baracuda_py.ops.quantize.awq_host import awq_dequantize_host, awq_dequantize_tiled_host
from baracuda_py.ops.quantize.awq_layout import WEIGHT_SHAPES, AwqWeightLayout, plain_reference, samples
from baracuda_py.ops.quantize.awq_problem import PackedAwqWeight
from baracuda_py.ops.quantize.awq_reference import dequantize_reference
from baracuda_py.ops.quantize.awq_tiles import Tiling
from baracuda_py.registry import Kernel, Op
from baracuda_py.sys import module
from baracuda_py.vocab.code import HostCode, Launch, Pointer, PtxCode, Stride
from baracuda_py.vocab.descriptors import arguments, descriptor, enum_field, int_field, tensor
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import bits_of, numpy_dtype
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
from baracuda_py.vocab.rules import at_most, multiple_of, non_negative, one_of
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

__all__ = ["OP", "Int4AwqDequantizeArgs", "Int4AwqDequantizeDescriptor"]


@descriptor
class Int4AwqDequantizeDescriptor(PackedAwqWeight):
    """Dense weights from packed ones.

    Attributes:
        ic, oc: input and output channels.
        group_size: input channels that share a scale and a zero point: 32, 64, 128, or -1 for all of them.
        weight_layout: how weights and zero points are packed.
        element: of the output: F16, BF16 or F32.
        scales_element: F16 or BF16.
        layout: RRR writes (ic, oc), RCR writes (oc, ic).
    """

    ic: int = int_field()
    oc: int = int_field()
    group_size: int = int_field(default=128)
    weight_layout: AwqWeightLayout = enum_field(AwqWeightLayout, default=AwqWeightLayout.OC_MAJOR)
    element: ElementKind = enum_field(ElementKind, default=ElementKind.F16)
    scales_element: ElementKind = enum_field(ElementKind, default=ElementKind.F16)
    layout: LayoutSku = enum_field(LayoutSku, default=LayoutSku.RRR)

    @property
    def scales_kind(self) -> ElementKind:
        """The element of the scales."""
        return self.scales_element

    @property
    def output_shape(self) -> tuple[int, int]:
        """Shape of the output."""
        return (self.oc, self.ic) if self.layout is LayoutSku.RCR else (self.ic, self.oc)


_WORDS = (ElementKind.I32, ElementKind.U32)


@arguments
class Int4AwqDequantizeArgs:
    """Tensors of one dequantisation. The output's rows may be strided."""

    weight_packed: Any = tensor(_WORDS, "weight_shape", doc=WEIGHT_SHAPES)
    scales: Any = tensor(
        "scales_element", ("groups", "oc"), needed="scales_apart", positional=True,
        doc="(ic / group_size, oc), row-major; None for TILED",
    )  # fmt: skip
    zeros: Any = tensor(
        _WORDS, ("groups", "oc // 8"), needed="scales_apart", positional=True,
        doc="(ic / group_size, oc / 8), packed along oc; None for TILED",
    )  # fmt: skip
    output: Any = tensor("element", "output_shape", strides="rows", role="out", doc="(ic, oc), or (oc, ic) for RCR")


_ELEMENTS = (ElementKind.F16, ElementKind.BF16, ElementKind.F32)
_LAYOUTS = (LayoutSku.RRR, LayoutSku.RCR)

RULES = (
    non_negative("ic"),
    non_negative("oc"),
    one_of("group_size", (32, 64, 128, -1), why="AWQ checkpoints have groups of 32, 64 or 128, or one group (-1)"),
    multiple_of("oc", 8, why="a packed word of zero points holds 8 output channels"),
    multiple_of("ic", 32, why="the smallest group is 32 input channels"),
    multiple_of("ic", "group_size", why="groups do not end in the middle"),
    one_of("element", _ELEMENTS),
    one_of("scales_element", (ElementKind.F16, ElementKind.BF16), why="checkpoints hold scales as f16 or bf16"),
    one_of("layout", _LAYOUTS, why="the output is (ic, oc) or (oc, ic)"),
)

_GUARANTEE = PrecisionGuarantee(
    MathPrecision.F32,
    ElementKind.F32,
    ElementKind.F32,
    bit_stable_on_same_hardware=True,
    deterministic=True,
    batch_invariant=True,  # there is no sum: every element stands for itself
)


def _reference(desc: Int4AwqDequantizeDescriptor, **tensors: Any) -> Any:
    weights = dequantize_reference(
        **plain_reference(desc.weight_layout, desc, tensors), group_size=desc.group_size
    )
    return weights.T if desc.layout is LayoutSku.RCR else weights


def _host(desc: Int4AwqDequantizeDescriptor, **tensors: Any) -> None:
    how: dict[str, Any] = {"group_size": desc.group_size, "transposed": desc.layout is LayoutSku.RCR}
    if desc.scales_apart:
        awq_dequantize_host(**tensors, layout=desc.weight_layout.value, **how)
        return
    awq_dequantize_tiled_host(
        tensors["weight_packed"], tensors["output"], ic=desc.ic, oc=desc.oc,
        scales_dtype=numpy_dtype(desc.scales_element), **how,
    )  # fmt: skip


def _sku(element: ElementKind, layout: LayoutSku, arch: ArchSku, variant: str) -> KernelSku:
    return KernelSku(
        OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_DEQUANTIZE, element, ElementKind.U4, layout,
        EpilogueKind.IDENTITY, arch, BackendKind.HOST if arch is ArchSku.HOST else BackendKind.BESPOKE,
        _GUARANTEE, variant,
    )  # fmt: skip


def _host_cost(desc: Int4AwqDequantizeDescriptor, device: Device) -> float:
    return 20 + desc.ic * desc.oc / 300


def _host_kernel(element: ElementKind, layout: LayoutSku) -> Kernel:
    return Kernel(_sku(element, layout, ArchSku.HOST, "numpy"), HostCode(_host), cost=_host_cost, doc="in blocks")


_MODULE = "quantize.awq_dequantize"
_TILED_MODULE = "quantize.awq_dequantize.tiled"
_INT = (1 << 31) - 1


def _entry(desc: Int4AwqDequantizeDescriptor) -> str:
    order = "oc_ic" if desc.layout is LayoutSku.RCR else "ic_oc"
    return f"awq_dequantize_sm80_{desc.element.name.lower()}_{desc.weight_layout.value}_{order}"


def _launches(desc: Int4AwqDequantizeDescriptor, device: Device) -> tuple[Launch, ...]:
    code = module(_MODULE, "sm80")
    oc_major = desc.weight_layout is AwqWeightLayout.OC_MAJOR
    rows, columns = (desc.oc, desc.ic) if oc_major else (desc.ic, desc.oc)  # as the weights lie
    piece = 128 // bits_of(desc.element)  # elements of a 16-byte store
    if (desc.layout is LayoutSku.RCR) == oc_major:  # the output's rows are the weights' rows
        tile = code.constant("kDirectRows"), code.constant("kDirectLanes") * piece
    else:
        tile = 32 * piece, code.constant("kTransposeWords") * 8
    grid = -(-rows // tile[0]) * -(-columns // tile[1])
    return (
        Launch(
            _entry(desc),
            (grid, 1, 1),
            (code.constant("kThreads"), 1, 1),
            (
                Pointer("weight_packed"),
                Pointer("scales"),
                Pointer("zeros"),
                Pointer("output"),
                desc.ic,
                desc.oc,
                desc.group,
                int(desc.scales_element is ElementKind.BF16),
                Stride("weight_packed", 0),
                Stride("scales", 0),
                Stride("zeros", 0),
                Stride("output", 0),
            ),
        ),
    )


def _tiled_launches(desc: Int4AwqDequantizeDescriptor, device: Device) -> tuple[Launch, ...]:
    tiling = Tiling(desc.ic, desc.oc, desc.group_size)
    return (
        Launch(
            _entry(desc),
            (tiling.tiles * tiling.columns, 1, 1),
            (module(_TILED_MODULE, "sm80").constant("kTiledThreads"), 1, 1),
            (
                Pointer("weight_packed"),
                Pointer("output"),
                desc.ic,
                desc.oc,
                tiling.groups_of_block,
                int(desc.scales_element is ElementKind.BF16),
                Stride("output", 0),
            ),
        ),
    )


def _cost(desc: Int4AwqDequantizeDescriptor, device: Device) -> float:
    return 3 + desc.weights * (4 + bits_of(desc.element)) / 8 / (0.6 * device.bytes_per_us)


def _kernel(element: ElementKind, layout: LayoutSku) -> Kernel:
    return Kernel(
        _sku(element, layout, ArchSku.SM80, ""),
        PtxCode(_MODULE, ArchSku.SM80, _launches),
        cost=_cost,
        rules=(
            one_of("weight_layout", (AwqWeightLayout.OC_MAJOR, AwqWeightLayout.HF_GEMM), why="the kernel reads these"),
            *(at_most(name, _INT, why="the kernel takes it as a 32-bit int") for name in ("ic", "oc")),
        ),
        alignment={"scales": 8},  # four scales at a time
        doc="one pass, transposing through shared memory where the orders differ",
    )


def _tiled_kernel(element: ElementKind, layout: LayoutSku) -> Kernel:
    return Kernel(
        _sku(element, layout, ArchSku.SM80, "tiled"),
        PtxCode(_TILED_MODULE, ArchSku.SM80, _tiled_launches),
        cost=_cost,
        rules=(
            one_of("weight_layout", (AwqWeightLayout.TILED,), why="the kernel reads this one"),
            *(at_most(name, _INT - 127, why="the kernel rounds it up in a 32-bit int") for name in ("ic", "oc")),
            at_most("weights", 1 << 43, why="a grid has at most 2^31 - 1 blocks"),
        ),
        alignment={"weight_packed": 16},
        doc="one pass over 64 x 128 channels a thread block, through shared memory",
    )


def _examples() -> tuple[Int4AwqDequantizeDescriptor, ...]:
    every = [
        Int4AwqDequantizeDescriptor(ic, oc, group, weight_layout, element, layout=layout)
        for (ic, oc, group), weight_layout, element, layout in product(
            ((256, 64, 128), (224, 40, 32)), AwqWeightLayout, _ELEMENTS, _LAYOUTS
        )
    ]
    return (
        *every,
        Int4AwqDequantizeDescriptor(96, 72, -1, scales_element=ElementKind.BF16),
        Int4AwqDequantizeDescriptor(0, 64),
    )


OP = Op(
    name="int4_awq_dequantize",
    category=OpCategory.QUANTIZATION,
    kinds=(QuantizeKind.INT4_AWQ_DEQUANTIZE,),
    descriptor=Int4AwqDequantizeDescriptor,
    args=Int4AwqDequantizeArgs,
    rules=RULES,
    reference=_reference,
    kernels=tuple(
        make(element, layout)
        for make in (_kernel, _tiled_kernel, _host_kernel) for element, layout in product(_ELEMENTS, _LAYOUTS)
    ),
    examples=_examples(),
    samples=samples,
)
