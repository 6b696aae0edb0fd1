"""A backend that launches nothing and records what it was asked to launch. For tests and dry runs of engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from baracuda_py.errors import BaracudaError
from baracuda_py.vocab.code import Launch, launches_of
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorRef

__all__ = ["NullBackend", "RecordedRun"]


@frozen
class RecordedRun:
    """One run: where, on which stream, with which workspace and operands, and the launches it stands for."""

    where: str
    stream: int
    workspace: int
    operands: tuple[TensorRef | None, ...]
    launches: tuple[Launch, ...]


class _NullExecutable:
    def __init__(self, backend: NullBackend, where: str, launches: tuple[Launch, ...], device: Device) -> None:
        self._backend = backend
        self._where = where
        self.launches = launches
        self.device = device

    def stream_handle(self, stream: Any, owner: Any) -> int:
        return 0 if stream is None else int(stream.__cuda_stream__()[1])

    def run(self, stream: int, workspace: int, operands: Sequence[TensorRef | None]) -> None:
        self._backend.runs.append(RecordedRun(self._where, stream, workspace, tuple(operands), self.launches))

    def bind(
        self, stream: int | None, workspace: Workspace, operands: Sequence[TensorRef | None]
    ) -> Callable[[], None]:
        return lambda: self.run(stream or 0, workspace.pointer, operands)


class NullBackend:
    """Stands in for the backend called `name`; `device` is the one GPU it pretends to have."""

    def __init__(self, device: Device, name: str = "cuda") -> None:
        self.name = name
        self.runs: list[RecordedRun] = []
        self._device = device

    def missing(self, code: Any, device: Device) -> BaracudaError | None:
        """Nothing is ever missing."""
        return None

    def current_device(self) -> Device:
        """The pretended GPU."""
        return self._device

    def device(self, ordinal: int) -> Device:
        """The pretended GPU, whatever the ordinal."""
        return self._device

    def device_of_stream(self, stream: Any) -> Device:
        """The pretended GPU."""
        return self._device

    def prepare(
        self, code: Any, descriptor: Any, device: Device, names: tuple[str, ...], where: str
    ) -> _NullExecutable:
        """Compute the launches of the code, as far as it says them."""
        return _NullExecutable(self, where, launches_of(code, descriptor, device), device)
