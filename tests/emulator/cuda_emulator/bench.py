"""Single kernels of the tests' own, run on NumPy arrays."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import Modules
from .compiler import Unit
from .library import Library, Schedule
from .memory import Memory

__all__ = ["Bench"]


class Bench:
    """The kernels of one file, each of signature (const In* in, Out* out).

    Attributes:
        library: what they were compiled to.
    """

    def __init__(self, modules: Modules, path: Path) -> None:
        self.library: Library = modules.compile({path.stem: Unit(path, _entries(path.read_text("utf-8")))})[path.stem]
        self._memory = Memory()

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels."""
        return tuple(self.library.kernels)

    def run(
        self, name: str, given: NDArray[Any], like: NDArray[Any], *, block: int, grid: int = 1,
        cluster: int = 1, shared_bytes: int = 0, schedule: Schedule | None = None,
    ) -> NDArray[Any]:  # fmt: skip
        """What a kernel makes of `given`, in an array like `like`; both end at an inaccessible page. Raises Fault."""
        allocations = [self._memory.allocate(values.nbytes, values.dtype.itemsize) for values in (given, like)]
        allocations[0].bytes()[:] = np.frombuffer(given.tobytes(), np.uint8)
        slots = (ctypes.c_uint64 * 2)(*(one.pointer for one in allocations))
        base = ctypes.addressof(slots)
        pointers = (ctypes.c_void_p * 2)(base, base + 8)
        geometry: Sequence[int] = (grid, 1, 1, block, 1, 1, shared_bytes)
        try:
            kernel, parameters = self.library.kernels[name], ctypes.addressof(pointers)
            kernel.run(geometry, parameters, schedule or Schedule(), cluster=cluster)
            return allocations[1].bytes().copy().view(like.dtype).reshape(like.shape)
        finally:
            for one in allocations:
                self._memory.free(one.pointer)


def _entries(text: str) -> tuple[str, ...]:
    """The kernels that a file defines, those that `DEFECT(name)` and `WARPGROUP(name, ...)` stand for included."""
    plain = re.findall(r"^extern \"C\" __global__ void (\w+)\(", text, re.MULTILINE)
    pairs = re.findall(r"^DEFECT\((\w+)\)", text, re.MULTILINE)
    plain += re.findall(r"^WARPGROUP\((\w+),", text, re.MULTILINE)
    return (*plain, *(f"{name}_{kind}" for name in pairs for kind in ("sound", "defect")))
