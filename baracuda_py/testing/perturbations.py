"""Calls that are wrong in one way: each argument, each rule of `operands`, refused by name with nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
from attrs import frozen

from baracuda_py.errors import BaracudaError, InvalidProblem, MisalignedOperand
from baracuda_py.testing.calls import Call, Case, refusal_of
from baracuda_py.testing.data import Fenced, fenced
from baracuda_py.vocab.descriptors import TensorSpec
from baracuda_py.vocab.elements import bits_of
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.tensors import HOST_MEMORY, TensorMut, TensorRef, row_major_strides

__all__ = ["Perturbation", "perturbations", "refuses_wrong_arguments"]


@frozen
class Perturbation:
    """One wrong argument.

    Attributes:
        argument, rule: what the error must carry as `"<argument> <rule>"`.
        what: the change, in words.
        error: the class raised.
        value: what is passed instead.
        memory: fenced memory that `value` lies in, when it is new.
    """

    argument: str
    rule: str
    what: str
    error: type[BaracudaError]
    value: TensorRef | None
    memory: Fenced | None = None


def refuses_wrong_arguments(case: Case) -> None:
    """`can_implement`, `run` and `bind` refuse every perturbation by name, and write nothing."""
    call = Call.of(case)
    found = list(perturbations(case, call))
    assert found, "no argument of the op can be got wrong"
    for wrong in found:
        args = attrs.evolve(call.args, **{wrong.argument: wrong.value})
        attempts: dict[str, Callable[[], Any]] = {
            "can_implement": lambda args=args: call.plan.can_implement(args),  # type: ignore[misc]
            "run": lambda args=args: call.plan.run(0, call.workspace, args),  # type: ignore[misc]
            "bind": lambda args=args: call.plan.bind(args, call.workspace, 0),  # type: ignore[misc]
        }
        for name, attempt in attempts.items():
            if name == "can_implement" and wrong.what == _IN_WORKSPACE:
                continue  # it is given no workspace
            _expect(attempt, wrong, name)
        assert not (touched := call.touched()), f"{wrong.argument}, {wrong.what}: refused, yet {touched} changed"
        changed = wrong.memory is not None and wrong.memory.changed
        assert not changed, f"{wrong.argument}, {wrong.what}: written, then refused"


def _expect(attempt: Callable[[], Any], wrong: Perturbation, name: str) -> None:
    rule = f"{wrong.argument} {wrong.rule}"
    refusal = refusal_of(attempt)
    assert refusal is not None, f"{name} accepted {wrong.argument} with {wrong.what}"
    assert refusal.rule == rule, f"{name}: {wrong.argument}, {wrong.what}: {rule!r} expected, got {refusal.rule!r}"
    assert type(refusal) is wrong.error, f"{name}: {rule}: {type(refusal).__name__}, not {wrong.error.__name__}"
    assert wrong.argument in str(refusal), f"{name}: the message does not name {wrong.argument}: {refusal}"


_IN_WORKSPACE = "the workspace's memory"


def perturbations(case: Case, call: Call) -> Iterator[Perturbation]:
    """Every way to get one argument of `call` wrong that its spec knows."""
    for spec in case.op.specs:
        memory = call.tensors[spec.name]
        if memory is None:
            given = fenced((1,), ElementKind.F32, case.device)
            yield Perturbation(spec.name, "presence", "a tensor where none belongs", InvalidProblem, given.view, given)
            continue
        yield Perturbation(spec.name, "presence", "None", InvalidProblem, None)
        yield from _of_type(case, spec, memory.view)
        if memory.view.size:
            yield from _of_memory(case, spec, memory.view)
    yield from _overlaps(case, call)


def _new(case: Case, spec: TensorSpec, like: TensorRef, **changes: Any) -> Fenced:
    facts = {"shape": like.shape, "element": like.element, **changes}
    return fenced(**facts, device=case.device, written=spec.written)


def _of_type(case: Case, spec: TensorSpec, view: TensorRef) -> Iterator[Perturbation]:
    accepted = spec.elements_on(case.descriptor)
    for element in (ElementKind.F16, ElementKind.BF16, ElementKind.F32, ElementKind.I32, ElementKind.U8):
        if element not in accepted:
            memory = _new(case, spec, view, element=element)
            what = f"element {element.name}"
            yield Perturbation(spec.name, "element", what, InvalidProblem, memory.view, memory)
    shapes = [(*view.shape, 1), view.shape[1:]] if view.shape else [(1,)]
    for axis, extent in enumerate(view.shape):
        shapes += [(*view.shape[:axis], other, *view.shape[axis + 1 :]) for other in (extent + 1, extent - 1)]
    for shape in shapes:
        if min(shape, default=0) >= 0:
            memory = _new(case, spec, view, shape=shape)
            yield Perturbation(spec.name, "shape", f"shape {shape}", InvalidProblem, memory.view, memory)


def _of_memory(case: Case, spec: TensorSpec, view: TensorRef) -> Iterator[Perturbation]:
    def strided(rule: str, strides: tuple[int, ...], error: type[BaracudaError] = InvalidProblem) -> Perturbation:
        memory = _new(case, spec, view, strides=strides)
        return Perturbation(spec.name, rule, f"strides {strides}", error, memory.view, memory)

    shape, packed = view.shape, row_major_strides(view.shape)
    nbytes = bits_of(view.element) // 8
    alignment = max(case.kernel.alignment.get(spec.name, 1), nbytes)
    rows = [axis for axis, extent in enumerate(shape[:-1]) if extent > 1]
    if spec.strides != "any" and shape and shape[-1] > 1:
        yield strided("innermost stride", (*(2 * stride for stride in packed[:-1]), 2))
        yield strided("innermost stride", (*packed[:-1], -1))
    if spec.strides == "contiguous" and rows:
        yield strided("row stride", (*(stride + alignment for stride in packed[:-1]), 1))
    if spec.strides == "rows" and rows:
        axis = rows[-1]
        for stride in (packed[axis] - 1, -packed[axis]):
            yield strided("row stride", (*packed[:axis], stride, *packed[axis + 1 :]))
        if alignment > nbytes:
            odd = packed[axis] + (alignment // nbytes) + 1
            yield strided(
                "alignment", tuple(odd * (p // packed[axis]) if i <= axis else p for i, p in enumerate(packed)),
                MisalignedOperand,
            )  # fmt: skip
    if spec.written and rows and spec.strides == "any":
        yield strided("row stride", tuple(0 if axis == rows[0] else stride for axis, stride in enumerate(packed)))
    for shift in {1, alignment // 2} if alignment > 1 else ():
        memory = _new(case, spec, view, shift_bytes=shift)
        what = f"an address {shift} bytes off"
        yield Perturbation(spec.name, "alignment", what, MisalignedOperand, memory.view, memory)
    elsewhere = [HOST_MEMORY, (case.device.ordinal or 0) + 1] if case.device.kind == "cuda" else [0]
    for device in elsewhere:
        moved = type(view)(view.pointer, shape, view.element, device=device)
        yield Perturbation(spec.name, "device", f"memory of device {device}", InvalidProblem, moved)


def _overlaps(case: Case, call: Call) -> Iterator[Perturbation]:
    """Each output over each other tensor that is large enough to hold its first element, and over the workspace."""
    for index, name in enumerate(call.written):
        mine = call.tensors[name]
        if mine is None or not mine.view.size:
            continue
        for other, memory in call.tensors.items():
            if other in call.written[: index + 1]:
                continue  # two outputs are tried once: the error names the earlier one
            if memory is not None and memory.view.size:
                yield Perturbation(
                    name, "overlap", f"the memory of {other}", InvalidProblem, _over(case, mine.view, memory.view)
                )
        if call.workspace_memory is not None:
            over = _over(case, mine.view, call.workspace_memory.view)
            yield Perturbation(name, "overlap", _IN_WORKSPACE, InvalidProblem, over)


def _over(case: Case, output: TensorRef, other: TensorRef) -> TensorMut:
    """A view like `output` that begins where `other` begins. It may reach beyond: nothing is to be written."""
    return TensorMut(other.pointer, output.shape, output.element, device=other.device)
