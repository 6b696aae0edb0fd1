"""Device memory of the emulated GPU: host memory with inaccessible pages on both sides."""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from typing import Literal

import numpy as np
from attrs import define, frozen
from numpy.typing import NDArray

from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.tensors import TensorMut

__all__ = ["Allocation", "GuardedTensor", "Memory"]

_GUARD = 1 << 20  # bytes on each side; an index that is wrong by more than a row or two still lands there
_POISON = 0xFF  # NaN in every floating format
_CUDA_ALIGNMENT = 256  # of what cuMemAlloc returns

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


@frozen
class Allocation:
    """`nbytes` bytes at `pointer`, in a mapping of `mapped_nbytes` at `base` whose outer pages are inaccessible."""

    pointer: int
    nbytes: int
    base: int
    mapped_nbytes: int

    def bytes(self) -> NDArray[np.uint8]:
        """A view of the bytes. It must not outlive the allocation."""
        raw = (ctypes.c_uint8 * self.nbytes).from_address(self.pointer)
        return np.ctypeslib.as_array(raw)


@define
class Memory:
    """The allocations of one emulated GPU.

    The garbage collector can free some at any moment, also amid a look at the table, so that the table itself changes
    only where this class is entered.
    """

    _by_pointer: dict[int, Allocation]
    _freed: deque[int]

    def __init__(self) -> None:
        self._by_pointer = {}
        self._freed = deque()

    def allocate(
        self, nbytes: int, alignment: int = _CUDA_ALIGNMENT, edge: Literal["end", "begin"] = "end"
    ) -> Allocation:
        """Poisoned memory. Its end lies at the inaccessible page above, as nearly as `alignment` lets its start;
        with edge "begin" its start lies at the one below."""
        page = mmap.PAGESIZE
        inner = -(-max(nbytes, 1) // page) * page
        mapped = inner + 2 * _GUARD
        base = _libc.mmap(None, mapped, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if base in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"{mapped} bytes")
        for guard in (base, base + _GUARD + inner):
            if _libc.mprotect(guard, _GUARD, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        begin = base + _GUARD
        pointer = begin if edge == "begin" else (begin + inner - nbytes) // alignment * alignment
        ctypes.memset(begin, _POISON, inner)
        made = Allocation(pointer, nbytes, base, mapped)
        self._live()[pointer] = made
        return made

    def free(self, pointer: int) -> None:
        """End the allocation at `pointer`, which is unmapped at the latest with the next allocation; KeyError if there
        is none."""
        if pointer not in self._by_pointer or pointer in self._freed:
            raise KeyError(pointer)
        self._freed.append(pointer)

    def holds(self, pointer: int, nbytes: int) -> bool:
        """Whether these bytes lie in one allocation."""
        allocations = self._live().values()
        return any(one.pointer <= pointer and pointer + nbytes <= one.pointer + one.nbytes for one in allocations)

    def describe(self, address: int) -> str:
        """Where an address lies, seen from the allocation in whose mapping it is."""
        inside = (one for one in self._live().values() if one.base <= address < one.base + one.mapped_nbytes)
        near = next(inside, None)
        if near is None:
            return "far from all device memory"
        if address >= near.pointer + near.nbytes:
            return f"{address - near.pointer - near.nbytes} bytes after the end of {near.nbytes} bytes"
        return f"{near.pointer - address} bytes before {near.nbytes} bytes"

    def _live(self) -> dict[int, Allocation]:
        while self._freed:
            freed = self._by_pointer.pop(self._freed.popleft())
            _libc.munmap(freed.base, freed.mapped_nbytes)
        return self._by_pointer


class GuardedTensor(TensorMut):
    """A tensor of the emulated GPU that fills its memory to the last byte, so that a kernel's access beside it faults.

    It lies against the inaccessible page above it or, with edge "begin", below it.
    """

    __slots__ = ("_allocation",)

    def __init__(
        self, memory: Memory, values: NDArray[np.generic], element: ElementKind, ordinal: int, *,
        alignment: int, edge: Literal["end", "begin"],
    ) -> None:  # fmt: skip
        self._allocation = memory.allocate(values.nbytes, alignment, edge)
        super().__init__(self._allocation.pointer, values.shape, element, device=ordinal, owner=memory)
        self._allocation.bytes()[:] = np.frombuffer(values.tobytes(), np.uint8)

    def numpy(self) -> NDArray[np.generic]:
        """A copy."""
        return self._allocation.bytes().copy().view(numpy_dtype(self.element)).reshape(self.shape)

    def __del__(self) -> None:
        self.owner.free(self._allocation.pointer)
