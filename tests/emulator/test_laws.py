"""The laws of `baracuda_py.testing` over every CUDA kernel of the built-in ops, on an emulated GPU.

No run on a GPU: see conftest.py for what it shows.
"""

from __future__ import annotations

import pytest
from attrs import evolve
from cuda_emulator.backend import AMPERE, HOPPER, HOPPER_SLICE, EmulatorBackend, Modules, emulated_registry
from cuda_emulator.problems import composed_kernels, cuda_kernels, cuda_ops, not_served, problems
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_py as bp
from baracuda_py.testing.calls import Case, cases, serves
from baracuda_py.testing.graphs import captures_and_replays, runs_on_a_stream_of_its_own
from baracuda_py.testing.harness import (
    agrees_with_reference,
    bound_runs_are_runs,
    does_nothing_when_empty,
    laws_for,
    repeats_its_bits,
    rows_do_not_depend_on_their_number,
    writes_every_element_and_nothing_else,
)
from baracuda_py.testing.strategies import valid
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import ArchSku, EpilogueKind

KERNELS = (*cuda_kernels(), *composed_kernels())
# An epilogue is a number that every launch is given, and changes each output by itself: what laws say of launches, of
# the order of sums and of rows beside others is said of all epilogues by one without a bias and one with.
SHOWN = EpilogueKind.BIAS_SILU
FURTHER = [kernel for kernel in cuda_kernels() if kernel.sku.epilogue not in (EpilogueKind.IDENTITY, SHOWN)]
OF_ALL_EPILOGUES = {
    repeats_its_bits, rows_do_not_depend_on_their_number, bound_runs_are_runs, runs_on_a_stream_of_its_own,
    captures_and_replays,
}  # fmt: skip


def _check(case: Case, laws, backend: EmulatorBackend) -> None:
    for law in laws:
        try:
            law(case)
        except Exception as error:
            error.add_note(f"{law.__name__}, {case}; {backend.emulated.fault or 'no fault'}")
            raise


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: str(kernel.sku))
def test_every_cuda_kernel_keeps_the_laws_on_the_examples_of_its_op(kernel, registry, backend):
    checked = 0
    for case in cases(registry, registry.device(0), kernel):
        _check(case, [law for law in laws_for(case) if kernel not in FURTHER or law not in OF_ALL_EPILOGUES], backend)
        checked += 1
    assert checked
    assert backend.emulated.launches


@pytest.mark.parametrize("kernel", FURTHER, ids=lambda kernel: str(kernel.sku))
def test_launches_of_an_epilogue_are_those_of_another_but_for_its_number(kernel, registry):
    number = kernel.sku.epilogue.value
    for case in cases(registry, registry.device(0), kernel):
        other = evolve(case.descriptor, epilogue=SHOWN)
        theirs = registry.plan(evolve(kernel.sku, epilogue=SHOWN), other, case.device)
        assert case.plan.workspace_size == theirs.workspace_size
        for mine, launch in zip(case.plan.launches, theirs.launches, strict=True):
            assert evolve(mine, parameters=()) == evolve(launch, parameters=()), str(case)
            pairs = set(zip(mine.parameters, launch.parameters, strict=True))
            assert {(one, two) for one, two in pairs if one != two} <= {(number, SHOWN.value)}, str(case)


@pytest.mark.parametrize("op", cuda_ops(), ids=lambda op: op.name)
def test_every_cuda_kernel_is_right_on_any_valid_descriptor(op, modules: Modules, monkeypatch):
    worlds = []
    for gpu in (AMPERE, HOPPER, HOPPER_SLICE):
        backend = EmulatorBackend(modules, gpu)
        registry = emulated_registry(backend)
        worlds.append((backend, registry, registry.device(0)))

    @settings(max_examples=20)
    @given(valid(op), st.sampled_from(worlds))
    def check(descriptor, world):
        backend, registry, device = world
        monkeypatch.setattr(bp, "default_registry", lambda: registry)
        for kernel in op.kernels:
            if not device.loads(kernel.sku.arch) or not serves(op, kernel, descriptor):
                continue
            case = Case(registry, op, kernel, descriptor, device)
            laws = [agrees_with_reference, writes_every_element_and_nothing_else, repeats_its_bits]
            _check(case, [does_nothing_when_empty] if case.empty else laws, backend)

    check()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: str(kernel.sku))
def test_every_cuda_kernel_is_right_on_further_problems(kernel, registry, backend):
    for case in problems(registry, kernel):
        if case.descriptor not in case.op.examples:
            _check(case, [agrees_with_reference, writes_every_element_and_nothing_else], backend)


def test_every_further_problem_is_served():
    assert not_served() == []


def test_the_emulated_gpu_is_what_selection_takes(registry):
    descriptor = bp.Int4AwqGemmDescriptor(4, 256, 72, split_k_iters=2)
    plan = registry.select(descriptor)
    assert plan.device == Device("cuda", 0, HOPPER.capability, HOPPER.sm_count)
    assert plan.sku.arch is ArchSku.SM80
    tiled = bp.Int4AwqGemmDescriptor(4, 4096, 4096, weight_layout=bp.AwqWeightLayout.TILED)
    assert registry.select(tiled).sku.arch is ArchSku.SM90A
