"""What the AWQ GEMM's CUDA kernel of fp8 activations promises beyond the generic laws, on an emulated GPU.

The emulator adds a group's products in f64: here nothing but f32 sums and the output's rounding is lost. A real GPU's
tensor cores keep fewer bits.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cuda_emulator.backend import HOPPER_SLICE, EmulatorBackend, emulated_registry

import baracuda_py as bp
from baracuda_py.ops.quantize import awq_fp8_gemm_sm90a as fp8
from baracuda_py.ops.quantize.awq_tiles import pack_tiles
from baracuda_py.testing.calls import Call, Case, frobenius_error, reference_outputs
from baracuda_py.testing.data import inputs_for
from baracuda_py.vocab.enums import ArchSku

TILED = bp.AwqWeightLayout.TILED
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
ROUNDOFF = {bp.ElementKind.F16: 2.0**-11, bp.ElementKind.BF16: 2.0**-8}


def _case(registry, descriptor) -> Case:
    [sku] = registry.skus(
        op=bp.QuantizeKind.INT4_AWQ_FP8_GEMM, arch=ArchSku.SM90A, element=descriptor.element,
        epilogue=descriptor.epilogue,
    )  # fmt: skip
    kernel = registry.kernel(sku)
    return Case(registry, registry.op("int4_awq_fp8_gemm"), kernel, descriptor, registry.device(0))


def _run(case: Case, inputs) -> np.ndarray:
    return Call.of(case, inputs).run()["output"]


@pytest.mark.parametrize("group", [128, 64, 32, -1])
@pytest.mark.parametrize("ic", [128, 192, 160])
def test_rows_of_the_identity_give_every_weight(registry, group, ic):
    if ic % group:
        pytest.skip("groups do not end in the middle")
    oc, random = 264, np.random.default_rng(ic)
    groups = 1 if group == -1 else ic // group
    q = random.integers(0, 16, (oc, ic))
    z = np.resize(np.arange(16), (groups, oc)).astype(np.uint8)  # each meets nearly every q
    scales = (1 + random.integers(0, 64, (groups, oc)) / 64).astype(np.float16)  # an output needs 11 bits
    words = sum(q.reshape(oc, -1, 8)[..., i].astype(np.uint32) << np.uint32(4 * i) for i in range(8))
    inputs = {
        "activation": np.eye(ic, dtype=np.float32).astype(E4M3), "activation_scales": np.ones(ic, np.float32),
        "weight_packed": pack_tiles(words, z, scales, group), "scales": None, "zeros": None,
    }  # fmt: skip
    descriptor = bp.Int4AwqFp8GemmDescriptor(ic, ic, oc, group, TILED)
    weight = (q.T - np.repeat(z, ic // groups, 0).astype(int)) * np.repeat(scales.astype(np.float64), ic // groups, 0)
    np.testing.assert_array_equal(_run(_case(registry, descriptor), inputs), weight)


@pytest.mark.parametrize(("group", "element"), [(128, "F16"), (64, "BF16"), (32, "F16"), (-1, "BF16")])
@pytest.mark.parametrize("tokens", [64, 128, 256])
def test_tiles_taken_whole_and_tiles_that_are_split_meet(modules, monkeypatch, tokens, group, element):
    registry = emulated_registry(EmulatorBackend(modules, HOPPER_SLICE))
    monkeypatch.setattr(bp, "default_registry", lambda: registry)
    monkeypatch.setattr(fp8, "_cut", lambda desc, device: fp8.WideCut.of(desc, device, tokens, splitting=True))
    # A thread block has one tile and a part of another, or more; the last channels, tokens and blocks of ic are ragged.
    descriptor = bp.Int4AwqFp8GemmDescriptor(
        2 * tokens + 9, 1056 + 96 * (group == 128) + 32 * (group == 64), 264, group, TILED, bp.ElementKind[element],
        epilogue=bp.EpilogueKind.BIAS_GELU,
    )  # fmt: skip
    case = _case(registry, descriptor)
    main, finish = case.plan.launches
    whole, split, splits, _ = main.parameters[10:14]
    assert min(whole, split) > 0, "both kinds"
    assert splits > 1
    assert main.grid[0] >= split * splits
    assert f"_{element.lower()}_t{tokens}_" in main.entry
    assert finish.entry == f"{main.entry}_finish"
    inputs = inputs_for(case.op, descriptor)
    exact = reference_outputs(case.op, descriptor, inputs)["output"]
    assert frobenius_error(_run(case, inputs), exact) <= ROUNDOFF[descriptor.element]


def test_the_largest_values_and_scales_do_not_overflow_on_the_way(registry):
    descriptor = bp.Int4AwqFp8GemmDescriptor(3, 256, 64, 128, TILED, bp.ElementKind.BF16)
    case = _case(registry, descriptor)
    inputs = inputs_for(case.op, descriptor)
    inputs["activation"][...] = 448
    inputs["activation"][:, 128:] = -448  # halves cancel, but for their scales
    inputs["activation_scales"][...] = 2.0**100, 2.0**-100, 2.0**-4
    scales = np.ones((2, 64), ml_dtypes.bfloat16)
    scales[0], scales[1] = 2.0**112, 2.0**111  # 2^9 times the sum is beyond f32
    words = np.full((64, 32), 2**32 - 1, np.uint32)
    inputs["weight_packed"] = pack_tiles(words, np.zeros((2, 64), np.uint8), scales, 128)
    found = _run(case, inputs).astype(np.float64)
    sums = 128 * 448 * 15 * 2.0**111
    np.testing.assert_array_equal(np.isinf(found[0]), True)
    np.testing.assert_allclose(found[1], sums * 2.0**-100, rtol=2.0**-8)
    np.testing.assert_allclose(found[2], sums * 2.0**-4, rtol=2.0**-8)


@pytest.mark.parametrize("group", [128, 32])
def test_nan_stays_in_its_row(registry, group):
    descriptor = bp.Int4AwqFp8GemmDescriptor(7, 256, 64, group, TILED)
    case = _case(registry, descriptor)
    inputs = inputs_for(case.op, descriptor)
    plain = _run(case, inputs)
    inputs["activation"][2, 37], inputs["activation_scales"][4] = np.nan, np.nan
    found = _run(case, inputs)
    assert np.isnan(found[[2, 4]]).all()
    others = [0, 1, 3, 5, 6]
    assert found[others].tobytes() == plain[others].tobytes()
