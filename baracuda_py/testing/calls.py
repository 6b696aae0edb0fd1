"""One kernel, one problem, one place (`Case`), and the tensors of one call of it in fenced memory (`Call`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from baracuda_py.errors import BaracudaError
from baracuda_py.plan import Plan
from baracuda_py.registry import Kernel, Op, Registry
from baracuda_py.testing.data import Arrangement, Fenced, arrangements, fenced_bytes, inputs_for, place
from baracuda_py.testing.strategies import kernel_rules
from baracuda_py.vocab.descriptors import TensorSpec
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.sku import PrecisionGuarantee

__all__ = ["Arrays", "Call", "Case", "cases", "frobenius_error", "reference_outputs", "refusal_of", "serves"]

Arrays = dict[str, NDArray[Any]]


@frozen
class Case:
    """One kernel, one problem that it serves, one place."""

    registry: Registry[Plan]
    op: Op
    kernel: Kernel
    descriptor: Any
    device: Device

    @property
    def plan(self) -> Plan:
        """The plan that is pinned to the kernel."""
        return self.registry.plan(self.kernel.sku, self.descriptor, self.device)

    @property
    def guarantee(self) -> PrecisionGuarantee:
        """What the kernel promises."""
        return self.kernel.sku.precision_guarantee

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return self.op.is_empty(self.descriptor)

    def __str__(self) -> str:
        fields = ",".join(_short(value) for value in attrs.asdict(self.descriptor).values())
        return f"{self.op.name}[{self.kernel.sku.variant or self.kernel.sku.backend.name.lower()}]({fields})"


def _short(value: Any) -> str:
    return getattr(value, "name", str(value)).lower().replace(" ", "")


def cases(registry: Registry[Plan], device: Device, only: Kernel | None = None) -> Iterator[Case]:
    """Every kernel that runs on `device` (or the one given), with every example of its op that it serves."""
    for op in registry.ops():
        for kernel in op.kernels:
            if only not in (None, kernel) or not device.loads(kernel.sku.arch):
                continue
            if registry.backend(kernel.code.executor).missing(kernel.code, device) is not None:
                continue
            for example in op.examples:
                if serves(op, kernel, example):
                    yield Case(registry, op, kernel, example, device)


def serves(op: Op, kernel: Kernel, descriptor: Any) -> bool:
    """Whether the descriptor holds every rule of the op and the kernel."""
    return all(rule.holds(descriptor) for rule in kernel_rules(op, kernel))


@frozen(eq=False)
class Call:
    """The tensors of one call, in fenced memory, and an exactly sized workspace."""

    plan: Plan
    tensors: Mapping[str, Fenced | None]
    written: tuple[str, ...]
    workspace: Workspace
    workspace_memory: Fenced | None
    args: Any

    @classmethod
    def of(cls, case: Case, inputs: Mapping[str, Any] | None = None, arrangement: Arrangement = "contiguous") -> Call:
        """Place inputs (by default those of `inputs_for`) and poisoned outputs.

        Each tensor is arranged as asked where its spec allows it, else contiguous.
        """
        plan, op, descriptor = case.plan, case.op, case.descriptor
        inputs = inputs_for(op, descriptor) if inputs is None else inputs
        tensors: dict[str, Fenced | None] = {}
        for spec in op.specs:
            tensors[spec.name] = memory = _placed(case, spec, arrangement)
            values = inputs.get(spec.name)
            if memory is not None and values is not None:
                memory.write(values)
        args = op.args(**{name: None if memory is None else memory.view for name, memory in tensors.items()})
        workspace, workspace_memory = fenced_bytes(plan.workspace_size, case.device)
        written = tuple(spec.name for spec in op.specs if spec.written and spec.needed_on(descriptor))
        return cls(plan, tensors, written, workspace, workspace_memory, args)

    def poison(self, byte: int) -> None:
        """Fill outputs that are only written, and the workspace, with `byte`; restore all others to what they held."""
        for name, memory in self._memories():
            if name == "workspace" or self.role(name) == "out":
                memory.poison(byte)
            else:
                memory.restore()

    def run(self) -> Arrays:
        """Run on the default stream; copies of the outputs."""
        self.plan.run(0, self.workspace, self.args)
        return self.outputs()

    def outputs(self) -> Arrays:
        """Copies of the outputs as they are now, after all pending work."""
        return {name: memory.values() for name in self.written if (memory := self.tensors[name]) is not None}

    def damage(self) -> list[str]:
        """What was changed that must not be: inputs, and fences around everything."""
        found = []
        for name, memory in self._memories():
            if name in self.written or name == "workspace":
                if memory.fence_broken:
                    found.append(f"memory outside {name} was written")
            elif memory.changed:
                found.append(f"the input {name} was written")
        return found

    def touched(self) -> list[str]:
        """Names of tensors whose memory differs in any byte from what was put there."""
        return [name for name, memory in self._memories() if memory.changed]

    def _memories(self) -> Iterator[tuple[str, Fenced]]:
        yield from ((name, memory) for name, memory in self.tensors.items() if memory is not None)
        if self.workspace_memory is not None:
            yield "workspace", self.workspace_memory

    def role(self, name: str) -> str:
        return next(spec.role for spec in self.plan.op.specs if spec.name == name)


def _placed(case: Case, spec: TensorSpec, arrangement: Arrangement) -> Fenced | None:
    if not spec.needed_on(case.descriptor):
        return None
    return place(
        spec, spec.shape_on(case.descriptor), spec.elements_on(case.descriptor)[0], case.device,
        arrangement=arrangement if arrangement in (*arrangements(spec), "shifted") else "contiguous",
        alignment=case.kernel.alignment.get(spec.name, 1),
    )  # fmt: skip


def reference_outputs(op: Op, descriptor: Any, inputs: Mapping[str, Any]) -> Arrays:
    """What the float64 oracle says, by output."""
    results = op.reference(descriptor, **inputs)
    names = [spec.name for spec in op.specs if spec.written and spec.needed_on(descriptor)]
    return dict(zip(names, results if isinstance(results, tuple) else (results,), strict=True))


def frobenius_error(result: NDArray[Any], exact: NDArray[Any]) -> float:
    """||result - exact|| / ||exact||, with infinities and NaN that agree left out; inf where only one has them."""
    result, exact = result.astype(np.float64), np.asarray(exact, np.float64)
    finite = np.isfinite(exact)
    if not np.array_equal(result[~finite], exact[~finite], equal_nan=True) or not np.isfinite(result[finite]).all():
        return float("inf")
    norm = float(np.linalg.norm(exact[finite]))
    error = float(np.linalg.norm(result[finite] - exact[finite]))
    return error / norm if norm else error


def refusal_of(attempt: Callable[[], Any]) -> BaracudaError | None:
    """What `attempt` raises, or None when it goes through."""
    try:
        attempt()
    except BaracudaError as error:
        return error
    return None
