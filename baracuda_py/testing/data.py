"""Tensors for tests: every one lies in fenced memory, on the host or a GPU.

Around each tensor, and in the gaps between its rows, lie bytes of a pattern. A run must leave them as they were, the
inputs too. Inputs are exactly representable and, as far as the format has values, distinct; outputs start as poison.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from baracuda_py.arrays import DeviceArray
from baracuda_py.registry import Op
from baracuda_py.vocab.descriptors import TensorSpec
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import bits_of, numpy_dtype
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import HOST_MEMORY, TensorMut, TensorRef, row_major_strides

__all__ = [
    "POISONS",
    "Arrangement",
    "Fenced",
    "arrangements",
    "fenced",
    "fenced_bytes",
    "inputs_for",
    "place",
    "same_bits",
]

POISONS = (0xFF, 0x5A)  # bytes; 0xFF repeated is NaN in every floating format, and the two differ in every byte
_FENCE_BYTE = 0xC3
_FENCE = 256  # bytes on each side, and the alignment of every tensor: what cudaMalloc gives
_SIGNIFICANDS = {  # bits of precision: k / 2**bits is exact for every |k| <= 2**bits
    ElementKind.F16: 11,
    ElementKind.BF16: 8,
    ElementKind.F32: 24,
    ElementKind.F32_STRICT: 24,
    ElementKind.F64: 24,  # more would make no test stronger, and 2**24 values are drawn without a table of 2**53
    ElementKind.FP8_E4M3: 4,
    ElementKind.FP8_E5M2: 3,
}

# "shifted" is contiguous memory at the least aligned address that a kernel takes; every tensor may lie so.
Arrangement = Literal["contiguous", "padded", "permuted", "reversed", "shifted"]


def arrangements(spec: TensorSpec) -> tuple[Arrangement, ...]:
    """The ways in which a tensor of this spec may lie in memory."""
    if spec.strides == "contiguous":
        return ("contiguous",)
    return ("contiguous", "padded") if spec.strides == "rows" else ("contiguous", "padded", "permuted", "reversed")


@define(eq=False)
class Fenced:
    """A tensor, and all the memory around it.

    Attributes:
        view: the tensor, as an op takes it.
        raw: the memory: uint8 on the host, or a DeviceArray.
        image: what the memory holds after the last `write`, as bytes.
        offset: of element (0, ..., 0) in it.
    """

    view: TensorRef
    raw: Any
    image: NDArray[np.uint8]
    offset: int
    _owned: NDArray[np.bool_] = field(repr=False)

    def _of(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        dtype = numpy_dtype(self.view.element)
        strides = tuple(stride * dtype.itemsize for stride in self.view.strides)
        made: NDArray[Any] = np.ndarray(self.view.shape, dtype, image.data, self.offset, strides)
        return made

    def write(self, values: NDArray[Any]) -> None:
        """Fill the tensor, and restore the fences."""
        self.image[:] = _FENCE_BYTE
        self._of(self.image)[...] = values
        self._upload()

    def poison(self, byte: int) -> None:
        """Fill the tensor with one byte, and restore the fences."""
        self.image[:] = _FENCE_BYTE
        self.image[self._owned] = byte
        self._upload()

    def restore(self) -> None:
        """Put back what the last `write` or `poison` put there."""
        self._upload()

    def _upload(self) -> None:
        if isinstance(self.raw, DeviceArray):
            self.raw.copy_from(self.image)
        else:
            self.raw[:] = self.image

    def _memory(self) -> NDArray[np.uint8]:
        memory: NDArray[np.uint8] = self.raw.numpy() if isinstance(self.raw, DeviceArray) else self.raw.copy()
        return memory

    def values(self) -> NDArray[Any]:
        """A contiguous copy of the tensor as it is now."""
        return np.ascontiguousarray(self._of(self._memory()))

    @property
    def changed(self) -> bool:
        """Whether any byte differs from the last `write`, the tensor's own or a fence's."""
        return not np.array_equal(self._memory(), self.image)

    @property
    def fence_broken(self) -> bool:
        """Whether a byte beside the tensor's elements was changed."""
        return bool((self._memory() != self.image)[~self._owned].any())


def fenced(
    shape: tuple[int, ...],
    element: ElementKind,
    device: Device,
    *,
    strides: tuple[int, ...] | None = None,
    written: bool = False,
    shift_bytes: int = 0,
) -> Fenced:
    """A fenced tensor whose elements are all poison.

    Args:
        shape, element, strides: of the tensor; strides in elements, by default row-major.
        device: the host or a live GPU.
        written: whether the view may be written.
        shift_bytes: how far the tensor lies off the alignment of 256 bytes.
    """
    dtype = numpy_dtype(element)
    strides = row_major_strides(shape) if strides is None else strides
    view = TensorRef(0, shape, element, strides=strides)
    low, high = view.extent
    total = 2 * _FENCE + (high - low) + shift_bytes
    raw, address = _memory(total, device)
    offset = _FENCE + shift_bytes - low
    image = np.full(total, _FENCE_BYTE, np.uint8)
    owned = np.zeros(total, np.bool_)
    marks: NDArray[Any] = np.ndarray(
        (*shape, dtype.itemsize), np.bool_, owned.data, offset, (*(s * dtype.itemsize for s in strides), 1)
    )
    marks[...] = True
    kind = TensorMut if written else TensorRef
    ordinal = HOST_MEMORY if device.kind == "host" else device.ordinal
    view = kind(address + offset, shape, element, strides=strides, device=ordinal, owner=raw)
    made = Fenced(view, raw, image, offset, owned)
    made.poison(POISONS[0])
    return made


def _memory(nbytes: int, device: Device) -> tuple[Any, int]:
    """Memory that starts at a multiple of `_FENCE`, and its address."""
    if device.kind != "host":
        array = DeviceArray((nbytes,), ElementKind.U8, device)
        return array, array.pointer
    block = np.empty(nbytes + _FENCE, np.uint8)
    start = -block.ctypes.data % _FENCE
    raw = block[start : start + nbytes]
    return raw, raw.ctypes.data


def fenced_bytes(nbytes: int, device: Device) -> tuple[Workspace, Fenced | None]:
    """A workspace of exactly `nbytes`, and the memory it lies in; NONE when that is 0."""
    if not nbytes:
        return Workspace.NONE, None
    memory = fenced((nbytes,), ElementKind.U8, device, written=True)
    return Workspace.borrowed(memory.view), memory


def inputs_for(op: Op, descriptor: Any) -> dict[str, NDArray[Any] | None]:
    """Values of every argument that a kernel reads, by name; None for one that must be absent."""
    random = np.random.default_rng(zlib.crc32(f"{op.name} {descriptor}".encode()))
    values: dict[str, NDArray[Any] | None] = {}
    for spec in op.specs:
        if spec.role != "out":
            needed = spec.needed_on(descriptor)
            values[spec.name] = _values(spec, descriptor, random) if needed else None
    return values | dict(op.samples(descriptor, random))


def _values(spec: TensorSpec, descriptor: Any, random: np.random.Generator) -> NDArray[Any]:
    shape, element = spec.shape_on(descriptor), spec.elements_on(descriptor)[0]
    count, dtype = int(np.prod(shape, dtype=np.int64)), numpy_dtype(element)
    if element in _SIGNIFICANDS:
        one = 1 << _SIGNIFICANDS[element]
        values = _distinct(count, 2 * one + 1, random) - one
        return (values / one).astype(dtype).reshape(shape)
    if dtype == np.bool_:
        return random.integers(0, 2, count).astype(np.bool_).reshape(shape)
    words = random.integers(0, 256, count * dtype.itemsize).astype(np.uint8).view(dtype)
    # Packed nibbles: both ends of their range, side by side, and every value in between.
    words[:1], words[1:2] = 0, np.array(-1).astype(dtype)
    return words.reshape(shape)


def _distinct(count: int, kinds: int, random: np.random.Generator) -> NDArray[np.int64]:
    """`count` integers below `kinds`, in random order, none coming twice before each has come once."""
    if count * 4 < kinds:  # a table of `kinds` would be the larger part of the work
        drawn = _each_once(random.integers(0, kinds, count + count // 2 + 8))
        while len(drawn) < count:
            drawn = _each_once(np.append(drawn, random.integers(0, kinds, count)))
        return random.permutation(drawn)[:count]
    rounds = [random.permutation(kinds) for _ in range(-(-count // kinds) or 1)]
    return np.concatenate(rounds)[:count]


def _each_once(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """`np.unique`, which hashes integers: at a million of them the sort is a hundred times faster."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])]


def place(
    spec: TensorSpec,
    shape: tuple[int, ...],
    element: ElementKind,
    device: Device,
    *,
    arrangement: Arrangement = "contiguous",
    alignment: int = 1,
) -> Fenced:
    """Fenced memory for one argument, its rows arranged as asked; row strides keep `alignment` bytes."""
    return fenced(
        shape,
        element,
        device,
        strides=_strides(shape, arrangement, max(1, alignment * 8 // bits_of(element))),
        written=spec.written,
        shift_bytes=max(alignment, bits_of(element) // 8) if arrangement == "shifted" else 0,
    )


def _strides(shape: tuple[int, ...], arrangement: Arrangement, unit: int) -> tuple[int, ...]:
    """Strides in elements; those of rows are multiples of `unit` unless the tensor is contiguous."""
    if arrangement in ("contiguous", "shifted"):
        return row_major_strides(shape)
    if arrangement == "permuted":
        return row_major_strides(shape[::-1])[::-1]
    if arrangement == "reversed":
        return tuple(-stride for stride in row_major_strides(shape))
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        needed = strides[axis + 1] * max(shape[axis + 1], 1)
        # Different gaps for the first and the other axes, so that a kernel cannot derive one stride from another.
        strides[axis] = (-(-needed // unit) + (1 if axis else 3)) * unit
    return tuple(strides)


def same_bits(one: Mapping[str, NDArray[Any]], two: Mapping[str, NDArray[Any]]) -> bool:
    """Whether two sets of outputs are equal bit for bit, NaN included."""
    return one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)
