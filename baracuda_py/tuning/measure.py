"""Measures the kernels of an op on a GPU, as a tuning table has them.

Every kernel's calls are captured in one CUDA graph, over as many copies of the constant arguments (weights) as outsize
the L2 cache, so that they come from memory as in a model; graphs are replayed in turns, so that clocks that drift drift
for all; each is timed right behind a replay of itself, so that the GPU does not wait for the launch; the median counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from statistics import median
from typing import Any

import numpy as np
from attrs import field, frozen

from baracuda_py.arrays import allocate_workspace, empty, to_device
from baracuda_py.errors import Unsupported
from baracuda_py.plan import Plan
from baracuda_py.registry import Kernel, Op, Registry
from baracuda_py.vocab.descriptors import TensorSpec, to_fields
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import element_of_dtype, numpy_dtype
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.tuning import Problem, kernel_label

__all__ = ["ROTATED_NBYTES", "Tuner"]

ROTATED_NBYTES = 320 << 20  # of constant arguments; more than the L2 of any GPU
_MOST_COPIES = 512
_FLOATS = (ElementKind.F16, ElementKind.BF16, ElementKind.F32, ElementKind.F64)


@frozen(eq=False)
class Tuner:
    """Measures on one GPU.

    Attributes:
        registry: whose kernels.
        device: a GPU of this machine.
        samples: replays of each kernel's graph.
        rotated_nbytes: constant arguments that a graph walks over.
    """

    registry: Registry[Plan]
    device: Device
    samples: int = 20
    rotated_nbytes: int = ROTATED_NBYTES
    _kept: dict[Any, list[dict[str, Any]]] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.device.kind != "cuda" or self.device.dry:
            raise Unsupported("tune", "the device must be a GPU of this machine", rule="device", got=str(self.device))

    def measure(self, descriptor: Any) -> Problem:
        """The median time in microseconds of every kernel that serves the problem on the GPU.

        Raises:
            Unsupported, InvalidProblem: the op does not allow the descriptor.
            NoKernel: no kernel serves it.
        """
        explanation = self.registry.explain(descriptor, self.device)
        if explanation.error is not None:
            raise explanation.error
        op = explanation.op
        kernels = [one.kernel for one in explanation.candidates if one.refusal is None]
        backend: Any = self.registry.backend("cuda")
        driver = backend.driver
        with backend.fresh_stream(self.device) as stream, ExitStack() as stack:
            arguments = self._arguments(op, descriptor)
            graphs = {
                kernel_label(kernel.sku): stack.enter_context(
                    self._graph(driver, stream, kernel, descriptor, [op.args(**one) for one in arguments])
                )
                for kernel in kernels
            }
            times: dict[str, list[float]] = {label: [] for label in graphs}
            for launch, _ in graphs.values():
                launch()  # the first replay loads code
            for _ in range(self.samples):
                for label, (launch, calls) in graphs.items():
                    times[label].append(_elapsed_us(driver, stream, launch) / calls)
        return Problem(to_fields(descriptor), {label: round(median(taken), 3) for label, taken in times.items()})

    @contextmanager
    def _graph(
        self, driver: Any, stream: Any, kernel: Kernel, descriptor: Any, arguments: Sequence[Any]
    ) -> Iterator[tuple[Callable[[], None], int]]:
        """What replays a kernel's graph, and how many calls are in it: one for each of `arguments`."""
        plan = self.registry.plan(kernel.sku, descriptor, self.device)
        workspace = allocate_workspace(plan)
        calls = [plan.bind(args, workspace, int(stream)) for args in arguments]
        calls[0]()
        driver.call("cuStreamSynchronize", stream)
        mode = driver.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        driver.call("cuStreamBeginCapture", stream, mode)
        try:
            for call in calls:
                call()
        finally:
            graph = driver.call("cuStreamEndCapture", stream)
        executable = driver.call("cuGraphInstantiate", graph, 0)
        try:
            yield (lambda: driver.call("cuGraphLaunch", executable, stream)), len(calls)
        finally:
            driver.call("cuStreamSynchronize", stream)
            driver.call("cuGraphExecDestroy", executable)
            driver.call("cuGraphDestroy", graph)

    def _arguments(self, op: Op, descriptor: Any) -> list[dict[str, Any]]:
        """Arguments by name, which share all but the constant ones."""
        shared: dict[str, Any] = {}
        samples = _samples(op, descriptor)
        for spec in op.specs:
            if not spec.needed_on(descriptor):
                shared[spec.name] = None
            elif spec.written:
                shared[spec.name] = empty(spec.shape_on(descriptor), spec.elements_on(descriptor)[0], self.device)
            elif spec.role != "constant":
                shared[spec.name] = to_device(_values(spec, descriptor, samples), self.device)
        return [shared | constants for constants in self._constants(op, descriptor, samples)]

    def _constants(self, op: Op, descriptor: Any, samples: Samples) -> list[dict[str, Any]]:
        """Copies of the constant arguments; kept for the next problem, which often differs in its rows alone."""
        specs = [spec for spec in op.specs if spec.role == "constant" and spec.needed_on(descriptor)]
        key = (op.name, *((spec.name, spec.shape_on(descriptor), spec.elements_on(descriptor)) for spec in specs))
        if key not in self._kept:
            self._kept.clear()
            values = {spec.name: _values(spec, descriptor, samples) for spec in specs}
            nbytes = sum(array.nbytes for array in values.values())
            copies = min(_MOST_COPIES, max(1, math.ceil(self.rotated_nbytes / nbytes))) if nbytes else 1
            self._kept[key] = [
                {name: to_device(array, self.device) for name, array in values.items()} for _ in range(copies)
            ]
        return self._kept[key]


Samples = Callable[[], Mapping[str, Any]]


def _samples(op: Op, descriptor: Any) -> Samples:
    """The op's own samples, drawn when they are asked for and once: they may pack a whole weight."""
    return cache(lambda: op.samples(descriptor, np.random.default_rng(0)))


def _values(spec: TensorSpec, descriptor: Any, samples: Samples) -> Any:
    """Random values of one argument. The op has a say in all but plain floats, which can be any."""
    random = np.random.default_rng(0)
    shape, dtype = spec.shape_on(descriptor), numpy_dtype(spec.elements_on(descriptor)[0])
    if element_of_dtype(dtype) in _FLOATS:
        return random.standard_normal(shape, np.float32).astype(dtype)
    if spec.name in samples():
        return samples()[spec.name]
    return random.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]


def _elapsed_us(driver: Any, stream: Any, launch: Callable[[], None]) -> float:
    # The first replay keeps the GPU busy while the host enqueues the second: on an idle stream the time between the
    # events has the host's launch in it.
    start, stop = (driver.call("cuEventCreate", 0) for _ in range(2))
    try:
        launch()
        driver.call("cuEventRecord", start, stream)
        launch()
        driver.call("cuEventRecord", stop, stream)
        driver.call("cuEventSynchronize", stop)
        return 1e3 * float(driver.call("cuEventElapsedTime", start, stop))
    finally:
        for event in (start, stop):
            driver.call("cuEventDestroy", event)
