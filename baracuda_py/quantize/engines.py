"""Where searches compute: in NumPy on the host, or in torch on one of its devices.

Searches are written once, for the functions that both libraries have under the same names. torch is imported when a
device is asked for, and not before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from baracuda_py.errors import Unsupported
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ElementKind

__all__ = ["HOST", "Engine", "engine_on"]

# Values that a device holds at a time, 64 MiB an array: enough work for each of the small kernels of a search.
_DEVICE_BLOCK_ELEMENTS = 1 << 24


@frozen(eq=False)
class Engine:
    """A library, and its device.

    Attributes:
        xp: the module: numpy, or torch.
        device: torch's device; None for NumPy.
        block_elements: values that are worked on at a time; None: as `blocks` has it.
    """

    xp: Any
    device: Any = None
    block_elements: int | None = None

    def array(self, values: NDArray[Any]) -> Any:
        """`values` in float32, on the device."""
        wide = values.astype(np.float32, copy=self.device is not None)  # torch wants memory that may be written
        return wide if self.device is None else self.xp.from_numpy(wide).to(self.device)

    def numpy(self, values: Any) -> NDArray[Any]:
        """What was computed, as a NumPy array."""
        return values if self.device is None else values.cpu().numpy()

    def double(self, values: Any) -> Any:
        """In float64."""
        return self.xp.asarray(values, dtype=self.xp.float64)

    def rounded_up(self, span: Any, steps: Any, element: ElementKind) -> Any:
        """The smallest values of a 16-bit `element`, in float32, of which `steps` reach `span` > 0 (float64); inf
        beyond its range."""
        with np.errstate(over="ignore"):
            scales = self._narrow(span / steps, element)
        # The next pattern of a positive float is the next larger value. A division that was rounded twice, by way of
        # float32, may lie one pattern off to either side.
        scales.view(self.xp.int16)[...] += self.double(scales) * steps < span
        below = (scales.view(self.xp.int16) - 1).view(scales.dtype)
        with np.errstate(invalid="ignore"):
            reaches = self.double(below) * steps >= span
        return self.xp.asarray(self.xp.where(reaches, below, scales), dtype=self.xp.float32)

    def _narrow(self, values: Any, element: ElementKind) -> Any:
        if self.device is None:
            return values.astype(numpy_dtype(element))
        return values.to({ElementKind.F16: self.xp.float16, ElementKind.BF16: self.xp.bfloat16}[element])


HOST = Engine(np)


def engine_on(device: str | None) -> Engine:
    """The engine of a torch device, e.g. `"cuda"` or `"cuda:1"`; None: NumPy.

    Raises:
        Unsupported: torch is not installed, or has no such device.
    """
    if device is None:
        return HOST
    try:
        import torch
    except ImportError:
        raise Unsupported(
            "device", "torch must be installed to search on a device", rule="torch", got=device,
            fix="pip install torch, or leave the device away to search in NumPy",
        ) from None  # fmt: skip
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).cpu()
    except (RuntimeError, AssertionError) as error:
        raise Unsupported(
            "device", "torch must have the device", rule="device", got=device, why=str(error).splitlines()[0]
        ) from None
    return Engine(torch, place, _DEVICE_BLOCK_ELEMENTS)
