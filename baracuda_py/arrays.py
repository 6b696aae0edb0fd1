"""Conveniences outside plans: device arrays without a framework, and workspaces."""

from __future__ import annotations

import sys
from typing import Any

from baracuda_py.errors import Unsupported
from baracuda_py.plan import Plan
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import bits_of, element_of_dtype, numpy_dtype
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorMut, row_major_strides

__all__ = ["DeviceArray", "allocate_workspace", "empty", "to_device"]


class DeviceArray(TensorMut):
    """A contiguous array in GPU memory that it owns and frees. `numpy()` copies it back, after all pending work.

    Raises DriverError when memory runs out, and Unsupported for a dry-run device.
    """

    __slots__ = ("_context", "_driver", "nbytes")

    def __init__(self, shape: tuple[int, ...], element: ElementKind, device: Device) -> None:
        import baracuda_py

        if device.ordinal is None:
            raise Unsupported(
                "device array", "its device must be a GPU of this machine", rule="device", got=str(device)
            )
        cuda: Any = baracuda_py.default_registry().backend("cuda")
        self._driver = cuda.driver
        self._context = cuda.context(device)
        super().__init__(0, shape, element, strides=row_major_strides(shape), device=device.ordinal, owner=None)
        self.nbytes = (self.size * bits_of(element) + 7) // 8
        with self._context.relaxed():
            self.pointer = int(self._driver.call("cuMemAlloc", self.nbytes)) if self.nbytes else 0

    def copy_from(self, array: Any) -> None:
        """Copy a C-contiguous NumPy array of the same size into it; on return the data is there, for every stream."""
        if array.nbytes != self.nbytes:
            raise ValueError(f"{array.nbytes} bytes do not fill {self.nbytes}")
        if not array.flags.c_contiguous:
            raise ValueError("the array must be C-contiguous")
        if self.nbytes:
            with self._context.current():
                self._driver.call("cuMemcpyHtoD", self.pointer, array.ctypes.data, self.nbytes)
                # From pageable memory the copy returns once the data is staged, ordered on the default stream only.
                self._driver.call("cuStreamSynchronize", 0)

    def numpy(self) -> Any:
        """A copy on the host."""
        import numpy as np

        array = np.empty(self.shape, numpy_dtype(self.element))
        if self.nbytes:
            with self._context.current():
                self._driver.call("cuCtxSynchronize")
                self._driver.call("cuMemcpyDtoH", array.ctypes.data, self.pointer, self.nbytes)
        return array

    def free(self) -> None:
        """Free the memory now, after all pending work; once is enough. Without it, the garbage collector does."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            with self._context.relaxed():
                self._driver.call("cuMemFree", pointer)

    def __del__(self) -> None:
        # An interpreter on its way out has taken parts of the driver bindings with it; the process frees the memory.
        if getattr(self, "pointer", 0) and not sys.is_finalizing():
            self.free()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a DeviceArray cannot be copied or pickled: two owners would free its memory twice")


def empty(shape: tuple[int, ...], element: ElementKind, device: Any = None) -> Any:
    """Uninitialised memory on `device`: a DeviceArray, or a NumPy array on the host. `device` as in `bp.select`."""
    import numpy as np

    import baracuda_py

    resolved = baracuda_py.default_registry().device(device)
    if resolved.kind == "host":
        return np.empty(shape, numpy_dtype(element))
    return DeviceArray(tuple(shape), element, resolved)


def to_device(array: Any, device: Any = None) -> Any:
    """`array` (NumPy) copied to a GPU as a DeviceArray; the array itself when `device` is the host."""
    import numpy as np

    import baracuda_py

    resolved = baracuda_py.default_registry().device(device)
    if resolved.kind == "host":
        return array
    element = element_of_dtype(array.dtype)
    if element is None:
        raise TypeError(f"no ElementKind stands for dtype {array.dtype}")
    made = DeviceArray(array.shape, element, resolved)
    made.copy_from(np.ascontiguousarray(array))
    return made


def allocate_workspace(plan: Plan) -> Workspace:
    """A workspace of exactly `plan.workspace_size` bytes on the plan's device."""
    if not plan.workspace_size:
        return Workspace.NONE
    return Workspace.borrowed(empty((plan.workspace_size,), ElementKind.U8, plan.device))
