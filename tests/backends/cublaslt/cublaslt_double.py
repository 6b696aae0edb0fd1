"""A double of `nvmath.bindings.cublasLt` that multiplies in NumPy what its column-major layouts describe.

It is as strict as the library where a mistake would show only on a GPU: sizes of attributes, leading dimensions,
alignment that an algorithm was promised, workspace, live handles, and a current context.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import ml_dtypes
import numpy as np
from attrs import Factory, define

from baracuda_py.vocab.device import Device

DATA_TYPES = {0: np.float32, 1: np.float64, 2: np.float16, 14: ml_dtypes.bfloat16}
COMPUTE_TYPES = {68: np.float32, 70: np.float64}
SUCCESS, INVALID_VALUE, NOT_SUPPORTED = 0, 7, 15


class FakeError(Exception):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"status {status}")


class MatmulDescAttribute(IntEnum):
    TRANSA = 3
    TRANSB = 4
    EPILOGUE = 7
    BIAS_POINTER = 8


class MatrixLayoutAttribute(IntEnum):
    BATCH_COUNT = 5
    STRIDED_BATCH_OFFSET = 6


class MatmulPreferenceAttribute(IntEnum):
    MAX_WORKSPACE_BYTES = 1
    REDUCTION_SCHEME_MASK = 3
    MIN_ALIGNMENT_A_BYTES = 5
    MIN_ALIGNMENT_B_BYTES = 6
    MIN_ALIGNMENT_C_BYTES = 7
    MIN_ALIGNMENT_D_BYTES = 8
    IMPL_MASK = 12


class Epilogue(IntEnum):
    DEFAULT = 1
    BIAS = 4
    RELU_BIAS = 6
    GELU_BIAS = 36


class ReductionScheme(IntEnum):
    COMPUTE_TYPE = 2


EIGHT_BYTES = ("BIAS_POINTER", "STRIDED_BATCH_OFFSET", "MAX_WORKSPACE_BYTES", "IMPL_MASK")  # all others take four


@define(eq=False)
class Described:
    """An object of the library: what it was created with, and its attributes."""

    what: str
    created: tuple[int, ...]
    attributes: dict[IntEnum, int] = Factory(dict)


class FakeCublasLt:
    """The double. `calls` names every call; `failing` maps a call's name to the status it is to report."""

    cuBLASLtError = FakeError
    MatmulDescAttribute = MatmulDescAttribute
    MatrixLayoutAttribute = MatrixLayoutAttribute
    MatmulPreferenceAttribute = MatmulPreferenceAttribute
    Epilogue = Epilogue
    ReductionScheme = ReductionScheme
    enums = (MatmulDescAttribute, MatrixLayoutAttribute, MatmulPreferenceAttribute, Epilogue, ReductionScheme)
    matmul_heuristic_result_dtype = np.dtype(
        [("algo", [("data_", "<u8", (8,))]), ("workspace_size", "<u8"), ("state", "<i4"), ("waves_count", "<f4"),
         ("reserved", "<i4", (4,))]
    )  # fmt: skip

    def __init__(self, context: Any) -> None:  # anything with `is_current`
        self.calls: list[str] = []
        self.failing: dict[str, int] = {}
        self.live: dict[int, Described] = {}
        self.preferences: list[dict[IntEnum, int]] = []
        self._context = context
        self._handles = iter(range(1000, 10**9))

    def _called(self, name: str, *, needs_context: bool = False) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise FakeError(self.failing[name])
        assert not needs_context or self._context.is_current, f"{name} without the device's context"

    def _created(self, what: str, *created: int, needs_context: bool = False) -> int:
        self._called(f"{what}_create" if what != "handle" else "create", needs_context=needs_context)
        handle = next(self._handles)
        self.live[handle] = Described(what, created)
        return handle

    def _get(self, handle: int, what: str) -> Described:
        described = self.live[handle]
        assert described.what == what
        return described

    def _set(self, what: str, kind: type[IntEnum], handle: int, attribute: int, buffer: int, size: int) -> None:
        self._called(f"{what}_set_attribute")
        member = kind(attribute)
        if size != (8 if member.name in EIGHT_BYTES else 4):
            raise FakeError(INVALID_VALUE)
        self._get(handle, what).attributes[member] = int.from_bytes(ctypes.string_at(buffer, size), "little")

    def get_status_string(self, status: int) -> str:
        return {NOT_SUPPORTED: "not supported"}.get(status, "something failed")

    def create(self) -> int:
        return self._created("handle", needs_context=True)

    def matmul_desc_create(self, compute: int, scale: int) -> int:
        return self._created("matmul_desc", compute, scale)

    def matrix_layout_create(self, data: int, rows: int, columns: int, pitch: int) -> int:
        if pitch < rows:
            raise FakeError(INVALID_VALUE)
        return self._created("matrix_layout", data, rows, columns, pitch)

    def matmul_preference_create(self) -> int:
        return self._created("matmul_preference")

    def _destroy(self, handle: int) -> None:
        del self.live[handle]

    destroy = matmul_desc_destroy = matrix_layout_destroy = matmul_preference_destroy = _destroy

    def matmul_desc_set_attribute(self, *arguments: int) -> None:
        self._set("matmul_desc", MatmulDescAttribute, *arguments)

    def matrix_layout_set_attribute(self, *arguments: int) -> None:
        self._set("matrix_layout", MatrixLayoutAttribute, *arguments)

    def matmul_preference_set_attribute(self, *arguments: int) -> None:
        self._set("matmul_preference", MatmulPreferenceAttribute, *arguments)

    def matmul_algo_get_heuristic(
        self, handle: int, desc: int, a: int, b: int, c: int, d: int, preference: int, count: int, results: int,
        found: int,
    ) -> None:  # fmt: skip
        self._called("matmul_algo_get_heuristic", needs_context=True)
        self._get(handle, "handle")
        described = self._get(desc, "matmul_desc").attributes
        assert described[MatmulDescAttribute.EPILOGUE] == Epilogue.DEFAULT or (
            described[MatmulDescAttribute.BIAS_POINTER]
        ), "the library judges the bias's alignment by its address"
        self.preferences.append(dict(self._get(preference, "matmul_preference").attributes))
        algorithm = (ctypes.c_uint64 * 8).from_address(results)
        algorithm[0] = len(self.preferences)  # found again by `matmul`
        ctypes.c_int32.from_address(found).value = 1

    def _matrix(self, layout: int, pointer: int) -> Any:
        """The matrices of a layout, (batch, rows, columns), as a view of the memory."""
        described = self._get(layout, "matrix_layout")
        data, rows, columns, pitch = described.created
        dtype = np.dtype(DATA_TYPES[data])
        batch = described.attributes.get(MatrixLayoutAttribute.BATCH_COUNT, 1)
        stride = described.attributes.get(MatrixLayoutAttribute.STRIDED_BATCH_OFFSET, 0)
        span = (batch - 1) * stride + (columns - 1) * pitch + rows
        memory = (ctypes.c_char * (span * dtype.itemsize)).from_address(pointer)
        size = dtype.itemsize
        return np.ndarray((batch, rows, columns), dtype, memory, 0, (stride * size, size, pitch * size))

    def matmul(
        self, handle: int, desc: int, alpha: int, a: int, layout_a: int, b: int, layout_b: int, beta: int, c: int,
        layout_c: int, d: int, layout_d: int, algorithm: int, workspace: int, workspace_bytes: int, stream: int,
    ) -> None:  # fmt: skip
        self._called("matmul", needs_context=True)
        self._get(handle, "handle")
        promised = self.preferences[ctypes.c_uint64.from_address(algorithm).value - 1]
        assert workspace_bytes >= promised[MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES]
        assert workspace
        for name, pointer in (("A", a), ("B", b), ("C", c), ("D", d)):
            assert pointer % promised[MatmulPreferenceAttribute[f"MIN_ALIGNMENT_{name}_BYTES"]] == 0
        described = self._get(desc, "matmul_desc")
        compute, scale = described.created
        wide, scalar = COMPUTE_TYPES[compute], DATA_TYPES[scale]
        first, second = (
            matrix.swapaxes(1, 2) if described.attributes.get(transposed, 0) else matrix
            for matrix, transposed in (
                (self._matrix(layout_a, a), MatmulDescAttribute.TRANSA),
                (self._matrix(layout_b, b), MatmulDescAttribute.TRANSB),
            )
        )
        factor, kept = (
            np.frombuffer(ctypes.string_at(where, np.dtype(scalar).itemsize), scalar)[0] for where in (alpha, beta)
        )
        target = self._matrix(layout_d, d)
        values = factor * (first.astype(wide) @ second.astype(wide))
        assert values.shape == target.shape
        if kept:
            values += kept * self._matrix(layout_c, c).astype(wide)
        epilogue = described.attributes[MatmulDescAttribute.EPILOGUE]
        if epilogue != Epilogue.DEFAULT:
            bias = described.attributes[MatmulDescAttribute.BIAS_POINTER]
            size = target.dtype.itemsize
            vector = np.frombuffer(ctypes.string_at(bias, target.shape[1] * size), target.dtype)
            values += vector.astype(wide)[:, None]
        if epilogue == Epilogue.RELU_BIAS:
            values = np.maximum(values, 0)
        elif epilogue == Epilogue.GELU_BIAS:
            values *= 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))
        target[...] = values


class FakeContext:
    """A context that knows whether it is current."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.depth = 0

    @property
    def is_current(self) -> bool:
        return self.depth > 0

    def enter(self) -> bool:
        self.depth += 1
        return True

    def leave(self) -> None:
        self.depth -= 1

    @contextmanager
    def current(self) -> Iterator[None]:
        self.enter()
        try:
            yield
        finally:
            self.leave()

    relaxed = current


class FakeCuda:
    """Stands in for the CUDA backend."""

    def __init__(self, context: FakeContext) -> None:
        self._context = context

    def context(self, device: Device) -> FakeContext:
        return self._context
