"""Softmax and log-softmax over one axis: y = exp(x - max(x)) / sum(exp(x - max(x))), or its logarithm.

The input and the output may be strided in any way; their rank is at most 8. A slice that holds a NaN or +inf, or only
-inf, comes out as NaN, as in torch and JAX.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

from baracuda_py.errors import Unsupported
from baracuda_py.registry import Kernel, Op
from baracuda_py.sys import PtxModule, module
from baracuda_py.vocab.code import HostCode, Launch, Pointer, PtxCode, Stride
from baracuda_py.vocab.descriptors import arguments, descriptor, enum_field, int_field, tensor
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import bits_of
from baracuda_py.vocab.enums import (
    ArchSku,
    BackendKind,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    MathPrecision,
    OpCategory,
    SoftmaxKind,
)
from baracuda_py.vocab.rules import between, non_negative, one_of
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

__all__ = ["OP", "SoftmaxArgs", "SoftmaxDescriptor"]

_KINDS = (SoftmaxKind.SOFTMAX, SoftmaxKind.LOG_SOFTMAX)
_ELEMENTS = (ElementKind.F32, ElementKind.F16, ElementKind.BF16, ElementKind.F64)
MAX_RANK = 8


@descriptor
class SoftmaxDescriptor:
    """A softmax over one axis.

    Attributes:
        shape: of input and output, rank 1 to 8.
        axis: the axis that sums to 1; negative counts from the end.
        kind: SOFTMAX or LOG_SOFTMAX.
        element: of input and output: F32, F16, BF16 or F64.
    """

    shape: tuple[int, ...] = int_field()
    axis: int = int_field(default=-1)
    kind: SoftmaxKind = enum_field(SoftmaxKind, default=SoftmaxKind.SOFTMAX)
    element: ElementKind = enum_field(ElementKind, default=ElementKind.F32)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def axis_length(self) -> int:
        """Elements that are normalised together."""
        return self.shape[self.axis]

    @property
    def outer_axes(self) -> tuple[int, ...]:
        """Every axis but `axis`, ascending."""
        axis = self.axis % self.rank
        return tuple(other for other in range(self.rank) if other != axis)

    @property
    def slices(self) -> int:
        """How many times `axis_length` elements are normalised."""
        return prod(self.shape[axis] for axis in self.outer_axes)


@arguments
class SoftmaxArgs:
    """Tensors of one softmax, both strided in any way; the output's elements do not overlap."""

    input: Any = tensor("element", "shape", strides="any", doc="the shape of the descriptor")
    output: Any = tensor("element", "shape", strides="any", role="out", doc="the shape of the descriptor")


RULES = (
    between("rank", 1, MAX_RANK, error=Unsupported, why="a kernel is given at most 8 strides"),
    non_negative("shape"),
    between("axis", "-rank", "rank - 1"),
    one_of("kind", _KINDS),
    one_of("element", _ELEMENTS),
)


def _reference(desc: SoftmaxDescriptor, input: Any) -> Any:
    import numpy as np

    x = np.asarray(input, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = x - x.max(axis=desc.axis, keepdims=True)
        total = np.exp(shifted).sum(axis=desc.axis, keepdims=True)
        if desc.kind is SoftmaxKind.LOG_SOFTMAX:
            return shifted - np.log(total)
        return np.exp(shifted) / total


_BLOCK_ELEMENTS = 1 << 20  # widened to f32 or f64 at a time


def _host(desc: SoftmaxDescriptor, input: Any, output: Any) -> None:
    import numpy as np

    wide = np.float64 if desc.element is ElementKind.F64 else np.float32
    source, target = np.moveaxis(input, desc.axis, -1), np.moveaxis(output, desc.axis, -1)
    # Walk the leading axes only as far as needed to bound a block: one index at a time, the last of them some.
    walked = 0
    while walked < source.ndim - 1 and prod(source.shape[walked:]) > _BLOCK_ELEMENTS:
        walked += 1
    step = max(1, _BLOCK_ELEMENTS // max(1, prod(source.shape[walked:])))
    if not walked:  # all at once
        walked, source, target = 1, source[None], target[None]
    blocks = [slice(start, start + step) for start in range(0, source.shape[walked - 1], step)]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
        for index in ((*leading, block) for leading in np.ndindex(source.shape[: walked - 1]) for block in blocks):
            # The axis contiguous: along others NumPy adds one by one, not in pairs, and a long sum loses digits.
            x = source[index].astype(wide, order="C")
            x -= x.max(axis=-1, keepdims=True)
            exps = np.exp(x)
            total = exps.sum(axis=-1, keepdims=True)
            target[index] = x - np.log(total) if desc.kind is SoftmaxKind.LOG_SOFTMAX else exps / total


def _guarantee(element: ElementKind, *, host: bool) -> PrecisionGuarantee:
    wide = ElementKind.F64 if element is ElementKind.F64 else ElementKind.F32
    math = MathPrecision.F64 if element is ElementKind.F64 else MathPrecision.F32
    return PrecisionGuarantee(
        math, wide, wide, bit_stable_on_same_hardware=True, deterministic=True, batch_invariant=not host
    )


def _sku(kind: SoftmaxKind, element: ElementKind, arch: ArchSku, variant: str) -> KernelSku:
    host = arch is ArchSku.HOST
    return KernelSku(
        OpCategory.SOFTMAX, kind, element, element, LayoutSku.RRR, EpilogueKind.IDENTITY, arch,
        BackendKind.HOST if host else BackendKind.BESPOKE, _guarantee(element, host=host), variant,
    )  # fmt: skip


def _host_cost(desc: SoftmaxDescriptor, device: Device) -> float:
    return 20 + prod(desc.shape) / 100


def _host_kernel(kind: SoftmaxKind, element: ElementKind) -> Kernel:
    return Kernel(
        _sku(kind, element, ArchSku.HOST, "numpy"), HostCode(_host), cost=_host_cost, doc="blocks of a million elements"
    )


_GRID_LIMIT = (1 << 31) - 1  # blocks; the kernels loop over what is beyond


def _module(element: ElementKind) -> PtxModule:
    return module(f"softmax.softmax.{element.name.lower()}", "sm80")


def _shape_of_launch(desc: SoftmaxDescriptor, code: PtxModule) -> tuple[str, int, tuple[int, int, int]]:
    """Variant, grid and block.

    They depend on the axis, its length and the element alone, never on how many slices there are or how they lie:
    that is what makes a slice's bits independent of its batch.
    """
    length = desc.axis_length
    if desc.axis % desc.rank != desc.rank - 1:
        depth = max(1, min(16, 1 << max(0, (length // 8).bit_length() - 1)))
        width = max(32, 256 // depth)
        return "strided", -(-desc.slices // width), (width, depth, 1)
    for variant, limit in (("short", "kShortLength"), ("warp", "kWarpLength")):
        if length <= code.constant(limit):
            threads = code.constant("kRowThreads")
            return variant, -(-desc.slices // (threads // 32)), (threads, 1, 1)
    pieces = -(-length // (4 * 128 // bits_of(desc.element)))  # four 16-byte loads a thread
    threads = min(code.constant("kBlockThreads"), max(128, 1 << (pieces - 1).bit_length()))
    return "block", desc.slices, (threads, 1, 1)


def _row_dims(desc: SoftmaxDescriptor) -> tuple[int | Stride, ...]:
    """The struct RowDims of softmax.cuh: sizes, input and output strides of every axis but one, last fastest."""
    axes = [axis for axis in desc.outer_axes if desc.shape[axis] != 1]
    unused = MAX_RANK - 1 - len(axes)
    sizes = [1] * unused + [desc.shape[axis] for axis in axes]
    strides = [[0] * unused + [Stride(name, axis) for axis in axes] for name in ("input", "output")]
    return (*sizes, *strides[0], *strides[1])


def _launches(desc: SoftmaxDescriptor, device: Device) -> tuple[Launch, ...]:
    variant, grid, block = _shape_of_launch(desc, _module(desc.element))
    axis = desc.axis % desc.rank
    return (
        Launch(
            f"softmax_{variant}_sm80_{desc.element.name.lower()}",
            (min(grid, _GRID_LIMIT), 1, 1),
            block,
            (
                Pointer("input"),
                Pointer("output"),
                _row_dims(desc),
                desc.slices,
                desc.axis_length,
                Stride("input", axis),
                Stride("output", axis),
                int(desc.kind is SoftmaxKind.LOG_SOFTMAX),
            ),
        ),
    )


def _cost(desc: SoftmaxDescriptor, device: Device) -> float:
    return 3 + prod(desc.shape) * 2 * bits_of(desc.element) / 8 / (0.7 * device.bytes_per_us)


def _kernel(kind: SoftmaxKind, element: ElementKind) -> Kernel:
    return Kernel(
        _sku(kind, element, ArchSku.SM80, ""),
        PtxCode(f"softmax.softmax.{element.name.lower()}", ArchSku.SM80, _launches),
        cost=_cost,
        doc="a warp or a block a slice; threads along the innermost axis when another one is normalised",
    )


def _examples() -> tuple[SoftmaxDescriptor, ...]:
    shapes = [((5, 33), -1), ((3, 7, 130), 1), ((2, 3000), 1), ((4, 0), -1), ((2, 3, 2, 2, 2, 3, 2, 5), 4), ((17,), 0)]
    return tuple(
        SoftmaxDescriptor(shape, axis, kind, element)
        for (shape, axis), kind, element in product(shapes, _KINDS, _ELEMENTS)
    )


OP = Op(
    name="softmax",
    category=OpCategory.SOFTMAX,
    kinds=_KINDS,
    descriptor=SoftmaxDescriptor,
    args=SoftmaxArgs,
    rules=RULES,
    reference=_reference,
    kernels=tuple(
        make(kind, element) for make in (_kernel, _host_kernel) for kind, element in product(_KINDS, _ELEMENTS)
    ),
    examples=_examples(),
)
