"""Times calls: on a GPU in CUDA graphs, elsewhere by the host's clock; several in turns.

What is timed is a replay: the calls of one contender in their order, usually one for each copy of a weight. On a GPU
they are captured in one graph, and a replay is timed right behind another of itself, so that the GPU does not wait for
the launch. Contenders take turns, round by round, so that clocks that drift drift for all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from statistics import median, quantiles
from typing import Any, Protocol

from attrs import field, frozen

from baracuda_py.registry import Registry
from baracuda_py.vocab.device import Device

__all__ = ["Calls", "GraphTimer", "HostTimer", "Replay", "Spread", "Timer", "in_turns", "timer_on"]

Calls = Sequence[Callable[[], None]]
Replay = Callable[[], float]
"""Runs a contender's calls, some of them ahead of what is timed, and returns the microseconds that one call took."""


class Timer(Protocol):
    """Makes replays of calls that were bound to `stream`."""

    @property
    def stream(self) -> int:
        """Handle of the stream."""

    def replay(self, calls: Calls) -> Any:
        """A context manager that gives the `Replay` of the calls. The first of them is run beforehand."""


@frozen(eq=False)
class GraphTimer:
    """Replays CUDA graphs on a stream, and times them by events.

    Attributes:
        driver: of the CUDA backend.
        stream: handle of a stream of the current context.
        block_us: about how long a graph is replayed each time that it is timed, behind half as long that is not, so
            that a GPU at its power limit is under the load of these calls. A longer graph is replayed once.
    """

    driver: Any
    stream: int
    block_us: float = 0.0

    @contextmanager
    def replay(self, calls: Calls) -> Iterator[Replay]:
        """The calls captured in one graph."""
        driver, stream = self.driver, self.stream
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
            yield self.of_launch(lambda: driver.call("cuGraphLaunch", executable, stream), len(calls))
        finally:
            driver.call("cuStreamSynchronize", stream)
            driver.call("cuGraphExecDestroy", executable)
            driver.call("cuGraphDestroy", graph)

    def of_launch(self, launch: Callable[[], None], calls: int) -> Replay:
        """The replay of what launches a graph of so many calls on the stream; it is launched at once, to load code."""
        launch()
        launches = max(1, math.ceil(self.block_us / self._elapsed_us(launch, 1))) if self.block_us else 1
        return lambda: self._elapsed_us(launch, launches) / (calls * launches)

    def _elapsed_us(self, launch: Callable[[], None], launches: int) -> float:
        # What comes ahead keeps the GPU busy while the host enqueues the rest: on an idle stream the time between the
        # events has the host's launch in it.
        driver = self.driver
        start, stop = (driver.call("cuEventCreate", 0) for _ in range(2))
        try:
            for _ in range(math.ceil(launches / 2)):
                launch()
            driver.call("cuEventRecord", start, self.stream)
            for _ in range(launches):
                launch()
            driver.call("cuEventRecord", stop, self.stream)
            driver.call("cuEventSynchronize", stop)
            return 1e3 * float(driver.call("cuEventElapsedTime", start, stop))
        finally:
            for event in (start, stop):
                driver.call("cuEventDestroy", event)


@frozen(eq=False)
class HostTimer:
    """Runs calls one after the other.

    Attributes:
        clock: nanoseconds.
    """

    clock: Callable[[], int] = time.perf_counter_ns
    stream: int = field(default=0, init=False)

    @contextmanager
    def replay(self, calls: Calls) -> Iterator[Replay]:
        """The calls themselves, behind one more of them, which wakes the threads of a library."""
        calls[0]()

        def elapsed_us() -> float:
            calls[-1]()
            start = self.clock()
            for call in calls:
                call()
            return (self.clock() - start) / 1e3 / len(calls)

        yield elapsed_us


@contextmanager
def timer_on(registry: Registry[Any], device: Device, block_us: float = 0.0) -> Iterator[Timer]:
    """The timer of a device, with a stream of its own, and the device's context current, for the time of the block.

    `block_us` is a GPU's, as for `GraphTimer`.
    """
    if device.kind == "host":
        yield HostTimer()
        return
    backend: Any = registry.backend("cuda")
    with backend.fresh_stream(device) as stream:
        yield GraphTimer(backend.driver, int(stream), block_us)


def in_turns(replays: Mapping[str, Replay], samples: int) -> dict[str, list[float]]:
    """Microseconds a call, `samples` times each, one of every contender a round, in a random order.

    A GPU at its power limit takes longer behind a contender that draws much than behind one that draws little.
    """
    times: dict[str, list[float]] = {name: [] for name in replays}
    order, random = list(replays), Random(0)
    for _ in range(samples):
        random.shuffle(order)
        for name in order:
            times[name].append(replays[name]())
    return times


@frozen
class Spread:
    """Times of one contender in microseconds: median, quartiles, the least, and how many there were."""

    median_us: float
    quartiles_us: tuple[float, float]
    least_us: float
    samples: int

    @classmethod
    def of(cls, times_us: Sequence[float]) -> Spread:
        """Of measured times; with one alone, it is its own quartiles."""
        low, _, high = quantiles(times_us, n=4, method="inclusive") if len(times_us) > 1 else (times_us[0],) * 3
        return cls(median(times_us), (low, high), min(times_us), len(times_us))
