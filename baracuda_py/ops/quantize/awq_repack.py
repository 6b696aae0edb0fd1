"""AWQ repacking: packed weights and zero points of one layout, as another has them. Bit for bit: no nibble changes.

The layouts are those of `awq_gemm`. Scales are (ic / group_size, oc) in all of them, so a call takes none: those of
the source serve the target too.
"""

from __future__ import annotations

from typing import Any

from baracuda_py.errors import InvalidProblem
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.ops.quantize.awq_packing import repack_weight, repack_zeros
from baracuda_py.ops.quantize.awq_reference import repack_reference
from baracuda_py.registry import Kernel, Op
from baracuda_py.sys import module
from baracuda_py.vocab.code import HostCode, Launch, Pointer, PtxCode, Stride
from baracuda_py.vocab.descriptors import arguments, descriptor, enum_field, int_field, tensor
from baracuda_py.vocab.device import Device
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

__all__ = ["OP", "Int4AwqRepackArgs", "Int4AwqRepackDescriptor"]


@descriptor
class Int4AwqRepackDescriptor:
    """A change of layout of packed (ic, oc) weights and of their zero points.

    Attributes:
        ic, oc: input and output channels.
        group_size: input channels that share a scale and a zero point: 32, 64, 128, or -1 for all of them.
        source: the layout that is read.
        target: the layout that is written.
    """

    ic: int = int_field()
    oc: int = int_field()
    group_size: int = int_field(default=128)
    source: AwqWeightLayout = enum_field(AwqWeightLayout, default=AwqWeightLayout.HF_GEMM)
    target: AwqWeightLayout = enum_field(AwqWeightLayout, default=AwqWeightLayout.OC_MAJOR)

    @property
    def group(self) -> int:
        """Input channels of one group."""
        return self.ic if self.group_size == -1 else self.group_size

    @property
    def groups(self) -> int:
        """Groups along ic."""
        return self.ic // self.group if self.group else 0

    @property
    def weights(self) -> int:
        """Nibbles of the weight."""
        return self.ic * self.oc

    @property
    def layouts_differ(self) -> bool:
        """Whether there is anything to change."""
        return self.source is not self.target

    @property
    def source_shape(self) -> tuple[int, int]:
        """Shape of `weight_packed`, in 32-bit words."""
        return self.source.weight_shape(self.ic, self.oc)

    @property
    def target_shape(self) -> tuple[int, int]:
        """Shape of `weight_repacked`, in 32-bit words."""
        return self.target.weight_shape(self.ic, self.oc)


_WORDS = (ElementKind.I32, ElementKind.U32)
_SHAPES = "(oc, ic / 8) for OC_MAJOR, (ic, oc / 8) for HF_GEMM"
_ZEROS_SHAPE = "(ic / group_size, oc / 8), packed along oc"


@arguments
class Int4AwqRepackArgs:
    """Tensors of one repacking. Rows may be strided, so that a shard's columns need no copy."""

    weight_packed: Any = tensor(_WORDS, "source_shape", strides="rows", doc=_SHAPES)
    zeros: Any = tensor(_WORDS, ("groups", "oc // 8"), strides="rows", doc=_ZEROS_SHAPE)
    weight_repacked: Any = tensor(_WORDS, "target_shape", strides="rows", role="out", doc=_SHAPES)
    zeros_repacked: Any = tensor(_WORDS, ("groups", "oc // 8"), strides="rows", role="out", doc=_ZEROS_SHAPE)


RULES = (
    non_negative("ic"),
    non_negative("oc"),
    one_of("group_size", (32, 64, 128, -1), why="AWQ checkpoints have groups of 32, 64 or 128, or one group (-1)"),
    multiple_of("oc", 8, why="a packed word of zero points holds 8 output channels"),
    multiple_of("ic", 32, why="the smallest group is 32 input channels"),
    multiple_of("ic", "group_size", why="groups do not end in the middle"),
    one_of(
        "layouts_differ", (True,), error=InvalidProblem, why="there is nothing to repack", fix="Use the tensors as is"
    ),
)

# There is no arithmetic: the types say that nibbles move inside 32-bit words.
_GUARANTEE = PrecisionGuarantee(
    MathPrecision.INT4,
    ElementKind.I32,
    ElementKind.I32,
    bit_stable_on_same_hardware=True,
    deterministic=True,
    batch_invariant=True,
)


def _reference(desc: Int4AwqRepackDescriptor, weight_packed: Any, zeros: Any) -> Any:
    return repack_reference(weight_packed, zeros, source=desc.source.value, target=desc.target.value)


def _host(
    desc: Int4AwqRepackDescriptor, weight_packed: Any, zeros: Any, weight_repacked: Any, zeros_repacked: Any
) -> None:
    source, target = desc.source.value, desc.target.value
    repack_weight(weight_packed, source=source, target=target, out=weight_repacked)
    zeros_repacked.view("i4")[...] = repack_zeros(zeros, source=source, target=target)


def _sku(arch: ArchSku, backend: BackendKind, variant: str) -> KernelSku:
    return KernelSku(
        OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_REPACK, ElementKind.I32, ElementKind.U4, LayoutSku.RRR,
        EpilogueKind.IDENTITY, arch, backend, _GUARANTEE, variant,
    )  # fmt: skip


def _host_cost(desc: Int4AwqRepackDescriptor, device: Device) -> float:
    return 20 + desc.weights / 2000


def _cuda_cost(desc: Int4AwqRepackDescriptor, device: Device) -> float:
    return 3 + desc.weights / (0.8 * device.bytes_per_us)  # half a byte a weight is read, and as much written


_MODULE = "quantize.awq_repack"


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _launches(desc: Int4AwqRepackDescriptor, device: Device) -> tuple[Launch, ...]:
    code = module(_MODULE, "sm80")
    tile, threads = code.constant("kTile"), code.constant("kThreads")
    tiles = _ceil_div(desc.ic, tile) * _ceil_div(desc.oc, tile)
    zeros = desc.groups * _ceil_div(desc.oc // 8, threads)
    return (
        Launch(
            f"awq_repack_sm80_u4_{desc.source.value}_to_{desc.target.value}",
            (tiles + zeros, 1, 1),
            (threads, 1, 1),
            (
                Pointer("weight_packed"),
                Pointer("zeros"),
                Pointer("weight_repacked"),
                Pointer("zeros_repacked"),
                desc.ic,
                desc.oc,
                Stride("weight_packed", 0),
                Stride("zeros", 0),
                Stride("weight_repacked", 0),
                Stride("zeros_repacked", 0),
            ),
        ),
    )


def _cuda_kernel(source: AwqWeightLayout, target: AwqWeightLayout) -> Kernel:
    return Kernel(
        _sku(ArchSku.SM80, BackendKind.BESPOKE, f"{source.value}_to_{target.value}"),
        PtxCode(_MODULE, ArchSku.SM80, _launches),
        cost=_cuda_cost,
        rules=(
            # With two layouts, this says what is written too.
            one_of("source", (source,), why="a kernel reads one layout"),
            at_most("weights", 1 << 38, why="a grid has at most 2^31 - 1 blocks"),
        ),
        doc="one pass; fastest where rows lie at multiples of 16 bytes",
    )


_PAIRS = (
    (AwqWeightLayout.HF_GEMM, AwqWeightLayout.OC_MAJOR),
    (AwqWeightLayout.OC_MAJOR, AwqWeightLayout.HF_GEMM),
)

OP = Op(
    name="int4_awq_repack",
    category=OpCategory.QUANTIZATION,
    kinds=(QuantizeKind.INT4_AWQ_REPACK,),
    descriptor=Int4AwqRepackDescriptor,
    args=Int4AwqRepackArgs,
    rules=RULES,
    reference=_reference,
    kernels=(
        *(_cuda_kernel(*pair) for pair in _PAIRS),
        Kernel(
            _sku(ArchSku.HOST, BackendKind.HOST, "numpy"), HostCode(_host), cost=_host_cost,
            doc="words are transposed without unpacking them",
        ),
    ),
    examples=tuple(
        Int4AwqRepackDescriptor(ic, oc, group_size, source, target)
        for ic, oc, group_size in ((256, 64, 128), (224, 40, 32), (96, 320, -1), (0, 64, 128))
        for source, target in _PAIRS
    ),
)  # fmt: skip
