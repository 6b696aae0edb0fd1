"""What the softmax's CUDA kernels promise beyond the generic laws, on an emulated GPU."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

import baracuda_py as bp
from baracuda_py.testing.calls import Call, Case, frobenius_error, reference_outputs
from baracuda_py.testing.data import fenced, inputs_for
from baracuda_py.vocab.tolerance import relative_tolerance

KINDS = (bp.SoftmaxKind.SOFTMAX, bp.SoftmaxKind.LOG_SOFTMAX)
ELEMENTS = (bp.ElementKind.F32, bp.ElementKind.F16, bp.ElementKind.BF16, bp.ElementKind.F64)
# One shape for each kernel: part of a warp's registers, all of them, a block a slice, several threads a slice.
SHAPES = (((6, 100), -1), ((6, 500), -1), ((6, 2500), -1), ((2, 130, 6), 1))


def _case(registry, descriptor) -> Case:
    op = registry.op("softmax")
    kernel = next(
        kernel
        for kernel in op.kernels
        if (kernel.sku.kind, kernel.sku.element) == (descriptor.kind, descriptor.element)
        and kernel.code.executor == "cuda"
    )
    return Case(registry, op, kernel, descriptor, registry.device(0))


def _agrees(case: Case, found, x) -> None:
    exact = reference_outputs(case.op, case.descriptor, {"input": x})["output"]
    limit = relative_tolerance(case.guarantee, case.descriptor.element)
    assert frobenius_error(found, exact) <= limit


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_a_slice_alone_has_the_bits_that_it_has_among_others(registry, shape, axis, kind, element):
    case = _case(registry, bp.SoftmaxDescriptor(shape, axis, kind, element))
    x = inputs_for(case.op, case.descriptor)["input"]
    whole = Call.of(case, {"input": x}).run()["output"]
    for row in range(shape[0]):
        alone = evolve(case, descriptor=bp.SoftmaxDescriptor((1, *shape[1:]), axis, kind, element))
        found = Call.of(alone, {"input": x[row : row + 1]}).run()["output"]
        assert found.tobytes() == whole[row : row + 1].tobytes()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_an_input_that_repeats_its_memory_is_read_right(registry, shape, axis, kind):
    case = _case(registry, bp.SoftmaxDescriptor(shape, axis, kind))
    call = Call.of(case)
    for strides in (
        (0, *np.cumprod((1, *shape[:1:-1]))[::-1].tolist()),  # one slice, broadcast over the first axis
        (1,) + (0,) * (len(shape) - 1),  # every element of a slice the same
    ):
        memory = fenced(shape, case.descriptor.element, case.device, strides=strides)
        values = np.empty(shape, np.float32)
        values[...] = np.random.default_rng(5).standard_normal(
            [n if s else 1 for n, s in zip(shape, strides, strict=True)]
        )
        memory.write(values)
        call.plan.run(0, bp.Workspace.NONE, evolve(call.args, input=memory.view))
        _agrees(case, call.outputs()["output"], values)
        assert not memory.changed


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_infinities_and_nan_give_what_the_reference_gives(registry, shape, axis, kind, element):
    case = _case(registry, bp.SoftmaxDescriptor(shape, axis, kind, element))
    x = inputs_for(case.op, case.descriptor)["input"]
    slices, length = np.moveaxis(x, axis, -1), shape[axis]
    lines = [slices[index] for index in np.ndindex(slices.shape[:-1])]
    lines[0][...] = -np.inf
    lines[1][length // 2] = np.inf
    lines[2][length - 1] = np.nan
    lines[3][: length - 1] = -np.inf
    lines[4][...] = 60000
    _agrees(case, Call.of(case, {"input": x}).run()["output"], x)
