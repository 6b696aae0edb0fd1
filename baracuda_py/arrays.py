"""Conveniences outside plans: device arrays without a framework, and workspaces."""

from __future__ import annotations

from typing import Any

from baracuda_py.plan import Plan
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import element_of_dtype, numpy_dtype
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorMut, row_major_strides

__all__ = ["DeviceArray", "allocate_workspace", "empty", "to_device"]


class DeviceArray(TensorMut):
    """A contiguous array in GPU memory that it owns and frees. `numpy()` copies it back, after all pending work."""

    __slots__ = ("_context", "_driver", "nbytes")

    def __init__(self, shape: tuple[int, ...], element: ElementKind, device: Device) -> None:
        import baracuda_py

        cuda: Any = baracuda_py.default_registry().backend("cuda")
        self._driver = cuda.driver
        self._context = cuda.context(device)
        super().__init__(0, shape, element, strides=row_major_strides(shape), device=device.ordinal, owner=None)
        self.nbytes = self.size * numpy_dtype(element).itemsize
        with self._context.current():
            self.pointer = int(self._driver.call("cuMemAlloc", self.nbytes)) if self.nbytes else 0

    def copy_from(self, array: Any) -> None:
        """Copy a C-contiguous NumPy array of the same size into it."""
        if array.nbytes != self.nbytes:
            raise ValueError(f"{array.nbytes} bytes do not fill {self.nbytes}")
        if self.nbytes:
            with self._context.current():
                self._driver.call("cuMemcpyHtoD", self.pointer, array.ctypes.data, self.nbytes)

    def numpy(self) -> Any:
        """A copy on the host."""
        import numpy as np

        array = np.empty(self.shape, numpy_dtype(self.element))
        if self.nbytes:
            with self._context.current():
                self._driver.call("cuCtxSynchronize")
                self._driver.call("cuMemcpyDtoH", array.ctypes.data, self.pointer, self.nbytes)
        return array

    def __del__(self) -> None:
        if getattr(self, "pointer", 0):
            with self._context.current():
                self._driver.api.cuMemFree(self.pointer)
            self.pointer = 0


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
