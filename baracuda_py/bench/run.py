"""Measures cells: all contenders of one in turns; says beforehand how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from attrs import define, evolve, field, frozen

from baracuda_py.bench.cells import Cell
from baracuda_py.bench.contenders import READ, Absent, Contender, Lineup
from baracuda_py.errors import Unsupported
from baracuda_py.tuning.timing import HostTimer, Replay, Spread, in_turns, timer_on
from baracuda_py.vocab.enums import ElementKind

__all__ = ["BLOCK_US", "SUSTAINED_ROWS", "Bench", "Ceilings", "Forecast", "Measured", "measured_within"]

_READ_NBYTES = {"cuda": 1 << 30, "host": 256 << 20}  # of the read that gives the bandwidth
_DENSE_SIDE = {"cuda": 8192, "host": 1024}  # of the square product that gives the peak
_CAPTURE_S, _CALL_S = 5e-3, 5e-5  # of a contender, and of each of its calls: binding, capturing
_UPLOADED_PER_S = 1e9  # bytes of weights that are drawn and copied
_PROBED_CHANNELS, _PROBED_ROWS = 512, 64  # at most, of the calls that say how fast the host is
# From so many rows on it is a GPU's power that holds products. Each contender runs for a while when it is timed, behind
# others that draw as much: not those that take longer than so many times the fastest, or only read. These take turns
# among themselves, fewer times: they are many, or slow.
SUSTAINED_ROWS = 64
"""From how many rows on contenders run for a while on a GPU each time that they are timed."""
BLOCK_US = 1e4
"""How long, unless something else is said."""
_NEAR = 2.0
_FEWER, _FEWEST = 5, 3  # as often, and at least
_PROBES = 3  # of each: other processes slow some


@frozen
class Ceilings:
    """The highest rates: of reads, bytes a us; of dense products, flop a us by element."""

    read: float
    dense: dict[ElementKind, float]


@frozen
class Pace:
    """What a contender takes on the host, which its estimate does not know.

    Attributes:
        over_estimate: time of a call over its estimate.
        bind_s: seconds of binding a call, for each byte that it reads or writes: weights may be packed for it.
    """

    over_estimate: float = 1.0
    bind_s: float = 0.0


@frozen(eq=False)
class Measured:
    """A cell's results: the times of its contenders, and those that were absent."""

    cell: Cell
    times: tuple[tuple[Contender, Spread], ...]
    absent: tuple[Absent, ...]


@frozen(eq=False)
class Bench:
    """Measures cells on one device.

    Attributes:
        lineup: the contenders.
        samples: rounds, in each of which every contender is timed once.
        block_us: how long one of 64 rows or more runs on a GPU each time that it is timed, behind half as long that is
            not; 0: as those of fewer rows, once behind once.
    """

    lineup: Lineup
    samples: int = 20
    block_us: float = BLOCK_US
    _paces: dict[Cell, dict[tuple[str, ...], Pace]] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        device = self.lineup.device
        if device.dry:
            raise Unsupported(
                "bench", "the device must be the host or a GPU of this machine", rule="device", got=str(device)
            )

    def estimate_s(self, cell: Cell, kept: Cell | None = None) -> float:
        """Seconds that the cell takes; `kept`: the cell that was measured before it.

        By the estimates of selection; on the host, which may be any and busy, corrected by a few small calls.
        """
        found = [one for one in self.lineup.of(cell) if isinstance(one, Contender)]
        total = sum(self._estimate_s(one, cell, self._block_us(cell)) for one in found)
        if kept is None or kept.weights != cell.weights:
            kinds = len({(one.kind, one.layout) for one in found})
            total += kinds * max(self.lineup.rotated_nbytes, cell.weight_nbytes) / _UPLOADED_PER_S
        return total

    def _estimate_s(self, one: Contender, cell: Cell, block_us: float = 0.0) -> float:
        call_s = 1e-6 * one.estimate_us
        if self.lineup.device.kind == "cuda":
            sample_s = max(2 * one.copies * call_s, 1.5e-6 * block_us)  # as of one that is near the fastest
            return _CAPTURE_S + one.copies * (_CALL_S + 2 * call_s) + self.samples * sample_s
        pace = self._paces_of(cell).get((one.kind, one.kernel, one.layout), Pace())
        calls = self.samples * (one.copies + 1) + 1
        return calls * call_s * pace.over_estimate + one.copies * (_CALL_S + one.nbytes * pace.bind_s)

    def _block_us(self, cell: Cell) -> float:
        return self.block_us if self.lineup.device.kind == "cuda" and cell.m >= SUSTAINED_ROWS else 0.0

    def _paces_of(self, cell: Cell) -> dict[tuple[str, ...], Pace]:
        """Of the host's contenders, measured on a small cell that is like this one; once for each such cell."""
        ic, oc = (min(_PROBED_CHANNELS, channels) for channels in (cell.ic, cell.oc))
        if cell.ic % ic:
            ic = cell.ic  # groups are not to end in the middle
        small = evolve(cell, ic=ic, oc=oc, m=min(_PROBED_ROWS, cell.m))
        if small not in self._paces:
            lineup = evolve(self.lineup, rotated_nbytes=0)
            found = (one for one in lineup.of(small) if isinstance(one, Contender))
            self._paces[small] = {(one.kind, one.kernel, one.layout): _pace(one) for one in found}
        return self._paces[small]

    def estimates_s(self, cells: Sequence[Cell]) -> list[float]:
        """Seconds of each of the cells, measured in this order."""
        return [self.estimate_s(cell, kept) for cell, kept in zip(cells, [None, *cells], strict=False)]

    def ceilings_cells(self, elements: Sequence[ElementKind]) -> list[Contender | Absent]:
        """What gives the highest rates: a read of much, and a large square product of each element."""
        kind = self.lineup.device.kind
        side = _DENSE_SIDE[kind]
        squares = [Cell(element, 128, side, side, side) for element in elements]
        return [*self.lineup.reads(_READ_NBYTES[kind]), *(self.lineup.dense(square) for square in squares)]

    def ceilings_s(self, elements: Sequence[ElementKind]) -> float:
        """Seconds that `ceilings` takes."""
        side = _DENSE_SIDE[self.lineup.device.kind]
        square = Cell(elements[0], 128, side, side, side)
        found = [one for one in self.ceilings_cells(elements) if isinstance(one, Contender)]
        return sum(self._estimate_s(one, square) + one.copies * one.nbytes / _UPLOADED_PER_S for one in found)

    def ceilings(self, elements: Sequence[ElementKind]) -> Ceilings:
        """The highest rates that the device reaches."""
        read, dense = 0.0, {}
        flop = 2 * _DENSE_SIDE[self.lineup.device.kind] ** 3
        for one in self.ceilings_cells(elements):
            # One at a time: they do not compete, and together take gigabytes.
            for contender, spread in self._times([one])[0]:
                if contender.element is None:
                    read = max(read, contender.nbytes / spread.median_us)
                else:
                    dense[contender.element] = flop / spread.median_us
        return Ceilings(read, dense)

    def measure(self, cell: Cell) -> Measured:
        """All contenders of a cell, in turns. One that cannot be prepared is absent, with what it raised.

        Raises:
            BaracudaError: nobody could be prepared: the device is in no state to go on.
        """
        times, absent = self._times(list(self.lineup.of(cell)), self._block_us(cell))
        return Measured(cell, times, absent)

    def _times(
        self, lineup: Sequence[Contender | Absent], block_us: float = 0.0
    ) -> tuple[tuple[tuple[Contender, Spread], ...], tuple[Absent, ...]]:
        absent = [one for one in lineup if isinstance(one, Absent)]
        failed: Exception | None = None
        with timer_on(self.lineup.registry, self.lineup.device, block_us) as timer, ExitStack() as stack:
            ready: dict[Contender, Replay] = {}
            for one in lineup:
                if isinstance(one, Absent):
                    continue
                try:
                    ready[one] = stack.enter_context(one.replay(timer))
                except Exception as error:  # a library's, a driver's: the others are worth measuring all the same
                    failed = error
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    absent.append(Absent(one.kind, one.kernel, one.element, one.layout, reason))
            if failed is not None and not ready:
                raise failed
            by_name = {str(number): replay for number, replay in enumerate(ready.values())}
            times = in_turns(by_name, 1 if block_us else self.samples) if ready else {}
            if block_us and ready:
                products = {name: one for name, one in zip(by_name, ready, strict=True) if one.kind != READ}
                least = min((times[name][0] for name in products), default=0.0)
                near = {name: by_name[name] for name in products if times[name][0] <= _NEAR * least}
                others = {name: replay for name, replay in by_name.items() if name not in near}
                times |= in_turns(near, self.samples)
                times |= in_turns(others, min(self.samples, max(_FEWEST, self.samples // _FEWER)))
        return tuple(zip(ready, map(Spread.of, times.values()), strict=True)), tuple(absent)


def _pace(one: Contender) -> Pace:
    """How fast one contender is on the host; as it is estimated, where it cannot be prepared."""
    try:
        with one.replay(HostTimer()):  # which draws its arguments
            pass
        start = time.perf_counter()
        with one.replay(HostTimer()) as replay:
            prepared_s = time.perf_counter() - start
            time_us = min(replay() for _ in range(_PROBES))
    except Exception:
        return Pace()
    return Pace(time_us / one.estimate_us, max(0.0, prepared_s - 1e-6 * time_us) / one.nbytes)


@define
class Forecast:
    """How long is left, by estimates that are corrected by what cells have taken.

    Attributes:
        left_s: estimates of the cells that are not measured yet.
    """

    left_s: list[float]
    _estimated_s: float = 0.0
    _taken_s: float = 0.0

    @property
    def correction(self) -> float:
        """Seconds taken for each that was estimated; 1 before anything was measured."""
        return self._taken_s / self._estimated_s if self._estimated_s else 1.0

    @property
    def next_s(self) -> float:
        """Of the next cell."""
        return self.left_s[0] * self.correction

    @property
    def total_s(self) -> float:
        """Of all that are left."""
        return sum(self.left_s) * self.correction

    def took(self, seconds: float) -> None:
        """The next cell is measured."""
        self._estimated_s += self.left_s.pop(0)
        self._taken_s += seconds


def measured_within(
    bench: Bench, cells: Sequence[Cell], budget_s: float | None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Measured]:
    """Measure cells in order, until the next one would not end within `budget_s` seconds of now."""
    begun, forecast = clock(), Forecast(bench.estimates_s(cells))
    for cell in cells:
        start = clock()
        if budget_s is not None and start - begun + forecast.next_s > budget_s:
            return
        measured = bench.measure(cell)
        forecast.took(clock() - start)
        yield measured
