"""Laws of the dense GEMM: its descriptor, its host kernel, its oracle, and what is selected for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.backends.cublaslt import CublasLtBackend
from baracuda_py.backends.cuda import CudaBackend
from baracuda_py.backends.host import HostBackend
from baracuda_py.errors import InvalidProblem, NoKernel, Unsupported
from baracuda_py.ops.gemm import dense_gemm_host
from baracuda_py.ops.gemm.dense_gemm import OP, DenseGemmArgs, DenseGemmDescriptor, GeluForm
from baracuda_py.plan import new_registry
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import BackendKind, ElementKind, EpilogueKind, LayoutSku
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tolerance import relative_tolerance

ELEMENTS = (ElementKind.F16, ElementKind.BF16, ElementKind.F32, ElementKind.F64)


def tensors(desc: DenseGemmDescriptor, *, seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    """Normal values for every tensor of a call; the output holds some too."""
    random = np.random.default_rng(seed)
    shapes = {"a": desc.a_shape, "b": desc.b_shape, "output": desc.output_shape}
    shapes |= {"bias": (desc.n,)} if desc.has_bias else {}
    dtype = numpy_dtype(desc.element)
    return {name: (random.standard_normal(shape) * scale).astype(dtype) for name, shape in shapes.items()}


def run_on_host(desc: DenseGemmDescriptor, given: dict[str, Any]) -> Any:
    """The output of the host kernel, in a copy."""
    output = given["output"].copy()
    plan = bp.select(desc, "host")
    plan.run(None, Workspace.NONE, DenseGemmArgs(**(given | {"output": output})))
    return output


def error(result: Any, exact: Any) -> float:
    return float(np.linalg.norm(result.astype(np.float64) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("layout", LayoutSku)
@pytest.mark.parametrize("extents", [(3, 1030, 1040), (1030, 3, 1040), (1040, 1030, 3)])
def test_blocks_add_up_to_the_whole(element: ElementKind, layout: LayoutSku, extents: tuple[int, int, int]) -> None:
    desc = DenseGemmDescriptor(*extents, layout=layout, element=element, alpha=0.5, beta=-2.0)
    given = tensors(desc)
    exact = OP.reference(desc, **given)
    plan = bp.select(desc, "host")
    assert error(run_on_host(desc, given), exact) <= relative_tolerance(plan.precision_guarantee, element)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("epilogue", EpilogueKind)
@pytest.mark.parametrize("gelu", [None, *GeluForm])
def test_host_epilogues_are_those_of_the_oracle(
    element: ElementKind, epilogue: EpilogueKind, gelu: GeluForm | None
) -> None:
    desc = DenseGemmDescriptor(9, 33, 17, 2, LayoutSku.RCR, element, epilogue, gelu=gelu)
    given = tensors(desc)
    plan = bp.select(desc, "host")
    limit = relative_tolerance(plan.precision_guarantee, element)
    assert error(run_on_host(desc, given), OP.reference(desc, **given)) <= limit


def test_an_empty_product_leaves_the_rest_of_the_formula() -> None:
    desc = DenseGemmDescriptor(3, 4, 0, element=ElementKind.F64, epilogue=EpilogueKind.BIAS_RELU, beta=0.5)
    given = tensors(desc)
    expected = np.maximum(0.5 * given["output"] + given["bias"], 0)
    np.testing.assert_array_equal(run_on_host(desc, given), expected)
    np.testing.assert_array_equal(OP.reference(desc, **given), expected)


@pytest.mark.parametrize("k", [0, 5])
def test_with_beta_0_the_previous_output_is_not_read(k: int) -> None:
    desc = DenseGemmDescriptor(3, 4, k, element=ElementKind.F32)
    given = tensors(desc)
    given["output"][...] = np.nan
    assert np.isfinite(run_on_host(desc, given)).all()
    assert np.isfinite(OP.reference(desc, **given)).all()


@pytest.mark.parametrize("layout", LayoutSku)
def test_a_batch_is_its_matrices(layout: LayoutSku) -> None:
    desc = DenseGemmDescriptor(6, 5, 7, 3, layout, ElementKind.F32, EpilogueKind.BIAS, alpha=2.0, beta=1.0)
    given = tensors(desc)
    whole = run_on_host(desc, given)
    for index in range(3):
        one = {name: array if name == "bias" else array[index] for name, array in given.items()}
        np.testing.assert_array_equal(whole[index], run_on_host(desc.with_batch(None), one))


@pytest.mark.parametrize("layout", LayoutSku)
def test_a_column_operand_is_passed_as_its_transpose(layout: LayoutSku) -> None:
    random = np.random.default_rng(1)
    a, b = (random.integers(-9, 10, shape).astype(np.float64) for shape in ((4, 6), (6, 5)))
    desc = DenseGemmDescriptor(4, 5, 6, layout=layout, element=ElementKind.F64)
    names = layout.name
    output = np.empty((4, 5))
    given = {
        "a": a if names[0] == "R" else np.ascontiguousarray(a.T),
        "b": b if names[1] == "R" else np.ascontiguousarray(b.T),
        "output": output,
    }
    np.testing.assert_array_equal(run_on_host(desc, given), a @ b)


def test_the_forms_of_gelu_differ_by_less_than_their_documentation_says() -> None:
    v = np.linspace(-8, 8, 16_001)[None]
    desc = DenseGemmDescriptor(1, v.size, 0, element=ElementKind.F64, epilogue=EpilogueKind.BIAS_GELU)
    exact, tanh = (
        OP.reference(desc.with_gelu(form), a=np.empty((1, 0)), b=np.empty((0, v.size)), bias=v[0]) for form in GeluForm
    )
    difference = np.abs(exact - tanh)
    assert 4e-4 < difference.max() < 5e-4
    assert abs(v[0, difference.argmax()]) == pytest.approx(2.7, abs=0.05)
    erf = np.array([math.erf(x / math.sqrt(2)) for x in v[0]])
    np.testing.assert_allclose(exact[0], v[0] * (1 + erf) / 2, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("field", ["alpha", "beta"])
@pytest.mark.parametrize("factor", [1e39, -1e39, 1e-46])
@pytest.mark.parametrize("element", [ElementKind.F16, ElementKind.BF16, ElementKind.F32])
def test_factors_that_f32_cannot_hold_are_refused_where_it_is_computed_in(
    field: str, factor: float, element: ElementKind
) -> None:
    desc = DenseGemmDescriptor(2, 3, 4, element=element, **{field: factor})
    with pytest.raises(Unsupported) as refused:
        bp.select(desc, "host")
    assert refused.value.rule == f"{field} in f32"
    assert bp.select(desc.with_element(ElementKind.F64), "host")


@pytest.mark.parametrize("field", ["alpha", "beta"])
def test_factors_are_finite_numbers(field: str) -> None:
    assert getattr(DenseGemmDescriptor(1, 1, 1, **{field: np.float32(0.5)}), field) == 0.5
    assert type(getattr(DenseGemmDescriptor(1, 1, 1, **{field: 2}), field)) is float
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="finite"):
            DenseGemmDescriptor(1, 1, 1, **{field: value})
    for value in ("1", None, 1j):
        with pytest.raises(TypeError, match="real number"):
            DenseGemmDescriptor(1, 1, 1, **{field: value})


@pytest.mark.parametrize(
    ("change", "kind", "rule"),
    [
        ({"m": -1}, InvalidProblem, "m >= 0"),
        ({"n": -1}, InvalidProblem, "n >= 0"),
        ({"k": -1}, InvalidProblem, "k >= 0"),
        ({"batch": -1}, InvalidProblem, "batch >= 0"),
        ({"element": ElementKind.S8}, Unsupported, "element in {F16, BF16, F32, F64}"),
    ],
)
def test_a_broken_rule_is_named(change: dict[str, Any], kind: type[Exception], rule: str) -> None:
    desc = DenseGemmDescriptor(**({"m": 1, "n": 1, "k": 1} | change))
    with pytest.raises(kind) as caught:
        bp.select(desc, "host")
    assert caught.value.rule == rule


@pytest.fixture
def with_library() -> Any:
    """A registry that believes cuBLASLt is installed; dry runs never load it."""
    registry = new_registry()
    registry.register_backend(HostBackend())
    registry.register_backend(CublasLtBackend(CudaBackend(), lambda: None))
    registry.register(OP)
    return registry


def served(registry: Any, desc: DenseGemmDescriptor) -> bool:
    try:
        return registry.select(desc, "sm_90").sku.backend is BackendKind.CUBLAS
    except NoKernel:
        return False


def test_the_library_serves_what_it_can_do_and_no_more(with_library: Any) -> None:
    desc = DenseGemmDescriptor(8, 8, 8)
    for element in ELEMENTS:
        for epilogue in EpilogueKind:
            fused = epilogue is EpilogueKind.IDENTITY or element is not ElementKind.F64
            expected = fused and epilogue is not EpilogueKind.BIAS_SILU
            asked = desc.with_element(element).with_epilogue(epilogue).with_gelu(GeluForm.TANH)
            assert served(with_library, asked) is expected
    assert not served(with_library, DenseGemmDescriptor(8, 8, 0))


def test_the_tanh_form_stands_in_only_where_nothing_else_was_asked_for(with_library: Any) -> None:
    desc = DenseGemmDescriptor(8, 8, 8, epilogue=EpilogueKind.BIAS_GELU)
    for element in (ElementKind.F16, ElementKind.BF16):
        assert served(with_library, desc.with_element(element))
        assert not served(with_library, desc.with_element(element).with_gelu(GeluForm.EXACT))
    assert not served(with_library, desc.with_element(ElementKind.F32))
    with pytest.raises(NoKernel, match="GELU is the tanh form"):
        with_library.select(desc.with_gelu(GeluForm.EXACT), "sm_90")


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("layout", LayoutSku)
def test_operands_of_another_layout_are_refused_by_name(layout: LayoutSku, batch: int | None) -> None:
    desc = DenseGemmDescriptor(2, 3, 4, batch, layout, ElementKind.F32)
    given = tensors(desc)
    plan = bp.select(desc, "host")
    for name in ("a", "b", "output"):
        turned = np.ascontiguousarray(given[name].swapaxes(-1, -2))
        with pytest.raises(InvalidProblem) as caught:
            plan.can_implement(DenseGemmArgs(**(given | {name: turned})))
        assert caught.value.rule == f"{name} shape"


@pytest.mark.parametrize("element", [ElementKind.BF16, ElementKind.F32, ElementKind.F64], ids=lambda one: one.name)
@pytest.mark.parametrize("form", GeluForm)
@pytest.mark.parametrize("at", [-4.5, -5.0])
def test_gelu_keeps_its_digits_where_it_is_nearly_zero(element: ElementKind, form: GeluForm, at: float) -> None:
    desc = DenseGemmDescriptor(8, 64, 32, element=element, epilogue=EpilogueKind.BIAS_GELU, gelu=form)
    given = tensors(desc, scale=0.01) | {"bias": np.full(64, at, numpy_dtype(element))}
    exact = OP.reference(desc, **given)
    plan = bp.select(desc, "host")
    assert error(run_on_host(desc, given), exact) <= relative_tolerance(plan.precision_guarantee, element)


def test_the_reference_of_the_tanh_form_does_not_cancel() -> None:
    desc = DenseGemmDescriptor(1, 1, 1, element=ElementKind.F64, epilogue=EpilogueKind.BIAS_GELU, gelu=GeluForm.TANH)
    zero = np.zeros((1, 1))
    found = OP.reference(desc, a=zero, b=zero, output=zero, bias=np.array([-8.0]))
    depth = math.sqrt(2 / math.pi) * (8 + 0.044715 * 8**3)
    assert found.item() == pytest.approx(-8 / (1 + math.exp(2 * depth)), rel=1e-12)


@pytest.mark.parametrize("epilogue", [EpilogueKind.BIAS_RELU, EpilogueKind.BIAS_SILU, EpilogueKind.BIAS_GELU])
def test_kernel_and_oracle_agree_on_what_is_no_number(epilogue: EpilogueKind) -> None:
    desc = DenseGemmDescriptor(1, 4, 1, element=ElementKind.F32, epilogue=epilogue)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in (("a", (1, 1)), ("b", (1, 4)), ("output", (1, 4)))}
    given = zeros | {"bias": np.array([math.nan, -math.inf, math.inf, 1], np.float32)}
    with np.errstate(all="ignore"):
        exact = OP.reference(desc, **given)
    assert np.allclose(run_on_host(desc, given), exact, equal_nan=True)
    assert math.isnan(exact[0, 0])


def test_a_batch_of_small_matrices_is_multiplied_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    desc = DenseGemmDescriptor(4, 5, 6, batch=1000, element=ElementKind.F32, beta=0.5)
    given = tensors(desc)
    products = []
    product = dense_gemm_host._product
    monkeypatch.setattr(dense_gemm_host, "_product", lambda *those: products.append(1) or product(*those))
    assert error(run_on_host(desc, given), OP.reference(desc, **given)) <= 1e-6
    assert len(products) == 1
