"""The harness finds what it is there to find: each law fails for a kernel that breaks just that."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.backends.host import HostBackend
from baracuda_py.plan import new_registry
from baracuda_py.testing.calls import Call, cases, frobenius_error
from baracuda_py.testing.data import POISONS, arrangements, fenced, fenced_bytes, inputs_for, place
from baracuda_py.testing.harness import (
    LAWS,
    agrees_with_reference,
    bound_runs_are_runs,
    does_nothing_when_empty,
    laws_for,
    repeats_its_bits,
    respects_its_workspace,
    rows_do_not_depend_on_their_number,
    writes_every_element_and_nothing_else,
)
from baracuda_py.testing.perturbations import perturbations, refuses_wrong_arguments
from baracuda_py.testing.toys import ToyKernel, toy_op
from baracuda_py.vocab.device import HOST
from baracuda_py.vocab.enums import ElementKind

ON_HOST = [law for law in LAWS if law.__module__ != "baracuda_py.testing.graphs"]


def broken_laws(function, **facts):
    """Names of the laws that a kernel breaks, over all its cases."""
    op = toy_op("doubling", [ToyKernel("toy", function=function, **facts)])
    registry = new_registry()
    registry.register_backend(HostBackend())
    registry.register(op)
    broken = set()
    for case in cases(registry, HOST):
        for law in laws_for(case):
            try:
                law(case)
            except AssertionError:
                broken.add(law)
    return broken


def double(_descriptor, x, y):
    y[...] = 2 * x


def almost(_descriptor, x, y):
    y[...] = 2.001 * x


def forgets_the_last(_descriptor, x, y):
    y[:, :-1] = 2 * x[:, :-1]


def writes_the_gap(_descriptor, x, y):
    y[...] = 2 * x
    if not y.flags.c_contiguous:
        np.lib.stride_tricks.as_strided(y, (len(y), y.shape[1] + 1), y.strides)[:, -1] = 7


def writes_behind(_descriptor, x, y):
    y[...] = 2 * x
    np.lib.stride_tricks.as_strided(y[-1, -1:], (2,), (y.itemsize,))[1] = 7


def spoils_its_input(_descriptor, x, y):
    y[...] = 2 * x
    x[0, 0] += 1


def reads_its_output(_descriptor, x, y):
    y[...] = 2 * x + np.where(np.isnan(y), 0, 1e-6)


def minds_its_neighbours(_descriptor, x, y):
    y[...] = 2 * x * (1 + 1e-7 * len(x))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (double, set()),
        (almost, {agrees_with_reference}),
        (forgets_the_last, {agrees_with_reference, writes_every_element_and_nothing_else, repeats_its_bits,
                            bound_runs_are_runs}),
        (writes_the_gap, {writes_every_element_and_nothing_else}),
        (writes_behind, {writes_every_element_and_nothing_else, bound_runs_are_runs}),
        (spoils_its_input, {writes_every_element_and_nothing_else, bound_runs_are_runs}),
        (reads_its_output, {repeats_its_bits, bound_runs_are_runs}),
        (minds_its_neighbours, {rows_do_not_depend_on_their_number}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_kernel_that_breaks_a_law_is_found_by_it(function, expected):
    assert broken_laws(function) == expected


def test_a_kernel_that_changes_from_run_to_run_is_found():
    numbers = itertools.count()

    def restless(_descriptor, x, y):
        y[...] = 2 * x * (1 + 1e-7 * (next(numbers) % 5))

    found = broken_laws(restless, batch_invariant=False)
    assert repeats_its_bits in found
    assert agrees_with_reference not in found


def test_a_workspace_is_lent_exactly_and_its_laws_apply():
    assert not broken_laws(double, workspace_nbytes=48)
    op = toy_op("doubling", [ToyKernel("toy", workspace_nbytes=48)])
    registry = new_registry()
    registry.register_backend(HostBackend())
    registry.register(op)
    by_emptiness = {case.empty: laws_for(case) for case in cases(registry, HOST)}
    assert respects_its_workspace in by_emptiness[False]
    assert by_emptiness[True] == (does_nothing_when_empty,)


def test_every_law_of_the_host_applies_to_some_case():
    op = toy_op("doubling", [ToyKernel("toy", workspace_nbytes=16)])
    registry = new_registry()
    registry.register_backend(HostBackend())
    registry.register(op)
    assert {law for case in cases(registry, HOST) for law in laws_for(case)} == set(ON_HOST)


def test_a_plan_that_checks_nothing_is_found_by_the_perturbations(monkeypatch):
    from baracuda_py import operands

    op = toy_op("doubling", [ToyKernel("toy")])
    registry = new_registry()
    registry.register_backend(HostBackend())
    registry.register(op)
    case = [case for case in cases(registry, HOST) if not case.empty][-1]
    refuses_wrong_arguments(case)
    rules = {wrong.rule for wrong in perturbations(case, Call.of(case))}
    assert rules == {
        "presence", "element", "shape", "innermost stride", "row stride", "alignment", "device", "overlap",
    }  # fmt: skip
    monkeypatch.setattr(operands.OperandChecker, "_check", lambda *_: None)
    with pytest.raises(AssertionError, match="accepted"):
        refuses_wrong_arguments(case)


@pytest.mark.parametrize("element", [e for e in ElementKind if e.name not in ("S4", "U4", "BIN")], ids=lambda e: e.name)
@pytest.mark.parametrize("arrangement", ["contiguous", "padded", "permuted", "reversed"])
def test_fenced_memory_holds_what_is_written_and_sees_each_byte_beside_it(element, arrangement):
    spec = toy_op("doubling", [ToyKernel("toy")]).specs[1]
    memory = place(spec, (3, 5), element, HOST, arrangement=arrangement, alignment=16)
    rng = np.random.default_rng(1)
    values = rng.integers(0, 2, (3, 5)).astype(memory.values().dtype)
    memory.write(values)
    assert np.array_equal(memory.values(), values)
    assert np.array_equal(np.asarray(memory.view.numpy()), values)
    assert not memory.changed
    memory.view.numpy()[...] = np.logical_not(values)
    assert not memory.fence_broken, "the tensor's own elements are no fence"
    memory.restore()
    for place_in_memory in (0, 255, len(memory.raw) - 1):
        memory.raw[place_in_memory] ^= 1
        assert memory.changed
        assert memory.fence_broken
        memory.restore()
    assert not memory.changed


def test_fenced_memory_is_aligned_and_can_be_shifted_off():
    assert fenced((4,), ElementKind.F32, HOST).view.pointer % 256 == 0
    assert fenced((4,), ElementKind.F32, HOST, shift_bytes=2).view.pointer % 256 == 2
    assert fenced_bytes(0, HOST) == (bp.Workspace.NONE, None)
    workspace, memory = fenced_bytes(37, HOST)
    assert workspace.nbytes == 37
    assert memory.view.pointer == workspace.pointer


def test_poison_is_nan_in_floating_formats_and_two_poisons_differ_in_every_byte():
    for element in (ElementKind.F16, ElementKind.BF16, ElementKind.F32, ElementKind.F64, ElementKind.FP8_E5M2):
        memory = fenced((3,), element, HOST, written=True)
        assert np.isnan(memory.values().astype(np.float64)).all()
    one, two = POISONS
    assert one != two


@pytest.mark.parametrize("op", bp.default_registry().ops(), ids=lambda op: op.name)
def test_inputs_are_distinct_exact_and_the_same_every_time(op):
    for descriptor in op.examples:
        first, second = inputs_for(op, descriptor), inputs_for(op, descriptor)
        for spec in op.specs:
            if spec.role == "out":
                assert spec.name not in first
                continue
            values = first[spec.name]
            if not spec.needed_on(descriptor):
                assert values is None
                continue
            assert values.shape == spec.shape_on(descriptor)
            assert values.tobytes() == second[spec.name].tobytes()
            if values.size and values.dtype.kind not in "iub":
                assert np.isfinite(values.astype(np.float64)).all()
                kinds = len(np.unique(values.astype(np.float64)))
                assert kinds == min(values.size, kinds if values.size > 500 else values.size)
            elif values.size > 1:
                raw = values.tobytes()
                assert {byte & 15 for byte in raw} >= {0, 15}
                assert {byte >> 4 for byte in raw} >= {0, 15}


def test_the_error_is_relative_and_infinite_where_finiteness_differs():
    exact = np.array([3.0, 4.0])
    assert frobenius_error(exact.astype(np.float32), exact) == 0
    assert frobenius_error(np.array([3.0, 4.5]), exact) == pytest.approx(0.1)
    assert frobenius_error(np.array([np.nan, 4.0]), exact) == np.inf
    assert frobenius_error(np.array([np.nan, 4.0]), np.array([np.nan, 4.0])) == 0
    assert frobenius_error(np.array([1.0]), np.array([np.inf])) == np.inf


def test_arrangements_follow_the_spec():
    spec = toy_op("doubling", [ToyKernel("toy")]).specs[0]
    assert arrangements(spec) == ("contiguous", "padded")
