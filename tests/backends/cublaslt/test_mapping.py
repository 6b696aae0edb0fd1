"""Row-major problems arrive at the column-major library as what they are."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from baracuda_py.ops.gemm.dense_gemm import OP, DenseGemmArgs, DenseGemmDescriptor, GeluForm
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import BackendKind, ElementKind, EpilogueKind, LayoutSku
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorMut, TensorRef
from baracuda_py.vocab.tolerance import relative_tolerance

LIBRARY_SKUS = tuple(kernel.sku for kernel in OP.kernels if kernel.sku.backend is BackendKind.CUBLAS)
GAP = 3  # elements between rows, and rows between matrices, of a strided tensor


def values(shape: tuple[int, ...], element: ElementKind, seed: int) -> Any:
    """Small multiples of 1/8, which every element kind holds exactly and which no transposition leaves alone."""
    return (np.random.default_rng(seed).integers(-16, 17, shape) / 8).astype(numpy_dtype(element))


def spread(array: Any, *, gap: int) -> Any:
    """The same matrices in memory whose rows and matrices lie apart, over NaN."""
    *batch, rows, columns = array.shape
    memory = np.full((*batch, rows + gap, columns + gap), np.nan, array.dtype)
    view = memory[..., :rows, :columns]
    view[...] = array
    return view


def on_device(array: Any, kind: type[TensorRef] = TensorRef) -> Any:
    """A view of a NumPy array that does not say that it lies in host memory."""
    if array is None:
        return None
    seen = TensorRef.of(array)
    return kind(seen.pointer, seen.shape, seen.element, strides=seen.strides, owner=array)


def workspace_of(plan: Any) -> tuple[Workspace, Any]:
    memory = np.empty(plan.workspace_size + 16, np.uint8)
    address = -(-memory.ctypes.data // 16) * 16
    return Workspace.borrowed(address, plan.workspace_size), memory


def check(setting: Any, desc: DenseGemmDescriptor, *, gap: int = 0) -> None:
    """Run on the double and compare with the oracle, and the output's gaps with what they held."""
    a, b, held = (
        values(shape, desc.element, seed)
        for seed, shape in enumerate((desc.a_shape, desc.b_shape, desc.output_shape))
    )
    bias = values((desc.n,), desc.element, 3) if desc.has_bias else None
    exact = OP.reference(desc, a=a, b=b, output=held, bias=bias)
    output = spread(held, gap=gap)
    memory = output.base
    plan = setting.registry.select(desc, setting.device)
    assert plan.sku.backend is BackendKind.CUBLAS
    workspace, _kept = workspace_of(plan)
    args = DenseGemmArgs(
        on_device(spread(a, gap=gap)), on_device(spread(b, gap=gap)), on_device(output, TensorMut), on_device(bias)
    )
    plan.run(0, workspace, args)
    assert not setting.context.is_current
    error = np.linalg.norm(output.astype(np.float64) - exact) / np.linalg.norm(exact)
    assert error <= relative_tolerance(plan.precision_guarantee, desc.element)
    output[...] = np.nan
    assert np.isnan(memory.astype(np.float64)).all()


@pytest.mark.parametrize("sku", LIBRARY_SKUS, ids=str)
@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("gap", [0, GAP])
def test_the_library_is_asked_for_the_product_that_the_descriptor_means(
    setting: Any, sku: Any, batch: int | None, gap: int
) -> None:
    desc = DenseGemmDescriptor(
        5, 7, 4, batch, sku.layout, sku.element, sku.epilogue, alpha=-0.5, beta=2.0, gelu=GeluForm.TANH
    )
    check(setting, desc, gap=gap)


@pytest.mark.parametrize("extents", [(1, 7, 4), (5, 1, 4), (5, 7, 1), (1, 1, 1)])
@pytest.mark.parametrize("layout", LayoutSku)
@pytest.mark.parametrize("batch", [None, 2])
def test_extents_of_one_are_served_whatever_their_stride(
    setting: Any, extents: tuple[int, int, int], layout: LayoutSku, batch: int | None
) -> None:
    check(setting, DenseGemmDescriptor(*extents, batch, layout, ElementKind.F32), gap=GAP)


def call(setting: Any, desc: DenseGemmDescriptor, **arrays: Any) -> None:
    plan = setting.registry.select(desc, setting.device)
    workspace, _kept = workspace_of(plan)
    views = {name: on_device(array, TensorMut if name == "output" else TensorRef) for name, array in arrays.items()}
    plan.run(0, workspace, DenseGemmArgs(**views))


def test_with_beta_0_the_previous_output_is_not_read(setting: Any) -> None:
    desc = DenseGemmDescriptor(3, 4, 5, element=ElementKind.F32)
    a, b = values(desc.a_shape, desc.element, 0), values(desc.b_shape, desc.element, 1)
    output = np.full(desc.output_shape, np.nan, np.float32)
    call(setting, desc, a=a, b=b, output=output)
    np.testing.assert_array_equal(output, a @ b)


def test_each_run_adds_its_own_bias(setting: Any) -> None:
    desc = DenseGemmDescriptor(3, 4, 5, element=ElementKind.F32, epilogue=EpilogueKind.BIAS)
    a, b = values(desc.a_shape, desc.element, 0), values(desc.b_shape, desc.element, 1)
    output = np.empty(desc.output_shape, np.float32)
    for seed in (2, 3):
        bias = values((desc.n,), desc.element, seed)
        call(setting, desc, a=a, b=b, output=output, bias=bias)
        np.testing.assert_array_equal(output, a @ b + bias)


# The operands as the library names them: it is asked for the transposed product.
THEIR_NAMES = {"a": ("B",), "b": ("A",), "output": ("C", "D")}


@pytest.mark.parametrize("name", THEIR_NAMES)
def test_an_algorithm_is_promised_no_more_alignment_than_each_operand_has(setting: Any, name: str) -> None:
    desc = DenseGemmDescriptor(3, 4, 5, element=ElementKind.F16)
    shapes = {"a": desc.a_shape, "b": desc.b_shape, "output": desc.output_shape}
    promised = setting.api.MatmulPreferenceAttribute
    for offset, alignment in ((1, 2), (2, 4), (4, 8)):
        arrays = {}
        for each, shape in shapes.items():
            start = offset if each == name else 0
            memory = np.zeros(64, np.float16)
            aligned = -memory.ctypes.data % 16 // 2
            arrays[each] = memory[aligned + start :][: shape[0] * shape[1]].reshape(shape)
        call(setting, desc, **arrays)
        seen = setting.api.preferences[-1]
        for theirs in "ABCD":
            expected = alignment if theirs in THEIR_NAMES[name] else 16
            assert seen[promised[f"MIN_ALIGNMENT_{theirs}_BYTES"]] == expected


def test_equal_strides_and_alignments_share_an_algorithm(setting: Any) -> None:
    desc = DenseGemmDescriptor(4, 8, 8, element=ElementKind.F32)
    output = np.empty(desc.output_shape, np.float32)
    packed, apart = (
        [spread(values(shape, desc.element, 0), gap=gap) for shape in (desc.a_shape, desc.b_shape)] for gap in (0, 4)
    )
    counts = []
    for a, b in (packed, apart, packed, apart):
        call(setting, desc, a=a, b=b, output=output)
        np.testing.assert_array_equal(output, a @ b)
        counts.append(len(setting.api.preferences))
    assert counts[0] < counts[1], "other strides need another algorithm"
    assert counts[1:] == [counts[1]] * 3


@pytest.mark.parametrize("stride", [0, 1, 1000])
def test_the_stride_of_a_single_row_means_nothing(setting: Any, stride: int) -> None:
    desc = DenseGemmDescriptor(1, 4, 5, 1, element=ElementKind.F32)
    a, b = values(desc.a_shape, desc.element, 0), values(desc.b_shape, desc.element, 1)
    output = np.empty(desc.output_shape, np.float32)
    plan = setting.registry.select(desc, setting.device)
    workspace, _kept = workspace_of(plan)
    first = TensorRef(a.ctypes.data, a.shape, desc.element, strides=(stride, stride, 1), owner=a)
    last = TensorMut(output.ctypes.data, output.shape, desc.element, strides=(stride, stride, 1), owner=output)
    plan.run(0, workspace, DenseGemmArgs(first, on_device(b), last))
    np.testing.assert_array_equal(output, a @ b)


@pytest.mark.parametrize(("element", "layout"), list(product((ElementKind.F32, ElementKind.F64), LayoutSku)))
def test_wide_elements_are_never_multiplied_in_a_narrower_type(
    setting: Any, element: ElementKind, layout: LayoutSku
) -> None:
    check(setting, DenseGemmDescriptor(3, 4, 5, layout=layout, element=element))
    promised = setting.api.MatmulPreferenceAttribute
    bits = {ElementKind.F32: (0x08, 0x02), ElementKind.F64: (0x10, 0x04)}[element]  # cublasLt.h: INPUT, ACCUMULATOR
    for seen in setting.api.preferences:
        mask = seen[promised.IMPL_MASK]
        assert ((mask >> 16) & 0xFF, (mask >> 8) & 0xFF) == bits
        assert mask & 0xFF == 0xFF  # any instruction
        assert seen[promised.REDUCTION_SCHEME_MASK] == setting.api.ReductionScheme.COMPUTE_TYPE
