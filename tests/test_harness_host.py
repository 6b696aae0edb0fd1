"""The laws of `baracuda_py.testing` over every host kernel of the default registry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

import baracuda_py as bp
from baracuda_py.testing.calls import Case, cases, serves
from baracuda_py.testing.harness import (
    agrees_with_reference,
    does_nothing_when_empty,
    laws_for,
    repeats_its_bits,
    writes_every_element_and_nothing_else,
)
from baracuda_py.testing.strategies import valid
from baracuda_py.vocab.device import HOST
from baracuda_py.vocab.enums import ArchSku
from baracuda_py.vocab.tolerance import relative_tolerance

REGISTRY = bp.default_registry()
SKUS = REGISTRY.skus(arch=ArchSku.HOST)


@pytest.mark.parametrize("sku", SKUS, ids=str)
def test_every_host_kernel_keeps_the_laws_on_the_examples_of_its_op(sku):
    kernel = REGISTRY.kernel(sku)
    missing = REGISTRY.backend(kernel.code.executor).missing(kernel.code, HOST)
    if missing is not None:
        pytest.skip(str(missing))
    checked = 0
    for case in cases(REGISTRY, HOST, kernel):
        for law in laws_for(case):
            try:
                law(case)
            except Exception as error:
                error.add_note(f"{law.__name__}, {case}")
                raise
            checked += 1
    assert checked


@pytest.mark.parametrize("op", REGISTRY.ops(), ids=lambda op: op.name)
def test_every_host_kernel_is_right_on_any_valid_descriptor(op):
    kernels = [kernel for kernel in op.kernels if kernel.sku.arch is ArchSku.HOST]

    @settings(max_examples=60)
    @given(valid(op, largest=40))
    def check(descriptor):
        for kernel in kernels:
            missing = REGISTRY.backend(kernel.code.executor).missing(kernel.code, HOST)
            if missing is None and serves(op, kernel, descriptor):
                case = Case(REGISTRY, op, kernel, descriptor, HOST)
                if case.empty:
                    does_nothing_when_empty(case)
                    continue
                agrees_with_reference(case)
                writes_every_element_and_nothing_else(case)
                if case.guarantee.deterministic:
                    repeats_its_bits(case)

    check()


@pytest.mark.parametrize("op", REGISTRY.ops(), ids=lambda op: op.name)
def test_selection_agrees_with_the_rules_on_any_valid_descriptor(op):
    @settings(max_examples=60)
    @given(valid(op))
    def check(descriptor):
        explanation = REGISTRY.explain(descriptor, HOST)
        assert len(explanation.candidates) == len(op.kernels)
        for candidate in explanation.candidates:
            if candidate.refusal is None:
                assert serves(op, candidate.kernel, descriptor)
        costs = [candidate.cost_us for candidate in explanation.candidates if candidate.refusal is None]
        assert costs == sorted(costs)
        if explanation.chosen is None:
            with pytest.raises(bp.errors.NoKernel) as refused:
                REGISTRY.select(descriptor, HOST)
            assert {r.sku for r in refused.value.refusals} == {kernel.sku for kernel in op.kernels}
        else:
            assert REGISTRY.select(descriptor, HOST).kernel is explanation.chosen

    check()


@pytest.mark.parametrize(
    ("shape", "axis"), [((200_000, 2), 0), ((32_000, 32), 0), ((2, 200_000), 1), ((3, 50_000, 2), 1)]
)  # fmt: skip
def test_a_long_softmax_along_any_axis_sums_as_exactly(shape, axis):
    desc = bp.SoftmaxDescriptor(shape, axis)
    plan = bp.select(desc, "host")
    logits = np.full(shape, np.log(0.1), np.float32)
    np.moveaxis(logits, axis, 0)[0] = 0
    output = np.full(shape, np.nan, np.float32)
    plan.run(None, bp.Workspace.NONE, bp.SoftmaxArgs(logits, output))
    exact = np.exp(logits.astype(np.float64))
    exact /= exact.sum(axis=axis, keepdims=True)
    found = np.linalg.norm(output - exact) / np.linalg.norm(exact)
    assert found <= relative_tolerance(plan.precision_guarantee, desc.element)
