"""The CUDA backend: runs PTX through the driver API, in the primary contexts that torch, CuPy and JAX use too."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import Any

from baracuda_py.backends.cuda.context import Context, Contexts
from baracuda_py.backends.cuda.driver import Driver, probe
from baracuda_py.backends.cuda.launch import CudaExecutable
from baracuda_py.backends.cuda.modules import ModuleCache
from baracuda_py.backends.cuda.streams import stream_handle
from baracuda_py.errors import BaracudaError, DriverError
from baracuda_py.vocab.code import PtxCode
from baracuda_py.vocab.device import Device

__all__ = ["CudaBackend"]

_NO_DEVICE = 100
_DEFAULT_STREAMS = (0, 1, 2)  # 0, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD


class CudaBackend:
    """Loads and launches `PtxCode`. Making one touches nothing; the driver is probed when it is first needed."""

    name = "cuda"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._no_gpu: bool | None = None
        self._contexts: Contexts | None = None
        self._modules: ModuleCache | None = None

    @cached_property
    def driver(self) -> Driver:
        """The driver; DriverError, saying what to install, when there is none to use."""
        found = probe()
        if isinstance(found, DriverError):
            raise copy(found)  # each raise adds to its traceback, and this one is kept
        return found

    # Threads must share one of each: functools.cached_property, from Python 3.12 on, may make one a thread.
    @property
    def contexts(self) -> Contexts:
        """Contexts of this process."""
        if self._contexts is None:
            with self._lock:
                self._contexts = self._contexts or Contexts(self.driver)
        return self._contexts

    @property
    def modules(self) -> ModuleCache:
        """Loaded PTX."""
        if self._modules is None:
            with self._lock:
                self._modules = self._modules or ModuleCache(self.driver)
        return self._modules

    def problem(self) -> DriverError | None:
        """Why this machine has no GPU to use; None when it has one."""
        found = probe()
        if isinstance(found, DriverError):
            return found
        try:
            count = self.contexts.count()
        except DriverError as error:
            return error
        return None if count else found.error(found.api.CUresult.CUDA_ERROR_NO_DEVICE, "cuDeviceGetCount")

    def current_device(self) -> Device | None:
        """Device of the thread's current context, else device 0; None when no GPU can be used.

        A driver that is there but cannot be used is warned about once.
        """
        if self._no_gpu is None:
            with self._lock:
                if self._no_gpu is None:
                    problem = self.problem()
                    if problem is not None and _worth_a_warning(problem):
                        warnings.warn(f"no GPU is used: {problem}", RuntimeWarning, stacklevel=3)
                    self._no_gpu = problem is not None
        if self._no_gpu:
            return None
        contexts = self.contexts
        return contexts.context(contexts.current_ordinal()).device

    def device(self, ordinal: int) -> Device:
        """Device `ordinal`; DriverError when there is none."""
        return self.contexts.context(ordinal).device

    def device_of_stream(self, stream: Any) -> Device:
        """The device that a stream's context is on.

        A default stream is one handle for all devices: its framework's object says which one, or else the thread's
        current context does.
        """
        handle = stream_handle(stream)
        if handle in _DEFAULT_STREAMS:
            ordinal = getattr(stream, "device_index", None)  # torch
            return self.device(ordinal if isinstance(ordinal, int) else self.contexts.current_ordinal())
        context = self.driver.call("cuStreamGetCtx", handle)
        with _pushed(self.driver, context):
            return self.device(self.contexts.current_ordinal())

    def context(self, device: Device) -> Context:
        """The primary context of a live device."""
        assert device.ordinal is not None, "a dry-run device has no context"
        return self.contexts.context(device.ordinal)

    @contextmanager
    def fresh_stream(self, device: Device) -> Iterator[Any]:
        """A stream that waits for no other, for the time of the block, with the device's context current."""
        with self.context(device).current():
            stream = self.driver.call("cuStreamCreate", self.driver.api.CUstream_flags.CU_STREAM_NON_BLOCKING)
            try:
                yield stream
            finally:
                self.driver.call("cuStreamDestroy", stream)

    def missing(self, code: PtxCode, device: Device) -> BaracudaError | None:
        """Nothing: a live device is proof of a driver, and a dry run needs none."""
        return None

    def prepare(
        self, code: PtxCode, descriptor: Any, device: Device, names: tuple[str, ...], where: str
    ) -> CudaExecutable:
        """Load what the launches need, so that the first run allocates and compiles nothing."""
        context = self.context(device)
        launches = code.launches(descriptor, device)
        with context.relaxed():
            functions = [self.modules.function(context, code, launch, where) for launch in launches]
        return CudaExecutable(self.driver, context, names, launches, functions)


def _worth_a_warning(problem: DriverError) -> bool:
    """A driver that is there and fails; a machine without a driver or a GPU is nothing unusual."""
    return problem.result not in (None, _NO_DEVICE) or problem.call == "cuDriverGetVersion"


class _pushed:
    """A block with a context pushed."""

    def __init__(self, driver: Driver, context: Any) -> None:
        self._driver = driver
        self._context = context

    def __enter__(self) -> None:
        self._driver.call("cuCtxPushCurrent", self._context)

    def __exit__(self, *_: object) -> None:
        self._driver.call("cuCtxPopCurrent")
