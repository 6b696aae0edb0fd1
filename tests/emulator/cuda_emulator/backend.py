"""`EmulatorBackend`: the CUDA backend itself, over an emulated driver; and registries with it in the GPU's place."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cache, partial
from pathlib import Path

from cublaslt_double import FakeCublasLt

import baracuda_py.sys
from baracuda_py.backends.cublaslt import CublasLtBackend
from baracuda_py.backends.cuda import CudaBackend
from baracuda_py.backends.cuda.driver import MINIMUM_DRIVER, Driver
from baracuda_py.backends.host import HostBackend
from baracuda_py.backends.sequence import SequenceBackend
from baracuda_py.errors import DriverError
from baracuda_py.ops import builtin_ops
from baracuda_py.plan import Plan, new_registry
from baracuda_py.registry import Registry
from baracuda_py.vocab.code import PtxCode

from .compiler import Unit, compile_units, remove_unused, sources
from .driver import EmulatedDriver, Gpu, LoadedModule
from .library import Library

__all__ = ["AMPERE", "HOPPER", "HOPPER_SLICE", "EmulatorBackend", "Modules", "emulated_registry"]

# What the CUDA programming guide gives a block of these architectures, in bytes.
AMPERE = Gpu((8, 0), 108, 163 * 1024, "emulated sm_80")
HOPPER = Gpu((9, 0), 132, 227 * 1024, "emulated sm_90")
# The smallest part of one that a green context may have: a thread block takes several tiles of weights.
HOPPER_SLICE = Gpu((9, 0), 8, 227 * 1024, "emulated slice of sm_90")


class Modules:
    """Compiled modules by the image that a driver is given: the committed PTX, whose sources they are compiled from.

    Raises CompileError when a source does not compile.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        remove_unused(folder)
        self._by_image: dict[bytes, LoadedModule] = {}
        self.units = {f"{source.arch}.{source.module}": Unit.of_source(source) for source in sources()}
        self.replace(self.units)

    def replace(self, units: dict[str, Unit]) -> None:
        """Let these units stand for the modules of their names, `<arch>.<module>`."""
        for name, library in self.compile(units).items():
            arch, _, module_name = name.partition(".")
            module = baracuda_py.sys.module(module_name, arch)
            for kernel in library.kernels.values():
                assert kernel.parameter_nbytes == module.entry(kernel.name).parameter_nbytes, kernel.name
            self._by_image[module.ptx] = LoadedModule(library, module)

    def compile(self, units: dict[str, Unit]) -> dict[str, Library]:
        """The libraries of units, by the names they are given."""
        paths = compile_units(units, self._folder)
        return {name: Library(path, len(units[name].entries)) for name, path in paths.items()}

    def with_replaced(self, units: dict[str, Unit]) -> Modules:
        """A copy in which these units stand for the modules of their names."""
        made = copy(self)
        made._by_image = dict(self._by_image)
        made.replace(units)
        return made

    def find(self, image: bytes) -> LoadedModule:
        """The module of an image; KeyError for PTX that is not the committed one of an emulated source."""
        return self._by_image[image]


class EmulatorBackend(CudaBackend):
    """Runs `PtxCode` on an emulated GPU. Everything but the driver is the CUDA backend's own."""

    def __init__(self, modules: Modules, gpu: Gpu = HOPPER) -> None:
        super().__init__()
        self.emulated = EmulatedDriver(gpu, modules.find)
        self.driver = Driver(MINIMUM_DRIVER, self.emulated)  # in place of the cached property

    def problem(self) -> DriverError | None:
        """None: the GPU is always there."""
        return None


class EmulatedCublasLt(FakeCublasLt):
    """The double of cuBLASLt on an emulated GPU: work for a stream that is being captured becomes part of the graph."""

    def __init__(self, driver: EmulatedDriver) -> None:
        super().__init__(driver)
        self._driver = driver

    def matmul(self, *arguments: int) -> None:
        """See cublasLtMatmul; the last argument is the stream."""
        multiply = partial(super().matmul, *arguments)
        if not self._driver.captures(arguments[-1], partial(self._replayed, multiply)):
            multiply()

    def _replayed(self, multiply: Callable[[], None]) -> None:
        self._driver.cuCtxPushCurrent(1)
        multiply()
        self._driver.cuCtxPopCurrent()


@cache
def _registered() -> Registry[Plan]:
    """The built-in ops that have CUDA kernels. Registering checks each of them, for longer than most tests take."""
    registry = new_registry()
    for op in builtin_ops():
        if any(isinstance(kernel.code, PtxCode) for kernel in op.kernels):
            registry.register(op)
    return registry


def emulated_registry(backend: EmulatorBackend) -> Registry[Plan]:
    """The built-in ops that have CUDA kernels, with `backend` as the GPU and the host beside it."""
    registry = copy(_registered())  # what it holds is replaced, not changed, when something is registered
    double = EmulatedCublasLt(backend.emulated)
    library = CublasLtBackend(backend, lambda: None, lambda: double)
    for one in (HostBackend(), backend, library, SequenceBackend(registry.backend)):
        registry.register_backend(one)
    return registry
