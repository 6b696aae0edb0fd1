"""Devices and their primary contexts, shared with torch, CuPy and JAX, which use the same ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from baracuda_py.backends.cuda.driver import Driver
from baracuda_py.vocab.device import Device

__all__ = ["Context", "Contexts"]

_INVALID_CONTEXT = 201


class Context:
    """The primary context of one device, retained for the life of the process, with its loaded kernels.

    Attributes:
        device: what it is the context of.
        handle: CUcontext; as an int in `number`.
    """

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self._driver = driver
        number = driver.call("cuDeviceGet", ordinal)
        attribute = driver.api.CUdevice_attribute

        def get(name: str) -> int:
            value = driver.call("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), number)
            return int(value)

        capability = (get("COMPUTE_CAPABILITY_MAJOR"), get("COMPUTE_CAPABILITY_MINOR"))
        name = driver.call("cuDeviceGetName", 128, number).split(b"\0")[0].decode(errors="replace")
        self.device = Device("cuda", ordinal, capability, get("MULTIPROCESSOR_COUNT"), name)
        self.shared_limit = get("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        self.handle = driver.call("cuDevicePrimaryCtxRetain", number)
        self.number = int(self.handle)
        self.functions: dict[Any, Any] = {}  # filled by modules.ModuleCache
        self.lock = threading.Lock()

    def enter(self) -> bool:
        """Make this the thread's current context; True if `leave` must undo it."""
        status, current = self._driver.api.cuCtxGetCurrent()
        if status:
            raise self._driver.error(status, "cuCtxGetCurrent")
        if int(current) == self.number:
            return False
        self._driver.call("cuCtxPushCurrent", self.handle)
        return True

    def leave(self) -> None:
        """Undo an `enter` that returned True."""
        self._driver.call("cuCtxPopCurrent")

    @contextmanager
    def current(self) -> Iterator[None]:
        """A block that runs with this context current, and leaves the thread's own as it was."""
        pushed = self.enter()
        try:
            yield
        finally:
            if pushed:
                self.leave()

    @contextmanager
    def relaxed(self) -> Iterator[None]:
        """Like `current`, for calls that a CUDA graph has no part of but whose mere presence would end its capture.

        They are what allocates, frees and loads; a garbage collector may come to free memory at any time.
        """
        mode = self._driver.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        with self.current():
            before = self._driver.call("cuThreadExchangeStreamCaptureMode", mode)
            try:
                yield
            finally:
                self._driver.call("cuThreadExchangeStreamCaptureMode", before)


class Contexts:
    """The contexts of a process, made as they are asked for."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._by_ordinal: dict[int, Context] = {}

    def count(self) -> int:
        """GPUs that the driver sees."""
        return int(self._driver.call("cuDeviceGetCount"))

    def context(self, ordinal: int) -> Context:
        """The context of device `ordinal`; DriverError if there is none."""
        found = self._by_ordinal.get(ordinal)
        if found is None:
            with self._lock:
                found = self._by_ordinal.get(ordinal)
                if found is None:
                    found = self._by_ordinal[ordinal] = Context(self._driver, ordinal)
        return found

    def current_ordinal(self) -> int:
        """Device of the thread's current context; 0 when it has none."""
        status, number = self._driver.api.cuCtxGetDevice()
        if status:
            if int(status) == _INVALID_CONTEXT:  # the thread has none yet
                return 0
            raise self._driver.error(status, "cuCtxGetDevice")
        return int(number)  # the CUdevice of a visible GPU is its ordinal
