"""Quantisation of activations to fp8, a scale a token: scales[r] = max |x[r, :]| / 448, q[r, c] = x[r, c] / scales[r].

q is fp8 e4m3, whose largest value is 448: rounded to nearest, ties to even, and never beyond it. Computed in f32, as
x * (1 / scale). A row whose scale would be below 2^-126, such as one of zeros, gets the scale 1 and becomes zeros. NaN
stays NaN and does not count for the scale; an infinity becomes NaN, and the finite elements of its row 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from baracuda_py.registry import Kernel, Op
from baracuda_py.sys import module
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
    QuantizeKind,
)
from baracuda_py.vocab.rules import non_negative, one_of, positive
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

__all__ = ["OP", "QuantizePerTokenArgs", "QuantizePerTokenDescriptor"]

_ELEMENTS = (ElementKind.F16, ElementKind.BF16, ElementKind.F32)
_LARGEST = 448.0  # of e4m3
_LEAST_SCALE = 2.0**-126  # the reciprocal of a subnormal scale may be infinite


@descriptor
class QuantizePerTokenDescriptor:
    """A quantisation of every row of (rows, columns).

    Attributes:
        rows: tokens; 0 is valid and launches nothing.
        columns: elements of a row, at least 1.
        element: of the input: F16, BF16 or F32.
    """

    rows: int = int_field()
    columns: int = int_field()
    element: ElementKind = enum_field(ElementKind, default=ElementKind.F16)

    if TYPE_CHECKING:

        def with_element(self, value: ElementKind) -> Self: ...


@arguments
class QuantizePerTokenArgs:
    """Tensors of one quantisation; rows of input and output may be strided."""

    input: Any = tensor("element", ("rows", "columns"), strides="rows", doc="(rows, columns), row-major")
    output: Any = tensor(
        ElementKind.FP8_E4M3, ("rows", "columns"), strides="rows", role="out", doc="(rows, columns), row-major"
    )
    scales: Any = tensor(ElementKind.F32, ("rows",), role="out", doc="(rows,): x is about output * scales[:, None]")


RULES = (
    non_negative("rows"),
    positive("columns"),
    one_of("element", _ELEMENTS),
)


def _reference(desc: QuantizePerTokenDescriptor, input: Any) -> Any:
    import numpy as np

    x = np.asarray(input, np.float64)
    with np.errstate(invalid="ignore"):
        scales = np.fmax.reduce(np.abs(x), axis=1, initial=0.0) / _LARGEST
        scales[scales < _LEAST_SCALE] = 1.0
        return x / scales[:, None], scales


_BLOCK_ELEMENTS = 1 << 16  # widened to f32 at a time: a block stays in a core's cache


def _host(desc: QuantizePerTokenDescriptor, input: Any, output: Any, scales: Any) -> None:
    import numpy as np

    rows = max(1, _BLOCK_ELEMENTS // desc.columns)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for first in range(0, desc.rows, rows):
            x = input[first : first + rows].astype(np.float32)
            scale = np.fmax.reduce(np.abs(x), axis=1, initial=np.float32(0)) / np.float32(_LARGEST)
            scale[scale < np.float32(_LEAST_SCALE)] = 1
            scales[first : first + rows] = scale
            x *= (np.float32(1) / scale)[:, None]
            output[first : first + rows] = np.clip(x, -_LARGEST, _LARGEST, out=x)  # conversion would give NaN beyond


_GUARANTEE = PrecisionGuarantee(
    MathPrecision.F32,
    ElementKind.F32,
    ElementKind.F32,
    bit_stable_on_same_hardware=True,
    deterministic=True,
    batch_invariant=True,  # there is no sum, and a maximum is the same in every order
)


def _sku(element: ElementKind, arch: ArchSku, backend: BackendKind, variant: str) -> KernelSku:
    return KernelSku(
        OpCategory.QUANTIZATION, QuantizeKind.PER_TOKEN, element, ElementKind.FP8_E4M3, LayoutSku.RRR,
        EpilogueKind.IDENTITY, arch, backend, _GUARANTEE, variant,
    )  # fmt: skip


def _host_cost(desc: QuantizePerTokenDescriptor, device: Device) -> float:
    return 20 + desc.rows * desc.columns / 100


def _cuda_cost(desc: QuantizePerTokenDescriptor, device: Device) -> float:
    return 3 + desc.rows * desc.columns * (bits_of(desc.element) + 8) / 8 / (0.5 * device.bytes_per_us)


_MODULE = "quantize.per_token"
_GRID_LIMIT = (1 << 31) - 1  # blocks; the kernel loops over what is beyond


def _threads(desc: QuantizePerTokenDescriptor) -> int:
    """Of a row: enough that each holds its pieces of the row in registers, in whole warps."""
    code = module(_MODULE, "sm80")
    piece = code.constant("kPieceBytes") * 8 // bits_of(desc.element)
    wanted = -(-desc.columns // (piece * code.constant("kHeldPieces")))
    warp = code.constant("kWarp")
    return min(code.constant("kMostThreads"), -(-wanted // warp) * warp)


def _launches(desc: QuantizePerTokenDescriptor, device: Device) -> tuple[Launch, ...]:
    return (
        Launch(
            entry=f"quantize_per_token_sm80_{desc.element.name.lower()}",
            grid=(min(desc.rows, _GRID_LIMIT), 1, 1),
            block=(_threads(desc), 1, 1),
            parameters=(
                Pointer("input"), Pointer("output"), Pointer("scales"), desc.rows, desc.columns,
                Stride("input", 0), Stride("output", 0),
            ),
        ),
    )  # fmt: skip


def _kernels(element: ElementKind) -> tuple[Kernel, ...]:
    return (
        Kernel(
            _sku(element, ArchSku.SM80, BackendKind.BESPOKE, ""),
            PtxCode(_MODULE, ArchSku.SM80, _launches),
            cost=_cuda_cost,
            doc="a thread block a row, held in registers up to 16 KiB",
        ),
        Kernel(
            _sku(element, ArchSku.HOST, BackendKind.HOST, "numpy"),
            HostCode(_host),
            cost=_host_cost,
            doc="blocks of 65,536 elements",
        ),
    )


def _examples(element: ElementKind) -> tuple[QuantizePerTokenDescriptor, ...]:
    of_1_kib = 8 * 1024 // bits_of(element)
    shapes = (
        (0, 8),
        (5, 1),
        (37, of_1_kib // 4),
        (3, 5 * of_1_kib - 1),  # several warps, rows that are not aligned
        (2, 16 * of_1_kib + 24),  # more than what a block holds in registers
        (2, 17 * of_1_kib + 5),
    )
    return tuple(QuantizePerTokenDescriptor(rows, columns, element) for rows, columns in shapes)


OP = Op(
    name="quantize_per_token",
    category=OpCategory.QUANTIZATION,
    kinds=(QuantizeKind.PER_TOKEN,),
    descriptor=QuantizePerTokenDescriptor,
    args=QuantizePerTokenArgs,
    rules=RULES,
    reference=_reference,
    kernels=tuple(kernel for element in _ELEMENTS for kernel in _kernels(element)),
    examples=tuple(example for element in _ELEMENTS for example in _examples(element)),
)
