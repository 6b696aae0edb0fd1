"""The cuBLASLt backend: matrix products through the bindings of nvmath-python.

    output = activation(alpha * a @ b + beta * output + bias)        row-major, strided batches
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from baracuda_py.backends.cublaslt.matmul import Geometry, Library, Matmul, MatmulProblem
from baracuda_py.backends.cuda import CudaBackend
from baracuda_py.backends.cuda.streams import current_stream, stream_handle
from baracuda_py.errors import BaracudaError, Unsupported
from baracuda_py.vocab.code import Launch, LibraryCode
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorRef, addresses_of, stream_owner

__all__ = ["CublasLtBackend", "MatmulProblem"]

_CACHE_LIMIT = 64  # configured products a plan keeps; a clear, not an eviction, because few callers vary their strides


class CublasLtExecutable:
    """The product of one plan on one device; its launches are the library's own, and not listed."""

    launches: tuple[Launch, ...] = ()

    def __init__(
        self, library: Library, handle: int, context: Any, problem: MatmulProblem, names: Sequence[str], where: str
    ) -> None:
        self.device: Device = context.device
        self._library = library
        self._handle = handle
        self._context = context
        self._problem = problem
        self._where = where
        self._indices = tuple(names.index(name) for name in ("a", "b", "output", "bias"))
        self._lock = threading.Lock()
        self._configured: dict[Geometry, Matmul] = {}
        self._matmul(Geometry.packed(problem))  # the library chooses now what most runs will ask for

    def stream_handle(self, stream: Any, owner: Any) -> int:
        """See `Executable`."""
        ordinal = self.device.ordinal
        assert ordinal is not None
        return current_stream(owner, ordinal) if stream is None else stream_handle(stream)

    def _matmul(self, geometry: Geometry) -> Matmul:
        found = self._configured.get(geometry)
        if found is None:
            with self._lock:
                found = self._configured.get(geometry)
                if found is None:
                    if len(self._configured) >= _CACHE_LIMIT:
                        self._configured = {}
                    found = Matmul(self._library, self._handle, self._problem, geometry, self._where)
                    self._configured[geometry] = found
        return found

    def _resolve(
        self, addresses: Sequence[int], operands: Sequence[TensorRef | None]
    ) -> tuple[Geometry, tuple[int, int, int, int]]:
        """The geometry of a call, and the addresses of its operands."""
        first, second, third, fourth = self._indices
        a, b, output = operands[first], operands[second], operands[third]
        assert a is not None
        assert b is not None
        assert output is not None
        pointers = addresses[first], addresses[second], addresses[third], addresses[fourth]
        return Geometry.of(a, b, output, pointers), pointers

    def run(self, stream: int, workspace: int, operands: Sequence[TensorRef | None]) -> None:
        """Enqueue on `stream`. Strides or alignments that are new to the plan cost a look-up in the library, once."""
        self.run_at(stream, workspace, addresses_of(operands), operands)

    def run_at(
        self, stream: int, workspace: int, addresses: Sequence[int], operands: Sequence[TensorRef | None]
    ) -> None:
        """See `RelocatableExecutable`."""
        geometry, pointers = self._resolve(addresses, operands)
        pushed = self._context.enter()
        try:
            self._matmul(geometry).enqueue(*pointers, workspace, stream)
        finally:
            if pushed:
                self._context.leave()

    def bind(
        self, stream: int | None, workspace: Workspace, operands: Sequence[TensorRef | None]
    ) -> Callable[[], None]:
        """A callable that only enqueues."""
        geometry, pointers = self._resolve(addresses_of(operands), operands)
        with self._context.current():
            enqueue = self._matmul(geometry).enqueue
        context, held = self._context, (workspace, tuple(operands))
        owner = stream_owner(operands)

        def bound(_held: Any = held) -> None:
            handle = self.stream_handle(None, owner) if stream is None else stream
            pushed = context.enter()
            try:
                enqueue(*pointers, workspace.pointer, handle)
            finally:
                if pushed:
                    context.leave()

        return bound


@cache
def _absent() -> str | None:
    """What is not installed of the bindings and the library; None when both are. Loads the library, which is lazy."""
    if find_spec("nvmath") is None:
        return "nvmath-python"
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("cublasLt")
    except (ImportError, RuntimeError):  # pathfinder's DynamicLibNotFoundError is a RuntimeError
        return "libcublasLt"
    return None


def _load() -> Any:
    from nvmath.bindings import cublasLt

    return cublasLt


class CublasLtBackend:
    """Runs `LibraryCode` whose problem is a `MatmulProblem`. Making one loads nothing.

    Args:
        cuda: the backend whose contexts it works in.
        absent: names what is not installed, or returns None.
        load: returns the module `nvmath.bindings.cublasLt`.
    """

    name = "cublaslt"

    def __init__(
        self, cuda: CudaBackend, absent: Callable[[], str | None] = _absent, load: Callable[[], Any] = _load
    ) -> None:
        self._cuda = cuda
        self._absent = absent
        self._load = load
        self._lock = threading.Lock()
        self._library: Library | None = None
        self._handles: dict[int, int] = {}

    def missing(self, code: LibraryCode, device: Device) -> BaracudaError | None:
        """Unsupported, with what to install, unless the bindings and the library are there."""
        absent = self._absent()
        if absent is None:
            return None
        return Unsupported(
            self.name, f"{absent} must be installed", rule=absent, got="not found",
            fix="Run: pip install 'baracuda-py[nvidia]'",
        )  # fmt: skip

    def prepare(
        self, code: LibraryCode, descriptor: Any, device: Device, names: tuple[str, ...], where: str
    ) -> CublasLtExecutable:
        """Have the library choose an algorithm for contiguous operands; KernelInternal when it has none."""
        problem = MatmulProblem(**code.problem(descriptor))
        context = self._cuda.context(device)
        with context.relaxed():
            library, handle = self._open(device, where)
            return CublasLtExecutable(library, handle, context, problem, names, where)

    def _open(self, device: Device, where: str) -> tuple[Library, int]:
        """The library, and its handle on `device`, whose context is current. Handles live as long as the backend."""
        assert device.ordinal is not None
        with self._lock:
            if self._library is None:
                self._library = Library(self._load())
            handle = self._handles.get(device.ordinal)
            if handle is None:
                handle = self._handles[device.ordinal] = int(self._library.call(where, "create"))
                # At exit the driver may be gone already, and the process's end frees the handle anyway.
                weakref.finalize(self, self._library.api.destroy, handle).atexit = False
            return self._library, handle
