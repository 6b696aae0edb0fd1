"""The dense GEMM on a GPU, through the installed cuBLASLt, against the float64 oracle."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.errors import NoKernel
from baracuda_py.ops.gemm.dense_gemm import OP, DenseGemmArgs, DenseGemmDescriptor, GeluForm
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import BackendKind, ElementKind, EpilogueKind, LayoutSku
from baracuda_py.vocab.tensors import TensorMut, TensorRef
from baracuda_py.vocab.tolerance import relative_tolerance

pytestmark = pytest.mark.gpu

ELEMENTS = (ElementKind.F16, ElementKind.BF16, ElementKind.F32, ElementKind.F64)
EPILOGUES = (EpilogueKind.IDENTITY, EpilogueKind.BIAS, EpilogueKind.BIAS_RELU, EpilogueKind.BIAS_GELU)
FUSABLE = [(element, epilogue) for element, epilogue in product(ELEMENTS, EPILOGUES)
           if element is not ElementKind.F64 or epilogue is EpilogueKind.IDENTITY]  # fmt: skip


@pytest.fixture(autouse=True)
def _library() -> None:
    device = bp.default_registry().device(0)
    kernel = next(kernel for kernel in OP.kernels if kernel.sku.backend is BackendKind.CUBLAS)
    missing = bp.default_registry().backend("cublaslt").missing(kernel.code, device)
    if missing is not None:
        pytest.skip(str(missing))


class OnDevice:
    """A copy of an array in device memory whose rows, and matrices, lie `gap` apart, and start `offset` in."""

    def __init__(self, array: Any, element: ElementKind, *, gap: int = 0, offset: int = 0) -> None:
        *batch, rows, columns = array.shape if array.ndim > 1 else (1, *array.shape)
        padded = (*batch, rows + gap, columns + gap) if gap else (*batch, rows, columns)
        memory = np.full(int(np.prod(padded)) + offset, np.nan, array.dtype)
        self._inside = memory[offset:].reshape(padded)[..., :rows, :columns]
        self._inside[...] = array
        self._memory = bp.to_device(memory, 0)
        self._shape, self._offset, self._padded = array.shape, offset, padded
        size = array.dtype.itemsize
        self.args = (
            self._memory.pointer + offset * size,
            array.shape,
            element,
        )
        self.strides = tuple(stride // size for stride in self._inside.strides)[-array.ndim :]

    def view(self, kind: type[TensorRef] = TensorRef) -> Any:
        """The array inside, as an argument."""
        return kind(*self.args, strides=self.strides, device=0, owner=self._memory)

    def values(self) -> tuple[Any, Any]:
        """The array inside, and all that lies around it."""
        memory = self._memory.numpy().astype(np.float64)
        padded = memory[self._offset :].reshape(self._padded)
        rows, columns = self._inside.shape[-2:]
        inside = padded[..., :rows, :columns].copy()
        padded[..., :rows, :columns] = np.nan
        return inside.reshape(self._shape), memory


def check(desc: DenseGemmDescriptor, *, gap: int = 0, offset: int = 0, poison: bool = False) -> Any:
    """Run, compare with the oracle and the surroundings with what they held; the bits of the output."""
    random = np.random.default_rng(7)
    dtype = numpy_dtype(desc.element)
    shapes = {"a": desc.a_shape, "b": desc.b_shape, "output": desc.output_shape}
    shapes |= {"bias": (desc.n,)} if desc.has_bias else {}
    given = {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    if poison:
        given["output"][...] = np.nan
    placed = {
        name: OnDevice(array, desc.element, gap=0 if name == "bias" else gap, offset=offset)
        for name, array in given.items()
    }
    plan = bp.select(desc, 0)
    assert plan.sku.backend is BackendKind.CUBLAS
    views = {name: one.view(TensorMut if name == "output" else TensorRef) for name, one in placed.items()}
    plan.run(0, bp.allocate_workspace(plan), DenseGemmArgs(**views))
    result, around = placed["output"].values()
    exact = OP.reference(desc, **given)
    error = np.linalg.norm(result - exact) / np.linalg.norm(exact)
    assert error <= relative_tolerance(plan.precision_guarantee, desc.element)
    assert np.isnan(around).all(), "memory beside the output was written"
    return result


@pytest.mark.parametrize(("element", "epilogue"), FUSABLE)
@pytest.mark.parametrize("layout", LayoutSku)
@pytest.mark.parametrize("batch", [None, 3])
def test_every_kernel_computes_the_formula(
    element: ElementKind, epilogue: EpilogueKind, layout: LayoutSku, batch: int | None
) -> None:
    desc = DenseGemmDescriptor(
        72, 136, 264, batch, layout, element, epilogue, alpha=0.5, beta=-1.5, gelu=GeluForm.TANH
    )
    check(desc)
    check(desc, gap=8)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("layout", LayoutSku)
@pytest.mark.parametrize("extents", [(1, 1, 1), (1, 129, 33), (5, 1, 7), (17, 9, 1), (67, 131, 259)])
@pytest.mark.parametrize("offset", [0, 1])
def test_any_shape_and_any_alignment_is_served(
    element: ElementKind, layout: LayoutSku, extents: tuple[int, int, int], offset: int
) -> None:
    check(DenseGemmDescriptor(*extents, layout=layout, element=element), gap=3, offset=offset)
    check(DenseGemmDescriptor(*extents, 2, layout, element), offset=offset)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize("extents", [(1, 4096, 4096), (1000, 1024, 2048), (16, 64, 16384)])
def test_sizes_of_layers_are_within_the_guarantee(element: ElementKind, extents: tuple[int, int, int]) -> None:
    check(DenseGemmDescriptor(*extents, layout=LayoutSku.RCR, element=element))


@pytest.mark.parametrize(
    "extents", [(1, 4096, 4096), (7, 896, 896), (16, 64, 16384), (128, 512, 1024), (1000, 1024, 512)]
)
@pytest.mark.parametrize("layout", [LayoutSku.RCR, LayoutSku.RRR])
def test_bf16_operands_keep_their_range(layout: LayoutSku, extents: tuple[int, int, int]) -> None:
    desc = DenseGemmDescriptor(*extents, layout=layout, element=ElementKind.BF16)
    random = np.random.default_rng(11)
    # Beyond f16's range, above and below, and by as much in products, which are near 1.
    scale = 2.0 ** random.integers(20, 60, desc.k)
    a, b = random.standard_normal((desc.m, desc.k)) * scale, random.standard_normal((desc.n, desc.k)) / scale
    given = {"a": a, "b": b if layout is LayoutSku.RCR else b.T}
    given = {name: np.ascontiguousarray(array).astype(numpy_dtype(desc.element)) for name, array in given.items()}
    plan = bp.select(desc, 0)
    assert plan.sku.backend is BackendKind.CUBLAS
    output = bp.to_device(np.full(desc.output_shape, np.nan, numpy_dtype(desc.element)), 0)
    args = DenseGemmArgs(output=output, **{name: bp.to_device(array, 0) for name, array in given.items()})
    plan.run(0, bp.allocate_workspace(plan), args)
    exact = OP.reference(desc, **given)
    error = np.linalg.norm(output.numpy().astype(np.float64) - exact) / np.linalg.norm(exact)
    assert error <= relative_tolerance(plan.precision_guarantee, desc.element)


def test_f32_stays_f32_where_the_environment_asks_for_tf32() -> None:
    # The libraries read the variable once a process.
    tests = [__file__, "-k", "sizes_of_layers and F32"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env=os.environ | {"NVIDIA_TF32_OVERRIDE": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "3 passed" in done.stdout


@pytest.mark.parametrize("element", ELEMENTS)
def test_with_beta_0_the_previous_output_is_not_read(element: ElementKind) -> None:
    check(DenseGemmDescriptor(33, 64, 128, element=element), poison=True)


@pytest.mark.parametrize("element", ELEMENTS)
def test_fresh_runs_repeat_their_bits(element: ElementKind) -> None:
    desc = DenseGemmDescriptor(16, 64, 8192, element=element)  # few tiles and a long sum invite split-K
    first = check(desc)
    for _ in range(3):
        np.testing.assert_array_equal(check(desc), first)


def test_the_untold_gelu_of_16_bit_elements_is_near_both_forms() -> None:
    random = np.random.default_rng(3)
    desc = DenseGemmDescriptor(64, 64, 64, epilogue=EpilogueKind.BIAS_GELU)
    given = {
        name: random.standard_normal(shape).astype(np.float16)
        for name, shape in (("a", desc.a_shape), ("b", desc.b_shape), ("bias", (desc.n,)))
    }
    plan = bp.select(desc, 0)
    output = bp.to_device(np.zeros(desc.output_shape, np.float16), 0)
    args = DenseGemmArgs(output=output, **{name: bp.to_device(array, 0) for name, array in given.items()})
    plan.run(0, bp.allocate_workspace(plan), args)
    result = output.numpy().astype(np.float64)
    tanh, exact = (OP.reference(desc.with_gelu(form), **given) for form in (GeluForm.TANH, GeluForm.EXACT))
    limit = relative_tolerance(plan.precision_guarantee, desc.element)
    assert np.linalg.norm(result - tanh) <= limit * np.linalg.norm(tanh)
    assert np.abs(result - exact).max() <= 5e-4 + 2 * limit * np.abs(exact).max()


def test_what_the_library_cannot_fuse_is_refused_with_reasons() -> None:
    for desc in (
        DenseGemmDescriptor(8, 8, 8, epilogue=EpilogueKind.BIAS_SILU),
        DenseGemmDescriptor(8, 8, 8, element=ElementKind.F64, epilogue=EpilogueKind.BIAS),
        DenseGemmDescriptor(8, 8, 8, element=ElementKind.F32, epilogue=EpilogueKind.BIAS_GELU),
    ):
        with pytest.raises(NoKernel) as caught:
            bp.select(desc, 0)
        assert len(caught.value.refusals) == len(OP.kernels)
