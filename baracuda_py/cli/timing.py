"""How long a bound run takes: CUDA events on a GPU, the host's clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from attrs import frozen

import baracuda_py as bp
from baracuda_py.vocab.device import Device

__all__ = ["STREAM", "Timing", "measure"]

STREAM = 0  # the legacy default stream, which the copies to and from the GPU are ordered with


@frozen
class Timing:
    """A median time of `repeat` runs, and the clock that took it."""

    median_us: float
    repeat: int
    clock: str


def measure(call: Callable[[], None], device: Device, repeat: int) -> Timing:
    """Time `repeat` calls, each by itself. On a GPU, `call` must launch on `STREAM`; the launches are timed too."""
    if device.kind == "host":
        return Timing(median(_host_us(call) for _ in range(repeat)), repeat, "host clock")
    backend: Any = bp.default_registry().backend("cuda")
    with backend.context(device).current():
        times = _event_us(backend.driver, call, repeat)
    return Timing(median(times), repeat, "CUDA events")


def _host_us(call: Callable[[], None]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def _event_us(driver: Any, call: Callable[[], None], repeat: int) -> list[float]:
    events = []
    try:
        for _ in range(2 * repeat):
            events.append(driver.call("cuEventCreate", 0))
        pairs = list(zip(events[::2], events[1::2], strict=True))
        for start, stop in pairs:
            driver.call("cuEventRecord", start, STREAM)
            call()
            driver.call("cuEventRecord", stop, STREAM)
        driver.call("cuEventSynchronize", events[-1])
        return [1e3 * driver.call("cuEventElapsedTime", start, stop) for start, stop in pairs]
    finally:
        for event in events:
            driver.call("cuEventDestroy", event)
