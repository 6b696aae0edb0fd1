"""Laws of the AWQ GEMM of fp8 activations, beyond those that hold for every op; with the op that makes them."""

from __future__ import annotations

import re

import attrs
import ml_dtypes
import numpy as np
import pytest

import baracuda_py as bp
import baracuda_py.sys
from baracuda_py.ops.quantize.awq_fp8_gemm import OP
from baracuda_py.ops.quantize.awq_gemm import OP as AWQ_GEMM
from baracuda_py.testing.calls import frobenius_error, reference_outputs
from baracuda_py.testing.data import inputs_for
from baracuda_py.vocab.code import TensorMap
from baracuda_py.vocab.elements import numpy_dtype

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
ELEMENTS = (bp.ElementKind.F16, bp.ElementKind.BF16)
PAIR_LIMIT = 2.0**-4 / 3**0.5  # of quantising and multiplying: independent roundings to e4m3


def multiplied(desc: bp.Int4AwqFp8GemmDescriptor, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The host's output as float64."""
    output = np.full((desc.m, desc.oc), np.nan, numpy_dtype(desc.element))
    plan = bp.select(desc, "host")
    plan.run(None, bp.Workspace.NONE, bp.Int4AwqFp8GemmArgs(**inputs, output=output))
    return output.astype(np.float64)


def quantized(x: np.ndarray, element: bp.ElementKind) -> dict[str, np.ndarray]:
    values, scales = np.zeros(x.shape, E4M3), np.full(len(x), np.nan, np.float32)
    plan = bp.select(bp.QuantizePerTokenDescriptor(*x.shape, element), "host")
    plan.run(None, bp.Workspace.NONE, bp.QuantizePerTokenArgs(x, values, scales))
    return {"activation": values, "activation_scales": scales}


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
@pytest.mark.parametrize("group", [128, 32, -1])
def test_quantising_and_multiplying_loses_what_fp8_loses_and_no_more(layout, element, group):
    m, ic, oc = 40, 1024, 136
    wide = bp.Int4AwqGemmDescriptor(m, ic, oc, group, None, layout, element)
    given = inputs_for(AWQ_GEMM, wide)
    sizes = 10.0 ** np.arange(-3, 2).repeat(m // 5)[:, None]
    x = (np.random.default_rng(1).standard_normal((m, ic)) * sizes).astype(numpy_dtype(element))
    exact = reference_outputs(AWQ_GEMM, wide, given | {"activation": x})["output"]
    narrow = bp.Int4AwqFp8GemmDescriptor(m, ic, oc, group, layout, element)
    inputs = {name: given[name] for name in ("weight_packed", "scales", "zeros")} | quantized(x, element)
    found = multiplied(narrow, inputs)
    for size in np.unique(sizes):  # the largest rows do not hide the others
        rows = sizes[:, 0] == size
        assert 0.01 <= frobenius_error(found[rows], exact[rows]) <= PAIR_LIMIT


@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
def test_no_output_of_the_pair_is_further_off_than_the_roundings_of_its_row_allow(layout):
    m, ic, oc = 12, 256, 64
    wide = bp.Int4AwqGemmDescriptor(m, ic, oc, 64, None, layout)
    given = inputs_for(AWQ_GEMM, wide)
    x = np.exp(np.random.default_rng(2).normal(0, 3, (m, ic)))  # many are subnormal in fp8
    x = (x / x.max(axis=1, keepdims=True)).astype(np.float16)
    weight = reference_outputs(
        AWQ_GEMM, attrs.evolve(wide, m=ic), given | {"activation": np.eye(ic, dtype=np.float16)}
    )["output"]  # fmt: skip
    rows = quantized(x, bp.ElementKind.F16)
    lost = np.maximum(2.0**-4 * np.abs(x.astype(np.float64)), 2.0**-10 * rows["activation_scales"][:, None])
    inputs = {name: given[name] for name in ("weight_packed", "scales", "zeros")} | rows
    found = multiplied(bp.Int4AwqFp8GemmDescriptor(m, ic, oc, 64, layout), inputs)
    exact = x.astype(np.float64) @ weight
    limit = lost @ np.abs(weight) * (1 + 2.0**-11) + 2.0**-11 * np.abs(exact) + 2.0**-14
    assert (np.abs(found - exact) <= limit).all()


@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
def test_a_rows_scale_scales_its_row_alone(layout):
    desc = bp.Int4AwqFp8GemmDescriptor(5, 256, 64, 64, layout)
    inputs = inputs_for(OP, desc)
    inputs["activation_scales"] = np.ones(5, np.float32)
    plain = multiplied(desc, inputs)
    inputs["activation_scales"][2] = -4
    np.testing.assert_array_equal(multiplied(desc, inputs), plain * np.array([1, 1, -4, 1, 1])[:, None])


def test_rows_beyond_one_pass_have_their_own_scales():
    desc = bp.Int4AwqFp8GemmDescriptor(1030, 32, 8, 32)
    inputs = inputs_for(OP, desc)
    exact = reference_outputs(OP, desc, inputs)["output"]
    np.testing.assert_allclose(multiplied(desc, inputs), exact, rtol=2.0**-10, atol=1e-2)


def test_it_is_an_op_of_its_own_that_selection_of_the_other_does_not_take():
    kinds = {kernel.sku.kind for kernel in AWQ_GEMM.kernels}
    assert kinds.isdisjoint(OP.kinds)
    assert {kernel.sku.kind for kernel in OP.kernels} == set(OP.kinds)


def test_activations_that_are_not_fp8_are_refused():
    desc = bp.Int4AwqFp8GemmDescriptor(3, 256, 64)
    inputs = inputs_for(OP, desc)
    inputs["activation"] = inputs["activation"].astype(np.float16)
    with pytest.raises(bp.errors.BaracudaError, match="activation"):
        multiplied(desc, inputs)


@pytest.mark.parametrize(
    "module", [one for one in baracuda_py.sys.modules() if re.search("awq_fp8_gemm|tiled_wide", one.name)],
    ids=lambda module: module.name,
)  # fmt: skip
def test_nothing_is_read_past_the_wait_for_the_launch_before(module):
    """Which does not hold back loads through the read-only cache; x, its scales and a bias that launch may write."""
    text = module.ptx.decode()
    assert "griddepcontrol.wait" in text
    assert ("ld.relaxed.gpu.global.f32" in text) == ("fp8" in module.name)
    assert "ld.global.u16" not in text
    assert "ld.global.nc" not in text.replace("ld.global.nc.v4.f32", "")  # but parts, in a launch that does not overlap


@pytest.mark.parametrize(("ic", "oc"), [(4096, 4096), (28672, 8192)])
def test_a_box_of_more_than_the_fewest_tokens_has_some_of_both_halves_of_a_tile(ic, oc):
    registry = bp.default_registry()
    few = baracuda_py.sys.module("quantize.awq_fp8_gemm.tiled_f16_g1", "sm90a").constant("kFp8FewTokens")
    seen = set()
    for m in range(1, 600):
        desc = bp.Int4AwqFp8GemmDescriptor(m, ic, oc, weight_layout=bp.AwqWeightLayout.TILED)
        launch = registry.select(desc, "sm_90").launches[0]
        tokens = int(re.search(r"_t(\d+)_", launch.entry)[1])
        [boxes] = [one for one in launch.parameters if isinstance(one, TensorMap)]
        assert boxes.box[1] <= tokens
        assert tokens <= few or boxes.box[1] > tokens // 2
        seen.add(tokens)
    assert max(seen) > few
