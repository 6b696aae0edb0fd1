"""Kernels touch no byte outside their tensors, and their bits depend on no order that a GPU leaves open."""

from __future__ import annotations

from typing import Literal

import pytest
from cuda_emulator.backend import EmulatorBackend
from cuda_emulator.driver import LOOPING
from cuda_emulator.library import Schedule
from cuda_emulator.memory import GuardedTensor
from cuda_emulator.problems import cuda_kernels, problems

from baracuda_py.testing.calls import Call, Case
from baracuda_py.testing.data import inputs_for, same_bits
from baracuda_py.vocab.enums import EpilogueKind
from baracuda_py.vocab.preference import Workspace

# A run against inaccessible memory on one side, each in an order of its own: both must leave the bits as they are.
EDGES: dict[Literal["end", "begin"], Schedule] = {"end": Schedule(1), "begin": Schedule(2)}
# An entry point takes its epilogue as an argument: one without a bias and one with reach all the memory that others do.
KERNELS = [one for one in cuda_kernels() if one.sku.epilogue in (EpilogueKind.IDENTITY, EpilogueKind.BIAS_SILU)]


def _run_guarded(case: Case, backend: EmulatorBackend, edge: Literal["end", "begin"]) -> dict:
    """The outputs of a run whose tensors and workspace lie against inaccessible pages."""
    inputs = inputs_for(case.op, case.descriptor)
    call = Call.of(case, inputs)
    made: dict[str, GuardedTensor | None] = {}
    for name, memory in call.tensors.items():
        if memory is None:
            made[name] = None
            continue
        nbytes = memory.values().dtype.itemsize
        alignment = max(case.kernel.alignment.get(name, 1), nbytes)
        made[name] = GuardedTensor(
            backend.emulated.memory, memory.values(), memory.view.element, 0, alignment=alignment, edge=edge
        )
    workspace = Workspace.NONE
    if call.workspace_memory is not None:
        memory = call.workspace_memory
        held = GuardedTensor(
            backend.emulated.memory, memory.values(), memory.view.element, 0, alignment=16, edge=edge
        )  # fmt: skip
        workspace = Workspace.borrowed(held)
    call.plan.run(0, workspace, case.op.args(**made))
    return {name: tensor.numpy() for name, tensor in made.items() if name in call.written and tensor is not None}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: str(kernel.sku))
def test_no_kernel_touches_what_lies_beside_its_tensors_and_no_order_changes_a_bit(kernel, registry, backend):
    for case in problems(registry, kernel):
        backend.emulated.schedule = Schedule()
        expected = Call.of(case).run()
        for edge, schedule in EDGES.items():
            backend.emulated.schedule = schedule
            try:
                found = _run_guarded(case, backend, edge)
            except Exception as error:
                error.add_note(f"{case}, {edge}, {schedule}: {backend.emulated.fault}")
                raise
            if not same_bits(expected, found):
                ordered = same_bits(expected, Call.of(case).run())
                cause = f"what lies beside its tensors, at their {edge}," if ordered else schedule
                pytest.fail(f"{case}: {cause} changes the bits")


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: str(kernel.sku))
def test_one_block_does_what_many_do_where_blocks_loop(kernel, registry, backend):
    for case in problems(registry, kernel):
        if not any(launch.entry.startswith(LOOPING) for launch in case.plan.launches):
            continue
        backend.emulated.looping_grid = None
        expected = Call.of(case).run()
        backend.emulated.looping_grid = 1
        assert same_bits(expected, Call.of(case).run()), str(case)
