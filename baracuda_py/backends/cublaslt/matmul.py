"""One product, as cuBLASLt is asked for it.

cuBLASLt stores matrices by columns, and a row-major matrix read by columns is its transpose. So it is asked for
output^T = b^T @ a^T: its A is our b, its B our a, its rows are our columns. The bias, which it adds along its rows,
thereby runs along our columns.

What the algorithm may do is narrowed to what the kernels promise: operands are multiplied in a type that holds them
exactly (never TF32 for f32, whatever NVIDIA_TF32_OVERRIDE says), sums are kept and split-K partials stored in the
accumulator's type. The algorithm depends on the problem, the strides and the alignment of the operands alone, and the
workspace is the caller's, so that runs on several streams get the same bits.
Source: cuBLAS documentation, "Results Reproducibility"; cublasLt.h, cublasLtNumericalImplFlags_t.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from contextlib import ExitStack
from typing import Any, NamedTuple

from attrs import frozen

from baracuda_py.errors import KernelInternal
from baracuda_py.vocab.enums import ElementKind, EpilogueKind
from baracuda_py.vocab.tensors import TensorRef

__all__ = ["Geometry", "Library", "Matmul", "MatmulProblem"]

_NOT_SUPPORTED = 15  # CUBLAS_STATUS_NOT_SUPPORTED
_TRANSPOSE = 1  # CUBLAS_OP_T
_ALIGNMENT = 16  # bytes; no kernel loads more at once, and a stricter promise would tell more pointers apart

# cublasLtNumericalImplFlags_t: byte 1 says what sums are kept in, byte 2 what operands are multiplied in; the rest is
# which instruction does it, which is left open. Of every bf16 algorithm for tensor cores cuBLASLt 13.1 says that it
# multiplies in f16, as of those for f16: no operand loses its range (a test), and what says bf16 takes 4 to 17 times as
# long (an H100).
_OPEN = (1 << 64) - 1 - 0xFF_FF_00
_SUM_F32, _SUM_F64 = 0x02 << 8, 0x04 << 8
_IN_F16, _IN_BF16, _IN_TF32, _IN_F32, _IN_F64 = (bit << 16 for bit in (0x01, 0x02, 0x04, 0x08, 0x10))

_EPILOGUES = {
    EpilogueKind.IDENTITY: "DEFAULT",
    EpilogueKind.BIAS: "BIAS",
    EpilogueKind.BIAS_RELU: "RELU_BIAS",
    EpilogueKind.BIAS_GELU: "GELU_BIAS",  # the tanh form
}


@frozen
class _Numerics:
    """How an element kind is multiplied.

    Attributes:
        data: its cudaDataType_t.
        compute: cublasComputeType_t.
        scale: cudaDataType_t of alpha and beta; `scalar` is the same as a ctypes class.
        implementations: mask of the cublasLtNumericalImplFlags_t that are allowed.
    """

    data: int
    compute: int
    scale: int
    scalar: Any
    implementations: int


_R_32F, _R_64F, _R_16F, _R_16BF = 0, 1, 2, 14
_COMPUTE_32F, _COMPUTE_64F = 68, 70
# Every 16-bit value is a TF32 value too, so that TF32 is exact there.
_NUMERICS = {
    ElementKind.F16: _Numerics(
        _R_16F, _COMPUTE_32F, _R_32F, ctypes.c_float, _OPEN | _SUM_F32 | _IN_F16 | _IN_TF32 | _IN_F32
    ),
    ElementKind.BF16: _Numerics(
        _R_16BF, _COMPUTE_32F, _R_32F, ctypes.c_float, _OPEN | _SUM_F32 | _IN_F16 | _IN_BF16 | _IN_TF32 | _IN_F32
    ),
    ElementKind.F32: _Numerics(_R_32F, _COMPUTE_32F, _R_32F, ctypes.c_float, _OPEN | _SUM_F32 | _IN_F32),
    ElementKind.F64: _Numerics(_R_64F, _COMPUTE_64F, _R_64F, ctypes.c_double, _OPEN | _SUM_F64 | _IN_F64),
}


@frozen
class MatmulProblem:
    """What `LibraryCode.problem` returns for this backend, as keywords. The op's arguments are a, b, output, bias.

    Attributes:
        m, n, k: extents, all at least 1.
        batch: matrices, at least 1.
        element: of all tensors: F16, BF16, F32 or F64.
        a_transposed: whether a is stored (k, m) instead of (m, k).
        b_transposed: whether b is stored (n, k) instead of (k, n).
        epilogue: any but BIAS_SILU; BIAS_GELU is the tanh form.
        alpha, beta: factors of the product and of the output's previous content.
        workspace_bytes: what an algorithm may use of the workspace.
    """

    m: int
    n: int
    k: int
    batch: int
    element: ElementKind
    a_transposed: bool
    b_transposed: bool
    epilogue: EpilogueKind
    alpha: float
    beta: float
    workspace_bytes: int


class Pitch(NamedTuple):
    """Distances in elements between the rows, and between the matrices, of one operand."""

    row: int
    matrix: int

    @classmethod
    def of(cls, view: TensorRef) -> Pitch:
        """Those of `view`; along an axis of extent 1, whose stride may be anything, those of a packed operand."""
        rows, columns = view.shape[-2:]
        row = view.strides[-2] if rows > 1 else columns
        batched = len(view.shape) == 3 and view.shape[0] > 1
        return cls(row, view.strides[0] if batched else rows * row)


class Geometry(NamedTuple):
    """All that an algorithm's choice depends on beside the problem: pitches, and each address's alignment in bytes."""

    a: Pitch
    b: Pitch
    output: Pitch
    alignments: tuple[int, int, int, int]  # of a, b, output, bias

    @classmethod
    def of(
        cls, a: TensorRef, b: TensorRef, output: TensorRef, addresses: tuple[int, int, int, int]
    ) -> Geometry:
        """That of one call: operands that may lie elsewhere than their views say, and all addresses."""
        first, second, third, fourth = addresses
        alignments = _alignment(first), _alignment(second), _alignment(third), _alignment(fourth)
        return cls(Pitch.of(a), Pitch.of(b), Pitch.of(output), alignments)

    @classmethod
    def packed(cls, problem: MatmulProblem) -> Geometry:
        """That of contiguous operands in fresh allocations."""
        m, n, k = problem.m, problem.n, problem.k
        return cls(
            Pitch(m if problem.a_transposed else k, m * k),
            Pitch(k if problem.b_transposed else n, n * k),
            Pitch(n, m * n),
            (_ALIGNMENT, _ALIGNMENT, _ALIGNMENT, _ALIGNMENT),
        )


def _alignment(pointer: int) -> int:
    """The power of two, up to `_ALIGNMENT`, that divides an address; that of an absent operand is full."""
    return min(pointer & -pointer, _ALIGNMENT) or _ALIGNMENT


class Library:
    """The bindings, whose failures become KernelInternal."""

    def __init__(self, api: Any) -> None:
        self.api = api

    def call(self, where: str, name: str, *arguments: Any) -> Any:
        """Call the function `name`."""
        try:
            return getattr(self.api, name)(*arguments)
        except self.api.cuBLASLtError as error:
            raise self.error(where, name, int(error.status)) from error

    def error(self, where: str, name: str, status: int) -> KernelInternal:
        """What to raise when `name` reports `status`."""
        text = self.api.get_status_string(status)
        return KernelInternal(
            where, status, must=f"cublasLt.{name} must succeed, and it says {text!r}",
            fix="Set CUBLASLT_LOG_LEVEL=5 to see why",
        )  # fmt: skip

    def set(self, where: str, what: str, target: int, attribute: int, value: Any) -> None:
        """Set an attribute; `value` is a ctypes scalar of the attribute's own size."""
        self.call(where, f"{what}_set_attribute", target, attribute, ctypes.addressof(value), ctypes.sizeof(value))


class Matmul:
    """One product, configured for one geometry: descriptor, layouts and algorithm. Freed with the object."""

    def __init__(self, library: Library, handle: int, problem: MatmulProblem, geometry: Geometry, where: str) -> None:
        self._library = library
        self._handle = handle
        self._where = where
        self._lock = threading.Lock()
        self._workspace_bytes = problem.workspace_bytes
        numerics = _NUMERICS[problem.element]
        self._alpha, self._beta = numerics.scalar(problem.alpha), numerics.scalar(problem.beta)
        self._bias = 0
        with ExitStack() as stack:
            self._descriptor = self._describe(stack, problem, numerics, geometry)
            self._layouts = self._lay_out(stack, problem, numerics, geometry)
            self._algorithm = self._choose(problem, numerics, geometry)
            close = stack.pop_all().close
        weakref.finalize(self, close).atexit = False

    def _make(self, stack: ExitStack, what: str, *arguments: int) -> int:
        made: int = self._library.call(self._where, f"{what}_create", *arguments)
        stack.callback(getattr(self._library.api, f"{what}_destroy"), made)
        return made

    def _describe(
        self, stack: ExitStack, problem: MatmulProblem, numerics: _Numerics, geometry: Geometry
    ) -> int:
        api = self._library.api
        made = self._make(stack, "matmul_desc", numerics.compute, numerics.scale)
        attributes: list[tuple[int, Any]] = []
        # Read by columns, an operand stored (m, k) or (k, n) is the transpose that output^T asks for; others are not.
        if problem.b_transposed:
            attributes.append((api.MatmulDescAttribute.TRANSA, ctypes.c_int32(_TRANSPOSE)))
        if problem.a_transposed:
            attributes.append((api.MatmulDescAttribute.TRANSB, ctypes.c_int32(_TRANSPOSE)))
        epilogue = getattr(api.Epilogue, _EPILOGUES[problem.epilogue])
        attributes.append((api.MatmulDescAttribute.EPILOGUE, ctypes.c_uint32(epilogue)))
        for attribute, value in attributes:
            self._library.set(self._where, "matmul_desc", made, attribute, value)
        if problem.epilogue is not EpilogueKind.IDENTITY:
            self._point_bias(made, geometry.alignments[3])  # the choice of an algorithm looks at its alignment only
        return made

    def _point_bias(self, descriptor: int, bias: int) -> None:
        attribute = self._library.api.MatmulDescAttribute.BIAS_POINTER
        self._library.set(self._where, "matmul_desc", descriptor, attribute, ctypes.c_uint64(bias))
        self._bias = bias

    def _lay_out(
        self, stack: ExitStack, problem: MatmulProblem, numerics: _Numerics, geometry: Geometry
    ) -> tuple[int, int, int]:
        attribute = self._library.api.MatrixLayoutAttribute

        def layout(stored: tuple[int, int], pitch: Pitch) -> int:
            rows, columns = stored
            made = self._make(stack, "matrix_layout", numerics.data, columns, rows, pitch.row)
            if problem.batch > 1:
                for name, value in (
                    (attribute.BATCH_COUNT, ctypes.c_int32(problem.batch)),
                    (attribute.STRIDED_BATCH_OFFSET, ctypes.c_int64(pitch.matrix)),
                ):
                    self._library.set(self._where, "matrix_layout", made, name, value)
            return made

        m, n, k = problem.m, problem.n, problem.k
        return (
            layout((k, m) if problem.a_transposed else (m, k), geometry.a),
            layout((n, k) if problem.b_transposed else (k, n), geometry.b),
            layout((m, n), geometry.output),
        )

    def _choose(self, problem: MatmulProblem, numerics: _Numerics, geometry: Geometry) -> Any:
        """The heuristic's first algorithm, as an array of one cublasLtMatmulHeuristicResult_t."""
        import numpy as np

        library, api = self._library, self._library.api
        a, b, output = self._layouts
        align_a, align_b, align_output, _ = geometry.alignments
        attribute = api.MatmulPreferenceAttribute
        results, found = np.zeros(1, api.matmul_heuristic_result_dtype), ctypes.c_int32(0)
        with ExitStack() as stack:
            preference = self._make(stack, "matmul_preference")
            for name, value in (
                (attribute.MAX_WORKSPACE_BYTES, ctypes.c_uint64(problem.workspace_bytes)),
                (attribute.REDUCTION_SCHEME_MASK, ctypes.c_uint32(api.ReductionScheme.COMPUTE_TYPE)),
                (attribute.IMPL_MASK, ctypes.c_uint64(numerics.implementations)),
                (attribute.MIN_ALIGNMENT_A_BYTES, ctypes.c_uint32(align_b)),
                (attribute.MIN_ALIGNMENT_B_BYTES, ctypes.c_uint32(align_a)),
                (attribute.MIN_ALIGNMENT_C_BYTES, ctypes.c_uint32(align_output)),
                (attribute.MIN_ALIGNMENT_D_BYTES, ctypes.c_uint32(align_output)),
            ):
                library.set(self._where, "matmul_preference", preference, name, value)
            library.call(
                self._where, "matmul_algo_get_heuristic", self._handle, self._descriptor, b, a, output, output,
                preference, len(results), results.ctypes.data, ctypes.addressof(found),
            )  # fmt: skip
        status = int(results[0]["state"]) if found.value else _NOT_SUPPORTED
        if status:
            raise library.error(self._where, "matmul_algo_get_heuristic", status)
        return results

    def enqueue(self, a: int, b: int, output: int, bias: int, workspace: int, stream: int) -> None:
        """Enqueue on `stream`; all arguments are addresses or handles. The context must be current."""
        layout_a, layout_b, layout_output = self._layouts
        with self._lock:  # the bias address is part of the descriptor, which cublasLtMatmul reads before it returns
            if bias != self._bias:
                self._point_bias(self._descriptor, bias)
            self._library.call(
                self._where, "matmul", self._handle, self._descriptor, ctypes.addressof(self._alpha), b, layout_b,
                a, layout_a, ctypes.addressof(self._beta), output, layout_output, output, layout_output,
                self._algorithm.ctypes.data, workspace, self._workspace_bytes, stream,
            )  # fmt: skip
