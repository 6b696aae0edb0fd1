"""AWQ repacking: packed weights and zero points of one layout, as another has them. Bit for bit: no nibble changes.

The layouts are those of `awq_gemm`. OC_MAJOR and HF_GEMM share their scales, (ic / group_size, oc), so that a call
between them takes none. TILED weights hold them: they are read when TILED is made, and written when it is taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

from baracuda_py.errors import InvalidProblem
from baracuda_py.ops.quantize.awq_dequantize import Int4AwqDequantizeDescriptor
from baracuda_py.ops.quantize.awq_layout import WEIGHT_SHAPES, AwqWeightLayout, samples
from baracuda_py.ops.quantize.awq_packing import (
    OC_MAJOR,
    pack_zeros,
    repack_weight,
    repack_zeros,
    unpack_zeros,
)
from baracuda_py.ops.quantize.awq_problem import AwqWeight
from baracuda_py.ops.quantize.awq_reference import repack_reference
from baracuda_py.ops.quantize.awq_tiles import TILE_ROWS, Tiling, ceil_div, pack_tiles, unpack_tiles
from baracuda_py.registry import Kernel, Op
from baracuda_py.sys import module
from baracuda_py.vocab.code import HostCode, Launch, Parameter, Pointer, PtxCode, Stride
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
class Int4AwqRepackDescriptor(AwqWeight):
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
    def layouts_differ(self) -> bool:
        """Whether there is anything to change."""
        return self.source is not self.target

    @property
    def source_shape(self) -> tuple[int, int]:
        """Shape of `weight_packed`, in 32-bit words."""
        return self.source.weight_shape(self.ic, self.oc, self.group_size)

    @property
    def target_shape(self) -> tuple[int, int]:
        """Shape of `weight_repacked`, in 32-bit words."""
        return self.target.weight_shape(self.ic, self.oc, self.group_size)

    @property
    def tiling(self) -> Tiling:
        """Sizes of the weights where they are TILED."""
        return Tiling(self.ic, self.oc, self.group_size)

    @property
    def source_apart(self) -> bool:
        """Whether zero points are read from a tensor of their own."""
        return not self.source.holds_scales

    @property
    def target_apart(self) -> bool:
        """Whether zero points are written to a tensor of their own."""
        return not self.target.holds_scales

    @property
    def reads_scales(self) -> bool:
        """Whether scales move into the weights."""
        return self.target.holds_scales and self.source_apart

    @property
    def writes_scales(self) -> bool:
        """Whether scales move out of the weights."""
        return self.source.holds_scales and self.target_apart


_WORDS = (ElementKind.I32, ElementKind.U32)
_SCALES = (ElementKind.F16, ElementKind.BF16)  # their bits are moved as they are
_ZEROS_SHAPE = "(ic / group_size, oc / 8), packed along oc; None where the weights hold them"
_SCALES_SHAPE = "(ic / group_size, oc); None unless TILED is"


@arguments
class Int4AwqRepackArgs:
    """Tensors of one repacking. Rows may be strided, so that a shard's columns need no copy."""

    weight_packed: Any = tensor(_WORDS, "source_shape", strides="rows", doc=WEIGHT_SHAPES)
    zeros: Any = tensor(
        _WORDS, ("groups", "oc // 8"), strides="rows", needed="source_apart", positional=True, doc=_ZEROS_SHAPE
    )
    weight_repacked: Any = tensor(_WORDS, "target_shape", strides="rows", role="out", doc=WEIGHT_SHAPES)
    zeros_repacked: Any = tensor(
        _WORDS, ("groups", "oc // 8"), strides="rows", role="out", needed="target_apart", positional=True,
        doc=_ZEROS_SHAPE,
    )  # fmt: skip
    scales: Any = tensor(_SCALES, ("groups", "oc"), strides="rows", needed="reads_scales", doc=f"{_SCALES_SHAPE} made")
    scales_repacked: Any = tensor(
        _SCALES, ("groups", "oc"), strides="rows", role="out", needed="writes_scales",
        doc=f"{_SCALES_SHAPE} taken apart",
    )  # fmt: skip


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


def _reference(desc: Int4AwqRepackDescriptor, weight_packed: Any, zeros: Any, scales: Any) -> Any:
    return repack_reference(
        weight_packed, zeros, scales, source=desc.source.value, target=desc.target.value, ic=desc.ic, oc=desc.oc,
        group_size=desc.group_size,
    )  # fmt: skip


def _samples(desc: Int4AwqRepackDescriptor, random: Any) -> dict[str, Any]:
    if desc.source_apart:
        return {}
    return samples(Int4AwqDequantizeDescriptor(desc.ic, desc.oc, desc.group_size, desc.source), random)


def _host(
    desc: Int4AwqRepackDescriptor, weight_packed: Any, zeros: Any, weight_repacked: Any, zeros_repacked: Any,
    scales: Any, scales_repacked: Any,
) -> None:  # fmt: skip
    source, target = desc.source.value, desc.target.value
    if desc.source_apart and desc.target_apart:
        repack_weight(weight_packed, source=source, target=target, out=weight_repacked)
        zeros_repacked.view("i4")[...] = repack_zeros(zeros, source=source, target=target)
        return
    for tiles, columns, words in _pieces(desc):
        oc = columns.stop - columns.start
        if desc.source_apart:
            given = weight_packed[columns] if source == OC_MAJOR else weight_packed[:, words]
            pack_tiles(
                repack_weight(given, source=source, target=OC_MAJOR), unpack_zeros(zeros[:, words], source),
                scales[:, columns], desc.group_size, weight_repacked[tiles],
            )  # fmt: skip
            continue
        taken, z, s = unpack_tiles(weight_packed[tiles], desc.ic, oc, desc.group_size, scales_repacked.dtype)
        place = columns if target == OC_MAJOR else (slice(None), words)
        repack_weight(taken, source=OC_MAJOR, target=target, out=weight_repacked[place])
        zeros_repacked.view("i4")[:, words] = pack_zeros(z, target)
        scales_repacked[:, columns] = s


_PIECE = 1 << 20  # weights that are worked on at a time, so that they stay in a cache


def _pieces(desc: Int4AwqRepackDescriptor) -> Iterator[tuple[slice, slice, slice]]:
    """Some tiles of TILED weights at a time, and their output channels, and those in words."""
    step = max(1, _PIECE // max(desc.ic * TILE_ROWS, 1))
    for start in range(0, desc.tiling.tiles, step):
        first, last = start * TILE_ROWS, min((start + step) * TILE_ROWS, desc.oc)
        yield slice(start, start + step), slice(first, last), slice(first // 8, last // 8)


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
_TILED_MODULE = "quantize.awq_repack.tiled"


def _parameters(names: Sequence[str], *sizes: int) -> tuple[Parameter, ...]:
    return (*(Pointer(name) for name in names), *sizes, *(Stride(name, 0) for name in names))


def _launches(desc: Int4AwqRepackDescriptor, device: Device) -> tuple[Launch, ...]:
    code = module(_MODULE, "sm80")
    tile, threads = code.constant("kTile"), code.constant("kThreads")
    tiles = ceil_div(desc.ic, tile) * ceil_div(desc.oc, tile)
    zeros = desc.groups * ceil_div(desc.oc // 8, threads)
    names = ("weight_packed", "zeros", "weight_repacked", "zeros_repacked")
    parameters = _parameters(names, desc.ic, desc.oc)
    return (Launch(_entry(desc), (tiles + zeros, 1, 1), (threads, 1, 1), parameters),)


def _tiled_launches(desc: Int4AwqRepackDescriptor, device: Device) -> tuple[Launch, ...]:
    code = module(_TILED_MODULE, "sm80")
    blocks = ceil_div(desc.tiling.tiles * desc.tiling.columns * 2, code.constant("kWarps"))
    names = ("weight_packed", "zeros", "scales", "weight_repacked")
    if desc.source.holds_scales:
        names = ("weight_repacked", "zeros_repacked", "scales_repacked", "weight_packed")
    parameters = _parameters(names, desc.ic, desc.oc, desc.group, desc.tiling.groups_of_block)
    return (Launch(_entry(desc), (blocks, 1, 1), (code.constant("kWarps") * 32, 1, 1), parameters),)


def _entry(desc: Int4AwqRepackDescriptor) -> str:
    return f"awq_repack_sm80_u4_{desc.source.value}_to_{desc.target.value}"


def _cuda_kernel(source: AwqWeightLayout, target: AwqWeightLayout) -> Kernel:
    tiled = source.holds_scales or target.holds_scales
    return Kernel(
        _sku(ArchSku.SM80, BackendKind.BESPOKE, f"{source.value}_to_{target.value}"),
        PtxCode(_TILED_MODULE if tiled else _MODULE, ArchSku.SM80, _tiled_launches if tiled else _launches),
        cost=_cuda_cost,
        rules=(
            one_of("source", (source,), why="a kernel reads one layout"),
            one_of("target", (target,), why="a kernel writes one layout"),
            at_most("weights", 1 << 38, why="a grid has at most 2^31 - 1 blocks"),
        ),
        alignment={"weight_repacked" if target.holds_scales else "weight_packed": 16} if tiled else {},
        doc="one pass; a warp a block of 32 x 128" if tiled
        else "one pass; fastest where rows lie at multiples of 16 bytes",
    )  # fmt: skip


_PAIRS = tuple(permutations(AwqWeightLayout, 2))

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
            doc="between OC_MAJOR and HF_GEMM words are transposed without unpacking them",
        ),
    ),
    examples=tuple(
        Int4AwqRepackDescriptor(ic, oc, group_size, source, target)
        for ic, oc, group_size in ((256, 64, 128), (224, 40, 32), (96, 320, -1), (0, 64, 128))
        for source, target in _PAIRS
    ),
    samples=_samples,
)  # fmt: skip
