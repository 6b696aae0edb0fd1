"""The laws that every kernel keeps, over (op, kernel, descriptor, device): `laws_for(case)` lists those that apply.

Each law is a function of a `Case` and raises AssertionError, with the figures, where the kernel breaks it. The same
laws run on the host and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from baracuda_py.errors import WorkspaceTooSmall
from baracuda_py.testing.batches import batch_of, other_counts, rows_are_apart
from baracuda_py.testing.calls import Arrays, Call, Case, frobenius_error, reference_outputs, refusal_of, serves
from baracuda_py.testing.data import POISONS, Arrangement, arrangements, inputs_for, same_bits
from baracuda_py.testing.graphs import captures_and_replays, runs_on_a_stream_of_its_own
from baracuda_py.testing.perturbations import refuses_wrong_arguments
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tolerance import relative_tolerance

__all__ = ["LAWS", "Law", "laws_for"]

_RERUNS = 3


def agrees_with_reference(case: Case) -> None:
    """However the tensors are arranged, outputs lie within the guarantee's tolerance of the float64 oracle."""
    inputs = inputs_for(case.op, case.descriptor)
    exact = reference_outputs(case.op, case.descriptor, inputs)
    for arrangement in (*_arrangements(case), "shifted"):
        call = Call.of(case, inputs, arrangement)
        for name, result in call.run().items():
            memory = call.tensors[name]
            assert memory is not None
            limit = relative_tolerance(case.guarantee, memory.view.element, result.size)
            error = frobenius_error(result, exact[name])
            assert error <= limit, f"{name} ({arrangement}): relative error {error:.2e} exceeds {limit:.2e}"


def _arrangements(case: Case) -> tuple[Arrangement, ...]:
    return tuple(dict.fromkeys(a for spec in case.op.specs for a in arrangements(spec)))


def writes_every_element_and_nothing_else(case: Case) -> None:
    """No element keeps its poison under both poisons; fences, gaps between rows and inputs keep theirs."""
    arrangement = _arrangements(case)[-1]
    call = Call.of(case, arrangement=arrangement)
    kept: dict[str, Any] = {}
    for byte in POISONS:
        call.poison(byte)
        for name, result in call.run().items():
            raw = np.frombuffer(result.tobytes(), np.uint8).reshape(-1, result.dtype.itemsize)
            kept[name] = kept.get(name, True) & (raw == byte).all(axis=1)
        assert not (damage := call.damage()), f"({arrangement}) {'; '.join(damage)}"
    for name, unwritten in kept.items():
        if call.role(name) == "out":
            assert not unwritten.any(), f"{name}: {int(unwritten.sum())} elements were never written"


def respects_its_workspace(case: Case) -> None:
    """An exactly sized workspace is enough and its fences stay; one byte less is refused with nothing written."""
    call = Call.of(case)
    needed = case.plan.workspace_size
    assert call.workspace.nbytes == needed
    short = Workspace(call.workspace.pointer, needed - 1, call.workspace.device)
    for attempt in (
        lambda: call.plan.run(0, short, call.args),
        lambda: call.plan.bind(call.args, short, 0),
    ):
        refusal = refusal_of(attempt)
        assert isinstance(refusal, WorkspaceTooSmall), f"a workspace one byte short: {refusal or 'accepted'}"
        assert (refusal.needed, refusal.got) == (needed, needed - 1)
    assert not call.touched(), "a refused run wrote memory"
    call.run()
    assert not (damage := call.damage()), "; ".join(damage)


def repeats_its_bits(case: Case) -> None:
    """Runs on the same input give the same bits, whatever the workspace and the outputs held before."""
    call = Call.of(case)
    first: Arrays | None = None
    for attempt in range(_RERUNS):
        call.poison(POISONS[attempt % 2])
        found = call.run()
        first = first or found
        assert same_bits(first, found), f"run {attempt + 1} differs from run 1"


def rows_do_not_depend_on_their_number(case: Case) -> None:
    """The leading rows of a larger or smaller batch have the same bits, where the reference says rows are apart."""
    batch = batch_of(case.op, case.descriptor)
    assert batch is not None
    inputs = inputs_for(case.op, case.descriptor)
    mine = Call.of(case, inputs).run()
    compared = 0
    for count in other_counts(batch.count):
        other = batch.resized(case.descriptor, count)
        if not serves(case.op, case.kernel, other) or case.op.is_empty(other):
            continue
        resized = batch.resized_inputs(case.op, other, inputs)
        rows = min(count, batch.count)
        if not rows_are_apart(case.op, case.descriptor, inputs, other, resized, rows):
            continue
        theirs = Call.of(attrs.evolve(case, descriptor=other), resized).run()
        for name in mine:
            same = mine[name][:rows].tobytes() == theirs[name][:rows].tobytes()
            assert same, f"{name}: rows change with the batch, {batch.count} against {count}"
        compared += 1
    assert compared, "no other batch size could be compared"


def bound_runs_are_runs(case: Case) -> None:
    """`bind(...)()` computes what `run` computes, each time it is called, and damages nothing."""
    call = Call.of(case)
    expected = call.run()
    launch = call.plan.bind(call.args, call.workspace, 0)
    for byte in POISONS:
        call.poison(byte)
        launch()
        found = call.outputs()
        if case.guarantee.deterministic:
            assert same_bits(expected, found), "a bound run differs from a run"
        else:
            for name, values in found.items():
                limit = 2 * relative_tolerance(case.guarantee, call.tensors[name].view.element)  # type: ignore[union-attr]
                assert frobenius_error(values, expected[name]) <= limit, "a bound run differs from a run"
        assert not (damage := call.damage()), "; ".join(damage)


def does_nothing_when_empty(case: Case) -> None:
    """A problem without output elements needs no workspace, launches nothing and runs."""
    call = Call.of(case)
    assert call.plan.workspace_size == 0, "an empty problem asks for a workspace"
    assert call.plan.launches == (), "an empty problem launches"
    call.plan.run(None, Workspace.NONE, call.args)
    call.plan.bind(call.args)()
    assert not call.touched()


Law = Callable[[Case], None]

LAWS: dict[Law, Callable[[Case], bool]] = {
    agrees_with_reference: lambda case: not case.empty,
    writes_every_element_and_nothing_else: lambda case: not case.empty,
    respects_its_workspace: lambda case: case.plan.workspace_size > 0,
    repeats_its_bits: lambda case: not case.empty and bool(case.guarantee.deterministic),
    rows_do_not_depend_on_their_number: lambda case: (
        not case.empty and bool(case.guarantee.batch_invariant) and _has_other_batch(case)
    ),
    bound_runs_are_runs: lambda case: not case.empty,
    refuses_wrong_arguments: lambda case: not case.empty,
    runs_on_a_stream_of_its_own: lambda case: not case.empty and case.device.kind == "cuda",
    captures_and_replays: lambda case: not case.empty and case.device.kind == "cuda",
    does_nothing_when_empty: lambda case: case.empty,
}


def _has_other_batch(case: Case) -> bool:
    batch = batch_of(case.op, case.descriptor)
    if batch is None:
        return False
    inputs = inputs_for(case.op, case.descriptor)
    for count in other_counts(batch.count):
        other = batch.resized(case.descriptor, count)
        if serves(case.op, case.kernel, other):
            rows = min(count, batch.count)
            resized = batch.resized_inputs(case.op, other, inputs)
            return rows_are_apart(case.op, case.descriptor, inputs, other, resized, rows)
    return False


def laws_for(case: Case) -> tuple[Law, ...]:
    """The laws that say something about this case."""
    return tuple(law for law, applies in LAWS.items() if applies(case))
