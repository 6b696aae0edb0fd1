"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight, each row of (rows, columns) on its own.

Computed in f32 and rounded once. The squares of f16 lie well within its range. Those of f32 and bf16 need not: a row
whose sum of squares overflows comes out as 0, one whose squares vanish is divided by sqrt(eps).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import attrs

from baracuda_py.errors import Unsupported
from baracuda_py.registry import Kernel, Op
from baracuda_py.sys import module
from baracuda_py.vocab.code import HostCode, Launch, Pointer, PtxCode, Stride, f32
from baracuda_py.vocab.descriptors import arguments, descriptor, enum_field, float_field, int_field, tensor
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import bits_of
from baracuda_py.vocab.enums import (
    ArchSku,
    BackendKind,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    MathPrecision,
    NormalizationKind,
    OpCategory,
)
from baracuda_py.vocab.rules import at_most, f32_number, non_negative, one_of, positive
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

__all__ = ["OP", "RmsNormArgs", "RmsNormDescriptor"]

_ELEMENTS = (ElementKind.F16, ElementKind.BF16, ElementKind.F32)


@descriptor
class RmsNormDescriptor:
    """An RMSNorm of every row of (rows, columns).

    Attributes:
        rows: 0 is valid and launches nothing. Tokens, or tokens times heads where each head is normalised.
        columns: elements of a row, at least 1.
        eps: added to the mean square, 0 to 1, in f32; with 0 a row of zeros comes out as NaN. One that f32 rounds to 0
            is refused.
        element: of input, weight and output: F16, BF16 or F32.
        has_weight: whether each column is multiplied by a weight.
    """

    rows: int = int_field()
    columns: int = int_field()
    eps: float = float_field(default=1e-6)
    element: ElementKind = enum_field(ElementKind, default=ElementKind.F16)
    has_weight: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))

    if TYPE_CHECKING:

        def with_eps(self, value: float) -> Self: ...
        def with_element(self, value: ElementKind) -> Self: ...
        def with_has_weight(self, value: bool) -> Self: ...


@arguments
class RmsNormArgs:
    """Tensors of one RMSNorm; rows of input and output may be strided."""

    input: Any = tensor("element", ("rows", "columns"), strides="rows", doc="(rows, columns), row-major")
    output: Any = tensor("element", ("rows", "columns"), strides="rows", role="out", doc="(rows, columns), row-major")
    weight: Any = tensor("element", ("columns",), role="constant", needed="has_weight", doc="(columns,)")


RULES = (
    non_negative("rows"),
    positive("columns"),
    non_negative("eps"),
    at_most("eps", 1, error=Unsupported, why="eps keeps a row of zeros finite, beside a mean square of about 1"),
    f32_number("eps", why="it is added in f32, where it would be 0", fix="Pass 0, or 1.5e-45 or more"),
    one_of("element", _ELEMENTS),
)


def _reference(desc: RmsNormDescriptor, input: Any, weight: Any) -> Any:
    import numpy as np

    x = np.asarray(input, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        y = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + desc.eps)
        return y if weight is None else y * np.asarray(weight, np.float64)


_BLOCK_ELEMENTS = 1 << 16  # widened to f32 at a time: a block and its squares stay in a core's cache


def _host(desc: RmsNormDescriptor, input: Any, output: Any, weight: Any) -> None:
    import numpy as np

    factors = None if weight is None else weight.astype(np.float32)
    rows = max(1, _BLOCK_ELEMENTS // desc.columns)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
        for first in range(0, desc.rows, rows):
            x = input[first : first + rows].astype(np.float32)
            x /= np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(desc.eps))
            if factors is not None:
                x *= factors
            output[first : first + rows] = x


def _sku(element: ElementKind, arch: ArchSku, variant: str) -> KernelSku:
    host = arch is ArchSku.HOST
    guarantee = PrecisionGuarantee(
        MathPrecision.F32,
        ElementKind.F32,
        ElementKind.F32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        batch_invariant=not host,  # NumPy may add in another order when an array has another shape
    )
    return KernelSku(
        OpCategory.NORMALIZATION, NormalizationKind.RMS_NORM, element, element, LayoutSku.RRR, EpilogueKind.IDENTITY,
        arch, BackendKind.HOST if host else BackendKind.BESPOKE, guarantee, variant,
    )  # fmt: skip


def _host_cost(desc: RmsNormDescriptor, device: Device) -> float:
    return 10 + desc.rows * desc.columns / 300


def _cuda_cost(desc: RmsNormDescriptor, device: Device) -> float:
    return 3 + 2 * desc.rows * desc.columns * bits_of(desc.element) / 8 / (0.7 * device.bytes_per_us)


_MODULE = "normalization.rms_norm"
_GRID_LIMIT = (1 << 31) - 1  # blocks; the kernel loops over what is beyond


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _block(desc: RmsNormDescriptor) -> tuple[int, int, int]:
    """Threads a row, and rows a block.

    They depend on columns and element alone, never on the rows: that is what makes a row's bits independent of its
    batch. A row gets a thread for every 16 bytes up to a warp, then for every `kHeldPieces` of them.
    """
    code = module(_MODULE, "sm80")
    pieces = -(-desc.columns * bits_of(desc.element) // (8 * code.constant("kPieceBytes")))
    a_piece_each = min(code.constant("kWarp"), _power_of_two(pieces))
    held_pieces_each = min(code.constant("kRowThreads"), _power_of_two(-(-pieces // code.constant("kHeldPieces"))))
    threads = max(a_piece_each, held_pieces_each)
    return threads, max(1, code.constant("kBlockThreads") // threads), 1


def _launches(desc: RmsNormDescriptor, device: Device) -> tuple[Launch, ...]:
    block = _block(desc)
    return (
        Launch(
            entry=f"rms_norm_sm80_{desc.element.name.lower()}",
            grid=(min(-(-desc.rows // block[1]), _GRID_LIMIT), 1, 1),
            block=block,
            parameters=(
                Pointer("input"), Pointer("weight"), Pointer("output"), desc.rows, desc.columns,
                Stride("input", 0), Stride("output", 0), f32(desc.eps),
            ),
        ),
    )  # fmt: skip


def _kernels(element: ElementKind) -> tuple[Kernel, ...]:
    return (
        Kernel(
            _sku(element, ArchSku.SM80, ""),
            PtxCode(_MODULE, ArchSku.SM80, _launches),
            cost=_cuda_cost,
            doc="a row in registers up to 32 KiB; short rows share a block",
        ),
        Kernel(_sku(element, ArchSku.HOST, "numpy"), HostCode(_host), cost=_host_cost, doc="blocks of 65,536 elements"),
    )


def _examples(element: ElementKind) -> tuple[RmsNormDescriptor, ...]:
    of_1_kib = 8 * 1024 // bits_of(element)
    shapes = (
        (0, 8, True),
        (5, 1, True),  # part of a warp a row
        (37, of_1_kib // 8, True),
        (3, 4 * of_1_kib - 1, False),  # two warps a row and two rows a block
        (2, 64 * of_1_kib + 24, True),  # more than twice what a block holds in registers
        (2, 32 * of_1_kib + 5, False),
    )
    return tuple(
        RmsNormDescriptor(rows, columns, element=element, has_weight=has_weight) for rows, columns, has_weight in shapes
    )


OP = Op(
    name="rms_norm",
    category=OpCategory.NORMALIZATION,
    kinds=(NormalizationKind.RMS_NORM,),
    descriptor=RmsNormDescriptor,
    args=RmsNormArgs,
    rules=RULES,
    reference=_reference,
    kernels=tuple(kernel for element in _ELEMENTS for kernel in _kernels(element)),
    examples=tuple(example for element in _ELEMENTS for example in _examples(element)),
)
