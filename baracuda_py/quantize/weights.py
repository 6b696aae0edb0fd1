"""Arrays as they come in: what is accepted, and the blocks in which they are worked on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.ops.quantize.awq_gemm import OP, Int4AwqGemmDescriptor
from baracuda_py.vocab.elements import element_of_dtype
from baracuda_py.vocab.enums import ElementKind

__all__ = ["BLOCK_ELEMENTS", "blocks", "check_floats", "check_weight"]

_FLOAT_ELEMENTS = (ElementKind.F16, ElementKind.BF16, ElementKind.F32)

# Values that are held in float32 at a time: 4 MiB an array.
BLOCK_ELEMENTS = 1 << 20


def blocks(rows: int, columns: int, elements: int | None = None) -> Iterator[slice]:
    """Slices of rows that hold about `elements` values: whole words of 8 rows, the last one aside.

    None: `BLOCK_ELEMENTS`."""
    step = max((elements or BLOCK_ELEMENTS) // columns // 8, 1) * 8
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def check_weight(weight: Any, group_size: int, scales_element: ElementKind, name: str = "weight") -> int:
    """Input channels of one group of `weight` (oc, ic).

    Raises Unsupported or InvalidProblem when the array or the AWQ GEMM's own rules do not allow it.
    """
    check_floats(weight, name, "(oc, ic)", rank=2)
    oc, ic = weight.shape
    descriptor = Int4AwqGemmDescriptor(0, ic, oc, group_size, scales_element=scales_element)
    OP.check(descriptor)
    return descriptor.group


def check_floats(array: Any, name: str, shape: str, *, rank: int) -> None:
    """Refuse what is not a NumPy array of `rank` axes, not empty, of finite f16, bf16 or f32."""
    if not isinstance(array, np.ndarray) or element_of_dtype(array.dtype) not in _FLOAT_ELEMENTS:
        got = str(array.dtype) if isinstance(array, np.ndarray) else type(array).__name__
        raise Unsupported(
            name, "it must be a NumPy array of float16, bfloat16 (ml_dtypes) or float32", rule="element", got=got
        )
    if array.ndim != rank or not array.size:
        raise InvalidProblem(name, f"its shape must be {shape}, not empty", rule="shape", value=array.shape)
    for rows in blocks(len(array), array.size // len(array)):
        finite = np.isfinite(array[rows])
        if not finite.all():
            first = tuple(int(index) for index in np.argwhere(~finite)[0])
            place = [first[0] + rows.start, *first[1:]]
            raise InvalidProblem(
                name, "its values must be finite", rule="finite", got=f"{float(array[rows][first])} at {place}",
                why="one inf or nan would spoil all that share a scale with it",
            )  # fmt: skip
