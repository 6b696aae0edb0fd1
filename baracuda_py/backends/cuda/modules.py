"""Loads PTX: one library a file and process, one function an entry and context."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from attrs import define

from baracuda_py import sys as kernels
from baracuda_py.backends.cuda.context import Context
from baracuda_py.backends.cuda.driver import Driver
from baracuda_py.errors import BaracudaError, Unsupported
from baracuda_py.vocab.code import Launch, PtxCode
from baracuda_py.vocab.enums import ArchSku

__all__ = ["ModuleCache"]

_LOG_BYTES = 16_384
_SHARED_LIMIT = 48 * 1024  # bytes, static and dynamic; what goes beyond must be asked for, once a function and context


_Load = Callable[[str, str], bytes]  # (module, architecture) -> PTX


def _committed(module: str, arch: str) -> bytes:
    return kernels.module(module, arch).ptx


@define
class _Function:
    """A CUfunction, its static shared memory, and how much dynamic shared memory a launch may ask for, in bytes."""

    function: Any
    static_shared: int
    dynamic_shared: int


class ModuleCache:
    """CUlibrary and CUfunction objects, made on first use."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        # A library is not tied to a context; the log buffers belong to it because PTX is compiled when its first
        # kernel is looked up, not when it is loaded.
        self._libraries: dict[tuple[str, ArchSku, _Load], tuple[Any, bytearray]] = {}

    def function(self, context: Context, code: PtxCode, launch: Launch, where: str) -> Any:
        """The CUfunction of `launch.entry` in `context`, allowed the shared memory that the launch asks for.

        Must be called with `context` current. Raises DriverError (with the JIT log), or Unsupported when the launch
        asks for more shared memory than the device has.
        """
        load = code.load or _committed
        module, arch = launch.module or code.module, launch.arch or code.arch
        key = (module, arch, load, launch.entry)
        with context.lock:
            found = context.functions.get(key)
            if found is None:
                found = context.functions[key] = self._load(module, arch, load, launch.entry)
            if launch.shared_bytes > found.dynamic_shared:
                self._allow_shared(context, found, launch, where)
        return found.function

    def _load(self, module: str, arch: ArchSku, load: _Load, entry: str) -> _Function:
        library, log = self._library(module, arch, load)
        status, kernel = self._driver.api.cuLibraryGetKernel(library, entry.encode())
        if status:
            raise self._error(status, "cuLibraryGetKernel", f"{entry} of module {module}", arch, log)
        status, function = self._driver.api.cuKernelGetFunction(kernel)
        if status:
            raise self._error(status, "cuKernelGetFunction", f"{entry} of module {module}", arch, log)
        attribute = self._driver.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
        static = self._driver.call("cuFuncGetAttribute", attribute, function)
        return _Function(function, static, _SHARED_LIMIT - static)

    def _library(self, module: str, arch: ArchSku, load: _Load) -> tuple[Any, bytearray]:
        key = (module, arch, load)
        with self._lock:
            found = self._libraries.get(key)
            if found is not None:
                return found
            try:
                ptx = load(module, arch.name.lower())
            except (LookupError, ValueError, OSError) as error:
                raise BaracudaError(
                    module, f"the PTX for {arch.name.lower()} must be readable", rule="ptx", why=str(error),
                    fix="Reinstall baracuda_py",
                ) from error  # fmt: skip
            option = self._driver.api.CUjit_option
            log = bytearray(_LOG_BYTES)
            options = [option.CU_JIT_ERROR_LOG_BUFFER, option.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES]
            image = ptx + b"\0"  # the driver reads PTX as a C string
            status, library = self._driver.api.cuLibraryLoadData(
                image, options, [log, _LOG_BYTES], len(options), [], [], 0
            )
            if status:
                raise self._error(status, "cuLibraryLoadData", f"module {module}", arch, log)
            self._libraries[key] = library, log
            return library, log

    def _error(self, status: Any, call: str, what: str, arch: ArchSku, log: bytearray) -> BaracudaError:
        text = bytes(log).split(b"\0")[0].decode(errors="replace")
        return self._driver.error(status, call, log=text, what=f"{what} for {arch.name.lower()}")

    def _allow_shared(self, context: Context, found: _Function, launch: Launch, where: str) -> None:
        needed = launch.shared_bytes + found.static_shared
        if needed > context.shared_limit:
            raise Unsupported(
                where, f"{launch.entry} must fit in the shared memory a block may have", rule="shared memory",
                value=needed, got=f"{needed} bytes", why=f"{context.device} has {context.shared_limit}",
            )  # fmt: skip
        attribute = self._driver.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._driver.call("cuFuncSetAttribute", found.function, attribute, launch.shared_bytes)
        found.dynamic_shared = launch.shared_bytes
