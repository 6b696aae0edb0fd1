"""The backend of kernels that are made of others: it runs their steps in order, each on the backend of its own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from baracuda_py.errors import BaracudaError, Unsupported
from baracuda_py.vocab.code import Backend, Executable, RelocatableExecutable, Scratch, SequenceCode
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorMut, TensorRef, stream_owner

__all__ = ["SequenceBackend"]


@frozen(eq=False)
class _Step:
    """A step made ready.

    Attributes:
        executable: of its code.
        sources: of each operand: an index into the whole's, or a view of a scratch tensor whose address is its offset
            in the workspace.
        offset: of the step's own workspace in the whole's.
    """

    executable: Executable
    sources: tuple[int | TensorRef, ...]
    offset: int

    def operands(self, workspace: int, operands: Sequence[TensorRef | None]) -> list[TensorRef | None]:
        """The step's, of a run with these operands and the workspace at this address."""
        return [
            operands[source] if isinstance(source, int) else source.moved(workspace + source.pointer, None)
            for source in self.sources
        ]


class SequenceExecutable:
    """The steps of one plan on one device."""

    def __init__(self, code: SequenceCode, descriptor: Any, device: Device, steps: tuple[_Step, ...]) -> None:
        self.launches = code.launches(descriptor, device)
        self.device = device
        self._steps = steps

    def stream_handle(self, stream: Any, owner: Any) -> int:
        """See `Executable`."""
        return self._steps[0].executable.stream_handle(stream, owner)

    def run(self, stream: int, workspace: int, operands: Sequence[TensorRef | None]) -> None:
        """Enqueue every step, in order, on `stream`. When one fails, those before it are enqueued already."""
        for step in self._steps:
            step.executable.run(stream, workspace + step.offset, step.operands(workspace, operands))

    def bind(
        self, stream: int | None, workspace: Workspace, operands: Sequence[TensorRef | None]
    ) -> Callable[[], None]:
        """A callable that only enqueues. With stream None it asks once a call, so that all steps get the same one."""
        start, held = workspace.pointer, tuple(operands)
        given = [(step, start + step.offset, step.operands(start, held)) for step in self._steps]
        if stream is None:
            owner = stream_owner(held)

            def bound(_held: Any = (workspace, held)) -> None:
                handle = self.stream_handle(None, owner)
                for step, own, its in given:
                    step.executable.run(handle, own, its)

            return bound

        calls = [step.executable.bind(stream, _part(workspace, step.offset), its) for step, _, its in given]

        def bound_to_stream(_held: Any = (workspace, held)) -> None:
            for call in calls:
                call()

        return bound_to_stream


class _RelocatableSequence(SequenceExecutable):
    """Of steps all of which are relocatable."""

    def __init__(self, code: SequenceCode, descriptor: Any, device: Device, steps: tuple[_Step, ...]) -> None:
        super().__init__(code, descriptor, device, steps)
        self._runs: list[Callable[..., None]] = []
        for step in steps:
            assert isinstance(step.executable, RelocatableExecutable)
            self._runs.append(step.executable.run_at)

    def run_at(
        self, stream: int, workspace: int, addresses: Sequence[int], operands: Sequence[TensorRef | None]
    ) -> None:
        """See `RelocatableExecutable`."""
        own: list[int]
        its: list[TensorRef | None]
        for step, run_at in zip(self._steps, self._runs, strict=True):
            own, its = [], []
            for source in step.sources:
                if isinstance(source, int):
                    own.append(addresses[source])
                    its.append(operands[source])
                else:
                    own.append(workspace + source.pointer)
                    its.append(source)
            run_at(stream, workspace + step.offset, own, its)


def _part(workspace: Workspace, offset: int) -> Workspace:
    return Workspace(workspace.pointer + offset, workspace.nbytes - offset, workspace.device, workspace.owner)


class SequenceBackend:
    """Runs `SequenceCode`.

    Args:
        find: the backend that a name stands for; raises Unsupported when there is none.
    """

    name = "sequence"

    def __init__(self, find: Callable[[str], Backend]) -> None:
        self._find = find

    def missing(self, code: SequenceCode, device: Device) -> BaracudaError | None:
        """What the first step that cannot run misses."""
        for step in code.steps:
            try:
                backend = self._find(step.code.executor)
            except Unsupported as error:
                return error
            missing = backend.missing(step.code, device)
            if missing is not None:
                return missing
        return None

    def prepare(
        self, code: SequenceCode, descriptor: Any, device: Device, names: tuple[str, ...], where: str
    ) -> SequenceExecutable:
        """Make every step ready. Raises as the steps' backends."""
        placed, offset = code.placed(descriptor)
        steps = tuple(
            _Step(
                self._find(step.code.executor).prepare(
                    step.code, step.descriptor(descriptor), device, tuple(step.operands), where
                ),
                tuple(_source(name, names, placed, device) for name in step.operands.values()),
                offset,
            )
            for step in code.steps
        )
        relocatable = all(isinstance(step.executable, RelocatableExecutable) for step in steps)
        return (_RelocatableSequence if relocatable else SequenceExecutable)(code, descriptor, device, steps)


def _source(
    name: str, names: tuple[str, ...], placed: Mapping[str, tuple[int, Scratch]], device: Device
) -> int | TensorRef:
    if name not in placed:
        return names.index(name)
    start, scratch = placed[name]
    return TensorMut(start, scratch.shape, scratch.element, device=device.ordinal)
