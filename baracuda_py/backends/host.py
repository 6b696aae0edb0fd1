"""The host backend: runs a kernel's NumPy function on host memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

from baracuda_py.errors import BaracudaError, Unsupported
from baracuda_py.vocab.code import HostCode, Launch
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorRef

__all__ = ["HostBackend"]


@cache
def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # the parent of a dotted name is missing; or the module has no spec
        return False


class _HostExecutable:
    launches: tuple[Launch, ...] = ()

    def __init__(self, code: HostCode, descriptor: Any, device: Device, names: tuple[str, ...]) -> None:
        self.device = device
        self._code = code
        self._descriptor = descriptor
        self._names = names

    def stream_handle(self, stream: Any, owner: Any) -> int:
        return 0

    def _arrays(self, operands: Sequence[TensorRef | None]) -> dict[str, Any]:
        return {n: None if v is None else v.numpy() for n, v in zip(self._names, operands, strict=True)}

    def run(self, stream: int, workspace: int, operands: Sequence[TensorRef | None]) -> None:
        self._code.function(self._descriptor, **self._arrays(operands))

    def bind(
        self, stream: int | None, workspace: Workspace, operands: Sequence[TensorRef | None]
    ) -> Callable[[], None]:
        arrays = self._arrays(operands)
        if self._code.prepare is not None:
            call = self._code.prepare(self._descriptor, **arrays)
        else:
            call = partial(self._code.function, self._descriptor, **arrays)

        def bound(_held: Any = tuple(operands)) -> None:
            call()

        return bound


class HostBackend:
    """Runs `HostCode`. A run returns when the result is there; streams are ignored."""

    name = "host"

    def missing(self, code: HostCode, device: Device) -> BaracudaError | None:
        """Unsupported if the module that the kernel needs is not installed."""
        if not code.requires or _importable(code.requires):
            return None
        return Unsupported(
            "host", f"{code.requires} must be installed", rule=code.requires, got="not found",
            fix=f"Run: {code.install}",
        )  # fmt: skip

    def prepare(
        self, code: HostCode, descriptor: Any, device: Device, names: tuple[str, ...], where: str
    ) -> _HostExecutable:
        """Bind the function to the descriptor."""
        return _HostExecutable(code, descriptor, device, names)
