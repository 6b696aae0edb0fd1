"""Fixtures: running a command in this process, a demo checkpoint, and a GPU that is made of host memory."""

from __future__ import annotations

import ctypes
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import frozen

import baracuda_py
from baracuda_py.backends.cuda import CudaBackend
from baracuda_py.backends.host import HostBackend
from baracuda_py.cli import main
from baracuda_py.cli.demo import write_checkpoint
from baracuda_py.errors import DriverError
from baracuda_py.ops import builtin_ops
from baracuda_py.ops.quantize.awq_host import awq_gemm_host
from baracuda_py.plan import new_registry
from baracuda_py.vocab.code import PtxCode, launches_of
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import numpy_dtype

_ALIGNMENT = 256  # of cuMemAlloc


@frozen
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Result]:
    """Run `baracuda-py ARGUMENTS`; `columns` makes standard output a terminal of that width."""

    def invoke(*arguments: Any, columns: int | None = None) -> Result:
        capsys.readouterr()
        screen = _Terminal()
        with monkeypatch.context() as patch:
            if columns is not None:
                patch.setenv("COLUMNS", str(columns))
                patch.setenv("TERM", "xterm-256color")
                patch.setattr(sys, "stdout", screen)
            with pytest.raises(SystemExit) as stopped:
                main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = stopped.value.code
        return Result(0 if code is None else int(code), screen.getvalue() if columns else captured.out, captured.err)

    return invoke


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The demo's checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder)
    return folder


class FakeDriver:
    """The driver calls that the command line makes, on host memory; `log` holds their names."""

    version = 13010
    api = SimpleNamespace(
        CUstream_flags=SimpleNamespace(CU_STREAM_NON_BLOCKING=1),
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
    )

    def __init__(self) -> None:
        self.log: list[str] = []
        self.live_events: set[int] = set()
        self.streams = 0
        self.graphs: dict[int, list[float]] = {}  # the time of each launch, by graph
        self.clock_us = 0.0  # that replays take
        self.capturing: list[float] | None = None
        self._recorded: dict[int, float] = {}
        self._memory: dict[int, Any] = {}

    def call(self, name: str, *arguments: Any) -> Any:
        self.log.append(name)
        return getattr(self, f"_{name}")(*arguments)

    def _cuMemAlloc(self, nbytes: int) -> int:
        buffer = ctypes.create_string_buffer(nbytes + _ALIGNMENT)
        address = -(-ctypes.addressof(buffer) // _ALIGNMENT) * _ALIGNMENT
        self._memory[address] = buffer
        return address

    def _cuMemFree(self, address: int) -> None:
        del self._memory[address]

    def _cuMemcpyHtoD(self, target: int, source: int, nbytes: int) -> None:
        ctypes.memmove(target, source, nbytes)

    _cuMemcpyDtoH = _cuMemcpyHtoD

    def _cuCtxSynchronize(self) -> None:
        pass

    def _cuStreamSynchronize(self, stream: int) -> None:
        assert stream <= self.streams

    def _cuStreamCreate(self, flags: int) -> int:
        self.streams += 1
        return self.streams

    def _cuStreamDestroy(self, stream: int) -> None:
        assert stream == self.streams
        self.streams -= 1

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> None:
        assert self.capturing is None
        self.capturing = []

    def _cuStreamEndCapture(self, stream: int) -> int:
        graph = len(self.log)
        assert self.capturing is not None
        self.graphs[graph], self.capturing = self.capturing, None
        return graph

    def _cuGraphInstantiate(self, graph: int, flags: int) -> int:
        return graph

    def _cuGraphLaunch(self, graph: int, stream: int) -> None:
        self.clock_us += sum(self.graphs[graph])

    def _cuGraphExecDestroy(self, graph: int) -> None:
        assert graph in self.graphs

    def _cuGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def _cuEventCreate(self, flags: int) -> int:
        event = len(self.live_events) + 1
        self.live_events.add(event)
        return event

    def _cuEventRecord(self, event: int, stream: int) -> None:
        assert event in self.live_events
        if stream:
            self._recorded[event] = self.clock_us

    def _cuEventSynchronize(self, event: int) -> None:
        assert event == max(self.live_events), "the last event comes after all others"

    def _cuEventElapsedTime(self, start: int, stop: int) -> float:
        if stop in self._recorded:
            return 1e-3 * (self._recorded[stop] - self._recorded.pop(start))
        return 1e-3 * (stop // 2) ** 2  # ms: 1, 4, 9 ... us, whose median is not their mean

    def _cuEventDestroy(self, event: int) -> None:
        self.live_events.remove(event)


class _FakeContext:
    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    relaxed = current


class _FakeExecutable:
    def __init__(self, backend: FakeGpu, code: Any, descriptor: Any, device: Device, names: tuple[str, ...]) -> None:
        self.device = device
        self.launches = launches_of(code, descriptor, device)
        self._backend, self._descriptor, self._names = backend, descriptor, names

    def stream_handle(self, stream: Any, owner: Any) -> int:
        return 0

    def run(self, stream: int, workspace: int, operands: Any) -> None:
        self.bind(stream, None, operands)()

    def bind(self, stream: Any, workspace: Any, operands: Any) -> Callable[[], None]:
        desc, backend = self._descriptor, self._backend
        arrays = {n: None if v is None else _array(v) for n, v in zip(self._names, operands, strict=True)}

        def bound() -> None:
            backend.driver.log.append("launch")
            if backend.driver.capturing is not None:
                backend.driver.capturing += [backend.time_us(launch.entry) for launch in self.launches]
                return
            if backend.computes:
                layout = desc.weight_layout.value
                awq_gemm_host(**arrays, layout=layout, group_size=desc.group_size, epilogue=int(desc.epilogue))

        return bound


def _array(view: Any) -> Any:
    import numpy as np

    dtype = numpy_dtype(view.element)
    raw = (ctypes.c_char * (view.size * dtype.itemsize)).from_address(view.pointer)
    return np.frombuffer(raw, dtype).reshape(view.shape)


class FakeGpu:
    """A backend called `cuda` with one sm_90 GPU, whose AWQ kernels are computed by the host's."""

    name = "cuda"
    computes = True
    fresh_stream = CudaBackend.fresh_stream

    def __init__(self) -> None:
        self.driver = FakeDriver()
        self.contexts = SimpleNamespace(count=lambda: 1)
        self.modules = SimpleNamespace(function=self._function)
        self.gpu = Device("cuda", 0, (9, 0), 132, "Fake 90")
        self.loaded: list[tuple[str, str]] = []
        self.broken_entry = ""
        self.times_us: dict[str, float] = {}

    def time_us(self, entry: str) -> float:
        """Of one launch in a graph: what `times_us` says of the beginning of its name."""
        return next((time for name, time in self.times_us.items() if entry.startswith(name)), 1.0)

    def problem(self) -> None:
        return None

    def current_device(self) -> Device:
        return self.gpu

    def device(self, ordinal: int) -> Device:
        return self.gpu

    def context(self, device: Device) -> _FakeContext:
        return _FakeContext()

    def missing(self, code: Any, device: Device) -> None:
        return None

    def prepare(self, code: Any, descriptor: Any, device: Device, names: tuple[str, ...], where: str) -> Any:
        return _FakeExecutable(self, code, descriptor, device, names)

    def _function(self, context: Any, code: PtxCode, launch: Any, where: str) -> None:
        if launch.entry == self.broken_entry:
            raise DriverError(
                218, "cuLibraryLoadData", name="CUDA_ERROR_INVALID_PTX", log="ptxas fatal", fix="Reinstall"
            )
        self.loaded.append((code.module, launch.entry))


@pytest.fixture
def gpu(monkeypatch) -> FakeGpu:
    """A machine with a GPU, for one test."""
    backend = FakeGpu()
    registry = new_registry()
    registry.register_backend(HostBackend())
    registry.register_backend(backend)
    for op in builtin_ops():
        registry.register(op)
    monkeypatch.setattr(baracuda_py, "default_registry", lambda: registry)
    return backend


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    """A machine without a GPU, for one test."""
    registry = new_registry()
    registry.register_backend(HostBackend())
    without = FakeGpu()
    problem = DriverError(None, "cuInit", must="libcuda.so.1 must be found", fix="Install an NVIDIA driver")
    without.problem = lambda: problem
    without.current_device = lambda: None
    registry.register_backend(without)
    for op in builtin_ops():
        registry.register(op)
    monkeypatch.setattr(baracuda_py, "default_registry", lambda: registry)
