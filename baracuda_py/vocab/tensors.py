"""Views of memory that others own: `TensorRef` (read) and `TensorMut` (written).

`of` makes one from anything that says where its memory is: a NumPy array, a torch tensor, or any object with
`__cuda_array_interface__` or `__dlpack__` (CuPy, JAX, ...). No framework is imported for it; nothing is copied.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from typing import Any, Self

from baracuda_py.errors import BufferTooSmall, InvalidProblem, Unsupported
from baracuda_py.vocab.dlpack import read_dlpack
from baracuda_py.vocab.elements import (
    bits_of,
    element_of_dlpack,
    element_of_dtype,
    element_of_torch,
    numpy_dtype,
)
from baracuda_py.vocab.enums import ElementKind

__all__ = [
    "HOST_MEMORY", "TensorMut", "TensorRef", "addresses_of", "row_major_strides", "stream_owner", "tells_no_stream",
]  # fmt: skip

HOST_MEMORY = -1  # `TensorRef.device` of host memory


def row_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a contiguous row-major tensor."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


class TensorRef:
    """A read-only view: address, shape, strides in elements, element kind, device.

    Attributes:
        pointer: address of element (0, ..., 0).
        shape: extents.
        strides: distance in elements between neighbours along each axis.
        element: what one element is.
        device: CUDA ordinal, `HOST_MEMORY` (-1), or None when not known.
        owner: the object that keeps the memory alive.
    """

    __slots__ = ("device", "element", "owner", "pointer", "shape", "strides")
    writable = False

    def __init__(
        self,
        pointer: int,
        shape: tuple[int, ...],
        element: ElementKind,
        *,
        strides: tuple[int, ...] | None = None,
        device: int | None = None,
        nbytes: int | None = None,
        owner: Any = None,
    ) -> None:
        """View raw memory; strides default to row-major. BufferTooSmall if the view ends beyond `nbytes`."""
        self.pointer = pointer
        self.shape = tuple(shape)
        self.strides = row_major_strides(self.shape) if strides is None else tuple(strides)
        self.element = element
        self.device = device
        self.owner = owner
        if len(self.shape) != len(self.strides):
            raise InvalidProblem(
                "tensor", "shape and strides must have the same rank", rule="rank", value=(self.shape, self.strides)
            )
        if nbytes is not None and self.span_bytes > nbytes:
            raise BufferTooSmall("tensor", self.span_bytes, nbytes)

    def moved(self, pointer: int, owner: Any) -> TensorRef:
        """The same view of memory elsewhere."""
        made = object.__new__(TensorMut if self.writable else TensorRef)
        made.pointer = pointer
        made.shape = self.shape
        made.strides = self.strides
        made.element = self.element
        made.device = self.device
        made.owner = owner
        return made

    @classmethod
    def of(cls, source: Any, name: str = "tensor", stream: int = 0) -> Self:
        """View `source`.

        Args:
            source: a TensorRef, NumPy array, torch tensor, or object with `__cuda_array_interface__` or `__dlpack__`.
                The stream that a `__cuda_array_interface__` names is not waited for.
            name: the argument's name, for messages.
            stream: the CUDA stream that will use it; DLPack producers (JAX) order their pending work before it.

        Raises:
            Unsupported: not such an object, a dtype that no ElementKind stands for, or no plain strided memory (sparse,
                masked, traced or donated by JAX, or a torch tensor whose negation or conjugation is pending).
            InvalidProblem: read-only memory, or a JAX array, for a TensorMut.
        """
        if isinstance(source, TensorRef):
            if cls.writable and not source.writable:
                raise _read_only(name)
            return source  # type: ignore[return-value]
        kind: Any = type(source)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(source, numpy.ndarray):
            view = cls._of_numpy(source, name)
        elif hasattr(source, "data_ptr") and hasattr(source, "stride"):
            view = cls._of_torch(source, name)
        elif _of_jax(kind):
            view = cls._of_jax_array(source, name, stream)
        elif _offers_interface(source):
            view = cls._of_cuda_array_interface(source, name)
        elif hasattr(source, "__dlpack__"):
            view = cls._of_dlpack(source, name, stream)
        else:
            raise Unsupported(
                name,
                "an array must offer __dlpack__ or __cuda_array_interface__, or be a NumPy array or a TensorRef",
                rule="array",
                got=type(source).__name__,
                fix="Wrap raw memory in bp.TensorRef(pointer, shape, element)",
            )
        return view

    @classmethod
    def _of_numpy(cls, source: Any, name: str) -> Self:
        if hasattr(source, "_mask"):
            raise Unsupported(name, "an array must not be masked", rule="mask", got="a masked array")
        element = element_of_dtype(source.dtype)
        if element is None:
            raise _unknown_dtype(name, source.dtype)
        if cls.writable and not source.flags.writeable:
            raise _read_only(name)
        strides = _whole_strides(name, source.strides, source.dtype.itemsize)
        return cls(
            source.__array_interface__["data"][0], source.shape, element,
            strides=strides, device=HOST_MEMORY, owner=source,
        )  # fmt: skip

    @classmethod
    def _of_torch(cls, source: Any, name: str) -> Self:
        element = element_of_torch(source.dtype)
        if element is None:
            raise _unknown_dtype(name, source.dtype)
        kind = source.device.type
        if kind not in ("cpu", "cuda"):
            raise Unsupported(name, "a tensor must lie in CPU or CUDA memory", rule="device", got=str(source.device))
        if str(source.layout) != "torch.strided" or source.is_nested:
            got = "a nested tensor" if source.is_nested else str(source.layout)
            raise Unsupported(name, "a tensor must be strided", rule="layout", got=got, fix="Make it dense")
        # The operation is pending: memory holds the numbers before it.
        if source.is_neg() or source.is_conj():
            raise Unsupported(
                name, "a tensor's memory must hold its values", rule="pending sign",
                got="a tensor whose negation or conjugation is pending",
                fix="Pass tensor.resolve_neg().resolve_conj()",
            )  # fmt: skip
        try:
            pointer = source.data_ptr()
        except RuntimeError as error:  # wrappers without storage
            raise Unsupported(
                name, "a tensor must have memory", rule="storage", got=type(source).__name__, why=str(error)
            ) from error
        device = source.device.index if kind == "cuda" else HOST_MEMORY
        return cls(
            pointer, tuple(source.shape), element,
            strides=source.stride(), device=device, owner=source,
        )  # fmt: skip

    @classmethod
    def _of_cuda_array_interface(cls, source: Any, name: str) -> Self:
        import numpy as np

        interface = source.__cuda_array_interface__
        dtype = np.dtype(interface["typestr"])
        # CuPy describes bfloat16 as raw two-byte records; its dtype attribute says what they are.
        declared = getattr(source, "dtype", None)
        element = element_of_dtype(declared if dtype.kind == "V" and declared is not None else dtype)
        if element is None:
            raise _unknown_dtype(name, declared if dtype.kind == "V" else dtype)
        pointer, read_only = interface["data"]
        if cls.writable and read_only:
            raise _read_only(name)
        if interface.get("mask") is not None:
            raise Unsupported(name, "an array must not be masked", rule="mask", got="a mask")
        strides = interface.get("strides")
        if strides is not None:
            strides = _whole_strides(name, strides, dtype.itemsize)
        ordinal = getattr(getattr(source, "device", None), "id", None)
        return cls(
            pointer or 0, tuple(interface["shape"]), element,
            strides=strides, device=ordinal if isinstance(ordinal, int) else None, owner=source,
        )  # fmt: skip

    @classmethod
    def _of_jax_array(cls, source: Any, name: str, stream: int) -> Self:
        through = "Call the op through baracuda_py.interop.jax"
        if cls.writable:  # DLPack would let it be written, and whoever shares its buffer would see that
            raise InvalidProblem(
                name, "an output must be writable", rule="writable", got="a JAX array", why="JAX arrays are immutable",
                fix=f"{through}, which returns a new array, or pass an output of another package",
            )  # fmt: skip
        # JAX's __cuda_array_interface__ raises for bf16, and waits for nothing.
        if not hasattr(source, "__dlpack_device__") or getattr(source, "is_deleted", bool)():
            raise Unsupported(
                name, "an array must have memory", rule="array", got=f"a JAX {type(source).__name__} without any",
                why="under jax.jit it is traced, and one that was donated is gone", fix=through,
            )  # fmt: skip
        return cls._of_dlpack(source, name, stream)

    @classmethod
    def _of_dlpack(cls, source: Any, name: str, stream: int) -> Self:
        try:
            dl = read_dlpack(source, stream)
        except (BufferError, RuntimeError) as error:
            raise Unsupported(
                name, "an array's owner must export it by DLPack", rule="array",
                got=type(source).__name__, why=str(error),
            ) from error  # fmt: skip
        element = None if dl.lanes != 1 else element_of_dlpack(dl.code, dl.bits)
        if element is None:
            raise _unknown_dtype(name, f"DLPack type code {dl.code}, {dl.bits} bits x {dl.lanes} lanes")
        if cls.writable and dl.read_only:
            raise _read_only(name)
        if dl.device_type not in _DLPACK_DEVICES:
            raise Unsupported(
                name, "a tensor must lie in CPU or CUDA memory", rule="device",
                got=f"DLPack device type {dl.device_type}",
            )  # fmt: skip
        device = dl.device_id if _DLPACK_DEVICES[dl.device_type] else HOST_MEMORY
        return cls(dl.pointer, dl.shape, element, strides=dl.strides, device=device, owner=(source, dl.capsule))

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def contiguous(self) -> bool:
        """Row-major without gaps; axes of extent 1 may have any stride."""
        expected = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent != 1 and stride != expected:
                return self.size == 0
            expected *= extent
        return True

    @property
    def extent(self) -> tuple[int, int]:
        """Half-open address range that the elements touch; empty (pointer, pointer) when there are none."""
        low = high = 0
        for count, stride in zip(self.shape, self.strides, strict=True):
            if count == 0:
                return self.pointer, self.pointer
            if stride < 0:
                low += (count - 1) * stride
            else:
                high += (count - 1) * stride
        bits = bits_of(self.element)
        return self.pointer + low * bits // 8, self.pointer + (high * bits + bits + 7) // 8

    @property
    def span_bytes(self) -> int:
        """Bytes from the first to the last element."""
        low, high = self.extent
        return high - low

    def numpy(self) -> Any:
        """The same host memory as a NumPy array; TypeError for device memory."""
        import numpy as np

        if isinstance(self.owner, np.ndarray) and self._shows_all_of(self.owner):
            return np.asarray(self.owner)  # a subclass (np.matrix) may give the operators another meaning
        if self.device != HOST_MEMORY:
            raise TypeError("a view of device memory is no NumPy array")
        import ctypes

        dtype = numpy_dtype(self.element)
        low, high = self.extent
        if low == high:
            return np.empty(self.shape, dtype)
        raw: Any = (ctypes.c_char * (high - low)).from_address(low)
        raw.owner = self.owner  # the array keeps `raw`, which keeps the memory
        strides = tuple(stride * dtype.itemsize for stride in self.strides)
        array: Any = np.ndarray(self.shape, dtype, raw, self.pointer - low, strides)
        return array

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled: it would show memory that nothing keeps")

    def _shows_all_of(self, array: Any) -> bool:
        """Whether the view is all of `array`, an owner that may hold more than is viewed."""
        size = array.dtype.itemsize
        return (
            array.__array_interface__["data"][0] == self.pointer
            and array.shape == self.shape
            and array.strides == tuple(stride * size for stride in self.strides)
            and element_of_dtype(array.dtype) is self.element
        )

    def __repr__(self) -> str:
        where = "host" if self.device == HOST_MEMORY else "cuda" if self.device is None else f"cuda:{self.device}"
        return f"{type(self).__name__}({self.element.name.lower()}{list(self.shape)} at {self.pointer:#x}, {where})"


class TensorMut(TensorRef):
    """A view that a kernel writes."""

    __slots__ = ()
    writable = True


# DLPack device types: True for memory a GPU kernel may address (CUDA, CUDA managed), False for host memory
# (CPU, CUDA pinned host).
_DLPACK_DEVICES = {1: False, 2: True, 3: False, 13: True}


@cache
def _of_jax(kind: Any) -> bool:
    """Whether arrays of a type are JAX's."""
    module: str = kind.__module__
    return module.partition(".")[0] in ("jax", "jaxlib")


def tells_no_stream(owner: Any) -> bool:
    """Whether a view's owner is JAX's, which has no current stream and orders its own work before that of others."""
    kind: Any = type(owner[0]) if type(owner) is tuple else type(owner)  # (producer, capsule), of DLPack
    return _of_jax(kind)


def addresses_of(operands: Iterable[TensorRef | None]) -> list[int]:
    """Where one call's operands lie; 0 for absent ones."""
    return [0 if operand is None else operand.pointer for operand in operands]


def stream_owner(sources: Iterable[Any]) -> Any:
    """Of one call's arguments, the object whose framework says what the current stream is: the first, but for JAX's."""
    for source in sources:
        owner = source.owner if isinstance(source, TensorRef) else source
        if source is not None and not tells_no_stream(owner):
            return owner
    return None


def _offers_interface(source: Any) -> bool:
    """Whether it has `__cuda_array_interface__`; looked up without asking a property of the object, which may raise."""
    if getattr(type(source), "__cuda_array_interface__", None) is not None:
        return True
    return "__cuda_array_interface__" in getattr(source, "__dict__", ())


def _whole_strides(name: str, strides: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Strides in elements of `size` bytes, from strides in bytes."""
    if any(stride % size for stride in strides):
        raise Unsupported(name, "strides must be whole elements", rule="strides", got=f"{strides} bytes of {size}")
    return tuple(stride // size for stride in strides)


def _unknown_dtype(name: str, dtype: object) -> Unsupported:
    swapped = not getattr(dtype, "isnative", True)
    return Unsupported(
        name, "the dtype must be one that an ElementKind stands for", rule="dtype", got=str(dtype),
        why="its bytes are in the other order" if swapped else "",
        fix="Call array.astype(array.dtype.newbyteorder())" if swapped else "",
    )  # fmt: skip


def _read_only(name: str) -> InvalidProblem:
    return InvalidProblem(name, "an output must be writable", rule="writable", got="read-only memory")
