"""Who takes part in a cell: every kernel of ours that serves it, a dense GEMM, torch's int4 op, and a bare read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from attrs import evolve, field, frozen

from baracuda_py.bench import torch_int4
from baracuda_py.bench.cells import Cell
from baracuda_py.bench.read import READS, Reader
from baracuda_py.errors import BaracudaError
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.plan import Plan
from baracuda_py.registry import Kernel, Registry
from baracuda_py.tuning.arguments import ROTATED_NBYTES, RotatedArguments, bound_calls, copies_of
from baracuda_py.tuning.timing import GraphTimer, Replay, Timer
from baracuda_py.vocab.code import launches_of
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import bits_of
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.tuning import kernel_label

__all__ = ["DENSE", "INT4", "OURS", "READ", "Absent", "Contender", "Lineup"]

OURS, DENSE, INT4, READ = "ours", "dense", "int4", "read"  # kinds of contenders


@frozen(eq=False)
class Contender:
    """One that is measured.

    Attributes:
        kind: OURS, DENSE, INT4 or READ.
        kernel: its name.
        element: of activation and output; None for a read.
        layout: of packed weights of ours; else empty.
        selected: whether `select` picks it for its layout.
        nbytes: that a call must read or write.
        copies: calls of a replay.
        estimate_us: of a call.
        replay: makes its `Replay`, for the time of a block.
        overlaps: whether its calls begin while the one before them ends (programmatic dependent launch).
    """

    kind: str
    kernel: str
    element: ElementKind | None
    layout: str
    selected: bool
    nbytes: int
    copies: int
    estimate_us: float
    replay: Callable[[Timer], AbstractContextManager[Replay]] = field(repr=False)
    overlaps: bool = False


@frozen
class Absent:
    """One that is not, and why."""

    kind: str
    kernel: str
    element: ElementKind | None
    layout: str
    reason: str


@frozen(eq=False)
class Lineup:
    """The contenders of cells on one device; keeps weights from one cell to the next.

    Attributes:
        registry: whose kernels.
        device: the host, or a GPU of this machine.
        layouts: of our weights.
        rotated_nbytes: weights that a replay walks over at least.
    """

    registry: Registry[Plan]
    device: Device
    layouts: Sequence[AwqWeightLayout]
    rotated_nbytes: int = ROTATED_NBYTES
    _ours: dict[AwqWeightLayout, RotatedArguments] = field(init=False, repr=False)
    _dense: RotatedArguments = field(init=False, repr=False)
    _reader: Reader = field(init=False, repr=False)

    @_ours.default
    def _make_ours(self) -> dict[AwqWeightLayout, RotatedArguments]:
        return {layout: RotatedArguments(self.device, self.rotated_nbytes) for layout in self.layouts}

    @_dense.default
    def _make_dense(self) -> RotatedArguments:
        return RotatedArguments(self.device, self.rotated_nbytes, ("b",))

    @_reader.default
    def _make_reader(self) -> Reader:
        return Reader(self.registry, self.device, self.rotated_nbytes)

    def of(self, cell: Cell) -> Iterator[Contender | Absent]:
        """Everyone, those that are absent with the reason."""
        for layout in self.layouts:
            yield from self._packed(cell, layout)
        yield self.dense(cell)
        yield self._int4(cell)
        yield from self.reads(cell.weight_nbytes)

    def _packed(self, cell: Cell, layout: AwqWeightLayout) -> Iterator[Contender | Absent]:
        descriptor = cell.descriptor(layout)
        explanation = self.registry.explain(descriptor, self.device)
        if explanation.error is not None:
            yield Absent(OURS, explanation.op.name, cell.element, layout.value, _told(explanation.error))
        for one in explanation.candidates:
            if one.refusal is None:
                assert one.cost_us is not None
                plain = Contender(
                    OURS, kernel_label(one.sku), cell.element, layout.value, one.kernel is explanation.chosen,
                    cell.nbytes, copies_of(cell.weight_nbytes, self.rotated_nbytes), one.cost_us,
                    partial(self._replay, one.kernel, descriptor, self._ours[layout]),
                )  # fmt: skip
                yield plain
                launches = launches_of(one.kernel.code, descriptor, self.device)
                if launches and launches[0].overlaps:
                    replay = partial(self._replay, one.kernel, descriptor, self._ours[layout], overlap=True)
                    yield evolve(plain, selected=False, overlaps=True, replay=replay)

    def dense(self, cell: Cell) -> Contender | Absent:
        """The dense GEMM: of the cell's element on a GPU, on the host of f32, which NumPy hands to BLAS as it is."""
        element = ElementKind.F32 if self.device.kind == "host" else cell.element
        library = "numpy" if self.device.kind == "host" else "cublas"
        name = f"{library}_{element.name.lower()}"
        descriptor = cell.dense(element)
        explanation = self.registry.explain(descriptor, self.device)
        if explanation.chosen is None:
            assert explanation.error is not None
            return Absent(DENSE, name, element, "", _told(explanation.error))
        cost_us = explanation.candidates[0].cost_us
        assert cost_us is not None
        width = bits_of(element) // 8
        nbytes = width * (cell.oc * cell.ic + cell.m * (cell.oc + cell.ic))
        return Contender(
            DENSE, name, element, "", False, nbytes, copies_of(width * cell.oc * cell.ic, self.rotated_nbytes), cost_us,
            partial(self._replay, explanation.chosen, descriptor, self._dense),
        )  # fmt: skip

    def _replay(
        self, kernel: Kernel, descriptor: Any, arguments: RotatedArguments, timer: Timer, *, overlap: bool = False
    ) -> AbstractContextManager[Replay]:
        plan = self.registry.plan(kernel.sku, descriptor, self.device)
        made: AbstractContextManager[Replay] = timer.replay(
            bound_calls(plan, arguments.of(plan.op, descriptor), timer.stream, overlap=overlap)
        )
        return made

    def _int4(self, cell: Cell) -> Contender | Absent:
        kind = INT4, "torch_int4pack_mm", ElementKind.BF16, ""
        if reason := torch_int4.refusal(cell, self.device):
            return Absent(*kind, reason)
        again = 0.4 * (-(-cell.m // 16) - 1)  # reads of the weights from L2
        estimate_us = 3 + cell.nbytes / self.device.bytes_per_us * (1 + again)

        def replay(timer: Timer) -> AbstractContextManager[Replay]:
            assert isinstance(timer, GraphTimer)
            return torch_int4.replay(cell, self.device, self.rotated_nbytes, timer)

        copies = copies_of(cell.weight_nbytes, self.rotated_nbytes)
        return Contender(*kind, False, cell.nbytes, copies, estimate_us, replay)

    def reads(self, nbytes: int) -> Iterator[Contender]:
        """Reads of so many bytes, in every way that the device has."""
        for how in READS if self.device.kind == "cuda" else READS[:1]:

            def replay(timer: Timer, how: str = how) -> AbstractContextManager[Replay]:
                made: AbstractContextManager[Replay] = timer.replay(self._reader.calls(nbytes, timer.stream, how))
                return made

            name = f"read_{how}" if self.device.kind == "cuda" else "read"
            copies = copies_of(nbytes, self.rotated_nbytes)
            yield Contender(READ, name, None, "", False, nbytes, copies, 2 + nbytes / self.device.bytes_per_us, replay)


def _told(error: BaracudaError) -> str:
    return str(error).splitlines()[0]
