"""Who takes part in a cell: every kernel of ours that serves it, ours of fp8 activations, a dense GEMM, torch's int4
op, and a bare read."""

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
from baracuda_py.ops.quantize.awq_fp8_gemm import Int4AwqFp8GemmDescriptor
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.ops.quantize.per_token import QuantizePerTokenDescriptor
from baracuda_py.plan import Plan
from baracuda_py.registry import Kernel, Registry
from baracuda_py.tuning.arguments import ROTATED_NBYTES, RotatedArguments, bound_calls, copies_of
from baracuda_py.tuning.timing import GraphTimer, Replay, Timer
from baracuda_py.vocab.code import launches_of
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import bits_of
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.tuning import kernel_label

__all__ = ["DENSE", "FP8", "INT4", "OURS", "READ", "Absent", "Contender", "Lineup"]

OURS, FP8, DENSE, INT4, READ = "ours", "fp8", "dense", "int4", "read"  # kinds of contenders


@frozen(eq=False)
class Contender:
    """One that is measured.

    Attributes:
        kind: OURS, FP8 (ours of fp8 activations, alone and behind what makes them), DENSE, INT4 or READ.
        kernel: its name.
        element: of activation and output; None for a read.
        layout: of packed weights of ours; else empty.
        selected: whether `select` picks it for its op and layout.
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
        selected: only what `select` picks, plain, beside the dense GEMM.
    """

    registry: Registry[Plan]
    device: Device
    layouts: Sequence[AwqWeightLayout]
    rotated_nbytes: int = ROTATED_NBYTES
    selected: bool = False
    _ours: dict[AwqWeightLayout, RotatedArguments] = field(init=False, repr=False)
    _fp8: RotatedArguments = field(init=False, repr=False)
    _dense: RotatedArguments = field(init=False, repr=False)
    _reader: Reader = field(init=False, repr=False)

    @_ours.default
    def _make_ours(self) -> dict[AwqWeightLayout, RotatedArguments]:
        return {layout: RotatedArguments(self.device, self.rotated_nbytes) for layout in self.layouts}

    @_fp8.default
    def _make_fp8(self) -> RotatedArguments:
        return RotatedArguments(self.device, self.rotated_nbytes)

    @_dense.default
    def _make_dense(self) -> RotatedArguments:
        return RotatedArguments(self.device, self.rotated_nbytes, ("b",))

    @_reader.default
    def _make_reader(self) -> Reader:
        return Reader(self.registry, self.device, self.rotated_nbytes)

    def of(self, cell: Cell) -> Iterator[Contender | Absent]:
        """Everyone, or those that are `selected`; those that are absent with the reason."""
        for one in self._everyone(cell):
            counts = one.selected if isinstance(one, Contender) else one.kind in (OURS, FP8)
            if counts or one.kind == DENSE or not self.selected:
                yield one

    def _everyone(self, cell: Cell) -> Iterator[Contender | Absent]:
        for layout in self.layouts:
            yield from self._packed(cell, layout)
        if AwqWeightLayout.TILED in self.layouts and self.device.kind == "cuda":
            yield from self._fp8_pair(cell)
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

    def _fp8_pair(self, cell: Cell) -> Iterator[Contender | Absent]:
        """The GEMM of fp8 activations, and the same behind the quantisation of its rows."""
        layout = AwqWeightLayout.TILED
        product = Int4AwqFp8GemmDescriptor(cell.m, cell.ic, cell.oc, cell.group_size, layout, cell.element)
        rows = QuantizePerTokenDescriptor(cell.m, cell.ic, cell.element)
        gemm, quantize = self._chosen(product), self._chosen(rows)
        if isinstance(gemm, str) or isinstance(quantize, str):
            reason = gemm if isinstance(gemm, str) else str(quantize)
            yield Absent(FP8, "int4_awq_fp8_gemm", cell.element, layout.value, reason)
            return
        (kernel, cost_us), (before, before_us) = gemm, quantize
        label = kernel_label(kernel.sku)
        nbytes = cell.weight_nbytes + cell.m * (cell.ic + 4 + 2 * cell.oc)
        alone = Contender(
            FP8, label, cell.element, layout.value, True, nbytes, copies_of(cell.weight_nbytes, self.rotated_nbytes),
            cost_us, partial(self._replay, kernel, product, self._fp8),
        )  # fmt: skip
        yield alone

        def replay(timer: Timer) -> AbstractContextManager[Replay]:
            plan, quantize = (self.registry.plan(one.sku, desc, self.device)
                              for one, desc in ((kernel, product), (before, rows)))  # fmt: skip
            arguments = self._fp8.of(plan.op, product)
            [given] = RotatedArguments(self.device, 0).of(quantize.op, rows)
            given |= {"output": arguments[0]["activation"], "scales": arguments[0]["activation_scales"]}
            [first] = bound_calls(quantize, [given], timer.stream)
            calls = [_Pair(first, call) for call in bound_calls(plan, arguments, timer.stream)]
            made: AbstractContextManager[Replay] = timer.replay(calls)
            return made

        both = f"quantize_per_token, {label}"
        nbytes += 2 * cell.m * cell.ic
        us = before_us + cost_us
        yield evolve(alone, kernel=both, selected=False, nbytes=nbytes, estimate_us=us, replay=replay)

    def dense(self, cell: Cell) -> Contender | Absent:
        """The dense GEMM: of the cell's element on a GPU, on the host of f32, which NumPy hands to BLAS as it is."""
        element = ElementKind.F32 if self.device.kind == "host" else cell.element
        library = "numpy" if self.device.kind == "host" else "cublas"
        name = f"{library}_{element.name.lower()}"
        descriptor = cell.dense(element)
        chosen = self._chosen(descriptor)
        if isinstance(chosen, str):
            return Absent(DENSE, name, element, "", chosen)
        kernel, cost_us = chosen
        width = bits_of(element) // 8
        nbytes = width * (cell.oc * cell.ic + cell.m * (cell.oc + cell.ic))
        return Contender(
            DENSE, name, element, "", False, nbytes, copies_of(width * cell.oc * cell.ic, self.rotated_nbytes), cost_us,
            partial(self._replay, kernel, descriptor, self._dense),
        )  # fmt: skip

    def _chosen(self, descriptor: Any) -> tuple[Kernel, float] | str:
        """The kernel that `select` picks, and its estimate in microseconds; else why there is none."""
        explanation = self.registry.explain(descriptor, self.device)
        if explanation.chosen is None:
            assert explanation.error is not None
            return _told(explanation.error)
        cost_us = explanation.candidates[0].cost_us
        assert cost_us is not None
        return explanation.chosen, cost_us

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


@frozen(eq=False)
class _Pair:
    """Two calls as one."""

    first: Callable[[], None]
    second: Callable[[], None]

    def __call__(self) -> None:
        self.first()
        self.second()


def _told(error: BaracudaError) -> str:
    return str(error).splitlines()[0]
